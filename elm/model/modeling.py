"""The ECG-language model: encoder, projector, language model; an ECG's projected tokens replace its placeholders.

`ElmForConditionalGeneration{model: ElmModel{encoder, projector, language_model}, lm_head}` is the layout in which
PEFT, TRL, `generate` and vLLM find what they look for.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import nn
from torch.distributed.tensor import DTensor
from transformers import AutoModel, Cache, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.utils import can_return_tuple

from elm.model.attention import attend_within_bounds, check_positions, masks_of_questions
from elm.model.configuration import ElmConfig, pooled_mask
from elm.model.families import backbone_of
from elm.model.generation import EcgGenerationMixin
from elm.model.projectors import Vocabulary, new_projector


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
        forms = [name for name in self.encoder.ecg_inputs if name in features][:1]
        forms += ["ecg_features"] * (ecg_features is not None) + ["ecg_embeds"] * (ecg_embeds is not None)
        if len(forms) > 1:
            raise ValueError(f"the ECGs are given in two forms, {' and '.join(forms)}: give one of them")
        if ecg_embeds is not None:
            shape = ecg_embeds.shape[:2]
            with_signal = ecg_embeds.new_ones(shape, dtype=torch.bool)
            if ecg_mask is not None:
                with_signal = pooled_mask(ecg_mask, self.config.projector_pool)
            if with_signal.shape != shape:
                raise ValueError(
                    f"ecg_embeds has {tuple(shape)} tokens, those of ecg_mask are {tuple(with_signal.shape)}"
                )
            return ecg_embeds[with_signal]
        if ecg_features is None:
            encoded = self.encoder(**features)
            ecg_features, ecg_mask = encoded.last_hidden_state, encoded.mask
        elif ecg_mask is None:
            ecg_mask = torch.ones(ecg_features.shape[:2], dtype=torch.bool, device=ecg_features.device)
        projected, with_signal = self.projector(ecg_features, ecg_mask)
        tokens: torch.Tensor = projected[with_signal]
        return tokens

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
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
            question_ids: `[B, S]` where the questions of a row share a prefix (`elm.inputs.packing`): 0 there, then 1,
                2, ...
            scored: `[B, L]`, the only places whose last hidden states are wanted; all, if not given.
            **kwargs: The tensors of all ECGs of the batch, in order of appearance (`ecg_inputs`), and whatever the
                language model takes.

        Raises:
            ValueError: Placeholders and projected tokens differ in number, ECGs come without `input_ids`, there are
                more tokens than positions, or the attention cannot keep questions that share a prefix apart.
        """
        ecg = {name: value for name in self.ecg_inputs if (value := kwargs.pop(name, None)) is not None}
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give exactly one of input_ids and inputs_embeds")
        embeds = self.get_input_embeddings()(input_ids) if inputs_embeds is None else inputs_embeds
        if ecg:
            if input_ids is None:
                raise ValueError("ECGs need input_ids: the <ecg> tokens in them say where each belongs")
            embeds = self._splice(ecg, input_ids, embeds)
        elif past_key_values is None:
            self.refuse_placeholders(input_ids)
        text = self.config.text_config
        position_ids = check_positions(text, embeds, attention_mask, position_ids, past_key_values)
        mask: torch.Tensor | dict[str, torch.Tensor] | None = attention_mask
        if question_ids is not None:
            attention = self.language_model.config._attn_implementation
            mask = masks_of_questions(text, attention, question_ids, attention_mask, position_ids, embeds.dtype)
        kwargs.update(position_ids=position_ids, past_key_values=past_key_values)
        out: BaseModelOutputWithPast = self.language_model(inputs_embeds=embeds, attention_mask=mask, **kwargs)
        if scored is not None:
            index = scored[..., None].expand(-1, -1, out.last_hidden_state.shape[-1])
            out.last_hidden_state = out.last_hidden_state.gather(1, index)
        return out

    def _splice(self, ecg: dict[str, torch.Tensor], input_ids: torch.Tensor, embeds: torch.Tensor) -> torch.Tensor:
        """Embeddings `[B, S, H]` with the ECGs' projected tokens in place of the `<ecg>` tokens."""
        if self.training:
            self.mirror_rows()
        tokens = self.ecg_embeddings(**ecg).to(embeds.device, embeds.dtype)
        is_ecg = input_ids == self.config.ecg_token_id  # [B, S]
        if int(is_ecg.sum()) != len(tokens):
            count = f"{int(is_ecg.sum())} <ecg> tokens but the ECGs give {len(tokens)}"
            raise ValueError(f"the text has {count}: let ElmProcessor build both")
        return embeds.masked_scatter(is_ecg[..., None], tokens)

    @torch.no_grad()
    def mirror_rows(self) -> None:
        """Copies the rows of an ECG's tokens into the language model's table, where they are words; else does nothing.

        A head that shares the table speaks by it, so it is done at every step of training. The head itself teaches the
        rows nothing: words that are never said would all be pushed the same way (Gao et al., 2019, "representation
        degeneration"), and its gradient is as large as the table.
        """
        if (start := self.config.vocabulary_start) is None:
            return
        rows = cast("torch.Tensor", self.projector.weight)
        # Of a table that FSDP or ZeRO-3 has taken apart, the whole one that is saved is copied to.
        table = self.get_input_embeddings().weight
        if isinstance(table, DTensor) or table.shape[0] < start + len(rows):
            return
        table.data[start : start + len(rows)] = rows.to(table.device, table.dtype)  # .data: it is no step of autograd

    def refuse_placeholders(self, input_ids: torch.Tensor | None) -> None:
        """Raises `ValueError` where text that comes without an ECG has a place for one."""
        count = 0 if input_ids is None else int((input_ids == self.config.ecg_token_id).sum())
        if count:
            raise ValueError(f"the text has {count} <ecg> tokens but no ECG")


class ElmForConditionalGeneration(ElmPreTrainedModel, EcgGenerationMixin):
    """Answers questions about ECGs. Load with `elm.load`, or `from_pretrained` after `import elm.auto`."""

    def __init__(self, config: ElmConfig) -> None:
        super().__init__(config)
        self.model = ElmModel(config)
        self.lm_head = nn.Linear(config.embedding_width, config.text_config.vocab_size, bias=False)
        embeddings = self.model.get_input_embeddings()
        (name,) = (name for name, module in self.named_modules() if module is embeddings)  # GPT-2's is wte
        self._tied_weights_keys = {"lm_head.weight": f"{name}.weight"}
        self.post_init()
        self.never_say_placeholders()

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
        present = {name for name, _ in model.named_parameters(remove_duplicate=False)}
        if odd := sorted(present ^ expected):
            how = "one too many" if odd[0] in present else "missing"
            raise ValueError(f"language models of type {config.text_config.model_type!r} do not fit: {odd[0]} is {how}")
        model.generation_config = language.generation_config
        model.never_say_placeholders()
        return model

    @classmethod
    def around(cls, config: ElmConfig, loaded: ElmForConditionalGeneration) -> ElmForConditionalGeneration:
        """A model of another one's parts, without what `from_pretrained` notes of 4 bits: it is saved as any other."""
        with torch.device("meta"):
            model = cls(config)
        for part in ("encoder", "projector", "language_model"):
            setattr(model.model, part, getattr(loaded.model, part))
        model.lm_head, model.generation_config = loaded.lm_head, loaded.generation_config
        return model

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
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Logits `[B, S, V]` and, given `labels` `[B, S]` (-100 where nothing is learned), the loss.

        The other arguments are those of `ElmModel.forward`.
        """
        text = {"input_ids": input_ids, "attention_mask": attention_mask, "position_ids": position_ids}
        out = self.model(**text, past_key_values=past_key_values, inputs_embeds=inputs_embeds, **kwargs)
        keep = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) and logits_to_keep else logits_to_keep
        hidden = out.last_hidden_state if isinstance(keep, int) else out.last_hidden_state[:, keep]
        logits = self.logits_of(hidden)
        loss = None
        if labels is not None:
            settings = {name: value for name, value in kwargs.items() if name not in self.ecg_inputs}
            loss = self.loss_function(logits, labels, vocab_size=self.config.text_config.vocab_size, **settings)
        return CausalLMOutputWithPast(loss, logits, out.past_key_values, out.hidden_states, out.attentions)
