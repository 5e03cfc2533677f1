"""`EcgCollator`: rows of a question set to a training batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from data.conversations.rows import Row
from data.ecg import EcgSource
from data.experiment.conditions import zero_features
from data.measure import NOT_MEASURABLE
from elm.inputs.features import FeatureStore
from elm.inputs.measured import MeasuredStore
from elm.inputs.processing import ElmProcessor


@dataclass
class EcgCollator:
    """Renders, tokenizes and labels a list of rows, with their recordings or the encoder's cached output.

    Attributes:
        processor: Makes the inputs.
        source: Where the recordings come from.
        features: The encoder's output, when it is frozen and cached; then `source` is not read.
        zero_inputs: Names of tensors to set to zero after the extractor's normalisation (training on zeros).
        zero_token: The encoder's, where an ECG is tokens.
        measured: What is measured in the recordings, for a processor that puts it into the prompt. Without it, such a
            processor is told that nothing could be measured: zeros say nothing in numbers either.
    """

    processor: ElmProcessor
    source: EcgSource
    features: FeatureStore | None = None
    zero_inputs: Sequence[str] = ()
    zero_token: int | None = None
    measured: MeasuredStore | None = None

    def __call__(self, rows: Sequence[Row]) -> dict[str, torch.Tensor]:
        """A batch with `labels` on the assistant's words and end tokens only; packed rows stay one row each."""
        messages = [row["messages"] for row in rows]
        others = [row.get("others", []) for row in rows]
        settings: dict[str, Any] = {"others": others if any(others) else (), "return_labels": True}
        records = [record for row in rows for record in row["ecgs"]]
        if self.processor.measured:
            found = None if self.measured is None else self.processor.lines(self.measured.get(records))
            settings["measured"] = found if found is not None else [NOT_MEASURABLE] * len(records)
        if self.features is None:
            ecgs = [[self.source[record] for record in row["ecgs"]] for row in rows]
            batch = dict(self.processor(messages, ecgs, **settings))
            return zero_features(batch, self.zero_inputs, self.zero_token) if self.zero_inputs and any(ecgs) else batch
        cached = self.features.get(records) if records else {"ecg_mask": torch.zeros(0, 1, dtype=torch.bool)}
        batch = dict(self.processor(messages, ecg_mask=cached["ecg_mask"], **settings))
        return {**batch, **(cached if records else {})}
