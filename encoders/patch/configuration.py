"""Configuration of the encoder-free route: one linear layer per time patch, as Fuyu does for images."""

from __future__ import annotations

from typing import Any

from encoders.base import EcgEncoderConfig


class PatchConfig(EcgEncoderConfig):
    """Sizes of a `PatchEncoder`.

    Attributes:
        sampling_rate: Hz of the input.
        seconds: Duration of the input.
        in_channels: Number of leads.
        patch_size: Samples per patch; the duration is a whole number of patches.
        hidden_size: D of the tokens; None hands the samples of a patch on as they are, for the projector's linear layer
            to be the only one.

    Raises:
        ValueError: The duration is not a whole number of patches.
    """

    model_type = "ecg_patch"

    sampling_rate: int = 100
    seconds: float = 10.0
    in_channels: int = 12
    patch_size: int = 20
    hidden_size: int | None = 256

    def __post_init__(self, **kwargs: Any) -> None:
        if self.num_samples < 1 or self.num_samples % self.patch_size:
            raise ValueError(
                f"{self.seconds} s at {self.sampling_rate} Hz are {self.num_samples} samples, "
                f"not a whole number of patches of {self.patch_size}"
            )
        super().__post_init__(**kwargs)

    @property
    def num_samples(self) -> int:
        """Samples of the input."""
        return round(self.seconds * self.sampling_rate)

    @property
    def output_dim(self) -> int:
        """D of the tokens."""
        return self.in_channels * self.patch_size if self.hidden_size is None else self.hidden_size

    @property
    def max_tokens(self) -> int:
        """Patches of the input."""
        return self.num_samples // self.patch_size
