"""A reply of vLLM's with a field of ours in it: what is wrong with the recordings that were asked about."""

import json
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from serve.vllm_plugin.notes import FIELD, Notes

_DATA = b"data: "

Event = MutableMapping[str, Any]
Send = Callable[[Event], Awaitable[None]]


class Noted:
    """Sends a reply on. The notes stand in its JSON, or in the first part of a stream, whose rest is left alone.

    They are looked at when the reply begins: the recordings have been read by then.
    """

    def __init__(self, send: Send, notes: Notes) -> None:
        self._send, self._notes = send, notes
        self._start: Event | None = None  # of a reply in one piece, which waits for its new length
        self._held: bytes | None = None  # what came of the piece that gets the notes; None before and after that

    async def __call__(self, event: Event) -> None:
        """Take the next event of the reply."""
        if event["type"] == "http.response.start":
            await self._begin(event)
        elif self._held is None or event["type"] != "http.response.body":
            await self._send(event)
        else:
            self._held += event.get("body", b"")
            if self._start is not None:
                await self._whole(event)
            elif _holds_a_part(self._held) or not event.get("more_body"):
                body, self._held = _first_part(self._held, self._notes), None
                await self._send({**event, "body": body})

    async def _begin(self, start: Event) -> None:
        kind = {name.lower(): value for name, value in start.get("headers", ())}.get(b"content-type", b"")
        is_noted = bool(self._notes) and start["status"] == 200
        if is_noted and kind.startswith((b"application/json", b"text/event-stream")):
            self._held = b""
        if self._held is not None and kind.startswith(b"application/json"):
            self._start = start
        else:
            await self._send(start)

    async def _whole(self, event: Event) -> None:
        if event.get("more_body"):
            return
        assert self._start is not None and self._held is not None
        body, self._held = _with_notes(self._held, self._notes), None
        headers = [(name, value) for name, value in self._start["headers"] if name.lower() != b"content-length"]
        await self._send({**self._start, "headers": [*headers, (b"content-length", str(len(body)).encode())]})
        await self._send({**event, "body": body})


def _holds_a_part(stream: bytes) -> bool:
    """Whether a whole part is here, beside the protocol's comments."""
    return any(event.startswith(_DATA) for event in stream.split(b"\n\n")[:-1])


def _first_part(stream: bytes, notes: Notes) -> bytes:
    """The beginning of a stream, with the notes in its first part."""
    events = stream.split(b"\n\n")
    first = next((i for i, event in enumerate(events) if event.startswith(_DATA)), None)
    if first is not None:
        events[first] = _DATA + _with_notes(events[first].removeprefix(_DATA), notes)
    return b"\n\n".join(events)


def _with_notes(data: bytes, notes: Notes) -> bytes:
    """JSON with the notes in it; an error, or what is no JSON, as it is."""
    try:
        fields = json.loads(data)
    except ValueError:
        return data
    if not isinstance(fields, dict) or "error" in fields:
        return data
    return json.dumps({**fields, FIELD: notes}, ensure_ascii=False).encode()
