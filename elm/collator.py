"""`EcgCollator`: rows of a question set to a training batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from data.conditions import zero_features
from data.conversations.rows import Row
from data.ecg import EcgSource
from elm.features import FeatureStore
from elm.processing import ElmProcessor


@dataclass
class EcgCollator:
    """Renders, tokenizes and labels a list of rows, with their recordings or the encoder's cached output.

    Attributes:
        processor: Makes the inputs.
        source: Where the recordings come from.
        features: The encoder's output, when it is frozen and cached; then `source` is not read.
        zero_inputs: Names of tensors to set to zero after the extractor's normalisation (training on zeros).
    """

    processor: ElmProcessor
    source: EcgSource
    features: FeatureStore | None = None
    zero_inputs: Sequence[str] = ()

    def __call__(self, rows: Sequence[Row]) -> dict[str, torch.Tensor]:
        """A batch with `labels` on the assistant's words and end tokens only."""
        messages = [row["messages"] for row in rows]
        if self.features is None:
            ecgs = [[self.source[record] for record in row["ecgs"]] for row in rows]
            batch = dict(self.processor(messages, ecgs, return_labels=True))
            return zero_features(batch, self.zero_inputs) if self.zero_inputs and any(ecgs) else batch
        records = [record for row in rows for record in row["ecgs"]]
        cached = self.features.get(records) if records else {"ecg_mask": torch.zeros(0, 1, dtype=torch.bool)}
        batch = dict(self.processor(messages, ecg_mask=cached["ecg_mask"], return_labels=True))
        return {**batch, **(cached if records else {})}
