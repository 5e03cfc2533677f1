"""Encoders as folders: `load_encoder` and `save_encoder`; and new ones from their settings: `new_encoder`.

A folder holds config.json, model.safetensors and preprocessor_config.json: preprocessing travels with the weights.
Loading is strict: a tensor that is missing, unexpected, misshapen or not finite is an error that names it. (The stock
`from_pretrained` only warns and leaves such a weight random.)
"""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from transformers import FEATURE_EXTRACTOR_MAPPING, AutoModel

from encoders.base import EcgEncoder, EcgEncoderConfig, EcgFeatureExtractor, Settings
from encoders.checkpoints import Weights, built, from_hub, settings_of, tensor_names
from encoders.heartlang import HeartLangModel, HeartLangVQ
from encoders.heartlang import upstream as heartlang
from encoders.melp import MelpConfig, MelpPretrainingConfig
from encoders.melp.upstream import read_published
from encoders.registry import config_class

# What config.json calls a published MELP checkpoint; HeartLang's have none, nor has a bare file. Not ours, either way.
_PUBLISHED = ("melp", None)


def load_encoder(
    name_or_path: str | Path, *, revision: str | None = None, **overrides: Any
) -> tuple[EcgEncoder, EcgFeatureExtractor]:
    """An encoder in eval mode, float32, and the feature extractor its weights were trained with.

    Args:
        name_or_path: A folder of ours (also that of a MELP pretraining model, which holds one), a published checkpoint
            of MELP or HeartLang (file or folder), or a hub id of either. Of HeartLang's repository, `output="codes"`
            takes VQ-HBR and anything else the pretrained encoder.
        revision: Branch, tag or commit of a hub id.
        **overrides: Settings to change: any field of the encoder's configuration, in which case the extractor follows
            (`output="features"`), or one that is the extractor's own (`missing_leads="constant"`).

    Raises:
        FileNotFoundError: There is no such folder or file, or one of the folder's three files is missing.
        ImportError: The folder's encoder type comes from an installed package that cannot be imported.
        ValueError: An unknown type of encoder, an unknown override, settings of encoder and extractor that contradict
            each other, or a tensor that is missing, unexpected, misshapen or not finite.
    """
    path = Path(name_or_path)
    if not path.exists():
        if str(name_or_path).count("/") != 1 or path.is_absolute():
            raise FileNotFoundError(
                f"no encoder at {name_or_path}: not a folder, a file or a hub id (owner/name), nor an encoder type of "
                "an installed package"
            )
        try:
            path = from_hub(str(name_or_path), ["*.json", "*.safetensors", _heartlang_file(overrides)], revision)
        except FileNotFoundError as error:
            raise FileNotFoundError(f"no encoder at {name_or_path}: {error}") from error

    saved = _read_json(path / "config.json") if (path / "config.json").is_file() else {}
    if saved.get("model_type") in _PUBLISHED:
        config, weights, extra = _read_published(path, overrides)
    else:
        prefix = ""  # of the encoder's weights, where they are part of a pretraining model's
        if saved["model_type"] == MelpPretrainingConfig.model_type:
            saved, prefix = saved["encoder_config"], "encoder."
        kind = config_class(saved["model_type"])
        settings, extra = _split(overrides, kind)
        extra = _saved_own_settings(path, kind.from_dict(dict(saved))) | extra
        config = kind.from_dict(saved | settings)
        weights = load_file(_existing(path / "model.safetensors"))
        weights = {name.removeprefix(prefix): tensor for name, tensor in weights.items() if name.startswith(prefix)}
    config.name_or_path = str(name_or_path)
    extractor = FEATURE_EXTRACTOR_MAPPING[type(config)].from_config(config, **extra)
    encoder = AutoModel.from_config(config, dtype=torch.float32)
    return built(encoder, weights, source=str(name_or_path)), extractor


def _read_published(path: Path, overrides: Settings) -> tuple[EcgEncoderConfig, Weights, Settings]:
    """Configuration and weights of a published checkpoint, and the extractor's own settings."""
    file = path
    if path.is_dir() and not (path / "model.safetensors").is_file():
        file = path / _heartlang_file(overrides)
    if file.is_file() and heartlang.is_heartlang(names := tensor_names(file)):
        kind = HeartLangVQ if heartlang.is_vq(names) else HeartLangModel
        settings, extra = _split(overrides, kind.config_class)
        return *heartlang.read_published(kind, file, **settings), extra
    settings, extra = _split(overrides, MelpConfig)
    config, weights, _ = read_published(path, **settings)
    return config, weights, extra


def _heartlang_file(overrides: Settings) -> str:
    """Where HeartLang's repository has the checkpoint that these settings ask for."""
    return heartlang.PUBLISHED[(HeartLangVQ if overrides.get("output") == "codes" else HeartLangModel).config_class]


def new_encoder(model_type: str, **settings: Any) -> tuple[EcgEncoder, EcgFeatureExtractor]:
    """An untrained encoder in eval mode, float32, its weights drawn from torch's generator, and its feature extractor.

    The type is ours (`"ecg_patch"`, `"ecg_melp"`) or one that an installed package provides (docs/extending.md).
    Settings are fields of its configuration, and its extractor's own.

    Raises:
        ImportError: The type comes from an installed package that cannot be imported.
        ValueError: There is no such type, or it has no such setting.
    """
    kind = config_class(model_type)
    of_config, extra = _split(settings, kind)
    config = kind(**of_config)
    extractor = FEATURE_EXTRACTOR_MAPPING[kind].from_config(config, **extra)
    return AutoModel.from_config(config, dtype=torch.float32).eval(), extractor


def check_overrides(model_type: str, settings: Settings) -> None:
    """Refuse settings that neither this type of encoder nor its feature extractor has, without making either.

    Raises:
        ImportError: The type comes from an installed package that cannot be imported.
        ValueError: There is no such type, or it has no such setting.
    """
    _split(settings, config_class(model_type))


def save_encoder(encoder: EcgEncoder, extractor: EcgFeatureExtractor, folder: str | Path) -> None:
    """Write an encoder and its extractor to a folder that `load_encoder` and the Auto classes read."""
    encoder.save_pretrained(folder)
    extractor.save_pretrained(folder)


def _split(overrides: Settings, kind: type[EcgEncoderConfig]) -> tuple[Settings, Settings]:
    """Overrides for the configuration, and those for the extractor alone."""
    of_config = settings_of(kind)
    of_extractor = set(FEATURE_EXTRACTOR_MAPPING[kind].own_settings)
    if unknown := overrides.keys() - of_config - of_extractor:
        names = ", ".join(sorted(of_config | of_extractor))
        raise ValueError(f"unknown setting {', '.join(sorted(unknown))}: {kind.model_type} has {names}")
    for_config, extra = (
        {name: overrides[name] for name in overrides if name in names} for names in (of_config, of_extractor)
    )
    return for_config, extra


def _saved_own_settings(path: Path, config: EcgEncoderConfig) -> Settings:
    """The extractor's own settings of a folder, once the rest of them is found to agree with its configuration."""
    extractor_class = FEATURE_EXTRACTOR_MAPPING[type(config)]
    extractor = extractor_class.from_dict(_read_json(path / "preprocessor_config.json"))
    saved, extra = extractor.to_dict(), extractor.own_values()
    implied = extractor_class.from_config(config, **extra).to_dict()
    differ = [f"{name} {saved[name]!r} but {implied[name]!r}" for name in implied if saved[name] != implied[name]]
    if differ:
        raise ValueError(f"{path}: preprocessor_config.json says {', '.join(differ)} follows from config.json")
    return extra


def _read_json(file: Path) -> Settings:
    return json.loads(_existing(file).read_text(encoding="utf-8"))


def _existing(file: Path) -> Path:
    if not file.is_file():
        raise FileNotFoundError(f"an encoder's folder holds {file.name}: there is none at {file}")
    return file
