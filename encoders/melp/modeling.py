"""The MELP encoder (Wang, Xu and Yu, "From Token to Rhythm", ICML 2025, arXiv 2506.21803).

A wav2vec 2.0 style network (four convolutions, a convolution for positions, post-norm transformer layers) and two
attention poolers on top of it. Written anew after HKU-MedAI/MELP `src/melp/models/ecgfm_model.py` and
`fairseq_signals_backbone/models/wav2vec2`; every parameter keeps its published name less one `ecg_encoder.` prefix, but
for the positional convolution, whose weight norm is folded into a plain weight (`encoders/melp/upstream.py`).
"""

from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn
from transformers import initialization as init
from transformers.utils import can_return_tuple

from encoders.base import EcgEncoder, EcgEncoderOutput, output_mask
from encoders.checkpoints import built, not_default
from encoders.melp import upstream
from encoders.melp.configuration import MelpConfig
from encoders.melp.convolution import WideConv1d


@dataclass
class MelpOutput(EcgEncoderOutput):
    """All outputs of a MELP encoder; sizes as published. `config.output` names the one that is `last_hidden_state`.

    The rhythm is `[B, 1, 256]` there. `probe`, `[B, 256]`, is the mean contrast query before its last projection.
    """

    features: torch.FloatTensor | None = None  # frames, `[B, 312, 768]`, one per 32 ms in order of time
    beats: torch.FloatTensor | None = None  # contrast queries, `[B, 14, 256]`
    tokens: torch.FloatTensor | None = None  # caption queries, `[B, 128, 768]`
    # Mean of the beats, `[B, 256]`; not of unit length, the contrast with text normalises it.
    rhythm: torch.FloatTensor | None = None
    # What each query attends to, `[B, heads, 14 or 128, 312]`, a distribution over the frames; `config.frame_seconds`
    # says when a frame was. Only if asked for.
    beat_attention: torch.FloatTensor | None = None
    token_attention: torch.FloatTensor | None = None


def frontend(config: MelpConfig) -> nn.Sequential:
    """Recording `[B, leads, L]` to frames `[B, C, T]`, by convolutions over time."""
    sizes = zip([config.in_channels, *config.conv_dim], config.conv_dim, config.conv_kernel, config.conv_stride)
    convs = [nn.Conv1d(i, o, kernel, stride, bias=False) for i, o, kernel, stride in sizes]
    # One group per channel: each is normalised over time, so gain and offset of a recording vanish here. The
    # Identity stands where upstream has a dropout of 0 and keeps the published numbering.
    norm = nn.GroupNorm(config.conv_dim[0], config.conv_dim[0])
    layers = (
        nn.Sequential(conv, nn.Identity(), *([norm] if index == 0 else []), nn.GELU())
        for index, conv in enumerate(convs)
    )
    return nn.Sequential(OrderedDict(conv_layers=nn.Sequential(*layers)))


class MelpConvPosition(nn.Module):
    """What is added to the frames to tell their position: a convolution over the frames around."""

    def __init__(self, config: MelpConfig):
        super().__init__()
        self.pos_conv = nn.Sequential(WideConv1d(config.hidden_size, config.conv_pos_kernel, config.conv_pos_groups))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`[B, T, D] -> [B, T, D]`."""
        return F.gelu(self.pos_conv(x.mT)).mT


class MelpAttention(nn.Module):
    """Self-attention over all frames."""

    def __init__(self, config: MelpConfig):
        super().__init__()
        d = config.hidden_size
        self.heads, self.dropout = config.num_attention_heads, config.attention_dropout
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (nn.Linear(d, d) for _ in range(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`[B, T, D] -> [B, T, D]`."""
        q, k, v = (
            proj(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for proj in (self.q_proj, self.k_proj, self.v_proj)
        )  # [B, H, T, D/H]
        x = F.scaled_dot_product_attention(q, k, v, dropout_p=self.dropout if self.training else 0.0)
        return self.out_proj(x.transpose(1, 2).flatten(2))


class MelpLayer(nn.Module):
    """Transformer layer, normalised after each residual."""

    def __init__(self, config: MelpConfig):
        super().__init__()
        d = config.hidden_size
        self.self_attn = MelpAttention(config)
        self.self_attn_layer_norm = nn.LayerNorm(d)
        self.fc1 = nn.Linear(d, config.intermediate_size)
        self.fc2 = nn.Linear(config.intermediate_size, d)
        self.final_layer_norm = nn.LayerNorm(d)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`[B, T, D] -> [B, T, D]`."""
        x = self.self_attn_layer_norm(x + self.dropout(self.self_attn(x)))
        return self.final_layer_norm(x + self.dropout(self.fc2(F.gelu(self.fc1(x)))))


class MelpTransformer(nn.Module):
    """The layers, behind one norm; there is none after them, as each ends with its own."""

    def __init__(self, config: MelpConfig):
        super().__init__()
        self.layer_norm = nn.LayerNorm(config.hidden_size)
        self.dropout = nn.Dropout(config.dropout)
        self.layers = nn.ModuleList(MelpLayer(config) for _ in range(config.num_hidden_layers))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`[B, T, D] -> [B, T, D]`."""
        x = self.dropout(self.layer_norm(x))
        for layer in self.layers:
            x = layer(x)
        return x


class MelpBackbone(nn.Module):
    """Recording to contextual frames: the part that upstream pretrained on ECGs alone first."""

    def __init__(self, config: MelpConfig):
        super().__init__()
        self.feature_extractor = frontend(config)
        self.layer_norm = nn.LayerNorm(config.conv_dim[-1])
        self.post_extract_proj = nn.Linear(config.conv_dim[-1], config.hidden_size)
        self.dropout_input = nn.Dropout(config.dropout_input)
        self.conv_pos = MelpConvPosition(config)
        self.encoder = MelpTransformer(config)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`[B, leads, L] -> [B, T, D]`."""
        frames = self.layer_norm(self.feature_extractor(x).mT)  # [B, T, C]
        frames = self.dropout_input(self.post_extract_proj(frames))  # [B, T, D]
        return self.encoder(frames + self.conv_pos(frames))


class MelpPooler(nn.Module):
    """Learned queries that attend to the frames."""

    def __init__(self, config: MelpConfig, queries: int, dim: int):
        super().__init__()
        d = config.hidden_size
        self.query = nn.Parameter(torch.empty(queries, dim))
        # torch's module keeps one fused weight when dim == d and three otherwise, and so does the published file.
        self.attn = nn.MultiheadAttention(dim, config.pooler_heads, kdim=d, vdim=d, batch_first=True)
        self.ln_q = nn.LayerNorm(dim)
        self.ln_k = nn.LayerNorm(d)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`[B, T, D] -> [B, queries, dim]`."""
        query, x = self._query_and_key(x)
        return self.attn(query, x, x, need_weights=False)[0]  # without weights torch goes through SDPA

    def attention(self, x: torch.Tensor) -> torch.Tensor:
        """What `forward` attends to, `[B, T, D] -> [B, heads, queries, T]`, without dropout: the rows sum to 1."""
        query, x = self._query_and_key(x)
        return self.attn(query, x, x, average_attn_weights=False)[1]

    def _query_and_key(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.ln_q(self.query).expand(x.shape[0], -1, -1), self.ln_k(x)


class MelpModel(EcgEncoder):
    """ECG tower of MELP: `[B, 12, L]` in, frames, beats, caption tokens and rhythm out.

    Any length of at least one frame can go in; `MelpFeatureExtractor` gives the one the weights were trained on.
    """

    config_class = MelpConfig
    _no_split_modules = ["MelpLayer"]

    def __init__(self, config: MelpConfig):
        super().__init__(config)
        self.ecg_encoder = MelpBackbone(config)
        self.attn_pool_contrast = MelpPooler(config, config.n_queries_contrast, config.shared_dim)
        self.ln_contrast = nn.LayerNorm(config.shared_dim)
        self.proj_contrast = nn.Parameter(torch.empty(config.shared_dim, config.shared_dim))
        self.attn_pool_caption = MelpPooler(config, config.n_queries_caption, config.caption_dim)
        self.ln_caption = nn.LayerNorm(config.caption_dim)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        # By owner: for code outside transformers this is never called with a module that has no parameter of its own.
        if isinstance(module, nn.Conv1d) and module.bias is None:  # the frontend's
            init.kaiming_normal_(module.weight)
        elif isinstance(module, nn.Conv1d):  # the position's, as wav2vec 2.0
            init.normal_(module.weight, std=2 * (module.kernel_size[0] * module.in_channels) ** -0.5)
            init.zeros_(module.bias)
        elif isinstance(module, MelpPooler):
            init.normal_(module.query)
        elif isinstance(module, MelpModel):
            init.normal_(module.proj_contrast, std=module.config.shared_dim**-0.5)
        else:
            super()._init_weights(module)

    @classmethod
    def from_upstream(cls, path: str | Path, config: MelpConfig | None = None) -> Self:
        """The encoder of a checkpoint that upstream's code wrote, in eval mode.

        The path is as `encoders.melp.upstream.read_published` takes it; a configuration says what no tensor shows:
        heads, `output`, dropout.

        Raises:
            FileNotFoundError: There is no such file.
            ValueError: It is no MELP checkpoint; a tensor is missing, unexpected, misshapen or not finite.
        """
        published = upstream.read_published(path, **not_default(config))
        return built(cls(published.config), published.weights, source=str(path))

    def get_input_embeddings(self) -> nn.Module:
        """The first convolution: what PEFT and gradient checkpointing hook to make inputs require gradients."""
        return self.get_submodule("ecg_encoder.feature_extractor.conv_layers.0")

    @can_return_tuple
    def forward(
        self, ecg_values: torch.Tensor, token_mask: torch.Tensor | None = None, output_attentions: bool = False
    ) -> MelpOutput:
        """Encode recordings `[B, 12, L]`, scaled as `MelpFeatureExtractor` does.

        `token_mask`, bool `[B, T]`, is handed on as `mask`; as upstream, attention sees the padding. With
        `output_attentions`, also which frames the queries attend to.

        Raises:
            ValueError: The recordings are shorter than a frame, or `token_mask` does not fit the chosen output.
        """
        if self.config.num_frames(ecg_values.shape[-1]) < 1:
            raise ValueError(
                f"recordings of {ecg_values.shape[-1]} samples are shorter than one frame of {self.config.hop}"
            )
        # The first convolution has no bias and a norm over time behind it: what is constant in a lead makes no
        # difference but to rounding, where it costs six times the error in float32 and the signal itself in bfloat16.
        centred = ecg_values - ecg_values.mean(dim=-1, keepdim=True)
        features = self.ecg_encoder(centred.to(self.dtype))  # [B, T, D]
        contrast = self.ln_contrast(self.attn_pool_contrast(features))  # [B, queries, shared]
        beats = contrast @ self.proj_contrast
        tokens = self.ln_caption(self.attn_pool_caption(features))
        rhythm = beats.mean(dim=1)
        chosen = {"features": features, "beats": beats, "tokens": tokens, "rhythm": rhythm[:, None]}[self.config.output]
        return MelpOutput(
            last_hidden_state=chosen,
            mask=output_mask(chosen, token_mask),
            features=features,
            beats=beats,
            tokens=tokens,
            rhythm=rhythm,
            beat_attention=self.attn_pool_contrast.attention(features) if output_attentions else None,
            token_attention=self.attn_pool_caption.attention(features) if output_attentions else None,
            probe=contrast.mean(dim=1),
        )
