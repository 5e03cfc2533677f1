"""Checkpoints: their tensors by name, nothing that could run, and models that take exactly these."""

import argparse
import logging
from collections.abc import Iterable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TypeVar
from zipfile import is_zipfile

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from transformers import PreTrainedConfig, PreTrainedModel

from encoders.base import Settings

logger = logging.getLogger(__name__)

Model = TypeVar("Model", bound=PreTrainedModel)
Weights = dict[str, torch.Tensor]

# What training scripts wrap their tensors in.
_NESTED = ("model", "state_dict")


def from_hub(name: str, patterns: Sequence[str], revision: str | None = None) -> Path:
    """Folder in the cache with the files of these patterns of a hub's repository, downloaded if need be: no code.

    Raises:
        FileNotFoundError: It is no hub id (`owner/name`), or nothing of that name or revision can be reached; says why.
    """
    if name.count("/") != 1:
        raise FileNotFoundError(f"{name} is no hub id (owner/name)")
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=list(patterns)))
    except GatedRepoError as error:
        why = "its owner sets conditions: accept them on its page, and log in (hf auth login, or HF_TOKEN)"
        raise FileNotFoundError(f"the hub does not give out {name}: {why}") from error
    except RepositoryNotFoundError as error:
        why = "there is none of that name, or it is private: log in as one who may read it (hf auth login, or HF_TOKEN)"
        raise FileNotFoundError(f"the hub shows no repository {name}: {why}") from error
    except RevisionNotFoundError as error:
        raise FileNotFoundError(f"the repository {name} on the hub has no revision {revision}") from error
    except HFValidationError as error:
        raise FileNotFoundError(f"{name} is no hub id: {error}") from error
    except LocalEntryNotFoundError as error:
        raise FileNotFoundError(f"{name} is not in the cache, and the hub cannot be reached: {error}") from error
    except HfHubHTTPError as error:
        raise FileNotFoundError(f"the hub does not give out {name}: {error}") from error


def read_state(file: str | Path) -> Weights:
    """The tensors of a `.safetensors` file or of one that `torch.save` wrote, on the CPU, by name.

    Of the latter, plain containers, numbers and `argparse.Namespace` (the settings that training scripts keep beside
    the weights) are built; anything else is refused by `torch.load(weights_only=True)`.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It cannot be read, holds something else than data, or no tensors.
    """
    file = Path(file)
    if not file.is_file():
        raise FileNotFoundError(f"no checkpoint at {file}")
    try:
        if file.suffix == ".safetensors":
            return load_file(file)
        with torch.serialization.safe_globals([argparse.Namespace]):
            # Tensors of today's format, a zip, are read when they are used.
            content = torch.load(file, map_location="cpu", weights_only=True, mmap=is_zipfile(file))
    except (SafetensorError, RuntimeError, EOFError) as error:
        raise ValueError(f"{file} is no checkpoint that can be read: {error}") from error
    except Exception as error:
        if type(error).__name__ != "UnpicklingError":  # of a module that nothing here imports
            raise
        raise ValueError(f"{file} holds more than tensors and settings, and is not loaded: {error}") from error
    for name in _NESTED:
        if isinstance(content, dict) and isinstance(content.get(name), dict):
            content = content[name]
            break
    if not isinstance(content, dict) or not all(isinstance(value, torch.Tensor) for value in content.values()):
        raise ValueError(f"{file} holds no {' or '.join(_NESTED)} of tensors")
    return content


def tensor_names(file: str | Path) -> list[str]:
    """The names of a checkpoint's tensors; errors as `read_state`'s."""
    file = Path(file)
    if file.suffix == ".safetensors" and file.is_file():
        try:
            with safe_open(file, "pt") as opened:
                return list(opened.keys())
        except SafetensorError as error:
            raise ValueError(f"{file} is no checkpoint that can be read: {error}") from error
    return list(read_state(file))


def built(model: Model, weights: Weights, source: str) -> Model:
    """The model in eval mode with exactly these weights, its whole state by name; errors call them by `source`.

    Raises:
        ValueError: A tensor is missing, unexpected, misshapen or not finite.
    """
    wanted = model.state_dict()
    faults = [f"{name} is missing" for name in wanted if name not in weights]
    faults += [f"{name} is unexpected" for name in weights if name not in wanted]
    for name in wanted.keys() & weights.keys():
        if weights[name].shape != wanted[name].shape:
            faults.append(f"{name} is {tuple(weights[name].shape)} instead of {tuple(wanted[name].shape)}")
        elif not torch.isfinite(weights[name]).all():
            faults.append(f"{name} holds NaN or infinity")
    if faults:
        more = f" and {len(faults) - 5} more" if len(faults) > 5 else ""
        raise ValueError(
            f"weights of {source} do not fit {type(model).__name__}: {'; '.join(sorted(faults)[:5])}{more}"
        )
    model.load_state_dict(weights)
    return model.eval()


def layers_in(weights: Weights, pattern: str) -> int:
    """How many tensors are named by a pattern with the numbers from 0."""
    index = 0
    while pattern.format(index) in weights:
        index += 1
    return index


def report_unused(path: str | Path, names: Iterable[str]) -> None:
    """Logs which tensors of a checkpoint nothing reads."""
    if unused := sorted(names):
        logger.info("%s: no use for %d of its tensors: %s", path, len(unused), ", ".join(unused))


def settings_of(kind: type[PreTrainedConfig]) -> set[str]:
    """Names of the fields that a configuration has besides those of every configuration."""
    return {field.name for field in fields(kind)} - {field.name for field in fields(PreTrainedConfig)}


def not_default(config: PreTrainedConfig | None) -> Settings:
    """What a configuration says that its defaults do not, by name: what readers cannot see in the weights."""
    if config is None:
        return {}
    plain = type(config)()
    return {name: value for name in settings_of(type(config)) if (value := vars(config)[name]) != vars(plain)[name]}
