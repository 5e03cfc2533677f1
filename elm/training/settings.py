"""Settings of a run: which of them are refused, what `--dev` makes of them, and whose folder a run writes to."""

import dataclasses
import importlib.util
import logging
import os
from pathlib import Path

import yaml
from trl import ModelConfig, SFTConfig

from data.support.files import require_writable
from data.support.sentences import Refused
from elm.model.quantization import nf4
from elm.saved.arguments import ElmArguments, as_mapping
from elm.training import dev
from elm.training.base import base_of, refuse_own_folder
from elm.training.resume import claim_folder, run_settings

logger = logging.getLogger(__name__)

# Settings of the trainer without which a checkpoint is one of another run.
_OF_A_RUN = (
    *("seed", "max_steps", "num_train_epochs", "learning_rate", "lr_scheduler_type", "warmup_steps"),
    "weight_decay",
)
_NOT_OF_A_RUN = ("resume", "text_only", "ablation", "cache_dir", "cache_gb", "threads", "processes", "allow_leaks")
ATTENTION = ("sdpa", "flash_attention_2", "eager")

_INSTEAD: dict[str, str] = yaml.safe_load(Path(__file__).with_name("refused.yaml").read_text(encoding="utf-8"))
REFUSED = {name: instead for instead, names in _INSTEAD.items() for name in names.split()}
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
        _refuse_ignored(settings)
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


def _refuse_ignored(settings: SFTConfig | ModelConfig) -> None:
    for each in dataclasses.fields(settings):
        if each.name in REFUSED:
            default = each.default if each.default_factory is dataclasses.MISSING else each.default_factory()
            value = getattr(settings, each.name)
            if value not in (default, _AS_IT_IS.get(each.name, default)):
                raise ValueError(f"leave {each.name} out (it is {value!r}): {REFUSED[each.name]}")


def for_dev(arguments: ElmArguments, training_args: SFTConfig) -> tuple[ElmArguments, SFTConfig]:
    """The settings of a `--dev` run: a temporary folder and cache, and simulated ECGs where the corpus is not there.

    What else `--dev` means is in `elm.training.dev`: flags, few questions, small parts.
    """
    settings = as_mapping("dataset_args", arguments.dataset_args)
    missing = "root" in settings and not Path(settings["root"]).is_dir()
    if missing:
        logger.warning("--dev: there is no %s, so simulated ECGs stand in for %s", settings["root"], arguments.dataset)
    if missing or arguments.dataset == "synthetic":
        arguments = dataclasses.replace(arguments, dataset="synthetic", dataset_args=dev.COHORT)
    training_args = dataclasses.replace(training_args, dataloader_num_workers=0)
    align_steps = min(arguments.align_steps, dev.STEPS)
    return dev.in_temporary_folder(arguments, training_args, processes=1, align_steps=align_steps)


def is_set(variable: str) -> bool:
    """Whether a variable of the environment says "true"."""
    return os.environ.get(variable, "false").lower() == "true"


def claim(arguments: ElmArguments, training_args: SFTConfig, model_args: ModelConfig) -> None:
    """Note in `checkpoints/run.json` which run the output folder belongs to.

    Raises:
        ValueError: It belongs to another one, or holds the saved model that this one goes on from.
    """
    if (base := base_of(model_args)) is not None:
        refuse_own_folder(base, training_args.output_dir)
    folder = Path(training_args.output_dir) / "checkpoints"
    settings = settings_of_a_run(arguments, training_args, model_args)
    claim_folder(folder, settings, resume=arguments.resume, write=training_args.process_index == 0)


def settings_of_a_run(arguments: ElmArguments, training_args: SFTConfig, model_args: ModelConfig) -> dict[str, object]:
    """All settings without which a checkpoint is one of another run, as JSON knows them."""
    model = {name: value for name, value in dataclasses.asdict(model_args).items() if value is not None}
    data = {name: value for name, value in dataclasses.asdict(arguments).items() if name not in _NOT_OF_A_RUN}
    base = base_of(model_args)  # trained anew, a saved model is another one
    return run_settings(training_args, _OF_A_RUN, data | model | ({} if base is None else {"base": base.digest}))
