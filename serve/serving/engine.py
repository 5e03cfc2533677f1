"""What answers on the chat page: a model in this process (`LocalEngine`), or one behind a server (`RemoteEngine`).

Both stream an answer in pieces, and both end the work when they are told to stop or nobody listens any more: a page
that only looks away would leave the model busy for the next person.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Event, Lock, Thread
from typing import TYPE_CHECKING, Any, Protocol

from data.conversations.rows import Message, assistant, user
from data.ecg import Ecg

if TYPE_CHECKING:
    from serve.serving.client import EcgChat

_LOOK = 0.1  # s between two looks at whether to stop

Turns = Sequence[tuple[str, str]]  # questions about the recordings that were answered before, and the answers
Put, Over = Callable[[str], None], Callable[[], bool]


class Engine(Protocol):
    """Answers questions about recordings.

    Attributes:
        name: What the page calls the model.
        digest: Tells one training of it from another; empty where nobody knows.
    """

    name: str
    digest: str

    def stream(
        self, ecgs: Sequence[Ecg], question: str, history: Turns = (), stop: Event | None = None
    ) -> Iterator[str]:
        """The greedy answer, piece by piece.

        Args:
            ecgs: The recordings the conversation is about, in order; none, to ask the words alone.
            question: What is asked.
            history: Earlier turns of the same conversation, about the same recordings.
            stop: Set by anybody, ends the answer and the work on it. So does closing the generator.

        Raises:
            ValueError: The model cannot take these recordings, or so long a conversation; says why.
            RuntimeError: The server failed, or cannot be reached; says what to do.
        """
        ...


def conversation(ecgs: int, question: str, history: Turns = ()) -> list[Message]:
    """A question and what was said before it as messages; the recordings stand in the first of them."""
    messages: list[Message] = []
    for i, (asked, said) in enumerate(history):
        messages += [user(0 if i else ecgs, asked), assistant(said)]
    return [*messages, user(0 if messages else ecgs, question)]


def _streamed(produce: Callable[[Put, Over], None], stop: Event | None) -> Iterator[str]:
    """What `produce` puts out, in a thread of its own; it returns soon after it finds that it is over."""
    pieces: SimpleQueue[str | Exception | None] = SimpleQueue()
    gone = Event()

    def over() -> bool:
        return gone.is_set() or (stop is not None and stop.is_set())

    def run() -> None:
        try:
            produce(pieces.put, over)
        except Exception as error:
            pieces.put(error)
        pieces.put(None)

    Thread(target=run, daemon=True, name="answer").start()
    try:
        while not over():
            try:
                piece = pieces.get(timeout=_LOOK)
            except Empty:
                continue
            if isinstance(piece, Exception):
                raise piece
            if piece is None:
                return
            yield piece
    finally:
        gone.set()  # also when whoever listened has left


class LocalEngine:
    """A saved model in this process. One question at a time; the others wait, and can be stopped while they do.

    Args:
        folder: A folder of a saved model, or a hub id.
        max_new_tokens: Where an answer is cut.
        loaded: The model and its processor, where they are in memory already.
    """

    def __init__(self, folder: Path | str, max_new_tokens: int = 256, loaded: tuple[Any, Any] | None = None) -> None:
        import torch

        import elm
        from elm.saved.folder import resolve, training_digest

        self.max_new_tokens = max_new_tokens
        self.name = str(folder).rstrip("/").rpartition("/")[2] if Path(folder).is_dir() else str(folder)
        self.digest = ""
        if loaded is None:
            where = resolve(folder)
            loaded = elm.load(where)
            self.digest = training_digest(where) if (where / "training.json").exists() else ""
            loaded[0].to("cuda" if torch.cuda.is_available() else "cpu")
        self._model, self._processor = loaded
        self._lock = Lock()

    def stream(
        self, ecgs: Sequence[Ecg], question: str, history: Turns = (), stop: Event | None = None
    ) -> Iterator[str]:
        """See `Engine`."""

        def produce(put: Put, over: Over) -> None:
            while not self._lock.acquire(timeout=_LOOK):
                if over():
                    return
            try:
                if not over():
                    self._generate(ecgs, question, history, put, over)
            finally:
                self._lock.release()

        return _streamed(produce, stop)

    def _generate(self, ecgs: Sequence[Ecg], question: str, history: Turns, put: Put, over: Over) -> None:
        import torch
        from transformers import StoppingCriteriaList, TextStreamer

        class Pieces(TextStreamer):
            def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
                if text:
                    put(text)

        def stopped(ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
            return torch.full((len(ids),), over(), dtype=torch.bool, device=ids.device)

        messages = conversation(len(ecgs), question, history)
        inputs = self._processor(messages, ecgs or None, add_generation_prompt=True)
        inputs = inputs.to(self._model.device, self._model.dtype)  # casts the signal, not the ids
        with torch.inference_mode():
            self._model.generate(
                **inputs,
                do_sample=False,
                max_new_tokens=self.max_new_tokens,
                streamer=Pieces(self._processor.tokenizer, skip_prompt=True, skip_special_tokens=True),
                stopping_criteria=StoppingCriteriaList([stopped]),
            )


class RemoteEngine:
    """A model behind `python -m serve.server`, which is asked over HTTP.

    Args:
        chat: The client of that server.

    Raises:
        ServerError: The server cannot be reached, or does not answer as ours does.
    """

    def __init__(self, chat: EcgChat) -> None:
        self._chat, self.name, self.digest = chat, chat.model, chat.hash()

    def stream(
        self, ecgs: Sequence[Ecg], question: str, history: Turns = (), stop: Event | None = None
    ) -> Iterator[str]:
        """See `Engine`. Stopping closes the connection, on which the server stops working on the answer."""

        def produce(put: Put, over: Over) -> None:
            with closing(self._chat.stream(ecgs, question, history)) as pieces:
                for piece in pieces:
                    if over():
                        return
                    put(piece)

        return _streamed(produce, stop)
