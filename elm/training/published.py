"""Shapes of published models, for `--dev` and `--plan`: both work where the hub cannot be reached.

The numbers are those of the config.json of each model on the hub.
"""

from __future__ import annotations

from transformers import AutoConfig, LlamaConfig, PreTrainedConfig

from encoders.base import EcgEncoderConfig
from encoders.melp import MelpConfig


def _llama(rope_factor: float, **sizes: int) -> dict[str, object]:
    """Settings of a Llama 3.1 or 3.2: the vocabulary and the ends of a turn are the same in all of them."""
    rope = {
        "rope_type": "llama3", "rope_theta": 500_000.0, "factor": rope_factor, "low_freq_factor": 1.0,
        "high_freq_factor": 4.0, "original_max_position_embeddings": 8192,
    }  # fmt: skip
    return sizes | {
        "vocab_size": 128_256, "num_key_value_heads": 8, "max_position_embeddings": 131_072, "rms_norm_eps": 1e-5,
        "rope_parameters": rope, "bos_token_id": 128_000, "eos_token_id": [128_001, 128_008, 128_009],
    }  # fmt: skip


LANGUAGE_MODELS = {
    "meta-llama/Llama-3.2-1B-Instruct": _llama(
        32.0, hidden_size=2048, intermediate_size=8192, num_hidden_layers=16, num_attention_heads=32,
        tie_word_embeddings=True,
    ),
    "meta-llama/Llama-3.2-3B-Instruct": _llama(
        32.0, hidden_size=3072, intermediate_size=8192, num_hidden_layers=28, num_attention_heads=24,
        tie_word_embeddings=True,
    ),
    "meta-llama/Llama-3.1-8B-Instruct": _llama(
        8.0, hidden_size=4096, intermediate_size=14_336, num_hidden_layers=32, num_attention_heads=32,
        tie_word_embeddings=False,
    ),
}  # fmt: skip
ENCODERS: dict[str, type[EcgEncoderConfig]] = {"fuyingw/MELP_Encoder": MelpConfig}  # at their defaults


def language_config(name: str, revision: str = "main") -> PreTrainedConfig:
    """Configuration of a language model: from here where it is known, else from its folder or the hub.

    Of a multimodal one, that of the part that reads text.
    """
    if name in LANGUAGE_MODELS:
        return LlamaConfig(**LANGUAGE_MODELS[name])
    return AutoConfig.from_pretrained(name, revision=revision).get_text_config()
