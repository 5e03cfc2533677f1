"""HeartLang's transformer over heart-beat words, and the encoder made of it.

Jin et al., "Reading Your Heart: Learning ECG Words and Sentences via Pre-training ECG Language Model", ICLR 2025,
arXiv 2502.10707. Written anew after PKUDigitalHealth/HeartLang `modeling_pretrain.py` and `modeling_finetune.py`; every
parameter keeps its published name, which is why some are called `spa_embed` (lead), `tem_embed` (time) or `net.4`.
"""

from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from transformers import initialization as init
from transformers.utils import can_return_tuple

from encoders.base import EcgEncoder, EcgEncoderOutput, output_mask
from encoders.heartlang import upstream
from encoders.heartlang.configuration import HeartLangConfig


@dataclass
class HeartLangOutput(EcgEncoderOutput):
    """Tokens that `config.output` names, `[B, T, 768]`, sizes as published; `probe` is CLS, `[B, 768]`."""

    words: torch.FloatTensor | None = None  # CLS and every word, `[B, 257, 768]`
    # Input of the first layer and output of each, before the last norm, if asked for: `layers + 1` of `[B, 257, 768]`.
    hidden_states: tuple[torch.FloatTensor, ...] | None = None


class HeartLangWordEmbedding(nn.Module):
    """Words to vectors, by a convolution over a word and its two neighbours; the first and the last are neighbours."""

    def __init__(self, channels: int, config: HeartLangConfig):
        super().__init__()
        self.tokenConv = nn.Conv1d(channels, config.hidden_size, 3, padding=1, padding_mode="circular", bias=False)

    def forward(self, words: Tensor) -> Tensor:
        """`[B, N, samples] -> [B, N, D]`."""
        # As three products of matrices: torch's convolution first copies the words to pad them, and is slower.
        left, centre, right = self.tokenConv.weight.unbind(-1)
        turned = F.linear(words, torch.cat([left, centre, right]))  # [B, N, 3 D]
        left, centre, right = turned.chunk(3, dim=-1)
        return left.roll(1, dims=1) + centre + right.roll(-1, dims=1)


class HeartLangAttention(nn.Module):
    """Self-attention behind its norm."""

    def __init__(self, config: HeartLangConfig):
        super().__init__()
        inner = config.num_attention_heads * config.head_dim
        self.heads, self.dropout = config.num_attention_heads, config.dropout
        self.norm = nn.LayerNorm(config.hidden_size)
        self.to_qkv = nn.Linear(config.hidden_size, 3 * inner, bias=False)
        self.to_out = nn.Sequential(nn.Linear(inner, config.hidden_size), nn.Dropout(config.dropout))

    def forward(self, x: Tensor, seen: Tensor | None) -> Tensor:
        """`[B, N, D] -> [B, N, D]`; `seen` bool `[B, 1, 1, N]` are the keys attended to, all without it."""
        q, k, v = self.to_qkv(self.norm(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # [B, H, N, d]
        dropout = self.dropout if self.training else 0.0
        x = F.scaled_dot_product_attention(q, k, v, attn_mask=seen, dropout_p=dropout)
        return self.to_out(x.transpose(1, 2).flatten(2))


class HeartLangFeedForward(nn.Module):
    """Two linear layers behind their norm."""

    def __init__(self, config: HeartLangConfig):
        super().__init__()
        d = config.hidden_size
        self.net = nn.Sequential(
            nn.LayerNorm(d),
            nn.Linear(d, config.intermediate_size),
            nn.GELU(),
            nn.Dropout(config.dropout),
            nn.Linear(config.intermediate_size, d),
            nn.Dropout(config.dropout),
        )

    def forward(self, x: Tensor) -> Tensor:
        """`[B, N, D] -> [B, N, D]`."""
        return self.net(x)


class HeartLangBackbone(nn.Module):
    """A sentence of words in, CLS and one vector per word out.

    The same network reads samples (encoder) or, with other `channels` (numbers per word) and `layers` than the
    configuration's, codes (the decoder of VQ-HBR).
    """

    def __init__(self, config: HeartLangConfig, channels: int | None = None, layers: int | None = None):
        super().__init__()
        d = config.hidden_size
        self.attend_padding, self.hide_masked_words = config.attend_padding, config.hide_masked_words
        self.mask_token = nn.Parameter(torch.empty(1, 1, d))
        self.cls_token = nn.Parameter(torch.empty(d))
        self.pos_embed = nn.Parameter(torch.empty(1, 1 + config.max_words, d))
        self.token_embed = HeartLangWordEmbedding(channels or config.word_length, config)
        self.spa_embed = nn.Sequential(OrderedDict(embed=nn.Embedding(config.lead_positions, d)))
        self.tem_embed = nn.Sequential(OrderedDict(embed=nn.Embedding(config.time_positions, d)))
        self.dropout = nn.Dropout(config.embedding_dropout)
        count = range(config.num_hidden_layers if layers is None else layers)
        pairs = (nn.ModuleList([HeartLangAttention(config), HeartLangFeedForward(config)]) for _ in count)
        self.transformer = nn.ModuleDict({"layers": nn.ModuleList(pairs)})
        self.norm_layer = nn.LayerNorm(d)

    def forward(
        self,
        words: Tensor,
        in_chan: Tensor | None,
        in_time: Tensor | None,
        mask: Tensor | None = None,
        hidden_states: list[Tensor] | None = None,
    ) -> Tensor:
        """Sentences `[B, N, channels]` to `[B, 1 + N, D]`, CLS first; the first three arguments as `HeartLangModel`'s.

        Words are hidden where `mask`, bool `[B, N]`, is true; `hidden_states` takes the input of the first layer and
        the output of each.
        """
        if mask is not None and self.hide_masked_words:
            words = words.masked_fill(mask[..., None], 0)
        x = self.token_embed(words.to(self.cls_token.dtype))
        if mask is not None:
            x = torch.where(mask[..., None], self.mask_token, x)
        if in_chan is not None:
            x = x + self.spa_embed(in_chan)
        if in_time is not None:
            x = x + self.tem_embed(in_time)
        x = self.dropout(torch.cat([self.cls_token.expand(len(x), 1, -1), x], dim=1) + self.pos_embed)
        seen = None
        if not self.attend_padding and in_chan is not None:
            seen = F.pad(in_chan > 0, (1, 0), value=True)[:, None, None]
        if hidden_states is not None:
            hidden_states.append(x)
        for attention, feed_forward in self.transformer["layers"]:
            x = attention(x, seen) + x
            x = feed_forward(x) + x
            if hidden_states is not None:
                hidden_states.append(x)
        return self.norm_layer(x)


class HeartLangPreTrained(EcgEncoder):
    """What HeartLang's models share: their inputs and how new weights are drawn."""

    config_class = HeartLangConfig
    ecg_inputs = ("words", "in_chan", "in_time")
    main_input_name = "words"
    input_modalities = ("time",)
    _no_split_modules = ["HeartLangAttention", "HeartLangFeedForward"]

    @classmethod
    def from_upstream(cls, path: str | Path, config: HeartLangConfig | None = None) -> Self:
        """The model of a checkpoint that upstream's code wrote, in eval mode.

        The encoder is in pretraining and in fine-tuned checkpoints; the masked-sentence model in the former alone. A
        classifier is in the latter, and gets a new head where there is none if `config` says `num_labels`.

        The path is `.pth` or `.safetensors`; a configuration says what no tensor shows: heads, dropout, `output`.

        Raises:
            FileNotFoundError: There is no such file.
            ValueError: It is not such a checkpoint; a tensor is missing, unexpected, misshapen or not finite.
        """
        return upstream.from_upstream(cls, path, config)

    def get_input_embeddings(self) -> nn.Module:
        """The embedding of words: what PEFT and gradient checkpointing hook to make inputs require gradients."""
        return self.get_submodule("backbone.token_embed")

    def _check(self, words: Tensor, *positions: Tensor | None) -> None:
        """Refuse words or positions `[B, N]` of another shape than the configuration says."""
        wanted = (self.config.max_words, self.config.word_length)
        if words.ndim != 3 or words.shape[1:] != wanted:
            raise ValueError(f"words must be [B, {wanted[0]}, {wanted[1]}], got {tuple(words.shape)}")
        for name, index in zip(("in_chan", "in_time"), positions):
            if index is not None and index.shape != words.shape[:2]:
                raise ValueError(f"{name} must be {tuple(words.shape[:2])} like the words, got {tuple(index.shape)}")

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, HeartLangBackbone):
            for parameter in (module.mask_token, module.cls_token, module.pos_embed):
                init.trunc_normal_(parameter, std=self.config.initializer_range)
        elif isinstance(module, nn.Conv1d):
            init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity="leaky_relu")
        else:
            super()._init_weights(module)


class HeartLangModel(HeartLangPreTrained):
    """Sentences of heart-beat words in, tokens of the chosen layout out; sizes as published."""

    def __init__(self, config: HeartLangConfig):
        super().__init__(config)
        self.backbone = HeartLangBackbone(config)
        self.backbone.mask_token.requires_grad_(False)  # no word is masked
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        words: Tensor,
        in_chan: Tensor | None = None,
        in_time: Tensor | None = None,
        token_mask: Tensor | None = None,
        output_hidden_states: bool = False,
    ) -> HeartLangOutput:
        """Encode sentences.

        Args:
            words: `[B, 256, 96]`, as `QrsTokenizer` cuts them.
            in_chan: Lead of each word `[B, 256]`, 1 to 12; 0 is padding. Without it no lead is added; all words count.
            in_time: Second of each word `[B, 256]`, from 1; 0 is padding.
            token_mask: bool `[B, T]`, handed on as `mask`; it follows from `in_chan` unless given.
            output_hidden_states: Whether to return every layer's.

        Raises:
            ValueError: A shape is not as above, or the layout needs `in_chan`.
        """
        self._check(words, in_chan, in_time)
        hidden: list[Tensor] | None = [] if output_hidden_states else None
        encoded = self.backbone(words, in_chan, in_time, hidden_states=hidden)
        tokens, mask = arrange(encoded, in_chan, self.config)
        return HeartLangOutput(
            last_hidden_state=tokens,
            mask=mask if token_mask is None else output_mask(tokens, token_mask),
            probe=encoded[:, 0],
            words=encoded,
            hidden_states=None if hidden is None else tuple(hidden),
        )


def arrange(encoded: Tensor, in_chan: Tensor | None, config: HeartLangConfig) -> tuple[Tensor, Tensor]:
    """Tokens `[B, T, D]` of the layout that `config.output` names, and their mask, bool `[B, T]`.

    Of CLS and words, `[B, 1 + N, D]`; `in_chan` `[B, N]` is the lead of each, all words of one side by side, 0 padding.
    """
    cls, words = encoded[:, :1], encoded[:, 1:]
    if in_chan is None:
        if config.output != "words":
            raise ValueError(f"output {config.output!r} needs in_chan, the lead of each word")
        return encoded, torch.ones(encoded.shape[:2], dtype=torch.bool, device=encoded.device)
    valid = in_chan > 0
    always = torch.ones_like(valid[:, :1])
    if config.output == "words":
        return encoded, torch.cat([always, valid], dim=1)
    lead, beat = _lead_and_beat(in_chan)
    leads = _means(words, lead, valid, config.num_leads)
    if config.output == "leads":
        return leads
    beats = _means(words, beat, valid, config.max_beats)
    if config.output == "beats":
        return beats
    return torch.cat([cls, leads[0], beats[0]], dim=1), torch.cat([always, leads[1], beats[1]], dim=1)


def _lead_and_beat(in_chan: Tensor) -> tuple[Tensor, Tensor]:
    """Which of the leads each word belongs to, and which of that lead's words it is: `[B, N]` each."""
    place = torch.arange(in_chan.shape[1], device=in_chan.device).expand_as(in_chan)
    begins = (in_chan != F.pad(in_chan, (1, 0))[:, :-1]) & (in_chan > 0)
    start = torch.where(begins, place, 0).cummax(dim=1).values
    return begins.cumsum(dim=1) - 1, place - start


def _means(words: Tensor, group: Tensor, valid: Tensor, groups: int) -> tuple[Tensor, Tensor]:
    """The mean of the words of each group, `[B, groups, D]`, and whether it has any, bool `[B, groups]`."""
    member = (group[:, None] == torch.arange(groups, device=group.device)[:, None]) & valid[:, None]  # [B, groups, N]
    count = member.sum(dim=2, keepdim=True)
    return (member.to(words.dtype) @ words) / count.clamp(min=1), count[..., 0] > 0
