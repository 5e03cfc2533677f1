"""Whose folder it is: a folder of results belongs to one run, told by its settings, and to one process at a time."""

import errno
import fcntl
import json
import logging
import os
import shutil
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import IO

import yaml
from transformers import TrainingArguments

from data.support.files import written_whole

logger = logging.getLogger(__name__)

LOCK, RECORD = "run.lock", "run.json"
BATCH_SIZE = "per_device_train_batch_size x gradient_accumulation_steps x processes"
_WHY: dict[str, str] = yaml.safe_load(Path(__file__).with_name("cannot_matter.yaml").read_text(encoding="utf-8"))
CANNOT_MATTER = {name: why for why, names in _WHY.items() for name in names.split()}
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP)  # of file systems that have none
_MOST = 8  # differences that a message shows


def run_settings(
    training_args: TrainingArguments, settings: Mapping[str, object], also: Collection[str] = ()
) -> dict[str, object]:
    """All settings without which a checkpoint is one of another run, as JSON: but those that `CANNOT_MATTER`.

    `settings` are those beside the trainer's; `also` are names that do matter here.
    """
    rows = training_args.train_batch_size * training_args.gradient_accumulation_steps * training_args.world_size
    # What launchers say of precision stands in the environment, not in `bf16`.
    values = {**training_args.to_dict(), "mixed_precision": training_args.mixed_precision, **settings}
    compared = {name: value for name, value in values.items() if name not in CANNOT_MATTER or name in also}
    return _without_caches(json.loads(json.dumps({**compared, "batch_size": rows}, default=str)))


def _without_caches(settings: Mapping[str, object]) -> dict[str, object]:
    """Settings in which those of the data do not say where it is cached."""
    plain = dict(settings)
    for name in ("dataset_args", "corpus_args"):
        if isinstance(mapping := plain.get(name), dict):
            plain[name] = {key: value for key, value in mapping.items() if key != "cache"}
    return plain


def claim_folder(folder: Path, settings: dict[str, object], *, resume: bool, write: bool = True) -> None:
    """Note in `folder/run.json` what a folder of results was made with; without `resume`, empty it first.

    The process that may `write` holds the folder's lock from here to `release`, or to its end, however it ends.

    Raises:
        RuntimeError: Another process trains into this folder.
        ValueError: It was made with other settings; names those that differ. Or what it was made with cannot be read.
    """
    record = folder / RECORD
    if write:
        _lock(folder)
    if resume and record.exists():
        _compare(folder, _without_caches(_read(record)), settings)
        return  # of settings that earlier code did not note, nothing is claimed now either
    if not write:
        return
    if not resume:  # nothing that is there may be taken for a checkpoint of this run
        for path in folder.iterdir():
            if path.name != LOCK:
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    with written_whole(record, "w") as file:
        json.dump(settings, file, indent=2)


def _read(record: Path) -> dict[str, object]:
    try:
        before = json.loads(record.read_text(encoding="utf-8"))
    except ValueError as error:
        before = error
    if not isinstance(before, dict):
        raise ValueError(
            f"{record} cannot be read, so that it is not known what the checkpoints beside it were made with: "
            "give another output_dir, or --resume false to start over"
        )
    return before


def _compare(folder: Path, before: Mapping[str, object], settings: Mapping[str, object]) -> None:
    """Refuse settings that are not those of before; warn of those that earlier code did not note."""
    titles = {"batch_size": f"batch_size ({BATCH_SIZE})"}
    differ = [
        f"{titles.get(name, name)} {before[name]!r} but now {value!r}"
        for name, value in settings.items()
        if name in before and before[name] != value
    ]
    if differ:
        more = f"; and {len(differ) - _MOST} more" if len(differ) > _MOST else ""
        raise ValueError(
            f"{folder} holds checkpoints of another run ({'; '.join(differ[:_MOST])}{more}): "
            "give another output_dir, or --resume false to start over"
        )
    if unknown := sorted(settings.keys() - before.keys()):
        logger.warning(
            "%s was written by earlier code: whether these settings are the same could not be compared: %s",
            folder / RECORD,
            ", ".join(unknown),
        )


# --- the lock: the system's, of this process alone, so that neither children nor a killed run hold it -----------------

_held: dict[Path, tuple[int, IO[bytes]]] = {}  # by folder: process and open file


def _lock(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    key = folder.resolve()
    if key in _held and _held[key][0] == os.getpid():
        return
    file = open(folder / LOCK, "ab")  # noqa: SIM115 (closed by `release`, or with the process)
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        file.close()
        if error.errno in _NO_LOCKS:
            logger.warning("%s is on a file system without locks: see that no two runs train into it", folder)
            return
        raise RuntimeError(
            f"another run trains into {folder.parent} at this moment: wait until it has ended, or give another "
            "output_dir"
        ) from error
    _held[key] = os.getpid(), file


def release(folder: Path) -> None:
    """Give up the lock of a folder of results, if this process holds it."""
    process, file = _held.pop(folder.resolve(), (0, None))
    if file is not None and process == os.getpid():
        file.close()
