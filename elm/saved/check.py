"""Which folder is a saved model: what others are, whose name was taken for one, and what one lacks or has damaged."""

import json
import re
from pathlib import Path

from safetensors import SafetensorError, safe_open

from elm.model.configuration import ElmConfig

FILES = (  # what a model is loaded from, and training.json: patterns of names
    *("config.json", "generation_config.json", "model*.safetensors", "model.safetensors.index.json"),
    *("processor_config.json", "preprocessor_config.json", "chat_template.jinja", "tokenizer.json"),
    *("tokenizer_config.json", "tokenizer.model", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.json", "vocab.txt", "merges.txt", "training.json"),
)
_ONE_OF = (  # of each of these, one file must be there
    ("processor_config.json", "preprocessor_config.json"),
    ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt"),
)
_CHECKPOINTS = "checkpoints"  # folder of all stages' checkpoints, in a run's output_dir
_STATE = "trainer_state.json"  # a trainer's checkpoint has one, a saved model has none
SAVING = ".saving-"  # how the folder begins in which a model is written before its files are moved in


def refuse_part(path: Path, name: Path | str) -> None:
    """Refuse a file, a checkpoint, or a part of a saved model, called by `name`: says which folder is meant.

    Raises:
        FileNotFoundError: It is one of these.
    """
    if what := _part(path):
        raise FileNotFoundError(f"{name} is no saved model: {what}")


def require_model(folder: Path, name: Path | str) -> ElmConfig:
    """The configuration of a saved model called by `name`, whose files are all there and whole.

    Reads the headers of weights and all JSON, not the weights. What `refuse_part` refuses is refused before.

    Raises:
        FileNotFoundError: A file is missing, config.json perhaps because the training was not finished.
        ValueError: A file is damaged, or the model knows no ECGs.
    """
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"{name} is no saved model: it has no config.json ({_unfinished(folder)})")
    _read_object(folder / "config.json", name)
    config = ElmConfig.of_folder(folder)
    check_weights(folder, name)
    for names in _ONE_OF:
        if not any((folder / file).is_file() for file in names):
            raise FileNotFoundError(f"{name} is no saved model: it has no {names[0]}")
    for file in (path for pattern in FILES if pattern.endswith(".json") for path in folder.glob(pattern)):
        _read_object(file, name)
    return config


def check_weights(folder: Path, name: Path | str) -> None:
    """Refuse weights that are not all there or cut short. Raises as `require_model`."""
    index = folder / "model.safetensors.index.json"
    wanted = {"model.safetensors"}
    if not (folder / "model.safetensors").is_file() and index.is_file():
        shards = _read_object(index, name).get("weight_map")
        if not isinstance(shards, dict):
            raise ValueError(f"{name}: {index.name} is damaged: it names no files of weights")
        wanted = set(map(str, shards.values()))
    if missing := sorted(file for file in wanted if not (folder / file).is_file()):
        raise FileNotFoundError(
            f"{name} is no saved model: it has no {missing[0]}, which holds weights (were all files copied?)"
        )
    for file in sorted(wanted):
        check_tensors(folder / file)


def check_tensors(file: Path) -> None:
    """Refuse a file of weights that is cut short: raises `ValueError`."""
    try:
        with safe_open(file, framework="pt"):
            pass
    except SafetensorError as error:
        raise ValueError(f"the weights in {file} are damaged: {error}") from error


def _read_object(file: Path, name: Path | str) -> dict[str, object]:
    """The object in a JSON file of a saved model called by `name`. Raises `ValueError` where it holds none."""
    return json_object(file.read_text(encoding="utf-8", errors="replace"), file.name, name)


def json_object(text: str | bytes, file: str, name: Path | str) -> dict[str, object]:
    """The object that the text of such a file holds. Raises as `_read_object`."""
    try:
        value = json.loads(text)
    except ValueError as error:
        raise ValueError(f"{name}/{file} is damaged, it is not JSON ({error}): copy or make it again") from error
    if not isinstance(value, dict):
        raise ValueError(f"{name}/{file} is damaged, it holds no JSON object: copy or make it again")
    return value


def _part(path: Path) -> str:
    """What a path is where it is a file or a part of a run or of a saved model; empty where it is neither."""
    inside = path.resolve()
    if inside.is_file():
        where = f"a file of the one in {_above(path, 1)}: give that folder" if _is_model(inside.parent) else "a file"
        return f"it is {where}"
    if run := next((n for n, folder in enumerate(inside.parents, 1) if folder.name == _CHECKPOINTS), 0):
        run += 1
    is_checkpoint = re.fullmatch(r"checkpoint-\d+", inside.name) is not None and run > 0
    if is_checkpoint or (inside / _STATE).is_file():
        whose = _run(path, run) if run else "a training: give the folder that it wrote at its end (output_dir)"
        return f"it is a checkpoint of {whose}"
    if inside.name.startswith(SAVING):
        return f"it is what an interrupted saving left in {_above(path, 1)}: give that folder, or save again"
    if (inside / "config.json").is_file():
        return ""
    if (inside / "adapter_config.json").is_file():
        merged = _above(path, 1) if _is_model(inside.parent) else "the folder it was written into"
        return f"it holds LoRA weights; the model with these merged is in {merged}: give that folder"
    if run or inside.name == _CHECKPOINTS:
        return f"it holds checkpoints of {_run(path, run or 1)}"
    if inside.is_dir() and _is_model(inside.parent):
        return f"it is a part of the model in {_above(path, 1)}: give that folder"
    return ""


def _run(path: Path, levels: int) -> str:
    """The run whose checkpoints lie `levels` below its folder, and what to give in their place."""
    folder = _above(path, levels)
    if _is_model(folder):
        return f"the run in {folder}, whose model is in that folder: give {folder}"
    return f"the run in {folder}, whose training is not finished: start it again (it goes on), then give {folder}"


def _above(path: Path, levels: int) -> Path:
    """The folder so many levels above; in the words of `path` as far as these lead there."""
    there = path.resolve().parents[levels - 1]
    named = path.parents[levels - 1] if levels <= len(path.parents) else there
    return named if named.resolve() == there else there


def _is_model(folder: Path) -> bool:
    return (folder / "config.json").is_file() and (folder / "training.json").is_file()


def _unfinished(folder: Path) -> str:
    """Why a folder may have no config.json, in words."""
    if (folder / _CHECKPOINTS).is_dir():
        return "its training was interrupted before the end: start it again, it goes on"
    if models := sorted(file.parent for file in folder.glob("*/training.json") if _is_model(file.parent)):
        return f"it holds models: give one of them, such as {models[0]}"
    return "was its training interrupted?"
