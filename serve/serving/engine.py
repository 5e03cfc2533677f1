"""Engines answer on the chat page: a server's model (`RemoteEngine`), or one in this process (`serve.serving.local`).

They stream an answer in pieces, and end the work when they are told to stop or nobody listens any more: a page that
only looks away would leave the model busy for the next person.
"""

import logging
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from queue import Empty, SimpleQueue
from threading import Event, Thread
from typing import Protocol

from data.ecg import Ecg
from data.wire.http import ServerError
from serve.serving.client import EcgChat, Turns

logger = logging.getLogger(__name__)

LOOK = 0.1  # s between two looks at whether to stop
# How vLLM, and the server's plugin, begin to say that a conversation is too long.
_LENGTH = re.compile(r"context length|maximum (model|input) length|max_model_len|characters of text, more than")

Put, Over = Callable[[str], None], Callable[[], bool]


class TooLong(ValueError):
    """The model cannot read so long a conversation; raised before the first piece of an answer."""


class Engine(Protocol):
    """Answers questions about recordings. One that knows how many seconds its model reads says it as `seconds`."""

    name: str  # of the model, on the page
    digest: str  # tells one training of it from another; empty where it is not known

    def stream(
        self, ecgs: Sequence[Ecg], question: str, history: Turns = (), stop: Event | None = None
    ) -> Iterator[str]:
        """The greedy answer, piece by piece.

        Args:
            ecgs: The recordings the conversation is about, in order; none, to ask the words alone.
            question: The words to ask.
            history: Earlier turns about the same recordings.
            stop: Set by anybody, ends the answer and the work on it. So does closing the generator.

        Raises:
            TooLong: The conversation is too long.
            ValueError: The model cannot take these recordings; says why.
            RuntimeError: The server failed, or cannot be reached; says what to do.
        """
        ...


def streamed(produce: Callable[[Put, Over], None], stop: Event | None) -> Iterator[str]:
    """Pieces that `produce` puts out in a thread of its own; `produce` returns soon after it sees that it is over."""
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
                piece = pieces.get(timeout=LOOK)
            except Empty:
                continue
            if isinstance(piece, Exception):
                raise piece
            if piece is None:
                return
            yield piece
    finally:
        gone.set()  # also when whoever listened has left


class RemoteEngine:
    """A model behind `python -m serve.server`, which is asked over HTTP; raises as `EcgChat.models`."""

    def __init__(self, chat: EcgChat) -> None:
        self._chat, self.name, self.digest = chat, chat.model, chat.hash()

    def stream(
        self, ecgs: Sequence[Ecg], question: str, history: Turns = (), stop: Event | None = None
    ) -> Iterator[str]:
        """See `Engine`. Stopping closes the connection, on which the server stops working on the answer."""

        def produce(put: Put, over: Over) -> None:
            try:
                with closing(self._chat.stream(ecgs, question, history)) as pieces:
                    for piece in pieces:
                        if over():
                            return
                        put(piece)
            except ServerError as error:
                raise _to_visitor(error) from error

        return streamed(produce, stop)


def _to_visitor(error: ServerError) -> Exception:
    """The error as it is said to somebody who has not started the server."""
    if error.status == 400 and _LENGTH.search(str(error)):
        return TooLong("the question is too long for this model: shorten it")
    if error.status is None and "no answer:" in str(error):
        logger.warning("%s", error)
        return ServerError("there is no answer. Is the server running? Whoever runs this page can start it.")
    return error
