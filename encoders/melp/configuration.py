"""Configuration of the MELP encoder (Wang, Xu and Yu, "From Token to Rhythm", ICML 2025, arXiv 2506.21803)."""

from __future__ import annotations

import math
from typing import Any, Literal, get_args

from encoders.base import EcgEncoderConfig

MelpOutputName = Literal["features", "beats", "tokens", "rhythm"]


class MelpConfig(EcgEncoderConfig):
    """Sizes of a MELP encoder and which of its four outputs is `last_hidden_state`.

    The defaults are those of the published checkpoint (65 M parameters, 500 Hz, 10 s).

    Attributes:
        output: `"features"` (one frame per 32 ms, `[B, 312, 768]`), `"beats"` (contrast queries, `[B, 14, 256]`),
            `"tokens"` (caption queries, `[B, 128, 768]`) or `"rhythm"` (their mean, `[B, 1, 256]`). "Beats" are
            learned queries over the whole recording, not segmented heart beats.
        sampling_rate: Hz of the input.
        seconds: Duration of the input; the model itself takes any length of at least one frame.
        in_channels: Number of leads.
        conv_dim: Channels of each convolution.
        conv_kernel: Kernel of each convolution.
        conv_stride: Stride of each convolution.
        hidden_size: Width of the transformer.
        num_hidden_layers: Layers of the transformer.
        num_attention_heads: Heads of the transformer.
        intermediate_size: Width of its feed-forward part.
        conv_pos_kernel: Kernel of the convolution that adds positions, in frames.
        conv_pos_groups: Its groups.
        shared_dim: D of beats and rhythm, the space shared with text.
        caption_dim: D of the caption tokens.
        pooler_heads: Heads of both attention poolers.
        n_queries_contrast: Number of beats.
        n_queries_caption: Number of caption tokens.
        dropout_input: Dropout after the projection of the frames.
        dropout: Dropout in the transformer.
        attention_dropout: Dropout of its attention weights.
        initializer_range: Standard deviation of new linear layers.

    Raises:
        ValueError: The sizes do not fit together.
    """

    model_type = "ecg_melp"  # upstream's remote code calls itself "melp": its config.json must not pass for ours

    output: MelpOutputName = "tokens"
    sampling_rate: int = 500
    seconds: float = 10.0
    in_channels: int = 12
    conv_dim: tuple[int, ...] | list[int] = (256, 256, 256, 256)
    conv_kernel: tuple[int, ...] | list[int] = (2, 2, 2, 2)
    conv_stride: tuple[int, ...] | list[int] = (2, 2, 2, 2)
    hidden_size: int = 768
    num_hidden_layers: int = 8
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    conv_pos_kernel: int = 128
    conv_pos_groups: int = 16
    shared_dim: int = 256
    caption_dim: int = 768
    pooler_heads: int = 8
    n_queries_contrast: int = 14
    n_queries_caption: int = 128
    dropout_input: float = 0.1
    dropout: float = 0.1
    attention_dropout: float = 0.1
    initializer_range: float = 0.02

    def __post_init__(self, **kwargs: Any) -> None:
        if self.output not in get_args(MelpOutputName):
            raise ValueError(f"output must be one of {', '.join(get_args(MelpOutputName))}, got {self.output!r}")
        if not len(self.conv_dim) == len(self.conv_kernel) == len(self.conv_stride) > 0:
            raise ValueError(
                f"conv_dim {self.conv_dim}, conv_kernel {self.conv_kernel} and conv_stride {self.conv_stride} "
                "must have one entry per convolution"
            )
        for part, name in (
            ("num_attention_heads", "hidden_size"),
            ("conv_pos_groups", "hidden_size"),
            ("pooler_heads", "shared_dim"),
            ("pooler_heads", "caption_dim"),
        ):
            if vars(self)[name] % vars(self)[part]:
                raise ValueError(f"{name} {vars(self)[name]} is not divisible by {part} {vars(self)[part]}")
        if self.num_frames(self.num_samples) < 1:
            raise ValueError(
                f"{self.seconds} s at {self.sampling_rate} Hz is shorter than one frame of {self.hop} samples"
            )
        super().__post_init__(**kwargs)

    @property
    def num_samples(self) -> int:
        """Samples of the input."""
        return round(self.seconds * self.sampling_rate)

    @property
    def hop(self) -> int:
        """Samples from one frame to the next."""
        return math.prod(self.conv_stride)

    def num_frames(self, samples: int) -> int:
        """Frames of an input of so many samples; a tail shorter than a frame is dropped."""
        for kernel, stride in zip(self.conv_kernel, self.conv_stride):
            samples = (samples - kernel) // stride + 1
        return max(samples, 0)

    @property
    def output_dim(self) -> int:
        """D of the chosen output."""
        return {"features": self.hidden_size, "tokens": self.caption_dim}.get(self.output, self.shared_dim)

    @property
    def max_tokens(self) -> int:
        """T of the chosen output."""
        return {
            "features": self.num_frames(self.num_samples),
            "beats": self.n_queries_contrast,
            "tokens": self.n_queries_caption,
            "rhythm": 1,
        }[self.output]
