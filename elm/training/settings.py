"""What a run is told: the arguments all recipes share, what of them is refused, and which folder is whose."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import logging
import os
import shutil
from pathlib import Path
from typing import Any

from trl import ModelConfig, SFTConfig

from data.support.files import written_whole
from elm.model.quantization import nf4
from elm.saved.arguments import ElmArguments, as_mapping
from elm.training import dev

logger = logging.getLogger(__name__)

# Settings of the trainer without which a checkpoint is one of another run.
_OF_A_RUN = (
    "seed",
    "max_steps",
    "num_train_epochs",
    "learning_rate",
    "lr_scheduler_type",
    "warmup_steps",
    "weight_decay",
)
_NOT_OF_A_RUN = ("resume", "text_only", "ablation", "cache_dir", "cache_gb", "threads", "allow_leaks")
ATTENTION = ("sdpa", "flash_attention_2", "eager")


def check_launch() -> None:
    """Refuse a launch that silently runs one process where several were asked for.

    `accelerate launch --cpu --num_processes 2` sets the address of a process group and then starts a single process
    outside of any group.
    """
    if "MASTER_ADDR" in os.environ and "WORLD_SIZE" not in os.environ:
        raise RuntimeError(
            "several processes were asked for but only one was started: on CPUs use "
            "`torchrun --nproc_per_node 2` or `accelerate launch --config_file recipes/accelerate/two_cpus.yaml`"
        )


def check_settings(arguments: ElmArguments, training_args: SFTConfig, model_args: ModelConfig) -> None:
    """Refuse what cannot be trained before anything is loaded.

    Raises:
        ImportError: A package that is asked for is not installed.
        ValueError: Settings that say one thing twice, or that contradict each other.
    """
    if model_args.load_in_4bit or model_args.load_in_8bit:
        raise ValueError("give --quantization nf4 in place of load_in_4bit and load_in_8bit")
    if training_args.full_determinism:
        raise ValueError("give --deterministic in place of full_determinism: it holds for new weights and caches, too")
    attention = model_args.attn_implementation
    if attention not in (None, *ATTENTION):
        raise ValueError(f"attn_implementation must be one of {', '.join(ATTENTION)}, got {attention!r}")
    if attention == "flash_attention_2" and importlib.util.find_spec("flash_attn") is None:
        raise ImportError(
            "attn_implementation flash_attention_2 needs flash-attn: "
            'pip install --no-build-isolation "ecg-elm[flash]", or take sdpa'
        )
    sharded = _is_set("ACCELERATE_USE_FSDP") or _is_set("ACCELERATE_USE_DEEPSPEED")
    if _is_set("ACCELERATE_USE_FSDP") and os.environ.get("FSDP_VERSION") != "2":
        raise ValueError("FSDP needs fsdp_version: 2, as in recipes/accelerate/fsdp.yaml")
    if arguments.quantization:
        if sharded:
            raise ValueError(
                "4-bit weights cannot be sharded: quantization nf4 goes with one process per GPU "
                "(recipes/accelerate/multi_gpu.yaml), or leave it out"
            )
        nf4()


def for_dev(arguments: ElmArguments, training_args: SFTConfig) -> tuple[ElmArguments, SFTConfig]:
    """The settings of a `--dev` run: a folder and a cache of its own, and simulated ECGs where the corpus is not there.

    The rest of what `--dev` means is in `elm.training.dev`: flags, few questions, small parts.
    """
    folder = dev.temporary_folder()
    settings = as_mapping("dataset_args", arguments.dataset_args)
    missing = "root" in settings and not Path(settings["root"]).is_dir()
    if missing:
        logger.warning("--dev: there is no %s, so simulated ECGs stand in for %s", settings["root"], arguments.dataset)
    if missing or arguments.dataset == "synthetic":
        arguments = dataclasses.replace(arguments, dataset="synthetic", dataset_args=dev.COHORT)
    arguments = dataclasses.replace(
        arguments, cache_dir=str(folder / "cache"), align_steps=min(arguments.align_steps, dev.STEPS)
    )
    return arguments, dataclasses.replace(training_args, output_dir=str(folder / "model"))


def _is_set(variable: str) -> bool:
    return os.environ.get(variable, "false").lower() == "true"


def claim(arguments: ElmArguments, training_args: SFTConfig, model_args: ModelConfig) -> None:
    """Note in `checkpoints/run.json` which run the output folder belongs to. Raises as `claim_folder` does."""
    folder = Path(training_args.output_dir) / "checkpoints"
    settings = settings_of_a_run(arguments, training_args, model_args)
    claim_folder(folder, settings, resume=arguments.resume, write=training_args.process_index == 0)


def settings_of_a_run(arguments: ElmArguments, training_args: SFTConfig, model_args: ModelConfig) -> dict[str, Any]:
    """All settings without which a checkpoint is one of another run, as JSON knows them."""
    settings = {
        **{k: v for k, v in dataclasses.asdict(arguments).items() if k not in _NOT_OF_A_RUN},
        **{k: v for k, v in dataclasses.asdict(model_args).items() if v is not None},
        "batch_size": training_args.train_batch_size
        * training_args.gradient_accumulation_steps
        * training_args.world_size,
        **{name: training_args.to_dict()[name] for name in _OF_A_RUN},
    }
    return dict(json.loads(json.dumps(settings)))


def claim_folder(folder: Path, settings: dict[str, Any], *, resume: bool, write: bool = True) -> None:
    """Note in `folder/run.json` what a folder of results was made with; without `resume`, empty it first.

    Raises:
        ValueError: It was made with other settings; names the first that differ.
    """
    record = folder / "run.json"
    if resume and record.exists():
        found = json.loads(record.read_text())
        differ = [f"{k} {found.get(k)!r} but now {settings.get(k)!r}" for k in settings if found.get(k) != settings[k]]
        if differ:
            raise ValueError(
                f"{folder} holds checkpoints of another run ({'; '.join(differ[:3])}): "
                "give another output_dir, or --resume false to start over"
            )
    if write:
        if not resume:  # of what is there nothing may be taken for a checkpoint of this run
            shutil.rmtree(folder, ignore_errors=True)
        with written_whole(record, "w") as file:
            json.dump(settings, file, indent=2)
