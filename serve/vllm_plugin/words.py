"""ECG-Byte models in vLLM: a plain language model for which the renderer turns each ECG into words.

vLLM can serve such a folder (`elm.model.vocabulary`) but for two things: a chat's recordings become token ids in this
module, and an answer holds none of them. `serve.server` starts vLLM with `--tokenizer-mode elm-words` and
`NoEcgTokens`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from vllm.v1.sample.logits_processor import LogitsProcessor

from data.conversations.rows import Message
from data.ecg import Ecg
from elm.model.configuration import ECG_VOCABULARY
from serve.vllm_plugin.renderer import ElmRenderer

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.v1.sample.logits_processor import BatchUpdate

MAX_ECGS = "max_ecgs"  # in vLLM's --additional-config: its own limit is for what goes through an encoder


class WordsRenderer(ElmRenderer):
    """Renders chats by `ElmProcessor.token_ids`."""

    def _check_count(self, ecgs: int) -> None:
        most = self.config.additional_config.get(MAX_ECGS)
        if most is not None and ecgs > most:
            raise ValueError(f"At most {most} ecg(s) may be provided in one prompt.")

    def _ids(self, conversation: list[Message], ecgs: list[Ecg], prompt: bool) -> list[int]:
        with self._lock:
            return self.processor.token_ids(conversation, ecgs, add_generation_prompt=prompt)

    def _data(self, ecgs: list[Ecg]) -> dict[str, object]:
        return {}


class NoEcgTokens(LogitsProcessor):
    """Keeps ECG tokens out of answers, as `generate` does."""

    def __init__(self, vllm_config: VllmConfig, device: torch.device, is_pin_memory: bool) -> None:
        words = vars(vllm_config.model_config.hf_config)[ECG_VOCABULARY]
        start = int(words["vocabulary_start"])
        tokens = range(start, start + int(words["encoder_config"]["vocabulary"]))
        self.ids = torch.tensor([int(words["ecg_token_id"]), *tokens], device=device)

    def is_argmax_invariant(self) -> bool:
        """Whether greedy answers stay as they were."""
        return False

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        """Nothing to remember of requests."""

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        """Logits `[B, V]` without ECG tokens."""
        logits[:, self.ids] = -torch.inf
        return logits
