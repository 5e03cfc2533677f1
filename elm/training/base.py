"""Going on from a saved model: `model_name_or_path` names one, whose parts are where training begins.

Language model, projector and encoder are those of the saved model, with its feature extractor, tokens, chat template
and measured features; LoRA is put on its merged weights anew (LLaVA's second stage, another corpus, other questions).
"""

import dataclasses
import functools
import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import cast

import torch
from trl import ModelConfig

from elm.inputs.processing import ElmProcessor
from elm.model.attention import attend_within_bounds
from elm.model.configuration import ECG_VOCABULARY, ElmConfig
from elm.model.modeling import ElmForConditionalGeneration
from elm.model.quantization import refuse_transposed
from elm.saved.arguments import BaseRecord, ElmArguments, Settings, as_mapping, trained_before
from elm.saved.check import require_model
from elm.saved.folder import load
from elm.saved.run import SavedRun
from elm.training.command_line import config_of, read_config
from elm.training.dev import LANGUAGE_MODELS
from encoders.checkpoints import from_hub
from encoders.registry import find_config

# Settings of the parts that a saved model brings with it, and what these parts are called.
PROJECTOR = ("projector_type", "projector_norm", "projector_pool", "projector_pool_mode")
OF_THE_BASE = {
    "encoder": "the encoder",
    "encoder_args": "the encoder",
    **dict.fromkeys(PROJECTOR, "the projector"),
    **dict.fromkeys(("measured", "measured_amplitudes"), "what the model reads of measured features"),
}
QUESTIONS = ("dataset", "dataset_args", "question_types", "dev")  # arguments that say which they were


def base_of(model_args: ModelConfig) -> SavedRun | None:
    """The saved model that `model_name_or_path` names, by its folder or hub id; None where it is a language model.

    Raises:
        ValueError: It names a part of a saved model, one that is not whole or does not say what it was trained on, or
            an encoder.
    """
    name = model_args.model_name_or_path
    if name is None or name == "tiny":
        return None
    folder = Path(name).expanduser()
    if not folder.exists() and name in LANGUAGE_MODELS:
        return None
    base = SavedRun(name, revision=model_args.model_revision)
    try:
        if folder.exists():
            kind = _config(folder)
            if kind is not None and not _is_ours(kind):  # a language model: also a checkpoint of its own training
                _refuse_encoder(name, kind)
                return None
        elif not _is_ours(kind := _config_on_hub(name, model_args.model_revision)):
            _refuse_encoder(name, kind)
            return None
        require_model(base.folder, name)
        if "arguments" not in base.training:
            raise ValueError(f"training.json of {name} does not say how it was trained: train it again")
    except FileNotFoundError as error:
        raise ValueError(f"model_name_or_path {name}: {error}") from error
    return base


def settled(arguments: ElmArguments, model_args: ModelConfig, explicit: Collection[str] | None = None) -> ElmArguments:
    """The arguments of a run; of one that goes on from a saved model, with the settings of that model's parts.

    `explicit` are the names of settings that somebody gave on purpose; if it is not known, those that differ from
    their default.

    Raises:
        ValueError: One of them contradicts the saved model.
    """
    if (base := base_of(model_args)) is None:
        return arguments
    values = _settings_of(base)
    for field in dataclasses.fields(arguments):
        if field.name not in OF_THE_BASE:
            continue
        value = getattr(arguments, field.name)
        default = field.default if field.default is not dataclasses.MISSING else None
        is_explicit = value not in (default, {}) if explicit is None else field.name in explicit
        if is_explicit and (conflict := _conflict(field.name, value, values[field.name], base)):
            raise ValueError(
                f"{OF_THE_BASE[field.name]} is that of {base.name}: leave {field.name} out ({conflict}), or take a "
                "language model as model_name_or_path to begin with new parts"
            )
    return dataclasses.replace(arguments, **values)


def explicit_settings(argv: Sequence[str]) -> set[str]:
    """Names of the settings that a command line gives, as flags and in the file that `--config` names."""
    # Flags may be written with dashes, begin with `no_`, and be shortened where that is clear.
    flags = [word.partition("=")[0][2:].replace("-", "_").removeprefix("no_") for word in argv if word[:2] == "--"]
    names = {name for name in flags if name in OF_THE_BASE}
    names |= {name for flag in flags if flag and flag not in names for name in OF_THE_BASE if name.startswith(flag)}
    file, _ = config_of(argv)
    return names if file is None else names | read_config(file).keys()


def build_on(
    base: SavedRun, arguments: ElmArguments, model_args: ModelConfig
) -> tuple[ElmForConditionalGeneration, ElmProcessor]:
    """The saved model, each part in the precision it is trained in, and its processor."""
    config, dtype = ElmConfig.of_folder(base.folder), model_args.dtype or "auto"
    words = config.vocabulary_start is not None
    if arguments.quantization:
        refuse_transposed(config.text_config)
    # Encoder and projector are float32 whatever the language model is: they are not rounded on the way.
    model, processor = load(base.folder, dtype=dtype if words else "auto", quantized=bool(arguments.quantization))
    model.model.encoder.float()
    model.model.projector.float()
    language = model.model.language_model
    if dtype != "auto" and not words:
        for weight in (*language.parameters(), *model.lm_head.parameters()):  # not `.to`: rotary angles stay float32
            if weight.is_floating_point():
                weight.data = weight.data.to(getattr(torch, dtype))
    if model_args.attn_implementation is not None:
        language.set_attn_implementation(model_args.attn_implementation)
        attend_within_bounds(model.config.text_config, language)
    return model, processor


def refuse_own_folder(base: SavedRun, output_dir: str) -> None:
    """Refuse to write a model over the one that it goes on from: raises `ValueError`."""
    out = Path(output_dir).expanduser().resolve()
    if base.folder.resolve().is_relative_to(out):
        raise ValueError(
            f"output_dir {output_dir} holds {base.name}, which the run goes on from and must not write over: give "
            "another output_dir"
        )


def record_of(base: SavedRun) -> BaseRecord:
    """What training.json says of the saved model that a run goes on from."""
    training = base.training
    arguments = training["arguments"]
    return {
        "name_or_path": base.name,
        "training": base.digest,
        "dataset_name": training["dataset_name"],
        "corpora": training.get("corpora", []),
        "train_condition": training["train_condition"],
        "arguments": {name: arguments[name] for name in QUESTIONS if name in arguments},
        "base": training.get("base"),
    }


def earlier_trainings(base: SavedRun | None) -> list[BaseRecord]:
    """The trainings that a run goes on from, the last one first."""
    return [] if base is None else [record_of(base), *trained_before(base.training)]


def sentence_of(base: SavedRun) -> str:
    """What a run that goes on from a saved model says at its start."""
    measured = ", and it reads measured features as before" if base.arguments.measured else ""
    return (
        f"Going on from {base.name}: training begins with its language model, projector and encoder "
        f"({base.arguments.encoder}){measured}; LoRA is put on its merged weights."
    )


def _settings_of(base: SavedRun) -> Settings:
    """The settings of the parts of a saved model."""
    config = ElmConfig.of_folder(base.folder)
    values = {name: getattr(base.arguments, name) for name in OF_THE_BASE}
    return values | {name: getattr(config, name) for name in PROJECTOR}


def _conflict(name: str, value: object, of_base: object, base: SavedRun) -> str:
    """How a setting contradicts that of a saved model; empty where it does not."""
    if name != "encoder_args":
        same = value == of_base or (name == "encoder" and _same_place(str(value), str(of_base)))
        return "" if same else f"it is {value!r}, and there {of_base!r}"
    before: Settings = ElmConfig.of_folder(base.folder).encoder_config.to_dict()
    before |= as_mapping(name, base.arguments.encoder_args)
    changes = {key: new for key, new in as_mapping(name, cast(Settings, value)).items() if before.get(key) != new}
    there = {key: before.get(key) for key in changes}
    return f"it is {changes}, and there {there}" if changes else ""


def _same_place(first: str, second: str) -> bool:
    places = [Path(name).expanduser() for name in (first, second)]
    return all(place.exists() for place in places) and places[0].samefile(places[1])


def _config(folder: Path) -> Settings | None:
    """What a folder's config.json holds; None without one that can be read."""
    try:
        content = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def _config_on_hub(name: str, revision: str | None) -> Settings:
    """What the config.json of a hub id holds; empty where it cannot be reached, which whoever loads it will say."""
    try:
        return _config(_on_hub(name, revision)) or {}
    except FileNotFoundError:
        return {}


@functools.cache  # of what is found: a run asks several times
def _on_hub(name: str, revision: str | None) -> Path:
    return from_hub(name, ["config.json"], revision)


def _is_ours(config: Mapping[str, object]) -> bool:
    return config.get("model_type") == ElmConfig.model_type or ECG_VOCABULARY in config


def refuse_as_encoder(name: str) -> None:
    """Refuse the folder of a saved model as an encoder: raises `ValueError`."""
    if _is_ours(_config(Path(name).expanduser()) or {}):
        raise ValueError(
            f"encoder {name} is a whole ECG-language model: to go on from it, with its encoder, give it as "
            "model_name_or_path and leave encoder out"
        )


def _refuse_encoder(name: str, config: Mapping[str, object]) -> None:
    if find_config(str(config.get("model_type", ""))) is not None:
        raise ValueError(
            f"model_name_or_path {name} is an ECG encoder ({config['model_type']}): give it as encoder, and a language "
            "model or a saved ECG-language model as model_name_or_path"
        )
