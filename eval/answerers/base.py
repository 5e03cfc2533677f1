"""Who answers the questions of an evaluation, and what such a responder is given."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

import torch

from data.conversations.rows import Message, Row
from data.measure import Measurements

LEVELS = frozenset({"row", "recording", "input", "embedding"})


class Responder(Protocol):
    """Anything that answers questions: a model, a script, a server.

    Rows are given as the condition leaves them (`data.experiment.conditions.apply`); its name is given for what a row
    cannot show (zeroed inputs).
    """

    @property
    def levels(self) -> frozenset[str]:
        """Levels of the conditions it can be asked under (`data.experiment.conditions.Condition.level`)."""
        ...

    @property
    def scores(self) -> bool:
        """Whether it can `score`."""
        ...

    @property
    def name(self) -> str:
        """Tells apart responders that answer differently."""
        ...

    def prepare(self, rows: Sequence[Row], condition: str) -> None:
        """Called with all rows of a condition before the first of them is asked: what is best computed at once."""
        ...

    def ask(self, rows: Sequence[Row], condition: str) -> list[str]:
        """One answer per row, in the order of the rows."""
        ...

    def score(self, rows: Sequence[Row], condition: str, options: Sequence[Sequence[str]]) -> list[list[float]]:
        """Per row, natural log of p(option, end of turn | question) for each of its options: sums over their tokens."""
        ...


class FeatureSource(Protocol):
    """Encoder outputs computed earlier (`elm.inputs.features.FeatureStore`)."""

    def fill(self, records: Iterable[str]) -> object:
        """Compute what is missing."""
        ...

    def get(self, records: Sequence[str]) -> Mapping[str, torch.Tensor]:
        """`ecg_features` `[N, T, D]` and `ecg_mask` `[N, T]` of these recordings."""
        ...


class MeasuredSource(Protocol):
    """Measured features (`elm.inputs.measured.MeasuredStore`)."""

    def fill(self, records: Iterable[str]) -> object:
        """Measure what is missing."""
        ...

    def get(self, records: Sequence[str]) -> list[Measurements]:
        """Measurements of these recordings."""
        ...


def question_messages(row: Row) -> list[Message]:
    """The messages of a row up to the answer that is asked for."""
    messages = row["messages"]
    return messages[:-1] if messages and messages[-1]["role"] == "assistant" else messages
