"""A responder that remembers: what it has asked in the same words about the same input, it does not ask again.

Donors are asked the same question, so many prompts of `swap` and `swap-flip` stood under `real` already; zeros are the
same for all recordings, and without an ECG only words differ. So most of an audit is answered from memory.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol, runtime_checkable

from data.conversations.rows import Row
from eval.answerers.base import Responder

Answered = tuple[str, Mapping[str, float]]  # an answer, and log p of each text that was scored


@runtime_checkable
class KnowsInputs(Protocol):
    """A responder that tells which rows are one and the same to it."""

    def inputs(self, rows: Sequence[Row], condition: str) -> list[str]:
        """Of each row a text; rows with equal texts, under whatever condition, get equal answers."""
        ...


def remembering(responder: Responder) -> Responder:
    """The responder with a memory, where it can tell its inputs apart."""
    return Remembering(responder) if isinstance(responder, KnowsInputs) else responder


class Remembering:
    """Asks another responder only what it has not asked yet.

    Args:
        responder: Who answers; it must have `inputs`.
    """

    def __init__(self, responder: Responder) -> None:
        assert isinstance(responder, KnowsInputs)
        self.responder, self._inputs = responder, responder.inputs
        self.levels, self.scores, self.name = responder.levels, responder.scores, responder.name
        self._texts: dict[str, str] = {}
        self._scores: dict[tuple[str, str], float] = {}
        self._unread: list[tuple[Sequence[Row], str, Sequence[Answered]]] = []

    def prepare(self, rows: Sequence[Row], condition: str) -> None:
        """Has the other one prepare."""
        self.responder.prepare(rows, condition)

    def learn(self, rows: Sequence[Row], condition: str, answers: Sequence[Answered]) -> None:
        """Take over what was answered earlier. It is looked at once something is asked: often there is nothing left."""
        self._unread.append((rows, condition, answers))

    def _read(self) -> None:
        for rows, condition, answers in self._unread:
            for key, (text, scores) in zip(self._inputs(rows, condition), answers, strict=True):
                self._texts.setdefault(key, text)
                for option, score in scores.items():
                    self._scores.setdefault((key, option), score)
        self._unread = []

    def ask(self, rows: Sequence[Row], condition: str) -> list[str]:
        """One answer per row, in the order of the rows."""
        self._read()
        keys = self._inputs(rows, condition)
        new: dict[str, Row] = {}
        for key, row in zip(keys, rows, strict=True):
            if key not in self._texts:
                new.setdefault(key, row)
        if new:
            self._texts.update(zip(new, self.responder.ask(list(new.values()), condition), strict=True))
        return [self._texts[key] for key in keys]

    def score(self, rows: Sequence[Row], condition: str, options: Sequence[Sequence[str]]) -> list[list[float]]:
        """Per row, log p of each of its options."""
        self._read()
        keys = self._inputs(rows, condition)
        new: dict[str, tuple[Row, dict[str, None]]] = {}
        for key, row, texts in zip(keys, rows, options, strict=True):
            for text in texts:
                if (key, text) not in self._scores:
                    new.setdefault(key, (row, {}))[1][text] = None
        if new:
            texts_of = [list(texts) for _, texts in new.values()]
            scored = self.responder.score([row for row, _ in new.values()], condition, texts_of)
            for key, texts, scores in zip(new, texts_of, scored, strict=True):
                self._scores.update(zip(((key, text) for text in texts), scores, strict=True))
        return [[self._scores[key, text] for text in texts] for key, texts in zip(keys, options, strict=True)]
