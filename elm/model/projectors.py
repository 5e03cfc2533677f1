"""The projector: encoder tokens `[B, T, D]` to language-model embeddings `[B, T / pool, H]`."""

import torch
from torch import nn

from elm.model.configuration import ElmConfig, pooled_mask
from encoders.ecg_byte.modeling import from_bytes


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
        """Projected tokens `[B, T', H]` and which of them carry signal, bool `[B, T']`."""
        mask = mask.bool()
        with_signal = pooled_mask(mask, self.pool)
        missing = with_signal.shape[1] * self.pool - features.shape[1]
        # Filled, not multiplied by 0: what an encoder says of padding need not be finite.
        x = features.masked_fill(~mask[..., None], 0).to(next(self.layers.parameters()).dtype)
        x = nn.functional.pad(x, (0, 0, 0, missing)).unflatten(1, (-1, self.pool))  # [B, T', pool, D]
        if self.mode == "stack":
            x = x.flatten(2)
        else:
            count = nn.functional.pad(mask, (0, missing)).unflatten(1, (-1, self.pool)).sum(-1, keepdim=True)
            x = x.sum(dim=2) / count.clamp(min=1)
        return self.layers(self.norm(x)), with_signal


class Vocabulary(nn.Module):
    """ECG-Byte's tokens as words: each has a row of the language model's table, which is trained here.

    The rows are a table of their own, so that they alone are trained, as any projector is, and the words' rows are not.
    The language model's table holds a copy (`ElmModel.mirror_rows`).
    """

    scale: torch.Tensor

    def __init__(self, config: ElmConfig) -> None:
        super().__init__()
        # A buffer as Gemma's own is: in bfloat16 both are rounded, and the tokens remain words like the others.
        self.register_buffer("scale", torch.tensor(config.embedding_scale), persistent=False)
        self.weight = nn.Parameter(torch.empty(config.encoder_config.vocabulary, config.embedding_width))

    def forward(self, features: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Rows `[B, T, H]` of tokens `[B, T, 2]`, two bytes each, and the mask, bool `[B, T]`."""
        mask = mask.bool()
        tokens = from_bytes(features).masked_fill(~mask, 0)
        return nn.functional.embedding(tokens, self.weight) * self.scale, mask


def new_projector(config: ElmConfig) -> Projector | Vocabulary:
    """The projector that a configuration asks for; the rows of a vocabulary are still to be filled."""
    return Vocabulary(config) if config.projector_type == "vocabulary" else Projector(config)
