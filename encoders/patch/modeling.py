"""The encoder-free route: the language model reads patches of the signal itself.

One linear layer, or the projector's alone, and a learned position, no norm and no attention, so a token is linear in
millivolts. It is the baseline that says what a pretrained encoder is worth (after Fuyu, Adept 2023, and ECG-Bench's
`projection` encoder).
"""

from __future__ import annotations

import torch
from torch import nn
from transformers import initialization as init
from transformers.utils import can_return_tuple

from encoders.base import EcgEncoder, EcgEncoderOutput, output_mask
from encoders.patch.configuration import PatchConfig


class PatchEncoder(EcgEncoder):
    """Time patches of all leads, `[B, leads, L] -> [B, L / patch_size, D]`."""

    config_class = PatchConfig
    _input_embed_layer = "patch"

    def __init__(self, config: PatchConfig):
        super().__init__(config)
        plain = config.hidden_size is None
        self.patch = nn.Identity() if plain else nn.Linear(config.in_channels * config.patch_size, config.output_dim)
        self.position = nn.Parameter(torch.empty(config.max_tokens, config.output_dim))
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear):
            # Tokens about as large as the signal: a standard deviation of 0.02 would drown it in the position.
            init.normal_(module.weight, std=module.in_features**-0.5)
            init.zeros_(module.bias)
        elif isinstance(module, PatchEncoder):
            # Beside samples nothing is drawn: frozen, such an encoder is no part of the model.
            init.normal_(module.position, std=0.0 if self.config.hidden_size is None else 0.02)

    @can_return_tuple
    def forward(self, ecg_values: torch.Tensor, token_mask: torch.Tensor | None = None) -> EcgEncoderOutput:
        """Embed patches.

        Args:
            ecg_values: `[B, leads, L]`; L may be shorter than the configured duration.
            token_mask: bool `[B, T]`, handed on as `mask`.

        Raises:
            ValueError: L is not a whole number of patches, or too long.
        """
        size, samples = self.config.patch_size, ecg_values.shape[-1]
        if samples % size or samples > self.config.num_samples:
            raise ValueError(f"{samples} samples are not 1 to {self.config.max_tokens} whole patches of {size}")
        patches = ecg_values.to(self.dtype).unflatten(-1, (-1, size)).transpose(1, 2).flatten(2)  # [B, T, leads * size]
        tokens = self.patch(patches) + self.position[: samples // size]  # [B, T, D]
        return EcgEncoderOutput(last_hidden_state=tokens, mask=output_mask(tokens, token_mask))
