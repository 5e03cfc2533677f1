"""Configuration of the encoder-free route: one linear layer per patch of the signal, as Fuyu does for images."""

from __future__ import annotations

import math
from typing import Literal

from encoders.base import SignalConfig, check_choice

Patches = Literal["time", "leads", "conv"]


class PatchConfig(SignalConfig):
    """Sizes of a `PatchEncoder`.

    Raises:
        ValueError: `patches` is none of the three, the duration is not a whole number of patches, or the stem's sizes
            fit neither together nor to the patch.
    """

    model_type = "ecg_patch"

    # What a token is made of. `"time"`: `patch_size` samples of all leads. `"leads"`: those of one lead; the linear
    # layer is the same for all leads. `"conv"`: as `"time"`, behind a stem of strided convolutions.
    patches: Patches = "time"
    # Samples; the duration is a whole number of patches. One as long as the recording makes one token (ECG-Bench).
    patch_size: int = 20
    # D of the tokens; None hands the numbers of a patch on as they are, for the projector's layer to be the only one.
    hidden_size: int | None = 256
    conv_dim: tuple[int, ...] | list[int] = (64, 64)  # channels of each convolution of the stem
    # Stride of each; a patch is a whole number of steps of all of them together.
    conv_stride: tuple[int, ...] | list[int] = (2, 2)

    def __post_init__(self, **kwargs: object) -> None:
        check_choice("patches", self.patches, Patches)
        if self.patch_size < 1 or self.num_samples < 1 or self.num_samples % self.patch_size:
            raise ValueError(
                f"{self.seconds} s at {self.sampling_rate} Hz are {self.num_samples} samples, "
                f"not a whole number of patches of {self.patch_size}"
            )
        if self.patches == "conv":
            if not len(self.conv_dim) == len(self.conv_stride) > 0:
                raise ValueError(
                    f"conv_dim {self.conv_dim} and conv_stride {self.conv_stride} must have one entry per convolution"
                )
            if self.patch_size % self.stem_stride:
                raise ValueError(
                    f"a patch of {self.patch_size} samples is not a whole number of steps of {self.stem_stride}, "
                    f"the product of conv_stride {self.conv_stride}: change one of them"
                )
        super().__post_init__(**kwargs)

    @property
    def num_patches(self) -> int:
        """Patches of the input in time."""
        return self.num_samples // self.patch_size

    @property
    def stem_stride(self) -> int:
        """Samples from one frame of the stem to the next; 1 without a stem."""
        return math.prod(self.conv_stride) if self.patches == "conv" else 1

    @property
    def patch_width(self) -> int:
        """Numbers that the linear layer makes a token of."""
        channels = {"time": self.in_channels, "leads": 1, "conv": self.conv_dim[-1]}[self.patches]
        return channels * self.patch_size // self.stem_stride

    @property
    def output_dim(self) -> int:
        """D of the tokens."""
        return self.patch_width if self.hidden_size is None else self.hidden_size

    @property
    def max_tokens(self) -> int:
        """Tokens of the input: its patches, of each lead if `patches` is `"leads"`."""
        return self.num_patches * (self.in_channels if self.patches == "leads" else 1)
