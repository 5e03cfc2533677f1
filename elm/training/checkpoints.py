"""Checkpoints of a trainer: which of them are whole, so that a run can go on from them, and which are kept.

A power cut or a full disk leaves files that end too early, or are missing. A checkpoint is whole where every file that
the trainer would read from it can be opened and is of full length. Contents are not read: gigabytes take milliseconds.
"""

import json
import logging
import re
import shutil
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

logger = logging.getLogger(__name__)

STATE = "trainer_state.json"  # what a trainer writes last
# Weights as transformers and PEFT write them: one of these is there.
_WEIGHTS = (
    *("model.safetensors", "model.safetensors.index.json", "adapter_model.safetensors"),
    *("pytorch_model.bin", "pytorch_model.bin.index.json", "adapter_model.bin"),
)
_SHARDED = ("pytorch_model_fsdp*", "global_step*")  # by FSDP and by DeepSpeed
# What a training goes on with, as patterns of which a file must be there; DeepSpeed keeps the first with the weights.
_OPTIMIZER, _OTHERS = ("optimizer.pt", "optimizer.bin", "optimizer_*"), ("scheduler.pt", "rng_state*.pth")
_UNREAD = ("training_args.bin",)  # written for people
_JSON_READ = ("config.json", "adapter_config.json", STATE)


def numbered(folder: Path | str) -> list[Path]:
    """The folders `checkpoint-STEPS` in a folder, oldest first; other files and folders are passed over."""
    steps = {path: re.fullmatch(r"checkpoint-([0-9]+)", path.name) for path in Path(folder).glob("checkpoint-*")}
    return sorted((path for path, match in steps.items() if match and path.is_dir()), key=_steps_of)


def _steps_of(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("-")[2])


def newest_whole_checkpoint(folder: Path | str) -> str | None:
    """The newest checkpoint in a folder from which a run can go on; newer ones are named in a warning."""
    damaged = False
    for checkpoint in reversed(numbered(folder)):
        if (fault := fault_of(checkpoint)) is None:
            return str(checkpoint)
        logger.warning("%s was not written to its end, or is damaged: %s. It is left out.", checkpoint, fault)
        damaged = True
    if damaged:
        logger.warning("there is no whole checkpoint left in %s: this part of the run starts over", folder)
    return None


def fault_of(checkpoint: Path) -> str | None:
    """What keeps a run from going on from a checkpoint, as words that name the file; `None` where nothing does.

    Of a finished stage nothing but its weights and its state are read.

    Raises:
        PermissionError: A file may not be read; that says nothing about what is in it.
    """
    try:
        state = _json(checkpoint / STATE)
        is_finished = int(state["global_step"]) >= int(state["max_steps"]) > 0
    except (OSError, ValueError, KeyError, TypeError) as error:
        if isinstance(error, PermissionError):
            raise
        return f"{STATE} {'is missing' if isinstance(error, FileNotFoundError) else 'cannot be read'}"
    if missing := _missing(checkpoint, is_finished):
        return missing
    for file in _files_read(checkpoint, is_finished):
        try:
            _check(file)
        except (OSError, ValueError, KeyError, TypeError, SafetensorError, zipfile.BadZipFile) as error:
            if isinstance(error, PermissionError):
                raise
            detail = f" ({error})" if isinstance(error, FileNotFoundError) else ""
            return f"{file.relative_to(checkpoint)} is cut off or damaged{detail}"
    return None


def _missing(checkpoint: Path, is_finished: bool) -> str | None:
    """Which file is not there at all, as words."""
    if not _any(checkpoint, (*_WEIGHTS, *_SHARDED)):
        return f"weights are missing ({_WEIGHTS[2]}, or {_WEIGHTS[0]})"
    if is_finished:
        return None
    if not _any(checkpoint, (*_OPTIMIZER, "global_step*")):
        return f"{_OPTIMIZER[0]} is missing"
    absent = [pattern for pattern in _OTHERS if not _any(checkpoint, (pattern,))]
    return f"{absent[0].replace('*', '')} is missing" if absent else None


def _any(folder: Path, patterns: tuple[str, ...]) -> bool:
    return any(True for pattern in patterns for _ in folder.glob(pattern))


def _files_read(checkpoint: Path, is_finished: bool) -> Iterator[Path]:
    """Files of a checkpoint that the trainer reads."""
    for path in sorted(checkpoint.rglob("*")):
        name = path.name
        if not path.is_file() or name in _UNREAD:
            continue
        is_state = path.match("optimizer*") or path.match("scaler.pt") or any(path.match(each) for each in _OTHERS)
        if is_finished and is_state:
            continue
        is_table = name in _JSON_READ or name.endswith(".index.json")
        if is_table or path.suffix in (".safetensors", ".pt", ".pth", ".bin", ".distcp"):
            yield path


def _check(file: Path) -> None:
    """Raise an error where a file is not of the length that it says itself, or cannot be opened."""
    if file.suffix == ".json":
        table = _json(file)
        for shard in set(table["weight_map"].values()) if file.name.endswith(".index.json") else ():
            if not (file.parent / shard).is_file():
                raise FileNotFoundError(f"there is no {shard}")
    elif file.suffix == ".safetensors":
        with safe_open(file, framework="np"):  # compares the header with the length of the file
            pass
    elif file.suffix == ".distcp":
        if not file.stat().st_size:
            raise ValueError("it is empty")
    else:
        with zipfile.ZipFile(file):  # torch's format, whose directory stands at the end
            pass


def _json(file: Path) -> dict[str, Any]:
    content = json.loads(file.read_text(encoding="utf-8"))
    if not isinstance(content, dict):
        raise ValueError(f"{file} holds no mapping")
    return content


class KeepNewest(TrainerCallback):
    """Deletes all but the newest checkpoints, in place of the trainer, which takes any `checkpoint-*` for its own.

    A copy such as `checkpoint-12-backup` stays. So does a damaged one with more steps than the run has now: it will be
    written again.
    """

    def __init__(self, count: int) -> None:
        self.count = count

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object) -> None:
        """A checkpoint was just written to its end."""
        if not args.should_save:
            return
        written = [each for each in numbered(str(args.output_dir)) if _steps_of(each) <= state.global_step]
        for checkpoint in written[: -self.count]:
            if str(checkpoint) != state.best_model_checkpoint:
                shutil.rmtree(checkpoint, ignore_errors=True)
