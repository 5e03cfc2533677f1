"""The encoder-free route: the language model reads patches of the signal itself.

The baseline that says what a pretrained encoder is worth (docs/encoders.md), after Fuyu, Adept 2023, and ECG-Bench's
`projection` encoder. With `patches="conv"` a few convolutions stand before the patches, as in vision transformers that
learn faster for it (Xiao et al., "Early convolutions help transformers see better", NeurIPS 2021).
"""

import torch
from torch import nn
from transformers import initialization as init
from transformers.utils import can_return_tuple

from encoders.base import EcgEncoder, EcgEncoderOutput, output_mask
from encoders.patch.configuration import PatchConfig


class PatchEncoder(EcgEncoder):
    """Patches `[B, leads, L] -> [B, T, D]`, T = L / patch_size in time, or that for one lead after the other."""

    config_class = PatchConfig

    def __init__(self, config: PatchConfig):
        super().__init__(config)
        self.stem = nn.Sequential()
        if config.patches == "conv":
            for i, o, stride in zip([config.in_channels, *config.conv_dim], config.conv_dim, config.conv_stride):
                # A frame reads its own samples and as many on either side: any length divides, and time stays in place.
                self.stem.extend([nn.Conv1d(i, o, 3 * stride, stride, padding=stride), nn.GELU()])
        self.patch = nn.Identity() if config.hidden_size is None else nn.Linear(config.patch_width, config.output_dim)
        self.position = nn.Parameter(torch.empty(config.num_patches, config.output_dim))
        if config.patches == "leads":
            self.lead_position = nn.Parameter(torch.empty(config.in_channels, config.output_dim))
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear):
            # Tokens about as large as the signal: a standard deviation of 0.02 would drown it in the position.
            init.normal_(module.weight, std=module.in_features**-0.5)
            init.zeros_(module.bias)
        elif isinstance(module, nn.Conv1d):
            init.kaiming_normal_(module.weight, nonlinearity="relu")  # of GELU, too, about half the power is left
            init.zeros_(module.bias)
        elif isinstance(module, PatchEncoder):
            # Beside samples nothing is drawn: frozen, such an encoder is no part of the model.
            std = 0.0 if self.config.hidden_size is None else 0.02
            init.normal_(module.position, std=std)
            if self.config.patches == "leads":
                init.normal_(module.lead_position, std=std)

    def get_input_embeddings(self) -> nn.Module:
        """The first layer: what PEFT and gradient checkpointing hook to make inputs require gradients."""
        return self.stem[0] if self.config.patches == "conv" else self.patch

    @can_return_tuple
    def forward(self, ecg_values: torch.Tensor, token_mask: torch.Tensor | None = None) -> EcgEncoderOutput:
        """Embed recordings `[B, leads, L]`; L may be shorter than the configured duration.

        `token_mask`, bool `[B, T]`, is handed on as `mask`. Patches of leads: the tokens it counts come first, one lead
        after the other, and then those of the padding; without it all are taken for signal.

        Raises:
            ValueError: L is not a whole number of patches, or too long.
        """
        size, samples = self.config.patch_size, ecg_values.shape[-1]
        if samples % size or not 0 < samples <= self.config.num_samples:
            raise ValueError(f"{samples} samples are not 1 to {self.config.num_patches} whole patches of {size}")
        frames = self.stem(ecg_values.to(self.dtype))  # [B, leads or channels, L / stem_stride]
        patches = frames.unflatten(-1, (samples // size, -1)).transpose(1, 2)  # [B, P, leads or channels, .]
        position = self.position[: samples // size]
        if self.config.patches != "leads":
            tokens = self.patch(patches.flatten(2)) + position  # [B, T, D]
            return EcgEncoderOutput(last_hidden_state=tokens, mask=output_mask(tokens, token_mask))
        of_leads = self.patch(patches.transpose(1, 2)) + self.lead_position[:, None] + position  # [B, leads, P, D]
        tokens = of_leads.flatten(1, 2)
        mask = output_mask(tokens, token_mask)
        count = mask.sum(dim=1, keepdim=True) // of_leads.shape[1]  # patches of each recording that hold signal
        real = torch.arange(len(position), device=mask.device) < count  # [B, P]
        # Every lead of a short recording ends in padding, but a mask is signal first and padding last.
        order = real.repeat(1, of_leads.shape[1]).int().argsort(dim=1, descending=True, stable=True)
        return EcgEncoderOutput(last_hidden_state=tokens.gather(1, order[..., None].expand_as(tokens)), mask=mask)
