"""What a recording becomes before `PatchEncoder` sees it: a fixed number of samples, on a scale that keeps voltage."""

import math
from collections.abc import Sequence
from typing import Any, Literal, Self

import numpy as np

from data.ecg import LEADS, Ecg, canonical_lead
from encoders.base import EcgFeatureExtractor, Features, TokenSpan, check_choice, first_seconds
from encoders.patch.configuration import PatchConfig, Patches

Normalize = Literal["millivolts", "zscore", "minmax"]


class PatchFeatureExtractor(EcgFeatureExtractor):
    """Recordings to `ecg_values` float32 `[B, leads, samples]` and `token_mask` bool `[B, T]`.

    A longer recording is cut to its first `seconds`, a shorter one padded with zeros whose patches are masked; a patch
    that holds any signal counts. Tokens that carry signal come first. A missing lead is an error.

    Args:
        sampling_rate, seconds, patch_size, patches: As in `PatchConfig`.
        leads: Lead names in the order of the rows.
        normalize: `"millivolts"` divides by `scale` and keeps amplitude; `"zscore"` takes each lead's mean and standard
            deviation away, and with them all that voltage says; `"minmax"` puts the recording between 0 and 1, by the
            least and the greatest value of all its leads together, as ECG-Bench does.
        scale: Millivolts that become 1.
    """

    model_input_names = ["ecg_values", "token_mask"]
    own_settings = ("leads", "normalize", "scale")

    def __init__(
        self,
        sampling_rate: int = 100,
        seconds: float = 10.0,
        patch_size: int = 20,
        leads: Sequence[str] = LEADS,
        normalize: Normalize = "millivolts",
        scale: float = 0.5,
        patches: Patches = "time",
        **kwargs: object,
    ) -> None:
        super().__init__(**kwargs)
        check_choice("normalize", normalize, Normalize)
        if not scale > 0:
            raise ValueError(f"scale must be a positive number of millivolts, got {scale}")
        self.sampling_rate, self.seconds, self.patch_size = sampling_rate, seconds, patch_size
        self.leads = [canonical_lead(name) for name in leads]
        self.normalize, self.scale, self.patches = normalize, scale, patches

    @classmethod
    def from_config(cls, config: PatchConfig, **extra: Any) -> Self:
        """The extractor for an encoder with this configuration; `extra` are `leads`, `normalize` and `scale`."""
        # The plain convolutional encoder has this extractor too, and tokens of all leads.
        patches = config.patches if isinstance(config, PatchConfig) else "time"
        sizes = config.sampling_rate, config.seconds, config.patch_size
        return cls(*sizes, patches=patches, **extra).with_leads(config)

    def features(self, ecg: Ecg) -> Features:
        """`ecg_values` float32 `[leads, samples]` and `token_mask` bool `[T]` of one recording."""
        length = round(self.seconds * self.sampling_rate)
        signal = first_seconds(ecg, tuple(self.leads), self.sampling_rate, self.seconds)  # [leads, samples], mV
        if self.normalize == "millivolts":
            signal = signal / self.scale
        elif self.normalize == "minmax":
            signal = (signal - signal.min()) / (signal.max() - signal.min() + 1e-6)
        else:
            spread = signal.std(axis=1, keepdims=True)
            signal = (signal - signal.mean(axis=1, keepdims=True)) / np.where(spread > 0, spread, 1.0)
        values = np.zeros((len(self.leads), length), np.float32)
        values[:, : signal.shape[1]] = signal
        rows = len(self.leads) if self.patches == "leads" else 1
        mask = np.arange(rows * (length // self.patch_size)) < rows * math.ceil(signal.shape[1] / self.patch_size)
        return {"ecg_values": values, "token_mask": mask}

    def token_spans(self, ecg: Ecg) -> list[TokenSpan]:
        """What of a recording each of its tokens is about, in the order of the tokens that `token_mask` counts.

        The last second is that of the recording, where it ends within a patch. Convolutions (`"conv"`) look a little
        beyond on either side. Raises as `features`.
        """
        signal = first_seconds(ecg, tuple(self.leads), self.sampling_rate, self.seconds)
        size, samples = self.patch_size, signal.shape[1]
        leads = self.leads if self.patches == "leads" else [None]
        return [
            TokenSpan(lead, start / self.sampling_rate, min(start + size, samples) / self.sampling_rate)
            for lead in leads
            for start in range(0, samples, size)
        ]
