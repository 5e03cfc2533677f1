"""What a recording becomes before MELP sees it: upstream's `melp/datasets` pipelines, by lead name and by time."""

import math
from collections.abc import Sequence
from typing import Any, Literal, Self

import numpy as np

from data.ecg import Ecg, canonical_lead
from encoders.base import EcgFeatureExtractor, Features, check_choice, first_seconds
from encoders.melp import upstream
from encoders.melp.configuration import MelpConfig, MelpOutputName

# MIMIC-IV-ECG's order: aVF before aVL. With the two exchanged MELP gives other features and no error.
MELP_LEADS = ("I", "II", "III", "aVR", "aVF", "aVL", "V1", "V2", "V3", "V4", "V5", "V6")

Layout = Literal["record", "cpsc"]
MissingLeads = Literal["error", "constant"]


class MelpFeatureExtractor(EcgFeatureExtractor):
    """Recordings to `ecg_values` float32 `[B, 12, samples]` in [0, 1] and `token_mask` bool `[B, T]`.

    Resampled by time, leads by name in MELP's order, first `seconds`, then one minimum and maximum over all leads.

    Args:
        sampling_rate, seconds, hop: As in `MelpConfig`.
        output, num_tokens: Which of the encoder's outputs `token_mask` is for, and its T.
        leads: Lead names in the order of the rows.
        layout: `"record"` scales what there is and pads a short recording afterwards. `"cpsc"` is upstream's path for
            CPSC2018: the first half of `seconds`, zeros (mV) for the other half, and only then the scaling.
        missing_leads: `"error"`, or `"constant"` to give an absent lead the constant 0, as upstream's lead masking does
            in training.
    """

    model_input_names = ["ecg_values", "token_mask"]
    own_settings = ("leads", "layout", "missing_leads")

    def __init__(
        self,
        sampling_rate: int = 500,
        seconds: float = 10.0,
        output: MelpOutputName = "tokens",
        num_tokens: int = 128,
        hop: int = 16,
        leads: Sequence[str] = MELP_LEADS,
        layout: Layout = "record",
        missing_leads: MissingLeads = "error",
        **kwargs: object,
    ) -> None:
        super().__init__(**kwargs)
        check_choice("layout", layout, Layout)
        check_choice("missing_leads", missing_leads, MissingLeads)
        self.sampling_rate, self.seconds = sampling_rate, seconds
        self.output, self.num_tokens, self.hop = output, num_tokens, hop
        self.leads = [canonical_lead(name) for name in leads]
        self.layout, self.missing_leads = layout, missing_leads

    @classmethod
    def from_config(cls, config: MelpConfig, **extra: Any) -> Self:
        """The extractor for an encoder with this configuration; `extra` are `leads`, `layout`, `missing_leads`."""
        sizes = config.sampling_rate, config.seconds, config.output, config.max_tokens, config.hop
        return cls(*sizes, **extra).with_leads(config)

    @property
    def seconds_read(self) -> float:
        """Seconds that it reads of a longer recording: the layout `"cpsc"` fills half of them with zeros."""
        return self.seconds / 2 if self.layout == "cpsc" else self.seconds

    def features(self, ecg: Ecg) -> Features:
        """`ecg_values` float32 `[12, samples]` and `token_mask` bool `[T]` of one recording."""
        length = round(self.seconds * self.sampling_rate)
        present = [name for name in self.leads if name in ecg.leads or f"-{name}" in ecg.leads]
        wanted = present if self.missing_leads == "constant" and present else self.leads
        signal = first_seconds(ecg, tuple(wanted), self.sampling_rate, self.seconds)  # [leads, samples], mV
        samples = signal.shape[1]
        if self.layout == "cpsc":
            signal, samples = upstream.as_for_cpsc(signal, length)

        low, high = signal.min(), signal.max()
        span = high - low + 1e-8
        values = np.zeros((len(self.leads), length), np.float32)
        rows = [self.leads.index(name) for name in wanted]
        # The network normalises each lead over time, so a step into the padding would change the frames before it too:
        # pad with where 0 mV lies.
        values[rows] = np.clip(-low / span, 0.0, 1.0)
        values[rows, : signal.shape[1]] = (signal - low) / span

        mask = np.ones(self.num_tokens, bool)
        if self.output == "features":  # queries look at the whole recording, frames at their own piece of it
            mask[math.ceil(samples / self.hop) :] = False
        return {"ecg_values": values, "token_mask": mask}
