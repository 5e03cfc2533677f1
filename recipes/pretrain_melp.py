"""Pretrain MELP on ECGs and their reports: contrast of recordings and reports, captions, beats against sentences.

    accelerate launch recipes/pretrain_melp.py
    accelerate launch recipes/pretrain_melp.py --config recipes/configs/melp_mimic.yaml
    accelerate launch recipes/pretrain_melp.py --pretraining_args '{"caption_weight": 0}' --output_dir out/no-captions
    python recipes/pretrain_melp.py --config recipes/configs/melp_mimic.yaml --dev    # does it run?

Without --config it takes recipes/configs/melp_tiny_cpu.yaml: simulated ECGs, in minutes on two CPU cores. Any field of
a config can be given as a flag; a flag wins over the file, and an unknown key is an error. A run that was interrupted
goes on from its newest whole checkpoint when started again.

Writes a folder for `load_encoder`, in it metrics.json (what was measured on held-out patients) and pretraining/, the
whole model with its text side, for `load_pretraining`, zero-shot classification and further training.
"""

import dataclasses
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase, TrainingArguments

from data.conversations.reports import check_kinds, find_reports
from data.experiment.recordings import Recordings
from data.support.translate import translate
from data.synthetic import SyntheticCohort
from elm.training.pretraining import (
    PretrainingArguments,
    claim,
    parse_stages,
    recordings_of,
    refuse_sharding,
    save_run,
    small,
    train_to_end,
)
from elm.training.settings import as_mapping, check_launch
from encoders import load_encoder, new_encoder
from encoders.melp import MelpFeatureExtractor, MelpForPretraining, MelpModel, training
from encoders.melp.files import new_pretraining, save_pretraining
from encoders.melp.training import Alignment, MelpTrainer, PairCollator, Pairs, unreadable
from eval.probing.held_out import Measure, as_lines

DEFAULT_CONFIG = Path(__file__).parent / "configs" / "melp_tiny_cpu.yaml"
ENGLISH_ONLY = {"mimic_iv_ecg": "MIMIC-IV-ECG", "synthetic": "simulated recordings"}
# What the trainer has to be told.
FIXED = {
    "remove_unused_columns": False,
    "dataloader_drop_last": True,  # the contrast needs as many recordings in each process
    "ddp_find_unused_parameters": False,
    "push_to_hub": False,
}


@dataclass(kw_only=True)
class MelpArguments(PretrainingArguments):
    """What is added for MELP."""

    reports: list[str] = field(
        default_factory=lambda: ["english", "labels"],
        metadata={
            "help": "Where a report may come from; the first that a record has is taken: english, labels (sentences "
            "made from PTB-XL's statements), german, translated."
        },
    )
    voltage: bool = field(
        default=True, metadata={"help": "Whether reports may speak of voltage, to which MELP is blind."}
    )
    translator: str = field(default="", metadata={"help": "Hub id or folder of a model from German to English."})
    encoder: str = field(
        default="", metadata={"help": "Folder, hub id or file of a MELP to begin with; a new one without."}
    )
    text_model: str = field(
        default="ncbi/MedCPT-Query-Encoder",
        metadata={"help": "Folder or hub id of a BERT; tiny: a small one with a tokenizer made of the reports."},
    )
    text_weights: bool = field(default=True, metadata={"help": "Whether to begin with its weights; tiny has none."})
    text_args: dict[str, Any] | str | None = field(
        default=None, metadata={"help": "Fields of a tiny text model's BertConfig, as JSON."}
    )
    pretraining_args: dict[str, Any] | str | None = field(
        default=None,
        metadata={"help": "Weights of the losses and other fields of MelpPretrainingConfig, as JSON."},
    )
    lead_mask: float = field(default=0.5, metadata={"help": "Probability with which a lead is zero in training."})

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("text_args", "pretraining_args"):
            setattr(self, name, as_mapping(name, getattr(self, name)))


def main(arguments: MelpArguments, training_args: TrainingArguments) -> None:
    """Trains the model, measures it on held-out patients and saves it."""
    check_launch()
    refuse_sharding()
    check(arguments, training_args)
    if arguments.dev:
        arguments, training_args = for_dev(arguments, training_args)
    claim(arguments, training_args)
    folder = Path(training_args.output_dir)

    torch.manual_seed(training_args.seed)  # new weights
    settings, own = arguments.mapping("encoder_args"), arguments.mapping("extractor_args")
    if arguments.encoder:
        encoder, extractor = load_encoder(arguments.encoder, **settings, **own)
        if not isinstance(encoder, MelpModel):
            raise ValueError(f"encoder {arguments.encoder} is of type {encoder.config.model_type}: give a MELP")
    else:
        encoder, extractor = new_encoder("ecg_melp", **settings, **own)

    # Data: the first process tries to read the recordings, the others read what it found.
    with training_args.main_process_first(desc="recordings"):
        recordings = recordings_of(arguments)
        texts, notes = reports(arguments, recordings)
        recordings, refused = usable(arguments, recordings, texts, extractor)
    train, held_out = recordings.sides
    encoder.config.pretrained_on = pretrained_on(arguments, recordings, encoder.config.pretrained_on)

    # Model
    model, tokenizer = new_model(arguments, encoder, [texts[record] for record in train])
    collator = PairCollator(tokenizer, model.config.text_length)
    pairs = Pairs(train, recordings.source, extractor, texts, arguments.lead_mask, training_args.seed)
    unmasked = Pairs(held_out, recordings.source, extractor, texts)
    patients = [recordings.patient_of[record] for record in held_out]
    measure = Measure(Alignment(unmasked, patients, collator, training_args.per_device_eval_batch_size), patients)

    # Training
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    args = dataclasses.replace(training_args, output_dir=str(folder / "checkpoints"), **FIXED)
    trainer = MelpTrainer(
        measure, anew=True, model=model, args=args, data_collator=collator, train_dataset=pairs, eval_dataset=unmasked
    )
    print(f"{len(train):,} recordings with reports of {recordings.name}; {len(held_out):,} are held out. {notes[0]}")
    train_to_end(trainer, resume=arguments.resume)
    if not trainer.is_world_process_zero():
        return
    trainer.evaluate()
    model = trainer.accelerator.unwrap_model(trainer.model).eval()
    save_pretraining(model, extractor, tokenizer, folder / "pretraining")
    save_run(model.encoder, extractor, trainer, arguments, training_args, measure.numbers, refused)
    print("\n".join(as_lines(measure.numbers)))
    print(f"The encoder is in {folder}, with its text side in {folder / 'pretraining'}")


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


def reports(arguments: MelpArguments, recordings: Recordings) -> tuple[dict[str, str], list[str]]:
    """The reports of all recordings of a run, and notes on where those to train on came from."""

    def translated(texts: Iterable[str]) -> dict[str, str]:
        return translate(texts, arguments.translator, arguments.cache_dir)

    stands_in = arguments.dev and isinstance(recordings.source, SyntheticCohort)
    kinds = ["english"] if stands_in else arguments.reports
    sides = [
        find_reports(recordings.source, side, kinds, translated=translated, voltage=arguments.voltage)
        for side in recordings.sides
    ]
    return sides[0][0] | sides[1][0], sides[0][1]


def usable(
    arguments: MelpArguments, recordings: Recordings, texts: dict[str, str], extractor: MelpFeatureExtractor
) -> tuple[Recordings, dict[str, str]]:
    """Those of the recordings that have a report and can be read, and why others cannot."""
    sides, refused = [], {}
    for name, records in zip(("to train on", "held out"), recordings.sides, strict=True):
        found = [record for record in records if record in texts]
        if not found:
            raise ValueError(f"{recordings.name}: none of the recordings {name} has a report: see `reports`")
        source, key = recordings.source, recordings.key
        refused |= unreadable(found, source, key, extractor, arguments.cache_dir, arguments.jobs)
        sides.append([record for record in found if record not in refused])
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
    """What the weights have seen, in words: the audit looks for its own recordings there."""
    labels = " and sentences made from labels" if arguments.corpus == "ptbxl" and "labels" in arguments.reports else ""
    said = f"{recordings.name}: recordings and their reports{labels} (MELP)"
    return f"{said}; begun with an encoder pretrained on: {before or 'nothing stated'}" if arguments.encoder else said


def for_dev(arguments: MelpArguments, training_args: TrainingArguments) -> tuple[MelpArguments, TrainingArguments]:
    """The settings of a `--dev` run: a small model with random weights on either side."""
    arguments, training_args = small(arguments, training_args, training.SMALL)
    side = arguments.mapping("pretraining_args") | training.SMALL_SIDE
    return dataclasses.replace(
        arguments, encoder="", text_model="tiny", text_args=training.SMALL_TEXT, pretraining_args=side
    ), training_args


def parse(argv: list[str]) -> tuple[MelpArguments, TrainingArguments]:
    """The settings on a command line."""
    return parse_stages(argv, (), (MelpArguments, TrainingArguments), DEFAULT_CONFIG)


if __name__ == "__main__":
    main(*parse(sys.argv[1:]))
