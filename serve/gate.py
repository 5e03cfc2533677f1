"""What stands in front of vLLM's HTTP server: few paths, the key, a limit of bytes, and the models' hashes.

vLLM's own key guards only what begins with /v1, and its server has paths that load weights, pause the engine or answer
without a key. Here everything that is not listed does not exist, and everything but /health asks for the key.

vLLM makes the gate by its name, in each of its processes that serve HTTP, so its settings stand in the environment.
"""

from __future__ import annotations

import hmac
import json
import os
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from serve.client import HEADER

API_KEY = "ECG_API_KEY"  # names in the environment
MODELS = "ECG_SERVED_MODELS"
MAX_BYTES = "ECG_MAX_REQUEST_BYTES"
OPEN = ("GET", "/health")
ALLOWED = (OPEN, ("GET", "/metrics"), ("GET", "/v1/models"), ("POST", "/v1/chat/completions"))

Event = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Event]]
Send = Callable[[Event], Awaitable[None]]


class Gate:
    """ASGI middleware. Refusals are JSON in the form of OpenAI's, so that clients show the sentence."""

    def __init__(self, app: Callable[[Event, Receive, Send], Awaitable[None]]) -> None:
        self.app = app
        self.key = os.environ.get(API_KEY, "").encode()
        self.models = os.environ.get(MODELS, "").encode()
        self.max_bytes = int(os.environ[MAX_BYTES])

    async def __call__(self, scope: Event, receive: Receive, send: Send) -> None:
        """Hand a request on, or refuse it."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
        elif scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
        else:
            await self._http(scope, receive, send)

    async def _http(self, scope: Event, receive: Receive, send: Send) -> None:
        async def named(event: Event) -> None:
            if event["type"] == "http.response.start":
                event["headers"] = [*event.get("headers", ()), (HEADER.lower().encode(), self.models)]
            await send(event)

        if refusal := self._refusal(scope):
            status, message = refusal
            await self._drained(receive)
            body = json.dumps({"error": {"message": message, "type": "refused", "code": status}}).encode()
            headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
            headers.append((b"connection", b"close"))  # there may be more of the body than was read
            await named({"type": "http.response.start", "status": status, "headers": headers})
            await send({"type": "http.response.body", "body": body})
        else:
            await self.app(scope, receive, named)

    async def _drained(self, receive: Receive) -> None:
        """Read the body, within the limit: a client that still sends when the connection ends may not see the reply."""
        left = self.max_bytes
        while left > 0:
            event = await receive()
            left -= len(event.get("body", b""))
            if not event.get("more_body"):
                return

    def _refusal(self, scope: Event) -> tuple[int, str] | None:
        asked = (scope["method"], scope["path"])
        headers = {name.lower(): value for name, value in scope["headers"]}
        if self.key and asked != OPEN:
            scheme, _, shown = headers.get(b"authorization", b"").partition(b" ")
            if scheme.lower() != b"bearer" or not hmac.compare_digest(shown.strip(), self.key):
                return 401, "this server asks for a key: send it as 'Authorization: Bearer KEY'"
        if asked not in ALLOWED:
            known = ", ".join(f"{method} {path}" for method, path in ALLOWED)
            return 404, f"there is no {' '.join(asked)} here, only {known}"
        if asked[0] == "POST":
            length = headers.get(b"content-length", b"")
            if not length.isdigit():
                return 411, "a request must say how long it is (Content-Length)"
            if int(length) > self.max_bytes:
                size, most = int(length) / 2**20, self.max_bytes / 2**20
                return 413, f"the request has {size:.1f} MiB, more than {most:g}: send fewer or shorter ECGs"
        return None
