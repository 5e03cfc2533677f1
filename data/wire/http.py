"""Requests to a chat server: no redirections, as recordings and keys go to nobody else, and errors in its own words."""

import json
import logging
import re
import time
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Self

import httpx

from data.support.sentences import Refused

logging.getLogger("httpx").setLevel(logging.WARNING)  # its line for every request would bury those of a command

HINT = "Is the server running, and the address right?"
WAIT = (0.5, 30.0)  # s before the first repetition, doubled for each further one, and at most


class ServerError(Refused):
    """A request failed for good; names it, the status and the server's message."""

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status  # of the reply; None where there was none


@dataclass(frozen=True)
class Reply:
    """JSON from a server."""

    url: str  # the address that was asked
    value: Any  # the parsed JSON
    headers: Mapping[str, str]

    @classmethod
    def parse(cls, url: str, data: bytes, headers: Mapping[str, str] = MappingProxyType({})) -> Self:
        """The reply in these bytes.

        Raises:
            ServerError: They are no JSON.
        """
        try:
            return cls(url, json.loads(data), headers)
        except ValueError as error:
            raise ServerError(f"{url} does not answer in JSON: {data[:200]!r}") from error

    def at(self, *path: str | int) -> Any:
        """The field at this path of keys and indices.

        Raises:
            ServerError: There is none; names the key that is missing.
        """
        value = self.value
        for key in path:
            try:
                value = value[key]
            except (KeyError, IndexError, TypeError) as error:
                raise ServerError(
                    f"the reply of {self.url} has no {key!r}, which vLLM's has: {json.dumps(value)[:200]}"
                ) from error
        return value


class Client:
    """Asks one server; may be used by several threads at once.

    Args:
        url: Beginning of all addresses, such as `http://127.0.0.1:8000`.
        api_key: Sent as a bearer token.
        timeout: Seconds of silence after which a request fails.
        retries: How often a request is repeated while the server is unreachable, too busy (429) or failing (5xx).
        hint: Sentence that ends an error without a reply: what to do.

    Raises:
        ValueError: The URL is none of HTTP.
    """

    def __init__(
        self, url: str, api_key: str | None = None, *, timeout: float = 120.0, retries: int = 0, hint: str = HINT
    ) -> None:
        if not url.startswith(("http://", "https://")):
            raise ValueError(f"url must begin with http:// or https://, got {url!r}")
        self.url, self.retries, self.hint = url, retries, hint
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        # A connection for each request: a server may close an idle one just when the next request is on its way.
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)
        self._http = httpx.Client(headers=headers, timeout=timeout, limits=limits)

    def text(self, path: str) -> str:
        """The reply to a GET as text; errors are those of `json`."""
        return self._reply(path, None).text

    def json(self, path: str, body: Mapping[str, object] | None = None) -> Reply:
        """The reply to a GET, or to a POST of a JSON body.

        Raises:
            ServerError: The server cannot be reached, refuses the request, fails, or does not answer in JSON.
        """
        reply = self._reply(path, body)
        return Reply.parse(self.url + path, reply.content, reply.headers)

    def events(self, path: str, body: Mapping[str, object]) -> Generator[Reply, None, None]:
        """Parts of a streamed reply. Closing the generator closes the connection, which ends the server's work on it.

        Raises:
            ServerError: As `json`, without repetitions; also where the reply breaks off.
        """
        with self._open(path, {**body, "stream": True}) as reply:
            for line in _lines(reply):
                if not line.startswith(b"data:"):
                    continue
                data = line.removeprefix(b"data:").strip()
                if data == b"[DONE]":
                    return
                event = Reply.parse(self.url + path, data)
                if isinstance(event.value, dict) and "error" in event.value:
                    raise ServerError(f"{event.url}: the answer broke off: {event.at('error', 'message')}")
                yield event
        raise ServerError(f"{self.url + path}: the answer broke off: the server closed the connection")

    def _reply(self, path: str, body: Mapping[str, object] | None) -> httpx.Response:
        """The whole reply, after as many repetitions as are needed and allowed."""
        attempt = 1
        while True:
            try:
                with self._open(path, body) as reply:
                    reply.read()
                    return reply
            except ServerError as error:
                passing = error.status is None or error.status == 429 or error.status >= 500
                if not passing or attempt > self.retries:
                    if attempt == 1:
                        raise
                    hint = f". {self.hint}" if error.status is None else ""
                    problem = str(error).removesuffix(hint)
                    raise ServerError(f"{problem} ({attempt} attempts){hint}", error.status) from error
            time.sleep(min(WAIT[0] * 2 ** (attempt - 1), WAIT[1]))
            attempt += 1

    @contextmanager
    def _open(self, path: str, body: Mapping[str, object] | None) -> Iterator[httpx.Response]:
        method, data = ("GET", None) if body is None else ("POST", json.dumps(body).encode())
        headers = {} if body is None else {"Content-Type": "application/json"}
        try:
            with self._http.stream(method, self.url + path, content=data, headers=headers) as reply:
                if not reply.is_success:
                    reply.read()
                    problem = f"{reply.status_code} {reply.reason_phrase}: {_message(reply)}"
                    raise ServerError(f"{method} {self.url}{path}: {problem}", reply.status_code)
                yield reply
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            problem = re.sub(r"\[Errno -?\d+\] ", "", str(error)) or type(error).__name__
            raise ServerError(f"{method} {self.url}{path}: no answer: {problem}. {self.hint}") from error


def _lines(reply: httpx.Response) -> Iterator[bytes]:
    """Lines of a stream, split as bytes: `iter_lines` ends them at characters that answers hold, such as U+2028."""
    tail = b""
    for block in reply.iter_bytes():
        *lines, tail = (tail + block).split(b"\n")
        yield from lines
    yield tail


def _message(reply: httpx.Response) -> str:
    """The server's own words about a failure."""
    try:
        value = json.loads(reply.content)
        error = value.get("error", value)
        return str(error["message"] if isinstance(error, dict) and "message" in error else error)
    except (ValueError, AttributeError):
        return reply.text[:500].strip()
