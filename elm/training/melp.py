"""Settings of MELP's pretraining, and its steps before training: reports, readable recordings, a new model."""

import dataclasses
import tempfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from transformers import PreTrainedTokenizerBase, TrainingArguments

from data.conversations.reports import check_kinds, find_reports
from data.experiment.recordings import Recordings
from data.support.translate import translate
from data.synthetic import SyntheticCohort
from elm.saved.arguments import Settings, setting
from elm.training import dev
from elm.training.pretraining import PretrainingArguments
from elm.training.sources import check_model
from encoders.melp import MelpFeatureExtractor, MelpForPretraining, MelpModel, training
from encoders.melp.files import new_pretraining
from encoders.melp.training import unreadable

ENGLISH_ONLY = {"mimic_iv_ecg": "MIMIC-IV-ECG", "synthetic": "simulated recordings"}


@dataclass(kw_only=True)
class MelpArguments(PretrainingArguments):
    """Settings of MELP's pretraining."""

    reports: list[str] = setting(
        ["english", "labels"],
        "Where a report may come from; the first that a record has is taken: english, labels (sentences made from "
        "PTB-XL's statements), german, translated.",
    )
    voltage: bool = setting(True, "Whether reports may speak of voltage, to which MELP is blind.")
    translator: str = setting("", "Hub id or folder of a model from German to English.")
    encoder: str = setting("", "Folder, hub id or file of a MELP to begin with; a new one without.")
    text_model: str = setting(
        "ncbi/MedCPT-Query-Encoder", "Folder or hub id of a BERT; tiny: a small one, its tokenizer made of the reports."
    )
    text_weights: bool = setting(True, "Whether to begin with its weights; tiny has none.")
    text_args: Settings | str | None = setting(None, "Fields of a tiny text model's BertConfig, as JSON.")
    pretraining_args: Settings | str | None = setting(None, "Fields of MelpPretrainingConfig (losses, ...), as JSON.")
    lead_mask: float = setting(0.5, "Probability with which a lead is zero in training.")


def check(arguments: MelpArguments, training_args: TrainingArguments) -> None:
    """Refuse settings that cannot be trained with before anything is read."""
    check_kinds(arguments.reports, arguments.translator, ENGLISH_ONLY.get(arguments.corpus, ""))
    if not 0 <= arguments.lead_mask < 1:
        raise ValueError(f"lead_mask is a probability below 1, got {arguments.lead_mask}")
    weights = {"contrast_weight": 1.0, "local_weight": 0.2} | arguments.mapping("pretraining_args")
    compared = training_args.per_device_train_batch_size * training_args.world_size
    if compared < 2 and (weights["contrast_weight"] or weights["local_weight"]):
        raise ValueError("per_device_train_batch_size is 1: a recording is told from others of its batch")
    if arguments.text_model != "tiny" and arguments.mapping("text_args"):
        raise ValueError(f"text_args are for text_model: tiny, not for {arguments.text_model}")
    if not arguments.dev:
        if arguments.text_model != "tiny":
            check_model("text_model", arguments.text_model)
        if arguments.translator:
            check_model("translator", arguments.translator)


def reports(arguments: MelpArguments, recordings: Recordings) -> tuple[dict[str, str], list[str]]:
    """The reports of all recordings of a run, and notes on where those to train on came from."""
    translated = partial(translate, model=arguments.translator, cache=arguments.cache_dir)
    stands_in = arguments.dev and isinstance(recordings.source, SyntheticCohort)
    kinds = ["english"] if stands_in else arguments.reports
    train, held_out = (
        find_reports(recordings.source, side, kinds, translated=translated, voltage=arguments.voltage)
        for side in recordings.sides
    )
    return train[0] | held_out[0], train[1]


def usable(
    arguments: MelpArguments, recordings: Recordings, texts: dict[str, str], extractor: MelpFeatureExtractor
) -> tuple[Recordings, dict[str, str]]:
    """Recordings that have a report and can be read, and why others cannot."""
    sides: list[list[str]] = []
    refused: dict[str, str] = {}
    for name, records in zip(("to train on", "held out"), recordings.sides, strict=True):
        reported = [record for record in records if record in texts]
        if not reported:
            raise ValueError(f"{recordings.name}: none of the recordings {name} has a report: see `reports`")
        source, key = recordings.source, recordings.key
        refused |= unreadable(reported, source, key, extractor, arguments.cache_dir, arguments.jobs)
        sides.append([record for record in reported if record not in refused])
    return dataclasses.replace(recordings, train=sides[0], held_out=sides[1]), refused


def new_model(
    arguments: MelpArguments, encoder: MelpModel, texts: list[str]
) -> tuple[MelpForPretraining, PreTrainedTokenizerBase]:
    """The encoder with its text side, and the tokenizer; a tiny text model is made of the reports to train on."""
    side = arguments.mapping("pretraining_args")
    if arguments.text_model != "tiny":
        return new_pretraining(encoder, arguments.text_model, text_weights=arguments.text_weights, **side)
    with tempfile.TemporaryDirectory() as folder:
        training.new_text_model(texts, arguments.mapping("text_args"), Path(folder))
        model, tokenizer = new_pretraining(encoder, folder, text_weights=False, **side)
    model.config.text_config.name_or_path = "tiny"  # not the folder, which is gone
    return model, tokenizer


def pretrained_on(arguments: MelpArguments, recordings: Recordings, before: str) -> str:
    """Data that the weights have seen, in words: the audit looks there for the recordings it asks about."""
    labels = " and sentences made from labels" if arguments.corpus == "ptbxl" and "labels" in arguments.reports else ""
    seen = f"{recordings.name}: recordings and their reports{labels} (MELP)"
    return f"{seen}; begun with an encoder pretrained on: {before or 'nothing stated'}" if arguments.encoder else seen


def for_dev(arguments: MelpArguments, training_args: TrainingArguments) -> tuple[MelpArguments, TrainingArguments]:
    """The settings of a `--dev` run: a small model with random weights on either side."""
    encoder = {"encoder": "", "encoder_args": arguments.mapping("encoder_args") | training.SMALL}
    text = {"text_model": "tiny", "text_args": training.SMALL_TEXT}
    side = arguments.mapping("pretraining_args") | training.SMALL_SIDE
    return dev.in_temporary_folder(arguments, training_args, **encoder, **text, pretraining_args=side)
