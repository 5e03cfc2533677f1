"""A visitor's recordings and conversation: in memory alone, until the page is closed."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import Event, Lock, RLock
from typing import Literal

from serve.page.recordings import Recording

MOST_SESSIONS = 200

Condition = Literal["none", "swap"]
_MEANINGS = {  # by condition: of an answer that changed, of one that stayed
    "none": (
        "Without the ECG the answer is another one: the ECG matters to the model. That does not make it right.",
        "The answer did not change without the ECG: it may be a guess from the question.",
    ),
    "swap": (
        "The answer changed with the ECG, as that of a model that reads it would. That does not make it right.",
        "The answer did not change with another patient's ECG. Unless both ECGs show the same, it does not come "
        "from the ECG.",
    ),
}


@dataclass
class Answer:
    """An answer of the model, also while it is being given."""

    words: str = ""  # so far
    state: Literal["asking", "done", "stopped", "failed"] = "asking"
    about: str = ""  # the patient and measurements of the ECG, where it is not the one in the question


@dataclass
class Turn:
    """A question, its answer, and the answers to it under other conditions."""

    question: str
    answer: Answer
    history: list[Turn]  # earlier turns that the model was asked with
    forgotten: bool = False  # whether later questions are asked without it, as the conversation has become too long
    columns: dict[str, Answer] = field(default_factory=dict)  # by condition; "real" where the first had a history


@dataclass
class Session:
    """State of one visitor's page; what is a list has one entry for each of the two places, turns excepted."""

    recordings: list[Recording | None] = field(default_factory=lambda: [None, None])
    starts: list[float] = field(default_factory=lambda: [0.0, 0.0])  # s, the first that is shown and asked about
    compare: bool = False  # whether questions are about both
    notes: list[str] = field(default_factory=lambda: ["", ""])  # why an upload was not read
    waiting: list[list[tuple[str, bytes]]] = field(default_factory=lambda: [[], []])  # files that do not say it all
    turns: list[Turn] = field(default_factory=list)  # the conversation about these seconds; others begin another
    dropped: int = 0  # turns of it that were before those
    stop: Event = field(default_factory=Event)  # ends the answer that is being given
    busy: Lock = field(default_factory=Lock)  # held while one is

    def subjects(self) -> list[Recording]:
        """The recordings questions are about."""
        return [recording for recording in self.recordings[: 2 if self.compare else 1] if recording is not None]

    def put(self, place: int, recording: Recording | None) -> None:
        """Lay a recording on the desk; the conversation about the one before is over."""
        self.recordings[place], self.starts[place] = recording, 0.0
        self.waiting[place], self.notes[place] = [], ""
        self.begin()

    def begin(self) -> None:
        """Begin another conversation."""
        self.stop.set()
        self.turns, self.dropped = [], 0

    def forgotten(self) -> int:
        """Number of questions, from the first on, that are no longer part of the conversation."""
        last = max((i for i, turn in enumerate(self.turns, start=1) if turn.forgotten), default=0)
        return self.dropped + last

    def needs_words(self, place: int) -> bool:
        """Whether files wait for their sender to say what they do not: rate, units or leads."""
        return bool(self.waiting[place])

    def can_ask_again(self) -> bool:
        """Whether there is a finished answer about the recordings on the desk."""
        return bool(self.turns) and self.turns[-1].answer.state == "done"

    @contextmanager
    def answering(self) -> Iterator[None]:
        """Stop the answer that is still being given, and hold the session for the next one.

        Raises:
            ValueError: The answer before does not end.
        """
        self.stop.set()
        if not self.busy.acquire(timeout=60):
            raise ValueError("The answer before this one does not end. Wait a little, and ask again.")
        self.stop = Event()
        try:
            yield
        finally:
            self.busy.release()


class Sessions:
    """Sessions by Gradio's name for the open page. Beyond the limit, the visitor who came first is forgotten."""

    def __init__(self) -> None:
        self._open: dict[str, Session] = {}
        self._lock = RLock()

    def __len__(self) -> int:
        return len(self._open)

    def __getitem__(self, name: str) -> Session:
        with self._lock:
            if name not in self._open:
                while len(self._open) >= MOST_SESSIONS:
                    self.close(next(iter(self._open)))
                self._open[name] = Session()
            return self._open[name]

    def close(self, name: str) -> None:
        """Forget a visitor, and stop the answer that is computed for him."""
        with self._lock:
            if session := self._open.pop(name, None):
                session.stop.set()


def agree(one: str, other: str) -> bool:
    """Whether two answers have the same words, whatever stands between them."""
    return re.findall(r"\w+", one.casefold()) == re.findall(r"\w+", other.casefold())


def meaning(turn: Turn, condition: Condition) -> str:
    """Sentence on what it means that an answer stayed, or did not; empty while one is missing."""
    first, second = turn.columns.get("real", turn.answer), turn.columns.get(condition)
    if second is None or second.state != "done" or first.state != "done":
        return ""
    return _MEANINGS[condition][agree(first.words, second.words)]
