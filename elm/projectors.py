"""The projector: encoder tokens `[B, T, D]` to language-model embeddings `[B, T / pool, H]`."""

from __future__ import annotations

import torch
from torch import nn

from elm.configuration import ElmConfig, pooled_mask


class Projector(nn.Module):
    """Pools `projector_pool` tokens in a row, then maps them linearly or by a two-layer MLP (LLaVA-1.5).

    With `projector_pool_mode="stack"` the features of the pooled tokens are joined (D * pool wide), which loses
    nothing; with `"mean"` those that carry signal are averaged.
    """

    def __init__(self, config: ElmConfig) -> None:
        super().__init__()
        self.pool, self.mode = config.projector_pool, config.projector_pool_mode
        width_in = config.encoder_config.output_dim * (self.pool if self.mode == "stack" else 1)
        width_out = config.embedding_width
        # Encoders differ in scale by orders of magnitude; embeddings do not.
        self.norm = nn.LayerNorm(width_in) if config.projector_norm else nn.Identity()
        layers: list[nn.Module] = [nn.Linear(width_in, width_out)]
        if config.projector_type == "mlp":
            layers += [nn.GELU(), nn.Linear(width_out, width_out)]
        self.layers = nn.Sequential(*layers)

    def forward(self, features: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Projected tokens `[B, T', H]` and which of them are kept, bool `[B, T']`."""
        mask = mask.bool()
        kept = pooled_mask(mask, self.pool)
        missing = kept.shape[1] * self.pool - features.shape[1]
        # Filled, not multiplied by 0: what an encoder says of padding need not be finite.
        x = features.masked_fill(~mask[..., None], 0).to(next(self.layers.parameters()).dtype)
        x = nn.functional.pad(x, (0, 0, 0, missing)).unflatten(1, (-1, self.pool))  # [B, T', pool, D]
        if self.mode == "stack":
            x = x.flatten(2)
        else:
            count = nn.functional.pad(mask, (0, missing)).unflatten(1, (-1, self.pool)).sum(-1, keepdim=True)
            x = x.sum(dim=2) / count.clamp(min=1)
        return self.layers(self.norm(x)), kept
