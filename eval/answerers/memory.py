"""A responder that asks nothing twice in the same words about the same input.

Donors are asked the same question, so many prompts of `swap` and `swap-flip` stood under `real` already; zeros are the
same for all recordings, and without an ECG only words differ. So most of an audit is answered from memory.
"""

from collections.abc import Mapping, Sequence
from typing import Protocol, runtime_checkable

from data.conversations.rows import Row
from eval.answerers.base import Responder

Answered = tuple[str, Mapping[str, float]]  # an answer, and log p of each text that was scored


@runtime_checkable
class KnowsInputs(Protocol):
    """A responder that tells which rows are one and the same to it."""

    def inputs(self, rows: Sequence[Row], condition: str) -> list[str]:
        """A text for each row; rows with equal texts, under whatever condition, get equal answers."""
        ...


def remembering(responder: Responder) -> Responder:
    """The responder with a memory, where it can tell its inputs apart."""
    return Remembering(responder) if isinstance(responder, KnowsInputs) else responder


class Remembering:
    """Asks another responder only what it has not asked yet."""

    def __init__(self, responder: Responder) -> None:
        assert isinstance(responder, KnowsInputs)
        self.responder, self.prepare, self._inputs = responder, responder.prepare, responder.inputs
        self.levels, self.scores, self.name = responder.levels, responder.scores, responder.name
        self._texts: dict[str, str] = {}
        self._scores: dict[tuple[str, str], float] = {}
        self._unread: list[tuple[Sequence[Row], str, Sequence[Answered]]] = []

    def learn(self, rows: Sequence[Row], condition: str, answers: Sequence[Answered]) -> None:
        """Take over what was answered earlier. It is looked at once something is asked: often there is nothing left."""
        self._unread.append((rows, condition, answers))

    def _keys(self, rows: Sequence[Row], condition: str) -> list[str]:
        """What the other responder tells these rows by, once all that was learned is looked at."""
        for earlier, under, answers in self._unread:
            for key, (text, scores) in zip(self._inputs(earlier, under), answers, strict=True):
                self._texts.setdefault(key, text)
                for option, score in scores.items():
                    self._scores.setdefault((key, option), score)
        self._unread = []
        return self._inputs(rows, condition)

    def ask(self, rows: Sequence[Row], condition: str) -> list[str]:
        """One answer per row, in the order of the rows."""
        keys = self._keys(rows, condition)
        new: dict[str, Row] = {}
        for key, row in zip(keys, rows, strict=True):
            if key not in self._texts:
                new.setdefault(key, row)
        if new:
            self._texts.update(zip(new, self.responder.ask(list(new.values()), condition), strict=True))
        return [self._texts[key] for key in keys]

    def score(self, rows: Sequence[Row], condition: str, options: Sequence[Sequence[str]]) -> list[list[float]]:
        """Per row, log p of each of its options."""
        keys = self._keys(rows, condition)
        new: dict[str, tuple[Row, list[str]]] = {}
        for key, row, texts in zip(keys, rows, options, strict=True):
            for text in texts:
                if (key, text) not in self._scores and text not in new.setdefault(key, (row, []))[1]:
                    new[key][1].append(text)
        if new:
            some, texts_of = [row for row, _ in new.values()], [texts for _, texts in new.values()]
            scored = self.responder.score(some, condition, texts_of)
            for key, texts, scores in zip(new, texts_of, scored, strict=True):
                self._scores.update(((key, text), score) for text, score in zip(texts, scores, strict=True))
        return [[self._scores[key, text] for text in texts] for key, texts in zip(keys, options, strict=True)]
