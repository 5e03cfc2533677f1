"""What recipes that pretrain an encoder share: settings, one config for several stages, resuming, the folder's card."""

import dataclasses
import json
import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from transformers import Trainer, TrainingArguments

from data.card import source_lines, sources_of
from data.corpora import check_corpus
from data.corpora.ptbxl import TRAIN_FOLDS
from data.experiment.recordings import Recordings, evenly, load_recordings
from data.support.files import written_whole
from elm.saved.arguments import Settings, as_mapping, setting
from elm.saved.card import DISCLAIMER, template
from elm.saved.run import DEV_NOTE
from elm.training.claim import claim_folder, release, run_settings
from elm.training.resume import losses_of, plain_settings, versions
from elm.training.settings import check_folders, check_launch, is_set
from elm.training.trainer_settings import check_numbers, check_trainer, refuse_ignored, refused_names
from encoders.base import EcgEncoder, EcgFeatureExtractor
from encoders.hub import save_encoder

logger = logging.getLogger(__name__)

CHECKPOINTS = "checkpoints"  # below the folder of a run
DEV_PATIENTS, DEV_TRAIN, DEV_HELD_OUT = 24, 16, 6
REFUSED = refused_names(Path(__file__).with_name("refused_pretraining.yaml"))


@dataclass
class PretrainingArguments:
    """Settings of a pretraining: which encoder, on which recordings."""

    corpus: str = setting("ptbxl", "ptbxl, mimic_iv_ecg or synthetic.")
    corpus_args: Settings | str | None = setting(None, 'Its settings, as JSON, e.g. {"root": "data-root/ptbxl"}.')
    train_folds: list[int] = setting([*TRAIN_FOLDS], "Folds to train on, of PTB-XL's ten; of ten by patient elsewhere.")
    held_out_folds: list[int] = setting([9], "Folds to measure on.")
    held_out_records: int = setting(2000, "Of these at most so many, evenly over all.")
    encoder_args: Settings | str | None = setting(None, "Fields of the model's configuration, as JSON, to change.")
    extractor_args: Settings | str | None = setting(None, "Settings of its feature extractor alone, as JSON.")
    cache_dir: str = setting("out/cache", "Folder for what is computed once.")
    jobs: int = setting(os.cpu_count() or 1, "Processes that prepare data.")
    threads: int = setting(0, "CPU threads of a process in training; 0 leaves it to PyTorch and the launcher.")
    dev: bool = setting(False, "Does it run? A small model, few recordings and steps, a temporary folder.")
    resume: bool = setting(True, "Go on from the newest whole checkpoint of the same run.")

    def __post_init__(self) -> None:
        self.cache_dir = os.path.expanduser(self.cache_dir)
        for name in vars(self):
            if name.endswith("_args"):
                setattr(self, name, self.mapping(name))

    def mapping(self, name: str) -> Settings:
        """One of the settings that are mappings."""
        return as_mapping(name, vars(self)[name])


A = TypeVar("A", bound=PretrainingArguments)


def begin(
    arguments: A,
    training_args: TrainingArguments,
    for_dev: Callable[[A, TrainingArguments], tuple[A, TrainingArguments]],
) -> tuple[A, TrainingArguments]:
    """The settings of a run that may be launched so, those of `--dev` where it is; claims the output folder.

    Raises as `check_trainer` and `claim_folder` do, and `ValueError` for launchers that take a model apart: these
    models fit on any device, and measuring needs them whole.
    """
    check_launch()
    refuse_ignored(training_args, REFUSED)
    check_numbers(arguments)
    check_trainer(training_args, resume=arguments.resume)
    check_corpus(arguments.corpus, arguments.mapping("corpus_args"))
    if is_set("ACCELERATE_USE_FSDP") or is_set("ACCELERATE_USE_DEEPSPEED"):
        raise ValueError("encoders are pretrained with whole models on every device: recipes/accelerate/multi_gpu.yaml")
    if arguments.dev:
        arguments, training_args = for_dev(arguments, training_args)
    check_folders(training_args.output_dir, arguments.cache_dir)
    # Recordings are compared with others of their batch: one of half the size is another training.
    settings = run_settings(training_args, dataclasses.asdict(arguments), also=("gradient_accumulation_steps",))
    folder = Path(training_args.output_dir) / CHECKPOINTS
    claim_folder(folder, settings, resume=arguments.resume, write=training_args.process_index == 0)
    return arguments, training_args


def recordings_of(arguments: PretrainingArguments) -> Recordings:
    """The recordings of a run, for `--dev` few of them, and simulated ones where the corpus is not there."""
    settings = arguments.mapping("corpus_args")
    corpus = arguments.corpus
    if corpus == "synthetic":
        settings = {"cache": arguments.cache_dir} | settings
    elif arguments.dev and not Path(settings.get("root", "")).is_dir():
        logger.warning("--dev: there is no %s, so simulated ECGs stand in for it", settings.get("root"))
        corpus = "synthetic"
    if arguments.dev and corpus == "synthetic":
        settings = {"patients": DEV_PATIENTS, "records_per_patient": 2}
    recordings = load_recordings(corpus, arguments.train_folds, arguments.held_out_folds, **settings)
    held_out = evenly(recordings.held_out, arguments.held_out_records)
    if not arguments.dev:
        return dataclasses.replace(recordings, held_out=held_out)
    return dataclasses.replace(recordings, train=recordings.train[:DEV_TRAIN], held_out=held_out[:DEV_HELD_OUT])


def trainer_args(training_args: TrainingArguments, **changes: object) -> TrainingArguments:
    """The trainer's settings as pretraining needs them, with its checkpoints below the folder of the run."""
    return dataclasses.replace(
        training_args,
        output_dir=str(Path(training_args.output_dir) / CHECKPOINTS),
        remove_unused_columns=False,
        dataloader_drop_last=True,  # a contrast needs as many recordings in each process
        ddp_find_unused_parameters=False,
        push_to_hub=False,
        **changes,
    )


def save_run(
    encoder: EcgEncoder,
    extractor: EcgFeatureExtractor,
    trainer: Trainer,
    arguments: PretrainingArguments,
    training_args: TrainingArguments,
    metrics: Mapping[str, object],
    refused: Mapping[str, str],
) -> None:
    """Write `output_dir`: the encoder for `load_encoder`, metrics.json and README.md.

    `metrics` is what was measured on held-out patients, by name; `refused` why recordings were left out, by their ids.
    """
    folder, history = Path(training_args.output_dir), trainer.state.log_history
    save_encoder(encoder, extractor, folder)
    report = {
        "steps": trainer.state.global_step,
        "train_records": len(trainer.train_dataset),
        "held_out_records": len(trainer.eval_dataset),
        "refused": refused,
        "metrics": metrics,
        "losses": losses_of(trainer),
        "history": [entry for entry in history if any(name.startswith("eval_") for name in entry)],
        "processes": training_args.world_size,
        "notes": [DEV_NOTE] if arguments.dev else [],
        "arguments": dataclasses.asdict(arguments),
        "trainer": plain_settings(training_args),
        "versions": versions("torch", "transformers"),
    }
    with written_whole(folder / "metrics.json", "w") as file:
        json.dump(report, file, indent=2)
    card = template(Path(__file__).with_name("encoder_card.md.jinja")).render(
        config=encoder.config,
        report=report,
        disclaimer=DISCLAIMER,
        licences=source_lines(sources_of([encoder.config.pretrained_on])),
    )
    with written_whole(folder / "README.md", "w") as file:
        file.write(card)
    release(folder / CHECKPOINTS)
