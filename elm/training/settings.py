"""Settings of a run: which of them are refused, what `--dev` makes of them, and whose folder a run writes to."""

import dataclasses
import importlib.util
import logging
import os
from pathlib import Path

from trl import ModelConfig, SFTConfig

from data.conversations import check_arguments
from data.measure import AMPLITUDES
from data.support.files import require_writable
from data.support.sentences import Refused
from elm.model.configuration import ElmConfig
from elm.model.quantization import nf4
from elm.saved.arguments import ElmArguments, as_mapping
from elm.training import dev
from elm.training.base import base_of, refuse_own_folder
from elm.training.claim import claim_folder, run_settings
from elm.training.trainer_settings import check_numbers, check_trainer, refuse_ignored, refused_names
from encoders.ecg_byte import EcgByteConfig

logger = logging.getLogger(__name__)

ATTENTION = ("sdpa", "flash_attention_2", "eager")
SAMPLING = ("random", "sequential", "group_by_length")
REFUSED = refused_names(Path(__file__).with_name("refused.yaml"))
# Values beside the default that say what holds anyhow.
_AS_IT_IS = {"pad_to_multiple_of": None, "max_length": None, "dataset_kwargs": {"skip_prepare_dataset": True}}


def check_launch() -> None:
    """Refuse a launch that silently runs one process where several were asked for.

    `accelerate launch --cpu --num_processes 2` sets the address of a process group and then starts a single process
    outside of any group.
    """
    if "MASTER_ADDR" in os.environ and "WORLD_SIZE" not in os.environ:
        raise Refused(
            "several processes were asked for but only one was started: on CPUs use "
            "`torchrun --nproc_per_node 2` or `accelerate launch --config_file recipes/accelerate/two_cpus.yaml`"
        )


def check_folders(output_dir: str, cache_dir: str) -> None:
    """Refuse folders that cannot be written before anything is computed for them; raises `OSError`."""
    require_writable(output_dir, "--output_dir")
    require_writable(cache_dir, "--cache_dir")


def check_settings(arguments: ElmArguments, training_args: SFTConfig, model_args: ModelConfig) -> None:
    """Refuse what cannot be trained before anything is loaded.

    Raises:
        ImportError: A package that the settings need is not installed.
        ValueError: Settings that would be ignored, that say one thing twice, or that contradict each other.
    """
    for settings in (training_args, model_args):
        refuse_ignored(settings, REFUSED, _AS_IT_IS)
    for numbers in (arguments, model_args):
        check_numbers(numbers)
    check_trainer(training_args, resume=arguments.resume)
    _check_names(arguments, training_args)
    check_arguments(arguments.dataset, as_mapping("dataset_args", arguments.dataset_args))  # `--dev` takes others
    attention = model_args.attn_implementation
    if attention not in (None, *ATTENTION):
        raise ValueError(f"attn_implementation must be one of {', '.join(ATTENTION)}, got {attention!r}")
    if attention == "flash_attention_2" and importlib.util.find_spec("flash_attn") is None:
        raise ImportError(
            "attn_implementation flash_attention_2 needs flash-attn: "
            'pip install --no-build-isolation "ecg-elm[flash]", or take sdpa'
        )
    sharded = is_set("ACCELERATE_USE_FSDP") or is_set("ACCELERATE_USE_DEEPSPEED")
    if is_set("ACCELERATE_USE_FSDP") and os.environ.get("FSDP_VERSION") != "2":
        raise ValueError("FSDP needs fsdp_version: 2, as in recipes/accelerate/fsdp.yaml")
    if arguments.quantization:
        if sharded:
            raise ValueError(
                "4-bit weights cannot be sharded: quantization nf4 goes with one process per GPU "
                "(recipes/accelerate/multi_gpu.yaml), or leave it out"
            )
        nf4()


def _check_names(arguments: ElmArguments, training_args: SFTConfig) -> None:
    """Refuse words that are none of those that a setting can be."""
    if (sampling := training_args.train_sampling_strategy) not in SAMPLING:
        raise ValueError(f"train_sampling_strategy must be one of {', '.join(SAMPLING)}, got {sampling!r}")
    if training_args.loss_type not in ("nll", "dft"):
        raise ValueError(f"loss_type must be nll or dft, got {training_args.loss_type!r}")
    if training_args.save_strategy == "best":
        raise ValueError("save_strategy must be steps, epoch or no: nothing is evaluated in training, so none is best")
    if (amplitudes := arguments.measured_amplitudes) not in AMPLITUDES:
        raise ValueError(f"measured_amplitudes must be one of {', '.join(AMPLITUDES)}, got {amplitudes!r}")
    is_words = arguments.projector_type == "vocabulary"
    ElmConfig(  # raises for a projector that cannot be; whether it fits the encoder shows once that is known
        encoder_config=EcgByteConfig() if is_words else None,
        projector_type=arguments.projector_type,
        projector_pool=arguments.projector_pool,
        projector_pool_mode=arguments.projector_pool_mode,
        vocabulary_start=0 if is_words else None,
    )


def for_dev(arguments: ElmArguments, training_args: SFTConfig) -> tuple[ElmArguments, SFTConfig]:
    """The settings of a `--dev` run: a temporary folder and cache, and simulated ECGs where the corpus is not there.

    What else `--dev` means is in `elm.training.dev`: flags, few questions, small parts.
    """
    settings = as_mapping("dataset_args", arguments.dataset_args)
    missing = "root" in settings and not Path(settings["root"]).expanduser().is_dir()
    if missing:
        logger.warning("--dev: there is no %s, so simulated ECGs stand in for %s", settings["root"], arguments.dataset)
    if missing or arguments.dataset == "synthetic":
        arguments = dataclasses.replace(arguments, dataset="synthetic", dataset_args=dev.COHORT)
    training_args = without_workers(training_args)
    align_steps = min(arguments.align_steps, dev.STEPS)
    return dev.in_temporary_folder(arguments, training_args, processes=1, align_steps=align_steps)


def without_workers(training_args: SFTConfig) -> SFTConfig:
    """The trainer's settings with rows made ready in its own process."""
    return dataclasses.replace(
        training_args,
        dataloader_num_workers=0,
        dataloader_prefetch_factor=None,
        dataloader_persistent_workers=False,
    )


def is_set(variable: str) -> bool:
    """Whether a variable of the environment says "true"."""
    return os.environ.get(variable, "false").lower() == "true"


def claim(arguments: ElmArguments, training_args: SFTConfig, model_args: ModelConfig) -> None:
    """Take the output folder for this run, and note in `checkpoints/run.json` which that is.

    It is this process's until `Run.save` has written the model. A second call changes nothing.

    Raises:
        ValueError: The folder belongs to another run, or holds the saved model that this one goes on from.
    """
    if (base := base_of(model_args)) is not None:
        refuse_own_folder(base, training_args.output_dir)
    settings = settings_of_a_run(arguments, training_args, model_args)
    claim_folder(
        checkpoints_of(training_args), settings, resume=arguments.resume, write=training_args.process_index == 0
    )


def checkpoints_of(training_args: SFTConfig) -> Path:
    """Folder of a run's checkpoints, of its record and its lock."""
    return Path(training_args.output_dir) / "checkpoints"


def settings_of_a_run(arguments: ElmArguments, training_args: SFTConfig, model_args: ModelConfig) -> dict[str, object]:
    """All settings without which a checkpoint is one of another run, as JSON knows them."""
    base = base_of(model_args)  # trained anew, a saved model is another one
    settings = dataclasses.asdict(arguments) | dataclasses.asdict(model_args)
    return run_settings(training_args, settings | ({} if base is None else {"base": base.digest}))
