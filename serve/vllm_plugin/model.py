"""`ElmForConditionalGeneration` in vLLM: our encoder and projector in front of vLLM's own language model.

The language model is sharded, quantised and compiled by vLLM as always; encoder and projector are the modules that were
trained, whole on every rank, in float32 whatever the language model's precision: an ECG goes through them once.

Compared with `generate` of transformers, token by token: Llama, Qwen 2 and 3, Gemma 2 and 3, GPT-2, OPT. Others run
where vLLM's class reads the weights of transformers' class of the same name.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

import torch
from torch import nn
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoModel
from vllm.model_executor.models.interfaces import SupportsLoRA, SupportsMultiModal, SupportsPP
from vllm.model_executor.models.module_mapping import MultiModelKeys
from vllm.model_executor.models.utils import StageMissingLayer, WeightsMapper, init_vllm_registered_model, maybe_prefix
from vllm.multimodal import MULTIMODAL_REGISTRY
from vllm.utils.torch_utils import set_default_torch_dtype

from elm import ElmConfig
from elm.model.projectors import Projector
from serve.vllm_plugin.processing import ElmDummyInputs, ElmMultiModalProcessor, ElmProcessingInfo

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.sequence import IntermediateTensors

Weights = Iterable[tuple[str, torch.Tensor]]
_PARTS = ("encoder", "projector")


@MULTIMODAL_REGISTRY.register_processor(ElmMultiModalProcessor, info=ElmProcessingInfo, dummy_inputs=ElmDummyInputs)
class ElmForConditionalGeneration(nn.Module, SupportsMultiModal, SupportsLoRA, SupportsPP):
    """Encoder, projector and language model.

    LoRA adapters apply to the language model alone. One that was trained with a projector of its own
    (`modules_to_save`) is refused by vLLM: its LoRA means nothing to another projector. Serve its merged model.
    """

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__()
        config: ElmConfig = vllm_config.model_config.hf_config
        self.config = config
        causal = MODEL_FOR_CAUSAL_LM_MAPPING[type(config.text_config)]
        self.backbone = f"{causal.base_model_prefix}."
        # Names of weights and of a LoRA's layers: those of our model, and those of this one.
        names = {"model.language_model.": f"language_model.{self.backbone}", "lm_head.": "language_model.lm_head."}
        names |= {f"model.{part}.": f"{part}." for part in _PARTS}
        self.hf_to_vllm_mapper = WeightsMapper(orig_to_new_prefix=names)
        self.configure_mm_token_handling(config.text_config.vocab_size, [config.ecg_token_id])
        with self._mark_tower_model(vllm_config, "ecg"), set_default_torch_dtype(torch.float32):
            self.encoder = AutoModel.from_config(config.encoder_config, dtype=torch.float32)
            self.projector = Projector(config)
        with self._mark_language_model(vllm_config):
            self.language_model = init_vllm_registered_model(
                vllm_config=vllm_config,
                hf_config=config.text_config,
                prefix=maybe_prefix(prefix, "language_model"),
                architectures=[causal.__name__],
            )
        self.make_empty_intermediate_tensors = self.language_model.make_empty_intermediate_tensors

    @classmethod
    def get_placeholder_str(cls, modality: str, i: int) -> str | None:
        """None: our renderer places ECGs."""
        return None

    def get_mm_mapping(self) -> MultiModelKeys:
        """Names of the parts."""
        return MultiModelKeys.from_string_field(
            language_model="language_model.", connector="projector.", tower_model="encoder."
        )

    def embed_multimodal(self, **features: torch.Tensor) -> list[torch.Tensor]:
        """Projected tokens `[T, H]` of each ECG of a batch, from the feature extractor's tensors."""
        if not features:
            return []
        encoded = self.encoder(**features)
        projected, mask = self.projector(encoded.last_hidden_state, encoded.mask)
        return [tokens[is_token] for tokens, is_token in zip(projected, mask)]

    def forward(
        self,
        input_ids: torch.Tensor | None,
        positions: torch.Tensor,
        intermediate_tensors: IntermediateTensors | None = None,
        inputs_embeds: torch.Tensor | None = None,
        **_: object,
    ) -> torch.Tensor | IntermediateTensors:
        """Hidden states of the language model."""
        if intermediate_tensors is not None:
            inputs_embeds = None
        return self.language_model(input_ids, positions, intermediate_tensors, inputs_embeds=inputs_embeds)

    def compute_logits(self, hidden_states: torch.Tensor) -> torch.Tensor | None:
        """Logits; a placeholder is never said, as in `generate`."""
        logits = self.language_model.compute_logits(hidden_states)
        if logits is not None:
            logits[..., self.config.ecg_token_id] = -torch.inf
        return logits

    def load_weights(self, weights: Weights) -> set[str]:
        """Load the weights that `elm.save` wrote; returns the names of the loaded parameters.

        Raises:
            RuntimeError: A weight of encoder or projector is missing, unexpected or misshapen, or vLLM's language model
                has no place for the head.
        """
        weights_of: dict[str, dict[str, torch.Tensor]] = {part: {} for part in _PARTS}
        heads: list[str] = []

        def of_language_model() -> Iterator[tuple[str, torch.Tensor]]:
            for name, tensor in weights:
                part, _, name_in_part = name.removeprefix("model.").partition(".")
                if name.startswith("lm_head."):
                    heads.append(f"language_model.{name}")
                    yield name, tensor
                elif part in weights_of:
                    weights_of[part][name_in_part] = tensor
                else:
                    yield self.backbone + name_in_part, tensor

        loaded = {f"language_model.{name}" for name in self.language_model.load_weights(of_language_model())}
        if heads and not loaded.issuperset(heads):  # vLLM's Gemma takes the embeddings in its place, and says nothing
            raise RuntimeError(
                f"vLLM's {type(self.language_model).__name__} has no head of its own, this model has one"
            )
        for part, tensors in weights_of.items():
            module = self.get_submodule(part)
            if not isinstance(module, StageMissingLayer):  # where the server takes no ECGs
                module.load_state_dict(tensors)
                loaded |= {f"{part}.{name}" for name, _ in module.named_parameters()}
        return loaded
