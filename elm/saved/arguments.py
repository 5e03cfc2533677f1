"""Arguments that all recipes share, and what training.json records of a run."""

import argparse
import dataclasses
import json
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypedDict, TypeVar, cast

from data.conversations.readable import check_policy
from elm.inputs.features import CACHE_GB

TRAIN_CONDITIONS = ("real", "zero", "none", "shuffled")
Settings = dict[str, Any]  # names and values, as in YAML and JSON
T = TypeVar("T")


def setting(default: T, help: str) -> T:
    """A field of a dataclass of settings, with what `--help` says of it."""
    if isinstance(default, list):
        return field(default_factory=cast(Callable[[], T], default.copy), metadata={"help": help})
    return field(default=default, metadata={"help": help})


@dataclass
class ElmArguments:
    """What is trained on what. The language model is `model_name_or_path`; its LoRA settings are `lora_*`.

    That may be a saved ECG-language model, which training goes on from (`elm.training.base`): encoder, projector and
    measured features are then its own, and what is set of them here must not contradict it.
    """

    # --- data: which questions about which recordings
    dataset: str = setting("synthetic", "Question set: synthetic, ecg_qa, or one of an installed package.")
    dataset_args: Settings | str | None = setting(None, "Settings of the question set, as JSON (a mapping in YAML).")
    question_types: list[str] | None = setting(None, "Train and ask only questions of these types, e.g. single-verify.")

    unreadable: str = setting(
        "refuse",
        "Recordings that cannot be read or lack a lead that the encoder needs: refuse, before anything is trained, or "
        "leave_out, with the questions about them, which the card counts.",
    )

    # --- model: encoder, precision of the language model, projector
    encoder: str = setting(
        "tiny",
        "ECG encoder: a folder, a hub id, 'tiny', 'tiny-heartlang' or 'tiny-cnn' to train a small one from the reports "
        "first, or a type of encoder for a new one: 'ecg_patch' for patches of the signal itself, 'ecg_byte' for "
        "ECG-Byte's tokens (projector_type vocabulary). Left out where model_name_or_path is a saved model.",
    )
    encoder_args: Settings | str | None = setting(None, 'Its settings to change, as JSON, e.g. {"output": "features"}.')
    quantization: str | None = setting(None, "nf4 trains LoRA on linear layers of 4 bits (QLoRA).")
    train_encoder: bool = setting(False, "Train the encoder in full, too.")
    # Seed of what is "tiny", if not that of the run: a grid sets it, so that all its seeds share their parts.
    tiny_seed: int | None = setting(None, argparse.SUPPRESS)
    projector_type: str = setting("mlp", "linear, mlp, or vocabulary for ECG-Byte.")
    projector_norm: bool = setting(True, "Put a LayerNorm before the projector.")
    projector_pool: int = setting(1, "Encoder tokens that become one language-model token.")
    projector_pool_mode: str = setting("stack", "stack or mean.")

    # --- stages: what each of them trains, and what a training row holds
    align_steps: int = setting(0, "Steps of the align stage: projector only, report text.")
    align_learning_rate: float = setting(1e-3, "Its learning rate.")
    train_condition: str = setting("real", "ECGs given in training: real, zero, none or shuffled (another patient's).")
    reports_in_sft: bool = setting(False, "Keep the reports among the rows of the sft stage.")
    turns: int = setting(1, "Questions about the same ECGs joined into one dialogue.")
    balance: int = setting(
        1, "Repeat rows with rarer answers to a yes/no question, each at most so often, until all are as frequent."
    )
    measured: bool = setting(False, "Put measured features (rate, intervals, axis, amplitudes) behind each ECG.")
    measured_amplitudes: str = setting("leads", "QRS amplitudes in them: leads, mean, or none (mV are not true ones).")
    questions_per_row: int = setting(1, "Questions (or dialogues) about the same ECGs that share a training row.")

    # --- run: where and how
    cache_dir: str = setting("out/cache", "Folder for what is computed once.")
    cache_gb: float = setting(
        CACHE_GB,
        "GB that encoder outputs may take in it. Those of other encoders and data that were not used for longest make "
        "room; what does not fit even so is computed each time. 0 keeps nothing.",
    )
    allow_leaks: bool = setting(False, "Train although patients or recordings are in the test, too; the card says so.")
    threads: int = setting(0, "CPU threads of a process in training; 0 leaves it to PyTorch and the launcher.")
    processes: int = setting(
        1,
        "On CPUs: with 2, a second one makes the tiny language model and trains the model without ECGs meanwhile. A "
        "run that was launched in several does one after the other.",
    )
    deterministic: bool = setting(False, "Two runs on like devices give the same bytes: slower algorithms alone.")
    dev: bool = setting(False, "Does it run? Small random parts, few questions and steps, a temporary folder.")
    resume: bool = setting(True, "Go on from the newest whole checkpoint of the same run.")
    text_only: bool = setting(False, "Train the same without ECGs, too, into text-only/, for reference in the audit.")
    ablation: bool = setting(True, "Ask the held-out questions at the end, with and without ECG.")

    def __post_init__(self) -> None:
        self.cache_dir, self.encoder = map(os.path.expanduser, (self.cache_dir, self.encoder))
        self.dataset_args = as_mapping("dataset_args", self.dataset_args)
        self.encoder_args = as_mapping("encoder_args", self.encoder_args)
        if (condition := self.train_condition) not in TRAIN_CONDITIONS:
            raise ValueError(f"train_condition must be one of {', '.join(TRAIN_CONDITIONS)}, got {condition!r}")
        check_policy(self.unreadable)
        if self.quantization not in (None, "nf4"):
            raise ValueError(f"quantization must be nf4 or left out, got {self.quantization!r}")


def with_cache(arguments: ElmArguments, folder: Path) -> ElmArguments:
    """The arguments with another folder for what is computed once; settings of the question set may repeat it."""
    dataset_args = as_mapping("dataset_args", arguments.dataset_args)
    if dataset_args.get("cache") == arguments.cache_dir:
        dataset_args = dataset_args | {"cache": str(folder)}
    return dataclasses.replace(arguments, cache_dir=str(folder), dataset_args=dataset_args)


def as_mapping(name: str, value: Settings | str | None) -> Settings:
    """A setting that is a mapping in YAML and JSON on the command line."""
    try:
        mapping = json.loads(value) if isinstance(value, str) else value or {}
    except json.JSONDecodeError as error:
        raise ValueError(f'--{name} must be JSON such as \'{{"output": "features"}}\', got {value!r}') from error
    if not isinstance(mapping, dict):
        raise ValueError(f"{name} must be a mapping, got {mapping!r}")
    return mapping


class BaseRecord(TypedDict, total=False):
    """What training.json says of the saved model that a run went on from."""

    name_or_path: str
    training: str  # digest of its training.json (`elm.saved.run.SavedRun.digest`)
    dataset_name: str
    corpora: list[str]
    train_condition: str
    arguments: Settings  # fields of `ElmArguments` that say which questions it was trained on
    base: "BaseRecord | None"  # what that one went on from


class TrainingRecord(TypedDict, total=False):
    """What training.json holds; of a folder that another version wrote, some of it."""

    dataset_name: str
    corpora: list[str]
    notes: list[str]
    leaks: list[str]
    language_model: str
    train_condition: str
    base: BaseRecord | None  # the saved model it went on from, if it did
    arguments: Settings  # fields of `ElmArguments`
    processes: int
    lora: dict[str, int]
    quantization: str | None
    model: Settings  # of LoRA and precision
    trainer: Settings  # numbers, words and mappings among the trainer's settings
    steps: dict[str, int]  # that each stage was trained
    losses: list[float]
    versions: dict[str, str]
    parameters: int


def trained_before(training: TrainingRecord) -> list[BaseRecord]:
    """The saved models that a training went on from, the last one first."""
    chain, base = [], training.get("base")
    while base:
        chain.append(base)
        base = base.get("base")
    return chain
