"""The ECG-language model: encoder, projector, language model; an ECG's projected tokens replace its placeholders.

`ElmForConditionalGeneration{model: ElmModel{encoder, projector, language_model}, lm_head}` is the layout in which
PEFT, TRL, `generate` and vLLM find what they look for.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import nn
from torch.distributed.tensor import DTensor
from transformers import AutoModel, GenerationMixin, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.utils import can_return_tuple

from elm.model.configuration import ElmConfig, pooled_mask
from elm.model.families import attend_within_bounds, backbone_of
from elm.model.prefix import mask_of_questions
from elm.model.projectors import Vocabulary, new_projector

Inputs = dict[str, Any]


class ElmPreTrainedModel(PreTrainedModel):
    """What both classes share."""

    config_class = ElmConfig
    base_model_prefix = "model"  # TRL's fused head asks it for last_hidden_state
    supports_gradient_checkpointing = True
    _skip_keys_device_placement = ["past_key_values"]
    _supports_flash_attn = True
    _supports_sdpa = True
    _supports_attention_backend = True


class ElmModel(ElmPreTrainedModel):
    """Embeds text, puts projected ECG tokens in place of the `<ecg>` tokens, and runs the language model."""

    def __init__(self, config: ElmConfig) -> None:
        super().__init__(config)
        self.encoder = AutoModel.from_config(config.encoder_config)
        self.projector = new_projector(config)
        self.language_model = AutoModel.from_config(config.text_config)
        attend_within_bounds(config.text_config, self.language_model)
        self.post_init()

    @property
    def ecg_inputs(self) -> tuple[str, ...]:
        """Every name under which `forward` takes something of an ECG."""
        return (*self.encoder.ecg_inputs, "token_mask", "ecg_features", "ecg_embeds", "ecg_mask")

    def ecg_embeddings(
        self,
        ecg_features: torch.Tensor | None = None,
        ecg_mask: torch.Tensor | None = None,
        ecg_embeds: torch.Tensor | None = None,
        **features: torch.Tensor,
    ) -> torch.Tensor:
        """Projected tokens of all ECGs, one after the other: `[tokens, H]`.

        Takes the ECGs in one of three forms: the feature extractor's tensors; what the encoder made of them,
        `ecg_features` `[B, T, D]`; or what the projector made of that, `ecg_embeds` `[B, ceil(T / pool), H]`. With the
        latter two, `ecg_mask` `[B, T]` says which of the encoder's tokens carry signal (without it, all).

        Raises:
            ValueError: The ECGs come in two forms, or `ecg_embeds` and `ecg_mask` are for other numbers of tokens.
        """
        given = [name for name in self.encoder.ecg_inputs if name in features][:1]
        given += ["ecg_features"] if ecg_features is not None else []
        given += ["ecg_embeds"] if ecg_embeds is not None else []
        if len(given) > 1:
            raise ValueError(f"the ECGs are given in two forms, {' and '.join(given)}: give one of them")
        if ecg_embeds is not None:
            if ecg_mask is None:
                return ecg_embeds.flatten(0, 1)
            kept = pooled_mask(ecg_mask, self.config.projector_pool)
            if kept.shape != ecg_embeds.shape[:2]:
                raise ValueError(
                    f"ecg_embeds has {tuple(ecg_embeds.shape[:2])} tokens, those of ecg_mask are {tuple(kept.shape)}"
                )
            return ecg_embeds[kept]
        if ecg_features is None:
            encoded = self.encoder(**features)
            ecg_features, ecg_mask = encoded.last_hidden_state, encoded.mask
        elif ecg_mask is None:
            ecg_mask = torch.ones(ecg_features.shape[:2], dtype=torch.bool, device=ecg_features.device)
        projected, kept = self.projector(ecg_features, ecg_mask)
        packed: torch.Tensor = projected[kept]
        return packed

    @torch.no_grad()
    def mirror_rows(self) -> None:
        """Where an ECG's tokens are words, copy their rows into the language model's table; else do nothing.

        A head that shares the table speaks by it, so it is done at every step of training. The head itself teaches the
        rows nothing: words that are never said would all be pushed the same way (Gao et al., 2019, "representation
        degeneration"), and its gradient is as large as the table.
        """
        start = self.config.vocabulary_start
        if start is None:
            return
        rows = cast("torch.Tensor", self.projector.weight)
        # Of a table that FSDP or ZeRO-3 has taken apart, the whole one that is saved is copied to.
        table = self.get_input_embeddings().weight
        if isinstance(table, DTensor) or table.shape[0] < start + len(rows):
            return
        table.data[start : start + len(rows)] = rows.to(table.device, table.dtype)  # .data: it is no step of autograd

    def refuse_placeholders(self, input_ids: torch.Tensor | None) -> None:
        """For text that comes without an ECG: a `ValueError` if it has a place for one."""
        count = 0 if input_ids is None else int((input_ids == self.config.ecg_token_id).sum())
        if count:
            raise ValueError(f"the text has {count} <ecg> tokens but no ECG")

    def _positions(
        self, inputs_embeds: torch.Tensor, attention_mask: Any, position_ids: torch.Tensor | None, cache: Any
    ) -> torch.Tensor | None:
        """Positions, counted from the first token that is none of padding; refuses more than the model knows.

        Left to itself, GPT-2 counts padding on the left, too, and gives every token another embedding for it.
        """
        length = inputs_embeds.shape[1] + (0 if cache is None else int(cache.get_seq_length()))
        is_2d = isinstance(attention_mask, torch.Tensor) and attention_mask.ndim == 2
        if position_ids is None and is_2d and not bool(attention_mask[:, 0].all()):
            position_ids = (attention_mask.long().cumsum(dim=1) - 1).clamp(min=0)[:, -inputs_embeds.shape[1] :]
        text = self.config.text_config
        most = vars(text).get(text.attribute_map.get("max_position_embeddings", "max_position_embeddings"))
        if most is not None and length > most:
            needed = length if position_ids is None else 1 + int(position_ids.max())
            if needed > most:
                raise ValueError(
                    f"a conversation of {needed} tokens is longer than the {most} positions of this language model "
                    f"({text.model_type}): let an ECG take fewer tokens (projector_pool), put fewer "
                    "turns in a dialogue, or take a language model with more positions"
                )
        return position_ids

    def _masks_of_questions(
        self, question_ids: torch.Tensor, attention_mask: Any, position_ids: Any, dtype: torch.dtype
    ) -> Any:
        """The mask of questions that share a row; for a model whose layers differ, one of each kind of layer.

        Layers with a sliding window (Gemma, Mistral) take a given mask for what it is, so the window is put into it.
        """
        text, attention = vars(self.config.text_config), self.language_model.config._attn_implementation
        kinds, window = set(text.get("layer_types") or ()), text.get("sliding_window")

        def mask(near: torch.Tensor | None) -> torch.Tensor:
            return mask_of_questions(question_ids, attention_mask, attention, dtype, near)

        if window is None or kinds == {"full_attention"}:
            return mask(None)
        near = position_ids[:, :, None] - position_ids[:, None, :] < window
        if not kinds:
            return mask(near)
        if odd := sorted(kinds - {"full_attention", "sliding_attention"}):
            raise ValueError(f"questions cannot share a row in layers of {odd[0]}: train one per row")
        return {kind: mask(near if kind == "sliding_attention" else None) for kind in kinds}

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Any = None,
        inputs_embeds: torch.Tensor | None = None,
        question_ids: torch.Tensor | None = None,
        scored: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        """Hidden states of the language model.

        Args:
            input_ids: `[B, S]`, with as many `ecg_token_id` per row as its ECGs have projected tokens.
            attention_mask: `[B, S]`.
            position_ids: `[B, S]`.
            past_key_values: Key-value cache; the ECG's tensors are then given with the prompt only.
            inputs_embeds: `[B, S, H]` in place of `input_ids`, for text alone.
            question_ids: `[B, S]` where the questions of a row share a prefix (`elm.model.prefix`): 0 there, then 1, 2,
            ...
            scored: `[B, L]`, the only places whose last hidden states are wanted; all, if not given.
            **kwargs: The tensors of all ECGs of the batch, in order of appearance (`ecg_inputs`), and whatever the
                language model takes.

        Raises:
            ValueError: Placeholders and projected tokens differ in number, ECGs come without `input_ids`, there are
                more tokens than the language model has positions for, or questions are to share a prefix under an
                attention that cannot keep them apart.
        """
        ecg = {name: kwargs.pop(name) for name in self.ecg_inputs if name in kwargs}
        ecg = {name: value for name, value in ecg.items() if value is not None}
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give exactly one of input_ids and inputs_embeds")
        if inputs_embeds is None:
            inputs_embeds = self.get_input_embeddings()(input_ids)
        assert inputs_embeds is not None
        if ecg:
            if input_ids is None:
                raise ValueError("ECGs need input_ids: the <ecg> tokens in them say where each belongs")
            if self.training:
                self.mirror_rows()
            embeddings = self.ecg_embeddings(**ecg).to(inputs_embeds.device, inputs_embeds.dtype)
            here = input_ids == self.config.ecg_token_id  # [B, S]
            if int(here.sum()) != len(embeddings):
                raise ValueError(
                    f"the text has {int(here.sum())} <ecg> tokens but the ECGs give {len(embeddings)}: "
                    "let ElmProcessor build both"
                )
            inputs_embeds = inputs_embeds.masked_scatter(here[..., None], embeddings)
        elif past_key_values is None:
            self.refuse_placeholders(input_ids)
        position_ids = self._positions(inputs_embeds, attention_mask, position_ids, past_key_values)
        masks: Any = attention_mask
        if question_ids is not None:
            masks = self._masks_of_questions(question_ids, attention_mask, position_ids, inputs_embeds.dtype)
        out: BaseModelOutputWithPast = self.language_model(
            inputs_embeds=inputs_embeds,
            attention_mask=masks,
            position_ids=position_ids,
            past_key_values=past_key_values,
            **kwargs,
        )
        if scored is not None:
            index = scored[..., None].expand(-1, -1, out.last_hidden_state.shape[-1])
            out.last_hidden_state = out.last_hidden_state.gather(1, index)
        return out


@dataclass
class ElmOutput(CausalLMOutputWithPast):
    """Loss, logits `[B, S, V]`, and the language model's cache and hidden states."""


class ElmForConditionalGeneration(ElmPreTrainedModel, GenerationMixin):
    """Answers questions about ECGs. Load with `elm.load`, or `from_pretrained` after `import elm.auto`."""

    def __init__(self, config: ElmConfig) -> None:
        super().__init__(config)
        self.model = ElmModel(config)
        self.lm_head = nn.Linear(config.embedding_width, config.text_config.vocab_size, bias=False)
        embeddings = self.model.get_input_embeddings()
        (name,) = (name for name, module in self.named_modules() if module is embeddings)  # GPT-2's is wte
        self._tied_weights_keys = {"lm_head.weight": f"{name}.weight"}
        self.post_init()
        self._never_say_placeholders()

    @classmethod
    def from_parts(
        cls, config: ElmConfig, encoder: PreTrainedModel, language: PreTrainedModel
    ) -> ElmForConditionalGeneration:
        """A model around a pretrained encoder and a pretrained causal language model; the projector is new.

        The parts become the model's own, each in its precision; nothing is copied.

        Raises:
            ValueError: The language model has weights that ours has no place for, such as the bias of a head.
        """
        with torch.device("meta"):
            model = cls(config)
        expected = {name for name, _ in model.named_parameters(remove_duplicate=False)}
        model.model.encoder = encoder
        model.model.projector = new_projector(config)  # float32: it is trained in full
        model.model.language_model = backbone_of(language)
        if (start := config.vocabulary_start) is not None:
            words, table = model.model.projector, model.model.get_input_embeddings().weight
            assert isinstance(words, Vocabulary)
            words.weight.data.copy_(table[start : start + len(words.weight)])
            words.scale = words.scale.to(table.dtype)
        attend_within_bounds(config.text_config, model.model.language_model)
        model.lm_head = language.get_output_embeddings()
        found = {name for name, _ in model.named_parameters(remove_duplicate=False)}
        if odd := sorted(found ^ expected):
            raise ValueError(
                f"language models of type {config.text_config.model_type!r} do not fit: {odd[0]} is "
                f"{'one too many' if odd[0] in found else 'missing'}"
            )
        model.generation_config = language.generation_config
        model._never_say_placeholders()
        return model

    def _never_say_placeholders(self) -> None:
        # Without a cache, a placeholder the model said itself would be one more than its ECGs have tokens.
        never = [self.config.ecg_token_id]
        if (start := self.config.vocabulary_start) is not None:
            never += range(start, start + self.config.encoder_config.vocabulary)
        self.generation_config.suppress_tokens = never

    @property
    def ecg_inputs(self) -> tuple[str, ...]:
        """Every name under which `forward` takes something of an ECG."""
        return self.model.ecg_inputs

    def get_output_embeddings(self) -> nn.Module:
        """The head, where TRL's fused loss and PEFT look for it."""
        return self.lm_head

    def logits_of(self, hidden: torch.Tensor) -> torch.Tensor:
        """Logits `[..., V]` of last hidden states `[..., H]`, bounded where the language model's are (Gemma 2)."""
        logits: torch.Tensor = self.lm_head(hidden)
        cap = vars(self.config.text_config).get("final_logit_softcapping")
        return logits if cap is None else cap * torch.tanh(logits / cap)

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Any = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        **kwargs: Any,
    ) -> ElmOutput:
        """Logits `[B, S, V]` and, given `labels` `[B, S]` (-100 where nothing is learned), the loss.

        The other arguments are those of `ElmModel.forward`.
        """
        out = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            **kwargs,
        )
        keep = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) and logits_to_keep else logits_to_keep
        hidden = out.last_hidden_state if isinstance(keep, int) else out.last_hidden_state[:, keep]
        logits = self.logits_of(hidden)
        loss = None
        if labels is not None:
            rest = {k: v for k, v in kwargs.items() if k not in self.ecg_inputs}
            loss = self.loss_function(logits, labels, vocab_size=self.config.text_config.vocab_size, **rest)
        return ElmOutput(
            loss=loss,
            logits=logits,
            past_key_values=out.past_key_values,
            hidden_states=out.hidden_states,
            attentions=out.attentions,
        )

    # --- generation -----------------------------------------------------------------------------------------------

    def _validate_model_kwargs(self, model_kwargs: Inputs) -> None:
        # The stock check knows only the names in forward's signature; an ECG's are its encoder's affair.
        super()._validate_model_kwargs({k: v for k, v in model_kwargs.items() if k not in self.ecg_inputs})

    def prepare_inputs_for_generation(
        self, input_ids: torch.Tensor, is_first_iteration: bool = False, **kwargs: Any
    ) -> Inputs:
        """The ECG goes in with the prompt only: afterwards it lives in the cache."""
        ecg = {name: kwargs.pop(name) for name in self.ecg_inputs if name in kwargs}
        inputs: Inputs = super().prepare_inputs_for_generation(
            input_ids, is_first_iteration=is_first_iteration, **kwargs
        )
        if is_first_iteration or not kwargs.get("use_cache", True):
            inputs.update(ecg)
        if is_first_iteration and not ecg:  # the prompt comes with an empty cache, so forward does not look
            self.model.refuse_placeholders(inputs.get("input_ids"))
        return inputs

    def _expand_inputs_for_generation(
        self,
        expand_size: int = 1,
        is_encoder_decoder: bool = False,
        input_ids: torch.Tensor | None = None,
        **model_kwargs: Any,
    ) -> tuple[torch.Tensor | None, Inputs]:
        """Beams and returned sequences: rows are repeated one by one, ECGs conversation by conversation.

        The stock method would turn the ECGs [a, b] of one conversation into [a, a, b, b], and rows would silently
        answer about the wrong ECGs.
        """
        ecg = {name: model_kwargs.pop(name) for name in self.ecg_inputs if model_kwargs.get(name) is not None}
        if expand_size > 1 and ecg and input_ids is not None:
            order = self._ecgs_of_expanded_rows(input_ids, ecg, expand_size)
            ecg = {name: value[order.to(value.device)] for name, value in ecg.items()}
        input_ids, model_kwargs = super()._expand_inputs_for_generation(
            expand_size=expand_size, is_encoder_decoder=is_encoder_decoder, input_ids=input_ids, **model_kwargs
        )
        return input_ids, {**model_kwargs, **ecg}

    def _ecgs_of_expanded_rows(self, input_ids: torch.Tensor, ecg: Inputs, expand_size: int) -> torch.Tensor:
        """Index of the ECG for each place in the expanded batch. A row owns the ECGs that fill its placeholders."""
        mask = ecg.get("ecg_mask", ecg.get("token_mask"))
        if mask is None:
            raise ValueError("beams and several returned sequences need token_mask (or ecg_mask) beside the ECGs")
        ends = pooled_mask(mask, self.config.projector_pool).sum(dim=1).cumsum(0).tolist()
        row_ends = (input_ids == self.config.ecg_token_id).sum(dim=1).cumsum(0).tolist()
        owner = [sum(end > row_end for row_end in row_ends) for end in ends]
        if ends and ends[-1] != row_ends[-1]:
            raise ValueError(f"the text has {row_ends[-1]} <ecg> tokens but the ECGs give {ends[-1]}")
        if ends and any(end not in [0, *ends] for end in row_ends):
            raise ValueError(
                f"an ECG is split: the <ecg> tokens of the rows end at {row_ends}, those of ECGs at {ends}"
            )
        order = []
        for row in range(len(row_ends)):
            order += [i for i, o in enumerate(owner) if o == row] * expand_size
        return torch.tensor(order, dtype=torch.long)
