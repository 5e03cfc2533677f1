"""A plain convolutional encoder of ECGs.

Convolutions over time with batch normalisation between them, as in the networks that classify PTB-XL well (Strodthoff
et al., "Deep learning for ECG analysis: benchmarks and insights from PTB-XL", IEEE JBHI 2021). Without attention it
learns from recordings by the thousand.
"""

import torch
from torch import nn
from transformers import initialization as init
from transformers.utils import can_return_tuple

from encoders.base import EcgEncoder, EcgEncoderOutput, output_mask
from encoders.cnn.configuration import CnnConfig


def varied(values: torch.Tensor) -> torch.Tensor:
    """Training recordings `[B, leads, L]`, never twice alike: a piece of four fifths, with other gain and noise.

    Drawn from torch's generator. A few thousand recordings would else soon be known by heart.
    """
    length = values.shape[-1] * 4 // 5
    start = int(torch.randint(values.shape[-1] - length + 1, ()))
    piece = values[..., start : start + length] * torch.empty(len(values), 1, 1).uniform_(0.8, 1.25)
    return piece + 0.1 * torch.randn_like(piece)


class CnnEncoder(EcgEncoder):
    """`[B, leads, L]` to one token per `patch_size` samples, `[B, L / patch_size, D]`."""

    config_class = CnnConfig

    def __init__(self, config: CnnConfig):
        super().__init__(config)
        sizes = zip([config.in_channels, *config.conv_dim], config.conv_dim, config.conv_stride)
        kernel, self.layers = config.conv_kernel, nn.Sequential()
        for i, o, stride in sizes:
            conv = nn.Conv1d(i, o, kernel, stride, padding=kernel // 2, bias=False)
            self.layers.append(nn.Sequential(conv, nn.BatchNorm1d(o), nn.ReLU()))
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Conv1d):
            init.kaiming_normal_(module.weight, nonlinearity="relu")
        else:
            super()._init_weights(module)

    def get_input_embeddings(self) -> nn.Module:
        """The first convolution: what PEFT and gradient checkpointing hook to make inputs require gradients."""
        return self.layers[0][0]

    @can_return_tuple
    def forward(self, ecg_values: torch.Tensor, token_mask: torch.Tensor | None = None) -> EcgEncoderOutput:
        """Encode recordings `[B, leads, L]`; L may be another than the configured duration.

        `token_mask`, bool `[B, T]`, is handed on as `mask`. The convolutions see the padding, which is zeros.

        Raises:
            ValueError: L is not a whole number of tokens.
        """
        size, samples = self.config.patch_size, ecg_values.shape[-1]
        if samples % size or not samples:
            raise ValueError(f"{samples} samples are not a whole number of tokens of {size}")
        tokens = self.layers(ecg_values.to(self.dtype)).mT  # [B, T, D]
        return EcgEncoderOutput(last_hidden_state=tokens, mask=output_mask(tokens, token_mask))
