"""Asking a server: an OpenAI-compatible one that takes ECGs, such as vLLM with the house's plugin.

An ECG travels as an `audio_url` part, a kind that vLLM's chat API knows and hands on unread, with a `data:` URL of
`data.wire`. Altered recordings are altered here and sent like any other.
"""

from __future__ import annotations

import http.client
import json
import logging
import re
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from hashlib import sha256
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

from data.experiment.conditions import Altered, condition_named
from data.wire import chat_messages
from data.wire.http import ServerError, bearer, failure, opener
from eval.answerers.model import question_messages

if TYPE_CHECKING:
    from data.conversations.rows import Message, Row
    from data.ecg import EcgSource

logger = logging.getLogger(__name__)

T = TypeVar("T")
U = TypeVar("U")
_WAIT = (0.5, 30.0)  # seconds before the first repetition, doubled for each further one, and at most


class ServerResponder:
    """Asks an OpenAI-compatible chat server, greedily, several questions at a time.

    The server prepares recordings by itself, so it can be asked under conditions that change the row or the recording.
    What answers a server gives can depend on which requests it computes together, in the last digits of probabilities.

    Log-probabilities come from vLLM's `prompt_logprobs`, by two kinds of requests to `/chat/completions`: the question
    with `return_token_ids`, and for each option the question and the option as the assistant's turn, with
    `add_generation_prompt` false and `prompt_logprobs` 0. The tokens by which the second prompt is longer are the
    option, end of turn included. With prefix caching the numbers depend on the order of requests
    (github.com/vllm-project/vllm/issues/42019), so the caller must say that it is off; where the server has /metrics,
    they are asked whether that is so.

    Args:
        url: Base of the API, such as `http://127.0.0.1:8000/v1`.
        model: Name under which the server knows the model.
        source: The recordings, as they are; the alterations of `data.experiment.conditions` are made of them.
        api_key: Sent as a bearer token.
        prefix_caching_off: The server was started with `--no-enable-prefix-caching`.
        concurrency: Requests in flight.
        max_new_tokens: Where an answer is cut.
        timeout: Seconds until a silent server counts as unreachable.
        retries: How often a request is repeated while the server is unreachable, too busy (429) or failing (5xx).
    """

    levels = frozenset({"row", "recording"})

    def __init__(
        self,
        url: str,
        model: str,
        source: EcgSource,
        api_key: str | None = None,
        *,
        prefix_caching_off: bool = False,
        concurrency: int = 16,
        max_new_tokens: int = 48,
        timeout: float = 120.0,
        retries: int = 5,
    ) -> None:
        if urlsplit(url).scheme not in ("http", "https"):
            raise ValueError(f"url must begin with http:// or https://, got {url!r}")
        if concurrency < 1:
            raise ValueError(f"concurrency must be positive, got {concurrency}")
        self.url, self.model, self.source, self.api_key = url.rstrip("/"), model, Altered(source), api_key
        self.scores, self.concurrency, self.max_new_tokens = prefix_caching_off, concurrency, max_new_tokens
        self.timeout, self.retries = timeout, retries
        self._opener = opener()

    @property
    def name(self) -> str:
        """A hash of the server's address and the model's name: which weights it serves, a server does not tell."""
        return sha256(json.dumps([self.url, self.model, self.max_new_tokens]).encode()).hexdigest()[:16]

    def prepare(self, rows: Sequence[Row], condition: str) -> None:
        """Refuses a condition the server cannot be asked under.

        Raises:
            ValueError: It is done to what a model computes from a recording.
        """
        known = condition_named(condition)
        if known.level not in self.levels:
            raise ValueError(
                f"a server cannot be asked under {condition!r}: it is done to what a model computes from a recording, "
                "which happens inside the server. Leave it out, take 'flat' for a recording of 0 mV, or ask the saved "
                "model itself"
            )

    def ask(self, rows: Sequence[Row], condition: str) -> list[str]:
        """One answer per row, in the order of the rows.

        Raises:
            ValueError: A server cannot be asked under this condition.
            ServerError: A request failed.
        """
        self.prepare(rows, condition)
        return self._all(lambda row: self._answer(self._messages(row)), rows)

    def _answer(self, messages: list[Message]) -> str:
        reply = self._chat(messages, max_tokens=self.max_new_tokens)
        return (self._of(reply, "choices", 0, "message", "content") or "").strip()

    def score(self, rows: Sequence[Row], condition: str, options: Sequence[Sequence[str]]) -> list[list[float]]:
        """Per row, log p of each of its options: of its tokens behind the question, end of turn included.

        Raises:
            ValueError: A server cannot be asked under this condition, or was not said to be without prefix caching.
            ServerError: A request failed, the server caches prefixes, or it does not give what is needed.
        """
        self.prepare(rows, condition)
        if not self.scores:
            raise ValueError(
                "the log-probabilities of a server with prefix caching depend on the order of requests: start it with "
                "--no-enable-prefix-caching, and give prefix_caching_off=True"
            )
        _ = self._checked
        questions = self._all(lambda row: self._tokens(self._messages(row), add_generation_prompt=True), rows)
        pairs = [(i, text) for i, texts in enumerate(options) for text in dict.fromkeys(texts)]
        scored = self._all(lambda pair: self._score(self._messages(rows[pair[0]]), questions[pair[0]], pair[1]), pairs)
        found = dict(zip(pairs, scored))
        return [[found[i, text] for text in texts] for i, texts in enumerate(options)]

    def _tokens(self, messages: list[Message], **settings: Any) -> list[int]:
        ids = self._of(self._chat(messages, max_tokens=1, return_token_ids=True, **settings), "prompt_token_ids")
        return list(ids)

    def _score(self, messages: list[Message], question: list[int], option: str) -> float:
        """Log p of the option's tokens; white space that a chat template puts behind the end of turn is not of it."""
        messages = [*messages, {"role": "assistant", "content": option}]
        reply = self._chat(
            messages, max_tokens=1, return_token_ids=True, add_generation_prompt=False, prompt_logprobs=0
        )
        ids, table = self._of(reply, "prompt_token_ids"), self._of(reply, "prompt_logprobs")
        if ids[: len(question)] != question or len(ids) == len(question) or len(table) != len(ids):
            raise ServerError(
                f"{self.url} cannot score the answer {option!r}: its prompt of {len(ids)} tokens, with {len(table)} "
                f"log-probabilities, does not go on from that of the question, of {len(question)} tokens"
            )
        own = slice(len(question), None)
        said = [self._of(entry, str(token)) for token, entry in zip(ids[own], table[own])]
        while said and not (said[-1].get("decoded_token") or "-").strip():
            said.pop()
        return sum(float(token["logprob"]) for token in said)

    @cached_property
    def _checked(self) -> bool:
        """Whether the server's own word was found that it does not cache prefixes."""
        url = self.url.removesuffix("/v1") + "/metrics"
        try:
            metrics = self._request(urllib.request.Request(url, headers=self._headers)).decode(errors="replace")
        except ServerError as error:
            logger.warning("cannot verify that prefix caching is off: %s", error)
            return False
        found = re.findall(r'^vllm:cache_config_info\{.*enable_prefix_caching="(\w+)"', metrics, re.MULTILINE)
        if "True" in found:
            raise ServerError(
                f"{url} says that prefix caching is on, with which log-probabilities depend on the order of requests: "
                "start the server with --no-enable-prefix-caching"
            )
        return bool(found)

    def _messages(self, row: Row) -> list[Message]:
        """The question, its recordings in the row's order."""
        return chat_messages(question_messages(row), (self.source[record] for record in row["ecgs"]))

    # --- requests -----------------------------------------------------------------------------------------------------

    def _all(self, fn: Callable[[T], U], items: Sequence[T]) -> list[U]:
        """`fn` of all items, in their order, `concurrency` at a time; the first error ends it."""
        with ThreadPoolExecutor(self.concurrency) as pool:
            return list(pool.map(fn, items))

    def _chat(self, messages: list[Message], **settings: Any) -> Any:
        body = json.dumps({"model": self.model, "messages": messages, "temperature": 0, **settings}).encode()
        headers = {**self._headers, "Content-Type": "application/json"}
        reply = self._request(urllib.request.Request(f"{self.url}/chat/completions", body, headers))
        try:
            return json.loads(reply)
        except ValueError as error:
            raise ServerError(f"{self.url}/chat/completions does not answer in JSON: {reply[:200]!r}") from error

    @property
    def _headers(self) -> dict[str, str]:
        return bearer(self.api_key)

    def _request(self, request: urllib.request.Request) -> bytes:
        """The body of the reply, after as many repetitions as it takes and are allowed."""
        attempt = 0
        while True:
            try:
                with self._opener.open(request, timeout=self.timeout) as reply:
                    body: bytes = reply.read()
                    return body
            except urllib.error.HTTPError as error:
                worth_repeating, status = error.code == 429 or error.code >= 500, error.code
                reason = failure(error)
            except (OSError, http.client.HTTPException) as error:
                worth_repeating, status = True, None
                reason = str(getattr(error, "reason", error)) or type(error).__name__
            if not worth_repeating or attempt >= self.retries:
                tried = f" ({attempt + 1} attempts)" if attempt else ""
                raise ServerError(f"{request.get_method()} {request.full_url}: {reason}{tried}", status)
            time.sleep(min(_WAIT[0] * 2**attempt, _WAIT[1]))
            attempt += 1

    def _of(self, reply: Any, *path: str | int) -> Any:
        """A field of a reply."""
        for key in path:
            try:
                reply = reply[key]
            except (KeyError, IndexError, TypeError) as error:
                raise ServerError(
                    f"the reply of {self.url} has no {key!r}, which vLLM's has: {json.dumps(reply)[:200]}"
                ) from error
        return reply
