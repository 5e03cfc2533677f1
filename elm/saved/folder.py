"""A model as one folder: `load`, `save`, and `resolve`, which finds the folder of a hub id.

The folder holds config.json, model.safetensors (LoRA merged), the tokenizer with its chat template, the processor with
the encoder's feature extractor, training.json (what it was trained on and how) and README.md (its model card). Beside
them: `adapter/` (the LoRA weights and the trained projector), `checkpoints/`, `examples/`, `ablation/`.
"""

import json
import os
import shutil
import tempfile
from pathlib import Path

import torch
from peft import PeftModel
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM

from data.support.files import read_json, written_whole
from elm.inputs.features import weights_hash
from elm.inputs.processing import ElmProcessor
from elm.model import vocabulary
from elm.model.configuration import ElmConfig
from elm.model.modeling import ElmForConditionalGeneration
from elm.saved.arguments import TrainingRecord
from elm.saved.card import write_card
from encoders.checkpoints import from_hub

BASE_FILE = "base.json"  # in an adapter's folder: which base it was trained on
FILES = (  # what a model is loaded from, and training.json: patterns of names
    *("config.json", "generation_config.json", "model*.safetensors", "model.safetensors.index.json"),
    *("processor_config.json", "preprocessor_config.json", "chat_template.jinja", "tokenizer.json"),
    *("tokenizer_config.json", "tokenizer.model", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.json", "vocab.txt", "merges.txt", "training.json"),
)


def resolve(name_or_path: Path | str, revision: str | None = None) -> Path:
    """The folder of a saved model: itself, or that in the cache to which a hub id's files are downloaded once.

    Raises `FileNotFoundError` where there is neither a folder nor a hub id of that name that can be reached.
    """
    path = Path(name_or_path)
    if path.is_dir():
        return path
    try:
        return from_hub(str(name_or_path), FILES, revision)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"no saved model at {name_or_path}: no such folder, and {error}") from error


def load(
    folder: Path | str,
    *,
    revision: str | None = None,
    adapter: Path | str | None = None,
    dtype: torch.dtype | str = "auto",
) -> tuple[ElmForConditionalGeneration, ElmProcessor]:
    """A saved model (its folder or hub id) and its processor, ready to answer.

    `adapter` is an `adapter/` folder of LoRA weights to put on it, trained on this very model. `dtype` is that of the
    weights; `"auto"` keeps the saved one.

    Raises:
        FileNotFoundError: The folder is no saved model, and no hub id of one that can be reached.
        ValueError: A weight is missing, unexpected, misshapen or not finite, the file of weights is damaged, or the
            adapter belongs to another base.
    """
    folder, name = resolve(folder, revision), folder
    if not (folder / "config.json").exists():
        raise FileNotFoundError(f"{name} is no saved model: it has no config.json (was its training interrupted?)")
    config = ElmConfig.of_folder(folder)
    kind = ElmForConditionalGeneration if config.vocabulary_start is None else AutoModelForCausalLM
    try:
        model, info = kind.from_pretrained(folder, dtype=dtype, output_loading_info=True, ignore_mismatched_sizes=True)
    except SafetensorError as error:
        raise ValueError(f"the weights of {name} are damaged: {error}") from error
    faults = [f"{name} is missing" for name in info["missing_keys"]]
    faults += [f"{name} is unexpected" for name in info["unexpected_keys"]]
    faults += [f"{name} is {tuple(got)} instead of {tuple(want)}" for name, got, want in info["mismatched_keys"]]
    faults += [f"{n} holds NaN or infinity" for n, w in model.state_dict().items() if not bool(w.isfinite().all())]
    if faults:
        more = f" and {len(faults) - 5} more" if len(faults) > 5 else ""
        raise ValueError(f"the weights of {name} do not fit its config.json: {'; '.join(faults[:5])}{more}")
    if config.vocabulary_start is not None:
        model = vocabulary.from_plain(model, config)
    processor = ElmProcessor.from_pretrained(folder)
    if adapter is not None:
        belongs = read_json(Path(adapter) / BASE_FILE)["weights"]
        if weights_hash(model) != belongs:
            raise ValueError(
                f"the adapter in {adapter} was trained on other weights ({belongs}) than those of {name} "
                f"({weights_hash(model)}): load it on the base it was trained on"
            )
        model = PeftModel.from_pretrained(model, str(adapter))
        model.get_base_model().model.mirror_rows()  # a head that shares the table speaks by it
    return model.eval(), processor


def save(
    model: ElmForConditionalGeneration,
    processor: ElmProcessor,
    folder: Path | str,
    *,
    training: TrainingRecord,
    beside: Path | None = None,
) -> Path:
    """Write a model so that every file of the folder is whole: all are written beside it first, then moved in.

    The model has no adapters, or they are merged; `training` goes into training.json; the contents of the folder
    `beside` (`adapter/`, `examples/`) are moved in with the rest. Other files and folders stay.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    staged = Path(tempfile.mkdtemp(prefix=".saving-", dir=folder))
    try:
        (model if model.config.vocabulary_start is None else vocabulary.as_plain(model)).save_pretrained(staged)
        processor.save_pretrained(staged)
        record = {**training, "parameters": sum(p.numel() for p in model.parameters())}
        (staged / "training.json").write_text(json.dumps(record, indent=2), encoding="utf-8")
        for item in beside.iterdir() if beside is not None else ():
            os.replace(item, staged / item.name)
        write_card(staged)
        for weights in staged.rglob("*.safetensors"):  # written for their owner alone; config.json follows the umask
            weights.chmod((staged / "config.json").stat().st_mode)
        # config.json goes first and comes last: a folder without it is no saved model. Weights of the model before in
        # other files than these would be read in place of the new ones, or beside them.
        for old in (folder / "config.json", *folder.glob("model*.safetensors*")):
            old.unlink(missing_ok=True)
        for item in sorted(staged.iterdir(), key=lambda item: item.name == "config.json"):
            target = folder / item.name
            if target.is_dir():
                shutil.rmtree(target)
            os.replace(item, target)
    finally:
        shutil.rmtree(staged, ignore_errors=True)
    return folder


def save_adapter(model: PeftModel, folder: Path, base_weights: str) -> None:
    """The adapter alone, with the hash of the weights it belongs to."""
    model.save_pretrained(folder)
    with written_whole(folder / BASE_FILE, "w") as file:
        json.dump({"weights": base_weights}, file)
