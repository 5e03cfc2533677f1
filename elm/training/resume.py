"""What all trainings share, of models and of encoders: going on, and what is recorded of a run."""

import logging
import platform
from importlib.metadata import version

from transformers import Trainer, TrainerState, TrainingArguments

from elm.saved.arguments import Settings
from elm.training.checkpoints import STATE, KeepNewest, newest_whole_checkpoint
from elm.training.claim import CANNOT_MATTER
from elm.training.hooks import load_checkpoint

logger = logging.getLogger(__name__)


def train_to_end(trainer: Trainer, resume: bool) -> None:
    """Train, from the newest whole checkpoint if there is one; a finished run is loaded and trained no further.

    Raises:
        ValueError: There are too few rows for a single batch.
    """
    args = trainer.args
    rows, batch = len(trainer.train_dataset), args.train_batch_size * args.world_size
    if args.dataloader_drop_last and rows < batch:
        raise ValueError(
            f"there are {rows} rows to train on, fewer than the {batch} of a batch, and what does not fill one is left "
            "out (dataloader_drop_last): give a smaller per_device_train_batch_size"
        )
    if args.save_total_limit is not None:
        trainer.add_callback(KeepNewest(args.save_total_limit))
        args.save_total_limit = None
    checkpoint = newest_whole_checkpoint(args.output_dir) if resume else None
    state = TrainerState.load_from_json(f"{checkpoint}/{STATE}") if checkpoint else None
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
    """The trainer's settings that are numbers and words, and mappings that matter, for the record of a run."""
    unsaid = {"accelerator_config", *CANNOT_MATTER}  # of mappings those that are there without being given
    return {
        name: value
        for name, value in training_args.to_dict().items()
        if isinstance(value, (int, float, str, bool)) or (isinstance(value, dict) and name not in unsaid)
    }


def versions(*packages: str) -> dict[str, str]:
    """Versions of Python and of packages, for the record of a run."""
    return {"python": platform.python_version(), **{package: version(package) for package in packages}}
