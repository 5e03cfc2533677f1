"""Asks a server: an OpenAI-compatible one that takes ECGs, such as vLLM with our plugin.

An ECG travels as an `audio_url` part, a kind that vLLM's chat API knows and hands on unread, with a `data:` URL of
`data.wire`. Recordings are altered on this side, and their URLs say so: a server refuses other flat lines and noise.
"""

import json
import logging
import re
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import KW_ONLY, dataclass, field
from functools import cached_property
from hashlib import sha256
from typing import TypeVar

from data.conversations.rows import Message, Row
from data.ecg import EcgSource
from data.experiment.conditions import Altered, condition_named, is_altered
from data.wire import chat_messages
from data.wire.http import Client, Reply, ServerError
from eval.answerers.base import question_messages

logger = logging.getLogger(__name__)

T = TypeVar("T")
U = TypeVar("U")


@dataclass(eq=False)
class ServerResponder:
    """Asks an OpenAI-compatible chat server, greedily, several questions at a time.

    The server prepares recordings by itself, so it can be asked under conditions that change the row or the recording.
    Its answers can depend on which requests it computes together, in the last digits of probabilities.

    Log-probabilities come from vLLM's `prompt_logprobs`, by two kinds of requests to `/chat/completions`: the question
    with `return_token_ids`, and for each option the question and the option as the assistant's turn, with
    `add_generation_prompt` false and `prompt_logprobs` 0. The tokens by which the second prompt is longer are the
    option, end of turn included. With prefix caching the numbers depend on the order of requests
    (github.com/vllm-project/vllm/issues/42019), so the caller must say that it is off; /metrics is asked whether
    that is so, where the server has it.
    """

    levels = frozenset({"row", "recording"})

    url: str  # base of the API, such as `http://127.0.0.1:8000/v1`
    model: str  # name under which the server knows the model
    source: EcgSource  # the recordings, from which `data.experiment.conditions` makes altered ones
    api_key: str | None = field(default=None, repr=False)  # sent as a bearer token
    _: KW_ONLY
    prefix_caching_off: bool = False  # the server was started with `--no-enable-prefix-caching`
    concurrency: int = 16  # requests in flight
    max_new_tokens: int = 48  # where an answer is cut
    timeout: float = 120.0  # seconds until a silent server counts as unreachable
    retries: int = 5  # how often a request is repeated while the server is unreachable, too busy (429) or failing (5xx)

    def __post_init__(self) -> None:
        if self.concurrency < 1:
            raise ValueError(f"concurrency must be positive, got {self.concurrency}")
        self.url, self.source = self.url.rstrip("/"), Altered(self.source)
        root = self.url.removesuffix("/v1")  # behind which /metrics stands
        self._client = Client(root, self.api_key, timeout=self.timeout, retries=self.retries)
        self._chat_path = f"{self.url.removeprefix(root)}/chat/completions"

    @property
    def scores(self) -> bool:
        """Whether log-probabilities can be asked for."""
        return self.prefix_caching_off

    @property
    def name(self) -> str:
        """Hash of the server's address, the model's name and the limit of tokens: no server tells its weights."""
        return sha256(json.dumps([self.url, self.model, self.max_new_tokens]).encode()).hexdigest()[:16]

    def prepare(self, rows: Sequence[Row], condition: str) -> None:
        """Refuse a condition the server cannot be asked under.

        Raises:
            ValueError: It is done to what a model computes from a recording.
        """
        if condition_named(condition).level not in self.levels:
            raise ValueError(
                f"a server cannot be asked under {condition!r}: it is done to what a model computes from a recording, "
                "which happens inside the server. Leave it out, take 'flat' for a recording of 0 mV, or ask the saved "
                "model itself"
            )

    def inputs(self, rows: Sequence[Row], condition: str) -> list[str]:
        """The words of each row and its recordings' ids: rows with equal texts are the same request."""
        return [json.dumps([question_messages(row), row["ecgs"]]) for row in rows]

    def ask(self, rows: Sequence[Row], condition: str) -> list[str]:
        """One answer per row, in the order of the rows.

        Raises:
            ValueError: A server cannot be asked under this condition.
            ServerError: A request failed.
        """
        self.prepare(rows, condition)
        return self._all(self._answer, rows)

    def _answer(self, row: Row) -> str:
        reply = self._chat(self._messages(row), max_tokens=self.max_new_tokens)
        return (reply.at("choices", 0, "message", "content") or "").strip()

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
                "--no-enable-prefix-caching, and say so with --prefix_caching_off"
            )
        _ = self._checked
        questions = self._all(self._question_ids, rows)
        pairs = [(i, text) for i, texts in enumerate(options) for text in dict.fromkeys(texts)]
        scored = self._all(lambda pair: self._score(rows[pair[0]], questions[pair[0]], pair[1]), pairs)
        score_of = dict(zip(pairs, scored))
        return [[score_of[i, text] for text in texts] for i, texts in enumerate(options)]

    def _question_ids(self, row: Row) -> list[int]:
        reply = self._chat(self._messages(row), max_tokens=1, return_token_ids=True, add_generation_prompt=True)
        return list(reply.at("prompt_token_ids"))

    def _score(self, row: Row, question: list[int], option: str) -> float:
        """Log p of the option's tokens, without the white space that a chat template puts behind the end of turn."""
        messages = [*self._messages(row), {"role": "assistant", "content": option}]
        settings = {"max_tokens": 1, "return_token_ids": True, "add_generation_prompt": False, "prompt_logprobs": 0}
        reply = self._chat(messages, **settings)
        ids, table = reply.at("prompt_token_ids"), reply.at("prompt_logprobs")
        if ids[: len(question)] != question or len(ids) == len(question) or len(table) != len(ids):
            raise ServerError(
                f"{self.url} cannot score the answer {option!r}: its prompt of {len(ids)} tokens, with {len(table)} "
                f"log-probabilities, does not go on from that of the question, of {len(question)} tokens"
            )
        tokens = [reply.at("prompt_logprobs", i, str(ids[i])) for i in range(len(question), len(ids))]
        while tokens and not (tokens[-1].get("decoded_token") or "-").strip():
            tokens.pop()
        return sum(float(token["logprob"]) for token in tokens)

    @cached_property
    def _checked(self) -> bool:
        """Whether the server confirms that it does not cache prefixes; a `ServerError` where it says that it does."""
        try:
            metrics = self._client.text("/metrics")
        except ServerError as error:
            logger.warning("cannot verify that prefix caching is off: %s", error)
            return False
        caching = re.findall(r'^vllm:cache_config_info\{.*enable_prefix_caching="(\w+)"', metrics, re.MULTILINE)
        if "True" in caching:
            raise ServerError(
                f"{self._client.url}/metrics says that prefix caching is on, with which log-probabilities depend on "
                "the order of requests: start the server with --no-enable-prefix-caching"
            )
        return bool(caching)

    def _messages(self, row: Row) -> list[Message]:
        """The question, its recordings in the row's order."""
        altered = any(map(is_altered, row["ecgs"]))
        return chat_messages(question_messages(row), (self.source[record] for record in row["ecgs"]), altered)

    def _all(self, fn: Callable[[T], U], items: Sequence[T]) -> list[U]:
        """`fn` of all items, in their order, `concurrency` at a time; the first error ends it."""
        with ThreadPoolExecutor(self.concurrency) as pool:
            return list(pool.map(fn, items))

    def _chat(self, messages: list[Message], **settings: int) -> Reply:
        request = {"model": self.model, "messages": messages, "temperature": 0, **settings}
        return self._client.json(self._chat_path, request)
