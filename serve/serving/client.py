"""Asking a server that `python -m serve.server` started. Needs neither torch nor vLLM.

    from serve.client import EcgChat

    chat = EcgChat("http://127.0.0.1:8000")
    answer = chat.ask(read_ecg("record"), "Is this a normal ECG?")
    print(answer.text, answer.model_hash)
    for piece in chat.stream(ecg, "And the rhythm?", history=[("Is this a normal ECG?", answer.text)]):
        print(piece, end="", flush=True)

Answers are greedy. What is asked is sent nowhere else: redirections are not followed.
"""

from __future__ import annotations

import http.client
import json
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from data.conversations.rows import assistant, user
from data.ecg import Ecg
from data.http import ServerError, bearer, failure, opener
from data.wire import chat_messages

if TYPE_CHECKING:
    from data.conversations.rows import Message

HEADER = "X-Ecg-Model"  # NAME=HASH of every model that is served, with commas between

__all__ = ["HEADER", "Answer", "EcgChat", "ServerError"]


@dataclass(frozen=True)
class Answer:
    """What a model said.

    Attributes:
        text: Its words.
        model: Name under which it is served.
        model_hash: Which training and weights it is; empty where the server does not say.
        cut: Whether it had more to say than `max_tokens`.
        prompt_tokens: Tokens of what was asked, ECGs included.
        tokens: Tokens of the answer.
    """

    text: str
    model: str
    model_hash: str
    cut: bool
    prompt_tokens: int
    tokens: int


class EcgChat:
    """Asks a server about ECGs. May be used by several threads at once.

    Args:
        url: Where it listens, such as `http://127.0.0.1:8000`; `/v1` behind it is understood.
        api_key: The key it was started with.
        model: Name of the model; by default the first that is served.
        timeout: Seconds of silence after which a request fails.

    Raises:
        ValueError: The URL is none of HTTP.
    """

    def __init__(self, url: str, api_key: str | None = None, model: str | None = None, *, timeout: float = 120) -> None:
        if urlsplit(url).scheme not in ("http", "https"):
            raise ValueError(f"url must begin with http:// or https://, got {url!r}")
        self.url = url.rstrip("/").removesuffix("/v1").rstrip("/")
        self.timeout, self._named, self._key, self._opener = timeout, model, api_key, opener()

    @cached_property
    def model(self) -> str:
        """Name of the model that is asked.

        Raises:
            ServerError: The server cannot be reached, or does not answer as ours does.
        """
        return self._named or self.models()[0]

    def models(self) -> list[str]:
        """Names of the models that are served, the base before its adapters.

        Raises:
            ServerError: The server cannot be reached, or does not answer as ours does.
        """
        return [str(self._of(model, "id")) for model in self._of(self._json("/v1/models")[0], "data")]

    def ask(
        self,
        ecgs: Ecg | Sequence[Ecg],
        question: str,
        history: Sequence[tuple[str, str]] = (),
        max_tokens: int | None = None,
    ) -> Answer:
        """The answer to a question.

        Args:
            ecgs: The recording, or several in the order the question speaks of them, or none.
            question: What to ask.
            history: Questions asked before about the same recordings, each with its answer, the first one first.
            max_tokens: Where the answer is cut; by default where the server cuts it.

        Raises:
            ValueError: A recording has samples that are not finite.
            ServerError: The server cannot be reached, refuses the request or fails.
        """
        reply, hashes = self._json("/v1/chat/completions", self._body(ecgs, question, history, max_tokens))
        used = self._of(reply, "usage")
        return Answer(
            text=(self._of(reply, "choices", 0, "message", "content") or "").strip(),
            model=self.model,
            model_hash=hashes.get(self.model, ""),
            cut=self._of(reply, "choices", 0, "finish_reason") == "length",
            prompt_tokens=int(self._of(used, "prompt_tokens")),
            tokens=int(self._of(used, "completion_tokens")),
        )

    def stream(
        self,
        ecgs: Ecg | Sequence[Ecg],
        question: str,
        history: Sequence[tuple[str, str]] = (),
        max_tokens: int | None = None,
    ) -> Iterator[str]:
        """Pieces of the answer as they are said; arguments and errors are those of `ask`.

        Closing the generator (`close()`, or leaving the loop and dropping it) closes the connection, on which the
        server stops working on the answer.
        """
        body = {**self._body(ecgs, question, history, max_tokens), "stream": True}
        with self._open("/v1/chat/completions", body) as reply:
            for line in reply:
                if not line.startswith(b"data:"):
                    continue
                data = line.removeprefix(b"data:").strip()
                if data == b"[DONE]":
                    return
                event = self._parsed(data)
                if "error" in event:
                    raise ServerError(f"{self.url}: the answer broke off: {self._of(event, 'error', 'message')}")
                if choices := self._of(event, "choices"):
                    piece = self._of(choices, 0, "delta").get("content")
                    if piece:
                        yield piece
        raise ServerError(f"{self.url}: the answer broke off: the server closed the connection")

    def hash(self) -> str:
        """Which training and weights the model is, asked without a question; empty where the server does not say."""
        return self._json("/v1/models")[1].get(self.model, "")

    # --- requests -----------------------------------------------------------------------------------------------------

    def _body(
        self, ecgs: Ecg | Sequence[Ecg], question: str, history: Sequence[tuple[str, str]], max_tokens: int | None
    ) -> dict[str, Any]:
        shown = [ecgs] if isinstance(ecgs, Ecg) else list(ecgs)
        messages: list[Message] = []
        for asked, said in history:
            messages += [user(0, asked), assistant(said)]
        messages.append(user(0, question))
        messages[0] = user(len(shown), history[0][0] if history else question)
        body: dict[str, Any] = {"model": self.model, "messages": chat_messages(messages, shown), "temperature": 0}
        return body if max_tokens is None else {**body, "max_tokens": max_tokens}

    def _json(self, path: str, body: dict[str, Any] | None = None) -> tuple[Any, dict[str, str]]:
        """The reply, and the hashes of the models by their names."""
        with self._open(path, body) as reply:
            pairs = (pair.strip().rpartition("=") for pair in (reply.headers.get(HEADER) or "").split(",") if pair)
            return self._parsed(reply.read()), {name: digest for name, _, digest in pairs}

    @contextmanager
    def _open(self, path: str, body: dict[str, Any] | None = None) -> Iterator[http.client.HTTPResponse]:
        headers = bearer(self._key)
        if body is not None:
            headers["Content-Type"] = "application/json"
        data = None if body is None else json.dumps(body).encode()
        try:
            with self._opener.open(urllib.request.Request(self.url + path, data, headers), timeout=self.timeout) as it:
                yield it
        except urllib.error.HTTPError as error:
            raise ServerError(f"{self.url}: {failure(error)}", error.code) from error
        except (urllib.error.URLError, OSError, http.client.HTTPException) as error:
            reason = str(getattr(error, "reason", error)) or type(error).__name__
            raise ServerError(
                f"no answer from {self.url}: {reason}. Is the server running? python -m serve.server --model DIR"
            ) from error

    def _parsed(self, data: bytes) -> Any:
        try:
            return json.loads(data)
        except ValueError as error:
            raise ServerError(f"{self.url} does not answer in JSON: {data[:200]!r}") from error

    def _of(self, reply: Any, *path: str | int) -> Any:
        for key in path:
            try:
                reply = reply[key]
            except (KeyError, IndexError, TypeError) as error:
                raise ServerError(f"the reply of {self.url} has no {key!r}: {json.dumps(reply)[:200]}") from error
        return reply
