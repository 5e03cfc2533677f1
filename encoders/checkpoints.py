"""Checkpoints: their tensors by name, nothing that could run, and models that take exactly these."""

from __future__ import annotations

import argparse
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from transformers import PreTrainedConfig, PreTrainedModel

# What training scripts wrap their tensors in.
_NESTED = ("model", "state_dict")


def read_state(file: str | Path) -> dict[str, torch.Tensor]:
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
            content = torch.load(file, map_location="cpu", weights_only=True, mmap=_is_zip(file))
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


def load_weights(model: PreTrainedModel, weights: dict[str, torch.Tensor], source: str) -> None:
    """Give a model exactly these weights.

    Args:
        model: Built from the configuration that belongs to the weights.
        weights: Its whole state by name.
        source: What error messages call the weights.

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


def told_by(config: PreTrainedConfig | None) -> dict[str, Any]:
    """What a configuration says that its defaults do not: fields of its own class, by name.

    Readers of checkpoints take sizes from the weights. What they cannot see there a user says in a configuration, whose
    sizes then are the defaults.
    """
    if config is None:
        return {}
    plain = type(config)()
    own = {field.name for field in fields(config)} - {field.name for field in fields(PreTrainedConfig)}
    return {name: value for name in own if (value := vars(config)[name]) != vars(plain)[name]}


def _is_zip(file: Path) -> bool:
    """Whether it is of today's format, whose tensors are then read when they are used."""
    with open(file, "rb") as opened:
        return opened.read(2) == b"PK"
