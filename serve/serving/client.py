"""The chat client: questions about recordings as requests to a server, and its replies as answers."""

from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property

from data.conversations.rows import Message, assistant, user
from data.ecg import Ecg
from data.wire import chat_messages
from data.wire.http import Client, Reply
from serve.vllm_plugin.notes import FIELD

HEADER = "X-Ecg-Model"  # NAME=HASH of every model that is served, with commas between
_CHAT, _MODELS = "/v1/chat/completions", "/v1/models"

Notes = tuple[tuple[str, ...], ...]  # sentences about each recording, in order: what is wrong with it
Turns = Sequence[tuple[str, str]]  # earlier questions about the same recordings, each with its answer


def conversation(ecgs: int, question: str, history: Turns = ()) -> list[Message]:
    """A question and the turns before it as messages; the recordings stand in the first of them."""
    messages: list[Message] = []
    for earlier, answer in history:
        messages += [user(0 if messages else ecgs, earlier), assistant(answer)]
    return [*messages, user(0 if messages else ecgs, question)]


@dataclass(frozen=True)
class Answer:
    """An answer of a model."""

    text: str
    model: str  # name under which it is served
    model_hash: str  # tells its training and weights from others; empty where the server does not say
    cut: bool  # whether the answer was longer than `max_tokens`
    prompt_tokens: int  # of the conversation, ECGs included
    tokens: int  # of the answer
    notes: Notes = ()  # on the recordings; empty where the server says nothing of any of them


class Pieces:
    """Pieces of an answer as they come.

    Attributes:
        notes: Sentences about each recording, as in `Answer`, once the first piece is here.
    """

    def __init__(self, events: Generator[Reply, None, None]) -> None:
        self._notes: list[Notes] = []
        self._pieces = _pieces(events, self._notes)

    @property
    def notes(self) -> Notes:
        """Sentences about each recording, once the first piece is here."""
        return self._notes[0] if self._notes else ()

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        return next(self._pieces)

    def close(self) -> None:
        """Close the connection, on which the server stops working on the answer."""
        self._pieces.close()


def _pieces(events: Generator[Reply, None, None], notes: list[Notes]) -> Generator[str, None, None]:
    with closing(events):
        for event in events:
            if FIELD in event.value:
                notes.append(_notes(event))
            if event.at("choices") and (piece := event.at("choices", 0, "delta").get("content")):
                yield piece


def _notes(reply: Reply) -> Notes:
    return tuple(tuple(map(str, sentences)) for sentences in reply.value.get(FIELD, ()))


class EcgChat:
    """Asks a server about ECGs. May be used by several threads at once.

    Args:
        url: Address of the server, such as `http://127.0.0.1:8000`; `/v1` behind it is understood.
        api_key: The key it was started with.
        model: Name of the model; by default the first that is served.
        timeout: Seconds of silence after which a request fails.

    Raises:
        ValueError: The URL is none of HTTP.
    """

    def __init__(self, url: str, api_key: str | None = None, model: str | None = None, *, timeout: float = 120) -> None:
        self.url = url.rstrip("/").removesuffix("/v1").rstrip("/")
        hint = "Is the server running? python -m serve.server --model DIR"
        self._model, self._client = model, Client(self.url, api_key, timeout=timeout, hint=hint)

    @cached_property
    def model(self) -> str:
        """Name of the model that is asked; errors are those of `models`."""
        return self._model or self.models()[0]

    def models(self) -> list[str]:
        """Names of the models that are served, the base before its adapters.

        Raises:
            ServerError: The server cannot be reached, or does not answer as ours does.
        """
        reply = self._client.json(_MODELS)
        return [str(reply.at("data", i, "id")) for i in range(len(reply.at("data")))]

    def hash(self) -> str:
        """Hash of the model's training and weights, asked without a question; empty where the server does not say."""
        return self._hash(self._client.json(_MODELS))

    def ask(
        self, ecgs: Ecg | Sequence[Ecg], question: str, history: Turns = (), max_tokens: int | None = None
    ) -> Answer:
        """The answer to a question.

        Args:
            ecgs: The recording, or several in the order the question speaks of them, or none.
            question: The words to ask.
            history: Questions asked before about the same recordings, each with its answer, the first one first.
            max_tokens: Where the answer is cut; by default where the server cuts it.

        Raises:
            ValueError: A recording has samples that are not finite.
            ServerError: The server cannot be reached, refuses the request or fails.
        """
        reply = self._client.json(_CHAT, self._body(ecgs, question, history, max_tokens))
        prompt_tokens, tokens = (int(reply.at("usage", name)) for name in ("prompt_tokens", "completion_tokens"))
        text, cut = reply.at("choices", 0, "message", "content"), reply.at("choices", 0, "finish_reason") == "length"
        answer = (text or "").strip()
        return Answer(answer, self.model, self._hash(reply), cut, prompt_tokens, tokens, _notes(reply))

    def stream(
        self, ecgs: Ecg | Sequence[Ecg], question: str, history: Turns = (), max_tokens: int | None = None
    ) -> Pieces:
        """Pieces of the answer as they come; arguments and errors are those of `ask`.

        Closing them (`close()`, or leaving the loop and dropping them) closes the connection, on which the server
        stops working on the answer.
        """
        return Pieces(self._client.events(_CHAT, self._body(ecgs, question, history, max_tokens)))

    def _body(
        self, ecgs: Ecg | Sequence[Ecg], question: str, history: Turns, max_tokens: int | None
    ) -> dict[str, object]:
        recordings = [ecgs] if isinstance(ecgs, Ecg) else list(ecgs)
        messages = chat_messages(conversation(len(recordings), question, history), recordings)
        body = {"model": self.model, "messages": messages, "temperature": 0}
        return body if max_tokens is None else {**body, "max_tokens": max_tokens}

    def _hash(self, reply: Reply) -> str:
        """The hash of the model in the reply's header, which has one for every model that is served."""
        pairs = (pair.strip().rpartition("=") for pair in reply.headers.get(HEADER, "").split(","))
        return {name: digest for name, _, digest in pairs}.get(self.model, "")
