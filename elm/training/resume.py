"""What all trainings share, of models and of encoders: whose folder it is, going on, and what is recorded of a run."""

import json
import logging
import platform
import shutil
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path

from transformers import Trainer, TrainerState, TrainingArguments

from data.support.files import written_whole
from elm.saved.arguments import Settings
from elm.training.hooks import load_checkpoint

logger = logging.getLogger(__name__)


def run_settings(
    training_args: TrainingArguments, names: Sequence[str], settings: Mapping[str, object]
) -> dict[str, object]:
    """Settings without which a checkpoint is another run's, as JSON; of the trainer's, `names` and rows per step."""
    rows = training_args.train_batch_size * training_args.gradient_accumulation_steps * training_args.world_size
    values = training_args.to_dict()
    return dict(json.loads(json.dumps({**settings, "batch_size": rows, **{name: values[name] for name in names}})))


def claim_folder(folder: Path, settings: dict[str, object], *, resume: bool, write: bool = True) -> None:
    """Note in `folder/run.json` what a folder of results was made with; without `resume`, empty it first.

    Raises `ValueError` where it was made with other settings, with the first that differ.
    """
    record = folder / "run.json"
    if resume and record.exists():
        before = json.loads(record.read_text(encoding="utf-8"))
        differ = [f"{k} {before.get(k)!r} but now {v!r}" for k, v in settings.items() if before.get(k) != v]
        if differ:
            raise ValueError(
                f"{folder} holds checkpoints of another run ({'; '.join(differ[:3])}): "
                "give another output_dir, or --resume false to start over"
            )
    if write:
        if not resume:  # nothing that is there may be taken for a checkpoint of this run
            shutil.rmtree(folder, ignore_errors=True)
        with written_whole(record, "w") as file:
            json.dump(settings, file, indent=2)


def newest_whole_checkpoint(folder: Path | str) -> str | None:
    """The newest checkpoint that was written to its end: its `trainer_state.json`, written last, can be read."""
    newest = sorted(Path(folder).glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]), reverse=True)
    for checkpoint in newest:
        try:
            json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            logger.warning("%s was not written to its end: left out", checkpoint)
            continue
        return str(checkpoint)
    return None


def train_to_end(trainer: Trainer, resume: bool) -> None:
    """Train, from the newest whole checkpoint if there is one; a finished run is loaded and trained no further."""
    checkpoint = newest_whole_checkpoint(trainer.args.output_dir) if resume else None
    state = TrainerState.load_from_json(f"{checkpoint}/trainer_state.json") if checkpoint else None
    if checkpoint and state is not None and state.global_step >= state.max_steps:
        # `train` would take one step too many.
        logger.warning("already trained: %s", checkpoint)
        load_checkpoint(trainer, checkpoint)
        trainer.state = state
        return
    if checkpoint:
        logger.warning("going on from %s", checkpoint)
    trainer.train(resume_from_checkpoint=checkpoint)


def losses_of(trainer: Trainer) -> list[float]:
    """Losses of a training, as logged."""
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def plain_settings(training_args: TrainingArguments) -> Settings:
    """The trainer's settings that are numbers and words, for the record of a run."""
    return {k: v for k, v in training_args.to_dict().items() if isinstance(v, (int, float, str, bool))}


def versions(*packages: str) -> dict[str, str]:
    """Versions of Python and of packages, for the record of a run."""
    return {"python": platform.python_version(), **{package: version(package) for package in packages}}
