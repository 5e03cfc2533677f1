"""What every client of a server of ours does alike: no redirections, and the server's own words in errors."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from typing import Any


class ServerError(RuntimeError):
    """A request failed for good; names it, the status and what the server says.

    Attributes:
        status: Of the reply; None where there was none.
    """

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *args: Any, **kwargs: Any) -> None:
        return None


def opener() -> urllib.request.OpenerDirector:
    """Opens URLs; a redirection is a failure: recordings and keys go to nobody else than they were meant for."""
    return urllib.request.build_opener(_NoRedirects)


def bearer(api_key: str | None) -> dict[str, str]:
    """The header that shows a key, if there is one."""
    return {"Authorization": f"Bearer {api_key}"} if api_key else {}


def failure(error: urllib.error.HTTPError) -> str:
    """Status, reason, and what the server says of a failure."""
    return f"{error.code} {error.reason}: {_said(error)}"


def _said(error: urllib.error.HTTPError) -> str:
    body = error.read().decode(errors="replace")
    try:
        reply = json.loads(body)
        found = reply.get("error", reply)
        return str(found["message"] if isinstance(found, dict) and "message" in found else found)
    except (ValueError, AttributeError):
        return body[:500].strip()
