"""Settings of a run: which of them are refused, what `--dev` makes of them, and whose folder a run writes to."""

from __future__ import annotations

import dataclasses
import importlib.util
import logging
import os
from pathlib import Path

from trl import ModelConfig, SFTConfig

from elm.model.quantization import nf4
from elm.saved.arguments import ElmArguments, as_mapping
from elm.training import dev
from elm.training.resume import claim_folder, run_settings

logger = logging.getLogger(__name__)

# Settings of the trainer without which a checkpoint is one of another run.
_OF_A_RUN = (
    *("seed", "max_steps", "num_train_epochs", "learning_rate", "lr_scheduler_type", "warmup_steps"),
    "weight_decay",
)
_NOT_OF_A_RUN = ("resume", "text_only", "ablation", "cache_dir", "cache_gb", "threads", "processes", "allow_leaks")
ATTENTION = ("sdpa", "flash_attention_2", "eager")

# Fields of TRL's SFTConfig and ModelConfig that a run would ignore, or that would harm it, by what to do instead. All
# others are used or passed on: tests/elm/test_training_settings.py knows every field.
_INSTEAD = {
    "nothing is evaluated in training; the audit asks the held-out questions at the end (--ablation)": (
        "eval_strategy eval_steps eval_delay eval_on_start eval_accumulation_steps eval_do_concat_batches "
        "eval_use_gather_object per_device_eval_batch_size prediction_loss_only include_for_metrics batch_eval_metrics "
        "label_names bf16_full_eval fp16_full_eval load_best_model_at_end metric_for_best_model greater_is_better "
        "do_train do_eval do_predict"
    ),
    "rows are tokenized as they are needed (elm/inputs/collator.py), whole, and answers alone are learned": (
        "dataset_text_field dataset_kwargs dataset_num_proc pad_to_multiple_of max_length truncation_mode "
        "completion_only_loss assistant_only_loss length_column_name"
    ),
    "questions about the same ECGs share a row by --questions_per_row": (
        "packing packing_strategy eval_packing padding_free"
    ),
    "rows are drawn at random by the seed anyhow (train_sampling_strategy)": "shuffle_dataset",
    "the chat template and the end of an answer are those of the family (elm/model/families.py)": (
        "chat_template_path eos_token pad_token"
    ),
    "the model is built from --encoder and --model_name_or_path, with --dtype and --attn_implementation": (
        "model_init_kwargs"
    ),
    "code that comes with a model is not run": "trust_remote_code",
    "the finished model is published as one commit (docs/hub.md)": "hub_strategy hub_always_push hub_revision",
    "a run goes on from its newest whole checkpoint by itself; --resume false starts over": "resume_from_checkpoint",
    "give --deterministic in place of full_determinism: it holds for new weights and caches, too": "full_determinism",
    "give --quantization nf4 in place of load_in_4bit and load_in_8bit": (
        "load_in_4bit load_in_8bit bnb_4bit_quant_type use_bnb_nested_quant bnb_4bit_quant_storage"
    ),
    "TRL computes it over all positions of a row, not over answers alone": "label_smoothing_factor",
    "there are no such kernels for models of this type": "use_liger_kernel liger_kernel_config",
    "training caches no keys and values": "use_cache",
    "none of the families of language models has experts": "router_aux_loss_coef lora_target_parameters",
    "questions are answered in words: it is CAUSAL_LM": "lora_task_type",
}
REFUSED = {name: instead for instead, names in _INSTEAD.items() for name in names.split()}
# Values beside the default that say what holds anyhow.
_AS_IT_IS: dict[str, tuple[object, ...]] = {
    "pad_to_multiple_of": (None,),
    "max_length": (None,),
    "dataset_kwargs": ({"skip_prepare_dataset": True},),
}


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
            if all(value != usual for usual in (default, *_AS_IT_IS.get(each.name, ()))):
                raise ValueError(f"leave {each.name} out (it is {value!r}): {REFUSED[each.name]}")


def for_dev(arguments: ElmArguments, training_args: SFTConfig) -> tuple[ElmArguments, SFTConfig]:
    """The settings of a `--dev` run: a temporary folder and cache, and simulated ECGs where the corpus is not there.

    What else `--dev` means is in `elm.training.dev`: flags, few questions, small parts.
    """
    folder = dev.temporary_folder()
    settings = as_mapping("dataset_args", arguments.dataset_args)
    missing = "root" in settings and not Path(settings["root"]).is_dir()
    if missing:
        logger.warning("--dev: there is no %s, so simulated ECGs stand in for %s", settings["root"], arguments.dataset)
    if missing or arguments.dataset == "synthetic":
        arguments = dataclasses.replace(arguments, dataset="synthetic", dataset_args=dev.COHORT)
    arguments = dataclasses.replace(
        arguments, cache_dir=str(folder / "cache"), processes=1, align_steps=min(arguments.align_steps, dev.STEPS)
    )
    return arguments, dataclasses.replace(training_args, output_dir=str(folder / "model"), dataloader_num_workers=0)


def is_set(variable: str) -> bool:
    """Whether a variable of the environment says "true"."""
    return os.environ.get(variable, "false").lower() == "true"


def claim(arguments: ElmArguments, training_args: SFTConfig, model_args: ModelConfig) -> None:
    """Note in `checkpoints/run.json` which run the output folder belongs to. Raises as `claim_folder` does."""
    folder = Path(training_args.output_dir) / "checkpoints"
    settings = settings_of_a_run(arguments, training_args, model_args)
    claim_folder(folder, settings, resume=arguments.resume, write=training_args.process_index == 0)


def settings_of_a_run(arguments: ElmArguments, training_args: SFTConfig, model_args: ModelConfig) -> dict[str, object]:
    """All settings without which a checkpoint is one of another run, as JSON knows them."""
    model = {name: value for name, value in dataclasses.asdict(model_args).items() if value is not None}
    data = {name: value for name, value in dataclasses.asdict(arguments).items() if name not in _NOT_OF_A_RUN}
    return run_settings(training_args, _OF_A_RUN, data, model)
