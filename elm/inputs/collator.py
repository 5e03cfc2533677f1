"""`EcgCollator`: rows of a question set to a training batch."""

from collections.abc import Sequence
from dataclasses import dataclass

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

    A processor may put what is `measured` into the prompt. Without that, the prompt says that nothing could be
    measured: zeros say nothing in numbers either.
    """

    processor: ElmProcessor
    source: EcgSource
    features: FeatureStore | None = None  # of a frozen encoder; then `source` is not read
    zero_inputs: Sequence[str] = ()  # tensors to set to zero after the extractor's normalisation (training on zeros)
    zero_token: int | None = None  # the encoder's, where an ECG is tokens
    measured: MeasuredStore | None = None

    def __call__(self, rows: Sequence[Row]) -> dict[str, torch.Tensor]:
        """A batch with `labels` on the assistant's words and end tokens only; packed rows stay one row each."""
        others = [row.get("others", []) for row in rows]
        records = [record for row in rows for record in row["ecgs"]]
        lines = None
        if self.processor.measured:
            nothing = [NOT_MEASURABLE] * len(records)
            lines = nothing if self.measured is None else self.processor.lines(self.measured.get(records))
        ecgs, cached = None, {}
        if self.features is None:
            ecgs = [[self.source[record] for record in row["ecgs"]] for row in rows]
        elif records:
            cached = self.features.get(records)
        messages, mask = [row["messages"] for row in rows], cached.get("ecg_mask")
        packed = others if any(others) else ()
        batch = self.processor(messages, ecgs, ecg_mask=mask, measured=lines, others=packed, return_labels=True)
        zeroed = self.zero_inputs if self.features is None and records else ()
        return {**(zero_features(batch, zeroed, self.zero_token) if zeroed else batch), **cached}
