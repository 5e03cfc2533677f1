"""A gate in front of vLLM's HTTP server: few paths, the key, a limit of bytes, the models' hashes, notes on ECGs.

vLLM's own key guards only what begins with /v1, and its server has paths that load weights, pause the engine or answer
without a key. Behind the gate, paths that are not listed do not exist, and all but /health ask for the key.

The same goes for the fields of a request. vLLM has some that replace or cut the prompt, jump the queue, compile a
stranger's grammar or reach into other machines' caches, and headers that do the like. A field that is not listed is
refused, such a header left out. vLLM reads a request as the gate has written it anew, so that both have seen the same:
one value of each name, numbers that are finite, text that is UTF-8.

vLLM makes the gate by its name, in each of its processes that serve HTTP, so its settings stand in the environment.
"""

import asyncio
import hmac
import json
import os
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from serve.serving.client import HEADER
from serve.serving.noted import Noted
from serve.vllm_plugin.notes import collect

API_KEY = "ECG_API_KEY"  # names in the environment
MODELS = "ECG_SERVED_MODELS"
MAX_BYTES = "ECG_MAX_REQUEST_BYTES"
OPEN = ("GET", "/health")
CHAT = ("POST", "/v1/chat/completions")
ALLOWED = (OPEN, ("GET", "/metrics"), ("GET", "/v1/models"), CHAT)
HEADERS = (b"accept", b"content-type")
FIELDS = (
    "add_generation_prompt", "frequency_penalty", "ignore_eos", "logprobs", "max_completion_tokens", "max_tokens",
    "messages", "min_p", "model", "n", "presence_penalty", "prompt_logprobs", "repetition_penalty", "return_token_ids",
    "seed", "stop", "stream", "stream_options", "temperature", "top_k", "top_logprobs", "top_p", "user",
)  # fmt: skip
MAX_VALUES = 2**16  # of a request: small ones take many times their size in memory
MAX_NAME = 2**8  # characters of the model's: vLLM looks for paths in what it says of it, in quadratic time
MAX_MESSAGES = 2**10  # vLLM looks at each by itself, and answers nobody meanwhile
BODY_SECONDS = 60  # in which a request must have come: the process does not end while one is on its way

Event = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Event]]
Send = Callable[[Event], Awaitable[None]]


def rewritten(body: bytes) -> bytes:
    """The body of a chat request as vLLM reads it: without fields that are null.

    Raises:
        ValueError: It is no JSON object, says too much, or sets what is not in `FIELDS`.
    """
    if sum(map(body.count, (b",", b"[", b"{"))) > MAX_VALUES:  # an ECG has none of them, a question few
        raise ValueError(f"the request has more than {MAX_VALUES} commas and brackets")
    try:
        fields = json.loads(body.decode(), parse_int=_integer)
        if not isinstance(fields, dict):
            raise ValueError(f"a request must be an object, got {type(fields).__name__}")
        fields = {name: value for name, value in fields.items() if value is not None}
        out = json.dumps(fields, ensure_ascii=False, allow_nan=False).encode()
    except (ValueError, RecursionError) as error:
        raise ValueError(f"the request cannot be read as JSON: {error}") from error
    if odd := sorted(fields.keys() - set(FIELDS)):
        raise ValueError(f"a request may not set {', '.join(odd)[:200]} here, only {', '.join(FIELDS)}")
    model, messages = fields.get("model"), fields.get("messages")
    if isinstance(model, str) and len(model) > MAX_NAME:
        raise ValueError(f"the model's name has {len(model)} characters, more than {MAX_NAME}")
    if isinstance(messages, list) and len(messages) > MAX_MESSAGES:
        raise ValueError(f"the request has {len(messages)} messages, more than {MAX_MESSAGES}")
    return out


def _integer(text: str) -> int:
    number = int(text)
    if not -(2**63) <= number < 2**63:  # vLLM could not tell its engine
        raise ValueError(f"the number {text[:20]}... has more than 64 bits")
    return number


class Gate:
    """ASGI middleware. Refusals are JSON in the form of OpenAI's, so that clients show the sentence."""

    engine_died = False  # whether the server ended because its engine did: vLLM's own status is 0 then

    def __init__(self, app: Callable[[Event, Receive, Send], Awaitable[None]]) -> None:
        self.app = app
        self.key = os.environ.get(API_KEY, "").encode()
        self.models = os.environ.get(MODELS, "").encode()
        self.max_bytes = int(os.environ[MAX_BYTES])

    async def __call__(self, scope: Event, receive: Receive, send: Send) -> None:
        """Hand a request on, or refuse it."""
        if scope["type"] == "lifespan":
            engine = scope["app"].state.engine_client  # which vLLM forgets at the end
            await self.app(scope, receive, send)
            processes = engine.engine_core.resources.engine_manager  # None where another process has started them
            Gate.engine_died = processes is not None and processes.failed_proc_name is not None
        elif scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
        else:
            await self._http(scope, receive, send)

    async def _http(self, scope: Event, receive: Receive, send: Send) -> None:
        async def named(event: Event) -> None:
            if event["type"] == "http.response.start":
                event["headers"] = [*event.get("headers", ()), (HEADER.lower().encode(), self.models)]
            await send(event)

        refusal, body = self._refusal(scope), b""
        try:
            async with asyncio.timeout(BODY_SECONDS):
                if (body := await self._body(receive, keep=refusal is None)) is None:
                    return
        except TimeoutError:
            refusal = refusal or (408, f"the request was not here after {BODY_SECONDS} seconds")
        if refusal is None and (scope["method"], scope["path"]) == CHAT:
            try:
                body = rewritten(body)
            except ValueError as error:
                refusal = 400, str(error)
        if refusal:
            status, message = refusal
            reply = json.dumps({"error": {"message": message, "type": "refused", "code": status}}).encode()
            headers = [(b"content-type", b"application/json"), (b"content-length", str(len(reply)).encode())]
            headers.append((b"connection", b"close"))  # there may be more of the body than was read
            await named({"type": "http.response.start", "status": status, "headers": headers})
            await send({"type": "http.response.body", "body": reply})
            return

        async def received() -> Event:
            return whole.pop() if whole else await receive()

        whole: list[Event] = [{"type": "http.request", "body": body, "more_body": False}]
        headers = [(name, value) for name, value in scope["headers"] if name.lower() in HEADERS]
        headers.append((b"content-length", str(len(body)).encode()))
        await self.app({**scope, "headers": headers}, received, Noted(named, collect()))

    async def _body(self, receive: Receive, keep: bool) -> bytes | None:
        """The body, read within the limit; None where the client hangs up before the end, and nobody waits for a reply.

        A refused one is read too, though dropped: a client that still sends when the connection ends may not see the
        reply.
        """
        parts, room = [], self.max_bytes
        while room > 0:
            event = await receive()
            if event["type"] == "http.disconnect":
                return None
            part = event.get("body", b"")
            room -= len(part)
            if keep:
                parts.append(part)
            if not event.get("more_body"):
                break
        return b"".join(parts)

    def _refusal(self, scope: Event) -> tuple[int, str] | None:
        target = (scope["method"], scope["path"])
        headers = {name.lower(): value for name, value in scope["headers"]}
        if self.key and target != OPEN:
            scheme, _, shown = headers.get(b"authorization", b"").partition(b" ")
            if scheme.lower() != b"bearer" or not hmac.compare_digest(shown.strip(), self.key):
                return 401, "this server asks for a key: send it as 'Authorization: Bearer KEY'"
        if target not in ALLOWED:
            allowed = ", ".join(f"{method} {path}" for method, path in ALLOWED)
            return 404, f"there is no {' '.join(target)} here, only {allowed}"
        if target[0] == "POST":
            length = headers.get(b"content-length", b"")
            if not length.isdigit():
                return 411, "a request must say how long it is (Content-Length)"
            if int(length) > self.max_bytes:
                size, most = int(length) / 2**20, self.max_bytes / 2**20
                return 413, f"the request has {size:.1f} MiB, more than {most:g}: send fewer or shorter ECGs"
        return None
