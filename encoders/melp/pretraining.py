"""`MelpForPretraining`: MELP's ECG encoder with the text side that it is trained against.

Written anew after HKU-MedAI/MELP `src/melp/models/melp_model.py` and open_clip's CoCa decoder. A report runs through a
causal BERT with a [CLS] at a fixed last position, which stands for the whole report and is contrasted with the rhythm;
the means over its sentences are contrasted with the beats; and a decoder tells each word from the words before it and
the caption tokens. Parameters keep their published names but for `text_model` (upstream's `lm_model.bert`).

What upstream gets wrong is put right: where sentences end is the tokenizer's to say, words behind the last full stop
are a sentence too, a report's only sentence still chooses among the beats, `text_projection` is initialised, and the
contrast has gradients for the recordings and reports of all processes. The places behind a report's end are not
computed, which changes no result.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from transformers import BertModel, PreTrainedModel
from transformers import initialization as init
from transformers.utils import ModelOutput, can_return_tuple

from encoders.checkpoints import built
from encoders.melp import losses, upstream
from encoders.melp.configuration import MelpConfig, MelpPretrainingConfig
from encoders.melp.modeling import MelpModel
from encoders.melp.text import sentence_weights


@dataclass
class MelpPretrainingOutput(ModelOutput):
    """Losses of a batch, and what they compare."""

    loss: torch.FloatTensor | None = None  # weighted sum of the losses there are; `None` when they were not asked for
    # InfoNCE between recordings and reports; `None` when its weight is 0, as with the other two.
    contrast_loss: torch.FloatTensor | None = None
    caption_loss: torch.FloatTensor | None = None  # mean cross-entropy of the report's words
    local_loss: torch.FloatTensor | None = None  # contrast between beats and sentences
    # Mean similarity of own recordings and their reports minus that of those that do not belong together; NaN for a
    # single pair. Without gradient.
    alignment_gap: torch.FloatTensor | None = None
    # Cosines of own recordings and the reports of all processes, `[B, N]`. Without gradient.
    similarity: torch.FloatTensor | None = None
    ecg_embeds: torch.FloatTensor | None = None  # rhythm of unit length, `[B, shared]`
    text_embeds: torch.FloatTensor | None = None  # report of unit length, `[B, shared]`


class MelpDecoderLayer(nn.Module):
    """Attention and feed-forward, each behind a norm: over the text so far, or over the ECG."""

    def __init__(self, width: int, heads: int, cross: bool):
        super().__init__()
        self.ln_1 = nn.LayerNorm(width)
        self.ln_1_kv = nn.LayerNorm(width) if cross else None
        self.attn = nn.MultiheadAttention(width, heads, batch_first=True)
        self.ln_2 = nn.LayerNorm(width)
        self.mlp = nn.ModuleDict({"c_fc": nn.Linear(width, 4 * width), "c_proj": nn.Linear(4 * width, width)})

    def forward(self, x: Tensor, ecg: Tensor | None = None) -> Tensor:
        """`[B, L, D]`, and for a cross layer `[B, T, D]`, to `[B, L, D]`."""
        query = self.ln_1(x)
        if self.ln_1_kv is not None:
            key = self.ln_1_kv(ecg)
            x = x + self.attn(query, key, key, need_weights=False)[0]
        else:
            causal = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool, device=x.device).triu(1)
            x = x + self.attn(query, query, query, need_weights=False, attn_mask=causal, is_causal=True)[0]
        return x + self.mlp["c_proj"](F.gelu(self.mlp["c_fc"](self.ln_2(x))))


class MelpCaptionDecoder(nn.Module):
    """Tells the next word from the words so far, as the text tower sees them, and the ECG's caption tokens."""

    def __init__(self, config: MelpPretrainingConfig):
        super().__init__()
        width, heads = config.text_config.hidden_size, config.decoder_heads
        layers = range(config.decoder_layers)
        self.resblocks = nn.ModuleList(MelpDecoderLayer(width, heads, cross=False) for _ in layers)
        self.cross_attn = nn.ModuleList(MelpDecoderLayer(width, heads, cross=True) for _ in layers)
        self.ln_final = nn.LayerNorm(width)
        self.text_projection = nn.Parameter(torch.empty(width, config.text_config.vocab_size))

    def forward(self, words: Tensor, ecg: Tensor) -> Tensor:
        """Words `[B, L, D]` and caption tokens `[B, T, D]` to states `[B, L, D]`, whose `logits` tell what is next."""
        for over_text, over_ecg in zip(self.resblocks, self.cross_attn):
            words = over_ecg(over_text(words), ecg)
        return self.ln_final(words)

    def logits(self, states: Tensor) -> Tensor:
        """`[..., D] -> [..., vocabulary]`."""
        return states @ self.text_projection


class MelpForPretraining(PreTrainedModel):
    """ECG encoder, text tower and caption decoder, trained together; also what classifies ECGs by prompts.

    The encoder by itself is `self.encoder`. Weights that no loss reaches, and the text tower's first
    `frozen_text_layers`, do not require gradients.
    """

    config_class = MelpPretrainingConfig
    main_input_name = "ecg_values"
    _no_split_modules = ["MelpLayer", "BertLayer", "MelpDecoderLayer"]
    _supports_sdpa = True

    def __init__(self, config: MelpPretrainingConfig):
        super().__init__(config)
        text, shared = config.text_config, config.encoder_config.shared_dim
        self.encoder = MelpModel(config.encoder_config)
        self.text_model = BertModel(text, add_pooling_layer=False)
        self.proj_t = nn.Sequential(
            nn.Linear(text.hidden_size, config.text_hidden_dim), nn.GELU(), nn.Linear(config.text_hidden_dim, shared)
        )
        self.sent_proj = nn.Linear(text.hidden_size, shared)
        self.text_decoder = MelpCaptionDecoder(config)
        self.logit_scale = nn.Parameter(torch.empty(()))
        self.post_init()
        for part in self._not_trained():
            part.requires_grad_(False)

    @classmethod
    def from_upstream(cls, path: str | Path, config: MelpPretrainingConfig | MelpConfig | None = None) -> Self:
        """The model of a training checkpoint that upstream's code wrote, in eval mode.

        The path is as `encoders.melp.upstream.read_published_pretraining` takes it. Sizes are read from the weights; a
        configuration says what no tensor shows: heads of encoder, text tower and decoder, weights of the losses, token
        ids. One of the encoder alone says how many heads both towers have, and with `pooler_heads` how many the
        decoder: as published, where both towers have 12 and poolers and decoder 8. Without a configuration of all,
        losses are upstream's (`single_sentence="uniform"`).

        Raises:
            FileNotFoundError: There is no such file.
            ValueError: It has no text side, or is no MELP checkpoint; a tensor is missing, unexpected, misshapen or not
                finite.
        """
        published = upstream.read_published_pretraining(path, **upstream.settings_for_pretraining(config))
        return built(cls(published.config), published.weights, source=str(path))

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, MelpForPretraining):
            init.constant_(module.logit_scale, math.log(1 / 0.07))
        elif isinstance(module, MelpCaptionDecoder):
            init.normal_(module.text_projection, std=module.text_projection.shape[0] ** -0.5)
        else:
            super()._init_weights(module)

    def _not_trained(self) -> list[nn.Module | nn.Parameter]:
        config, encoder = self.config, self.encoder
        parts: list[nn.Module | nn.Parameter] = [*self.text_model.encoder.layer[: config.frozen_text_layers]]
        if not config.contrast_weight:
            parts += [self.proj_t, self.logit_scale]
        if not config.caption_weight:
            parts += [self.text_decoder, encoder.attn_pool_caption, encoder.ln_caption]
        if not config.local_weight:
            parts += [self.sent_proj]
        if not config.contrast_weight and not config.local_weight:
            parts += [encoder.attn_pool_contrast, encoder.ln_contrast, encoder.proj_contrast]
        return parts

    def get_input_embeddings(self) -> nn.Module:
        """The text tower's word embeddings."""
        return self.text_model.embeddings.word_embeddings

    def text_states(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
        """Hidden states of a text's tokens, `[B, L, D]`, and of the [CLS] behind it, `[B, D]`.

        That [CLS] has the last of `text_length` positions however short the text is, as upstream pads every text to
        this length. Nothing attends to padding, so what a batch is padded to makes no difference. Ids and mask are
        those of `encoders.melp.text.tokenize_texts`, `[B, L]`.

        Raises:
            ValueError: L leaves no room for the [CLS].
        """
        batch, length = input_ids.shape
        if length >= self.config.text_length:
            raise ValueError(f"texts of {length} tokens: with the [CLS] they must not exceed {self.config.text_length}")
        ids = torch.cat([input_ids, input_ids.new_full((batch, 1), self.config.cls_token_id)], dim=1)
        mask = torch.cat([attention_mask, attention_mask.new_ones(batch, 1)], dim=1)
        positions = torch.arange(length + 1, device=ids.device)
        positions[-1] = self.config.text_length - 1
        states = self.text_model(ids, attention_mask=mask, position_ids=positions[None]).last_hidden_state
        return states[:, :-1], states[:, -1]

    def sentences(self, states: Tensor, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
        """Sentences in the shared space, `[B, S, shared]`, not of unit length, and the mask bool `[B, S]` of them."""
        weights, mask = sentence_weights(
            input_ids, attention_mask, self.config.sentence_end_ids, self.config.special_token_ids
        )
        return self.sent_proj(weights.to(states.dtype) @ states), mask

    def word_logits(self, states: Tensor, tokens: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
        """Logits `[words, vocabulary]` of all words of texts but the first, and where these are, bool `[B, L - 1]`."""
        words = attention_mask[:, 1:].bool()  # the logits of padding are not computed
        return self.text_decoder.logits(self.text_decoder(states[:, :-1], tokens)[words]), words

    def encode_text(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Texts in the shared space, of unit length: `[B, L] -> [B, shared]`, float32."""
        return F.normalize(self.proj_t(self.text_states(input_ids, attention_mask)[1]).float(), dim=-1)

    def encode_ecg(self, ecg_values: Tensor, token_mask: Tensor | None = None) -> Tensor:
        """Recordings in the shared space, of unit length: `[B, 12, L] -> [B, shared]`, float32."""
        return F.normalize(self.encoder(ecg_values, token_mask).rhythm.float(), dim=-1)

    @can_return_tuple
    def forward(
        self,
        ecg_values: Tensor,
        input_ids: Tensor,
        attention_mask: Tensor,
        token_mask: Tensor | None = None,
        return_loss: bool = True,
    ) -> MelpPretrainingOutput:
        """Compare recordings `[B, 12, samples]` with their reports (`encoders.melp.text.tokenize_texts`), `[B, L]`.

        In training, the batches of all processes are compared with each other; they must have one size. No loss looks
        at `token_mask`, which feature extractors give.

        Raises:
            ValueError: Recordings and reports are not as many, or the processes' batches differ in size.
        """
        if len(ecg_values) != len(input_ids):
            raise ValueError(f"{len(ecg_values)} recordings but {len(input_ids)} reports")
        losses.check_batches(len(input_ids), self.training, input_ids.device)
        ecg = self.encoder(ecg_values, token_mask)
        states, summary = self.text_states(input_ids, attention_mask)
        ecg_embeds = F.normalize(ecg.rhythm.float(), dim=-1)
        text_embeds = F.normalize(self.proj_t(summary).float(), dim=-1)
        results: dict[str, Tensor] = {}
        if return_loss:
            results = self._contrast(ecg_embeds, text_embeds)
            if self.config.caption_weight:
                results["caption_loss"] = self._caption(states, ecg.tokens, input_ids, attention_mask)
            if self.config.local_weight:
                results["local_loss"] = self._local(ecg.beats, *self.sentences(states, input_ids, attention_mask))
            results["loss"] = sum(weight * results[f"{name}_loss"] for name, weight in self._weights.items() if weight)
        return MelpPretrainingOutput(ecg_embeds=ecg_embeds, text_embeds=text_embeds, **results)

    @property
    def _weights(self) -> dict[str, float]:
        return {name: vars(self.config)[f"{name}_weight"] for name in ("contrast", "caption", "local")}

    def _contrast(self, ecg_embeds: Tensor, text_embeds: Tensor) -> dict[str, Tensor]:
        """Loss between recordings and reports, if it has a weight, and what is told of their similarities."""
        training = self.training
        first = losses.first_row(len(ecg_embeds), training)
        with _float32(ecg_embeds):
            similarity = ecg_embeds @ losses.gather(text_embeds, training).T  # [B, N]
            results = {"similarity": similarity.detach(), "alignment_gap": _gap(similarity.detach(), first)}
            if self.config.contrast_weight:
                if training:
                    with torch.no_grad():  # not a clamp in the graph, beyond which there would be no way back
                        self.logit_scale.clamp_(0, math.log(100))
                scale = self.logit_scale.float().exp()
                by_text = text_embeds @ losses.gather(ecg_embeds, training).T
                results["contrast_loss"] = losses.matching_loss(scale * similarity, scale * by_text, first)
        return results

    def _caption(self, states: Tensor, tokens: Tensor, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Loss on each token of the reports but the first, given those before it and the caption tokens."""
        logits, words = self.word_logits(states, tokens, attention_mask)
        return losses.caption_loss(logits, input_ids[:, 1:][words], self.training)

    def _local(self, beats: Tensor, sentences: Tensor, mask: Tensor) -> Tensor:
        """Loss between beats `[B, Q, D]` and sentences `[B, S, D]` with their mask `[B, S]`."""
        training, single = self.training, self.config.single_sentence
        missing = losses.most_sentences(mask, training) - mask.shape[1]  # others have longer reports
        beats, sentences = beats.float(), F.pad(sentences.float(), (0, 0, 0, missing))
        mask = F.pad(mask, (0, missing))
        every, masks = losses.gather(sentences, training), losses.gather(mask, training)
        with _float32(beats):
            by_ecg = losses.local_similarity(beats, every, masks, single)
            if losses.processes(training) == 1:
                by_text = by_ecg.T
            else:
                by_text = losses.local_similarity(losses.gather(beats, training), sentences, mask, single).T
            return losses.matching_loss(by_ecg, by_text, losses.first_row(len(beats), training))


def _float32(like: Tensor) -> torch.autocast:
    """Products of float32 stay float32 in here, whatever the model computes in."""
    return torch.autocast(like.device.type, enabled=False)


def _gap(similarity: Tensor, first: int) -> Tensor:
    """Mean of the matched pairs minus mean of the others."""
    matched = similarity.diagonal(first)
    others = similarity.numel() - len(matched)
    if not others:
        return matched.new_full((), torch.nan)
    return matched.mean() - (similarity.sum() - matched.sum()) / others


def zero_shot(ecg_embeds: Tensor, text_embeds: Tensor) -> Tensor:
    """Cosines of recordings `[B, shared]` and prompts `[C, shared]`: `[B, C]`.

    This is upstream's score of a class: no temperature and no softmax over classes, each class is ranked by itself.
    """
    return F.normalize(ecg_embeds, dim=-1) @ F.normalize(text_embeds, dim=-1).T


def mask_leads(ecg_values: Tensor, p: float = 0.5, generator: torch.Generator | None = None) -> Tensor:
    """A copy of `[..., leads, samples]` with each lead 0 with probability `p`, as upstream trains after its scaling."""
    drawn = torch.rand(ecg_values.shape[:-1], generator=generator, device=ecg_values.device)
    return ecg_values * (drawn >= p)[..., None]
