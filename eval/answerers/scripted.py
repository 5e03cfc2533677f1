"""Answers by functions: the responders an evaluation is tested on, whose reading is known."""

from collections.abc import Callable, Sequence

from data.conversations.rows import Row
from eval.answerers.base import LEVELS


class ScriptedResponder:
    """Answers by `fn(row, condition)`, scores by `score(row, condition, options)`; a journal knows it by `name`."""

    levels = LEVELS

    def __init__(
        self,
        fn: Callable[[Row, str], str],
        score: Callable[[Row, str, Sequence[str]], list[float]] | None = None,
        name: str = "scripted",
    ) -> None:
        self.fn, self.score_fn, self.name = fn, score, name
        self.scores = score is not None

    def prepare(self, rows: Sequence[Row], condition: str) -> None:
        """There is nothing to prepare."""

    def ask(self, rows: Sequence[Row], condition: str) -> list[str]:
        """One answer per row."""
        return [self.fn(row, condition) for row in rows]

    def score(self, rows: Sequence[Row], condition: str, options: Sequence[Sequence[str]]) -> list[list[float]]:
        """Log-probabilities of every row's options.

        Raises:
            ValueError: It was made without a function for them.
        """
        if self.score_fn is None:
            raise ValueError(f"responder {self.name!r} gives no log-probabilities")
        return [self.score_fn(row, condition, texts) for row, texts in zip(rows, options, strict=True)]
