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
from accelerate import PartialState
from peft import PeftModel
from transformers import AutoModelForCausalLM

from data.support.files import disk_errors_of, read_json, written_whole
from elm.inputs.features import weights_hash
from elm.inputs.processing import ElmProcessor
from elm.model import vocabulary
from elm.model.configuration import ElmConfig
from elm.model.modeling import ElmForConditionalGeneration
from elm.model.quantization import nf4
from elm.saved.arguments import TrainingRecord
from elm.saved.card import write_card
from elm.saved.check import FILES, SAVING, refuse_part, require_model
from encoders.checkpoints import from_hub

BASE_FILE = "base.json"  # in an adapter's folder: which base it was trained on


def resolve(name_or_path: Path | str, revision: str | None = None, *, checkpoints: bool = False) -> Path:
    """The folder of a saved model: itself, or that in the cache to which a hub id's files are downloaded once.

    Raises:
        FileNotFoundError: There is neither a folder nor a hub id of that name that can be reached; or it is a file, a
            checkpoint (unless `checkpoints` are allowed) or a part of a saved model.
    """
    path = Path(name_or_path).expanduser()
    if path.exists():
        if not (checkpoints and (path / "config.json").is_file()):
            refuse_part(path, name_or_path)
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
    quantized: bool = False,
) -> tuple[ElmForConditionalGeneration, ElmProcessor]:
    """A saved model (its folder or hub id) and its processor, ready to answer.

    `adapter` is an `adapter/` folder of LoRA weights to put on it, trained on this very model; that may be a checkpoint
    of the align stage. `dtype` is that of the weights; `"auto"` keeps the saved one. `quantized` holds the language
    model's linear layers in 4 bits, for training.

    Raises:
        FileNotFoundError: The folder is no saved model, and no hub id of one that can be reached; or no adapter.
        ValueError: A weight is missing, unexpected, misshapen or not finite, a file is damaged, or the adapter belongs
            to another base.
    """
    folder, name = resolve(folder, revision, checkpoints=adapter is not None), folder
    config = require_model(folder, name)
    kind = ElmForConditionalGeneration if config.vocabulary_start is None else AutoModelForCausalLM
    how = _in_4_bits(config) if quantized else {}
    model, info = kind.from_pretrained(
        folder, dtype=dtype, output_loading_info=True, ignore_mismatched_sizes=True, **how
    )
    faults = [f"{name} is missing" for name in info["missing_keys"]]
    faults += [f"{name} is unexpected" for name in info["unexpected_keys"]]
    faults += [f"{name} is {tuple(got)} instead of {tuple(want)}" for name, got, want in info["mismatched_keys"]]
    faults += [f"{n} holds NaN or infinity" for n, w in model.state_dict().items() if not bool(w.isfinite().all())]
    if faults:
        more = f" and {len(faults) - 5} more" if len(faults) > 5 else ""
        raise ValueError(f"the weights of {name} do not fit its config.json: {'; '.join(faults[:5])}{more}")
    if config.vocabulary_start is not None:
        model = vocabulary.from_plain(model, config)
    elif quantized:
        model = ElmForConditionalGeneration.around(config, model)
    processor = ElmProcessor.from_pretrained(folder)
    if adapter is not None:
        adapter = Path(adapter).expanduser()
        if not (adapter / BASE_FILE).is_file():
            raise FileNotFoundError(f"{adapter} is no adapter/ folder of a saved model: it has no {BASE_FILE}")
        belongs = read_json(adapter / BASE_FILE)["weights"]
        if weights_hash(model) != belongs:
            raise ValueError(
                f"the adapter in {adapter} was trained on other weights ({belongs}) than those of {name} "
                f"({weights_hash(model)}): load it on the base it was trained on"
            )
        model = PeftModel.from_pretrained(model, str(adapter))
        model.get_base_model().model.mirror_rows()  # a head that shares the table speaks by it
    return model.eval(), processor


def _in_4_bits(config: ElmConfig) -> dict[str, object]:
    """Settings of `from_pretrained` for a language model in 4 bits; all other parts keep their precision."""
    whole = None if config.vocabulary_start is not None else ["model.encoder", "model.projector", "lm_head"]
    return {"quantization_config": nf4(whole), "device_map": {"": PartialState().device}}


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
    staged = Path(tempfile.mkdtemp(prefix=SAVING, dir=folder))
    try:
        with disk_errors_of(folder):
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
