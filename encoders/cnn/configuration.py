"""Configuration of the plain convolutional encoder."""

from __future__ import annotations

import math

from encoders.base import SignalConfig


class CnnConfig(SignalConfig):
    """Sizes of a `CnnEncoder`; its feature extractor is `PatchFeatureExtractor`, one token per `patch_size` samples.

    Raises:
        ValueError: The sizes do not fit together.
    """

    model_type = "ecg_cnn"

    conv_dim: tuple[int, ...] | list[int] = (64, 64, 128, 128)  # channels of each convolution
    conv_stride: tuple[int, ...] | list[int] = (2, 2, 2, 5)
    conv_kernel: int = 7  # kernel of all of them, an odd number of samples

    def __post_init__(self, **kwargs: object) -> None:
        if not len(self.conv_dim) == len(self.conv_stride) > 0:
            raise ValueError(
                f"conv_dim {self.conv_dim} and conv_stride {self.conv_stride} must have one entry per convolution"
            )
        if self.conv_kernel % 2 == 0:
            raise ValueError(f"conv_kernel must be odd, for tokens to stay in place, got {self.conv_kernel}")
        if self.num_samples < 1 or self.num_samples % self.patch_size:
            raise ValueError(
                f"{self.seconds} s at {self.sampling_rate} Hz are {self.num_samples} samples, "
                f"not a whole number of tokens of {self.patch_size}"
            )
        super().__post_init__(**kwargs)

    @property
    def patch_size(self) -> int:
        """Samples from one token to the next."""
        return math.prod(self.conv_stride)

    @property
    def output_dim(self) -> int:
        """D of the tokens."""
        return self.conv_dim[-1]

    @property
    def max_tokens(self) -> int:
        """Tokens of the input."""
        return self.num_samples // self.patch_size
