"""`ElmConfig`: an encoder, a projector and a language model in one configuration."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from transformers import CONFIG_MAPPING, AutoConfig, PreTrainedConfig

from encoders.registry import config_class

# In the config.json of an ECG-Byte model, which is a plain language model with a bigger vocabulary
# (`elm.model.vocabulary`): the settings that make it one of ours.
ECG_VOCABULARY = "ecg_vocabulary"
MARK = "<|ecg:"  # how the names of an ECG's tokens begin, where these are words of a vocabulary


def token_name(number: int) -> str:
    """What a tokenizer calls the ECG token at this place of its table's `llm_order`."""
    return f"{MARK}{number}|>"


def pooled_mask(token_mask: torch.Tensor, pool: int) -> torch.Tensor:
    """Which language-model tokens an ECG takes: bool `[B, T]` of encoder tokens to bool `[B, ceil(T / pool)]`.

    A pooled token stands for `pool` encoder tokens in a row, and is kept when any of them carries signal. This is the
    only place that knows how many tokens an ECG takes; processor, model, feature cache and server all ask it.
    """
    missing = -token_mask.shape[1] % pool
    grouped: torch.Tensor = torch.nn.functional.pad(token_mask.bool(), (0, missing)).unflatten(1, (-1, pool))
    return grouped.any(dim=-1)


def tokens_per_ecg(token_mask: torch.Tensor | np.ndarray, pool: int) -> list[int]:
    """Number of language-model tokens of each ECG of a batch."""
    return [int(n) for n in pooled_mask(torch.as_tensor(token_mask), pool).sum(dim=1)]


class ElmConfig(PreTrainedConfig):
    """Configuration of `ElmForConditionalGeneration`.

    Attributes:
        text_config: The language model's configuration.
        encoder_config: The ECG encoder's configuration (an `EcgEncoderConfig`).
        ecg_token_id: Id of the placeholder token whose embeddings are replaced by an ECG's projected tokens.
        projector_type: `"linear"`, `"mlp"` (linear, GELU, linear), or `"vocabulary"` where an ECG's tokens are words of
            the language model (`elm.model.vocabulary`).
        projector_norm: Whether a LayerNorm stands before it.
        projector_pool: How many encoder tokens in a row become one language-model token.
        projector_pool_mode: `"stack"` joins their features, `"mean"` averages them.
        vocabulary_start: Id of the first of an ECG's tokens, where they are words.
    """

    model_type = "elm"
    # A plain dict, so that one code path serves transformers 5.16 to 5.19 (later ones know richer forms).
    sub_configs = {"text_config": AutoConfig, "encoder_config": AutoConfig}
    keys_to_ignore_at_inference = ["past_key_values"]

    text_config: Any = None  # takes a configuration, a dict or nothing; holds a configuration
    encoder_config: Any = None
    ecg_token_id: int = 0
    projector_type: str = "mlp"
    projector_norm: bool = True
    projector_pool: int = 1
    projector_pool_mode: str = "stack"
    vocabulary_start: int | None = None
    tie_word_embeddings: bool = False

    def __post_init__(self, **kwargs: Any) -> None:
        """Builds the parts' configurations; the language model decides whether embeddings are tied."""
        parts = ("text_config", "llama", CONFIG_MAPPING.__getitem__), ("encoder_config", "ecg_melp", config_class)
        for name, default, classes in parts:
            part = getattr(self, name)
            if part is None or isinstance(part, dict):
                part = part or {}
                setattr(self, name, classes(part.get("model_type", default))(**part))
        if self.projector_type not in ("linear", "mlp", "vocabulary"):
            raise ValueError(f"projector_type must be 'linear', 'mlp' or 'vocabulary', got {self.projector_type!r}")
        encoder, words = self.encoder_config.model_type, self.projector_type == "vocabulary"
        if (encoder == "ecg_byte") != words:
            raise ValueError(
                f"projector_type {self.projector_type!r} does not fit an encoder of type {encoder!r}: ECG-Byte's "
                "tokens are words ('vocabulary'), all else is projected"
            )
        if words and (self.projector_pool != 1 or self.vocabulary_start is None):
            raise ValueError("words are not pooled and have ids: projector_pool must be 1, and vocabulary_start given")
        if self.projector_pool_mode not in ("stack", "mean"):
            raise ValueError(f"projector_pool_mode must be 'stack' or 'mean', got {self.projector_pool_mode!r}")
        if self.projector_pool < 1:
            raise ValueError(f"projector_pool must be at least 1, got {self.projector_pool}")
        self.tie_word_embeddings = self.text_config.tie_word_embeddings
        super().__post_init__(**kwargs)  # last: it hands the attention implementation on to the parts

    @classmethod
    def of_saved(cls, saved: Mapping[str, Any]) -> ElmConfig:
        """The configuration in a saved model's config.json, which may be that of a plain language model.

        Raises:
            ValueError: It is a language model that knows no ECGs.
        """
        if saved.get("model_type") == cls.model_type:
            return cast("ElmConfig", cls.from_dict(dict(saved)))
        if ECG_VOCABULARY not in saved:
            raise ValueError(f"config.json is that of a {saved.get('model_type')!r}, which is no ECG-language model")
        text = {name: value for name, value in saved.items() if name != ECG_VOCABULARY}
        return cls(text_config=text, projector_type="vocabulary", **saved[ECG_VOCABULARY])

    @classmethod
    def of_folder(cls, folder: Path | str) -> ElmConfig:
        """Read from a saved model's folder; raises as `of_saved`, naming the folder."""
        try:
            return cls.of_saved(json.loads((Path(folder) / "config.json").read_text(encoding="utf-8")))
        except ValueError as error:
            raise ValueError(f"{folder}: {error}") from error

    def tokens_per_ecg(self, token_mask: torch.Tensor | np.ndarray) -> list[int]:
        """Number of language-model tokens of each ECG, given its encoder's bool `[B, T]` token mask."""
        return tokens_per_ecg(token_mask, self.projector_pool)

    @property
    def embedding_scale(self) -> float:
        """What the language model multiplies a row of its table by: in Gemma the root of its width."""
        text = self.text_config
        return float(text.hidden_size**0.5) if text.model_type.startswith("gemma") else 1.0

    @property
    def embedding_width(self) -> int:
        """Width of a token's embedding, and of what the head reads: in some OPT not that of the layers."""
        text = self.text_config
        return int(text.word_embed_proj_dim if text.model_type == "opt" else text.hidden_size)

    @property
    def max_tokens_per_ecg(self) -> int:
        """The most language-model tokens one ECG takes."""
        return -(-int(self.encoder_config.max_tokens) // self.projector_pool)
