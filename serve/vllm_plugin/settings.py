"""Settings of vLLM that our models need before it loads one."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

from vllm.model_executor.models.config import VerifyAndUpdateConfig

from elm import ElmProcessor
from serve.vllm_plugin import MODE

if TYPE_CHECKING:
    from vllm.config import ModelConfig


class ElmSettings(VerifyAndUpdateConfig):
    """Changes vLLM's settings once it knows that a folder is one of ours."""

    @staticmethod
    def verify_and_update_model_config(model_config: ModelConfig) -> None:
        """Have prompts rendered by our processor.

        Raises:
            ValueError: Another tokenizer is asked for: the model would read other tokens than it was trained on.
        """
        if model_config.tokenizer_mode not in ("auto", MODE):
            raise ValueError(f"--tokenizer-mode must be left out, got {model_config.tokenizer_mode!r}")
        if model_config.tokenizer != model_config.model:
            raise ValueError(f"--tokenizer must be left out: {model_config.model} holds its own")
        model_config.tokenizer_mode = MODE


@lru_cache(maxsize=4)
def _processor(name: str, revision: str | None) -> ElmProcessor:
    return ElmProcessor.from_pretrained(name, revision=revision)


def processor_of(model_config: ModelConfig) -> ElmProcessor:
    """The processor that was saved with the model."""
    return _processor(model_config.model, model_config.revision)
