"""Shapes of published models, for `--dev` and `--plan`: both work where the hub cannot be reached."""

from pathlib import Path

import yaml
from transformers import AutoConfig, LlamaConfig, PreTrainedConfig

from encoders.base import EcgEncoderConfig
from encoders.melp import MelpConfig

LANGUAGE_MODELS: dict[str, dict[str, object]] = yaml.safe_load(
    Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8")
)
ENCODERS: dict[str, type[EcgEncoderConfig]] = {"fuyingw/MELP_Encoder": MelpConfig}  # at their defaults


def language_config(name: str, revision: str = "main") -> PreTrainedConfig:
    """Configuration of (the part that reads text of) a language model: from above, else from its folder or the hub."""
    if name in LANGUAGE_MODELS:
        return LlamaConfig(**LANGUAGE_MODELS[name])
    return AutoConfig.from_pretrained(name, revision=revision).get_text_config()
