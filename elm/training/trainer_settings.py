"""Settings of a trainer, of models and of encoders, that cannot be trained with: refused before anything is loaded.

Trainers find out late, after minutes of preparation, or not at all: then a setting does nothing.
"""

import copy
import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import yaml
from transformers import Trainer, TrainingArguments, get_scheduler
from transformers.integrations import get_available_reporting_integrations, get_reporting_integration_callbacks
from transformers.trainer_optimizer import is_optimizer_factory

SEEDS = 2**32  # NumPy takes no more
# The least value of a setting, and whether it is allowed itself.
LEAST: dict[str, tuple[float, bool]] = {
    "per_device_train_batch_size": (1, True), "gradient_accumulation_steps": (1, True), "learning_rate": (0, True),
    "weight_decay": (0, True), "max_grad_norm": (0, True), "save_steps": (0, False),
    "logging_steps": (0, False), "dataloader_num_workers": (0, True), "neftune_noise_alpha": (0, True),
    "save_total_limit": (1, True),
    "align_steps": (0, True), "align_learning_rate": (0, True), "turns": (1, True), "balance": (1, True),
    "questions_per_row": (1, True), "projector_pool": (1, True), "threads": (0, True), "processes": (1, True),
    "cache_gb": (0, True), "jobs": (1, True), "held_out_records": (1, True),
    "lora_r": (1, True), "lora_alpha": (0, False), "lora_dropout": (0, True),
}  # fmt: skip
_LOW_RANK = ("galore", "apollo")  # optimizers that read `optim_target_modules`


def refused_names(file: Path) -> dict[str, str]:
    """Names of settings in a YAML of what to do instead, each with that."""
    table: dict[str, str] = yaml.safe_load(file.read_text(encoding="utf-8"))
    return {name: instead for instead, names in table.items() for name in names.split()}


def refuse_ignored(settings: Any, refused: Mapping[str, str], as_it_is: Mapping[str, object] | None = None) -> None:
    """Refuse settings that would be ignored: names in `refused` that are neither at their default nor `as_it_is`.

    Raises:
        ValueError: Names the setting and what to do instead.
    """
    for each in dataclasses.fields(settings):
        if each.name in refused:
            default = each.default if each.default_factory is dataclasses.MISSING else each.default_factory()
            value = getattr(settings, each.name)
            if value not in (default, (as_it_is or {}).get(each.name, default)):
                raise ValueError(f"leave {each.name} out (it is {value!r}): {refused[each.name]}")


def check_numbers(settings: Any) -> None:
    """Refuse numbers below what they can be, and seeds that NumPy does not take.

    Raises:
        ValueError: Names the setting, its value and what it can be.
    """
    for name, value in vars(settings).items():
        if name.endswith("seed") and value is not None:
            check_seed(name, value)
        if name not in LEAST or value is None:
            continue
        least, is_allowed = LEAST[name]
        if not math.isfinite(value) or value < least or (value == least and not is_allowed):
            raise ValueError(f"{name} must be {'at least' if is_allowed else 'above'} {least:g}, got {value!r}")


def check_seed(name: str, seed: int) -> None:
    """Refuse a seed that not every generator takes, by its setting's name."""
    if not 0 <= seed < SEEDS:
        raise ValueError(f"{name} must be a whole number from 0 to {SEEDS - 1}, got {seed}")


def check_trainer(args: TrainingArguments, *, resume: bool) -> None:
    """Refuse what no trainer could train with, or would do without a word.

    Raises:
        ImportError: An optimizer, or what is reported to, needs a package that is not installed.
        ValueError: A setting that does nothing, cannot be, or contradicts another one; names it.
    """
    check_numbers(args)
    if args.max_steps < -1 or args.max_steps == 0:
        raise ValueError(
            f"max_steps must be above 0, got {args.max_steps}: leave it out (it is -1 then) to train for "
            "num_train_epochs"
        )
    if args.max_steps < 0 and args.num_train_epochs <= 0:
        raise ValueError(f"num_train_epochs must be above 0, got {args.num_train_epochs:g}")
    if args.save_only_model and resume:
        raise ValueError(
            "save_only_model leaves out of a checkpoint what a run would go on from (optimizer, schedule, random "
            "numbers): leave it out, or say --resume false with it"
        )
    if not torch.cuda.is_available() or args.use_cpu:
        _refuse_on_cpu(args)
    if args.dataloader_persistent_workers and not args.dataloader_num_workers:
        raise ValueError("dataloader_persistent_workers needs workers: give --dataloader_num_workers, or leave it out")
    _check_reports(args)
    _check_optimizer(args)


def _refuse_on_cpu(args: TrainingArguments) -> None:
    reasons = {
        "fp16": "on a CPU it is bf16, or float32 (--bf16 false)",
        "torch_compile": "on a CPU it compiles for minutes at each new shape of a batch, longer than it saves",
        "activation_offloading": "it moves activations from a GPU to the CPU, and this run is on a CPU",
    }
    for name, reason in reasons.items():
        if getattr(args, name, False):
            raise ValueError(f"leave {name} out: {reason}")


def _check_reports(args: TrainingArguments) -> None:
    try:
        get_reporting_integration_callbacks(args.report_to)
    except ValueError as error:
        raise ValueError(f"report_to: {error}") from error
    for name in set(args.report_to) - set(get_available_reporting_integrations()) - {"flyte"}:
        raise ImportError(f"report_to {name} needs a package that is not there: install it, or say --report_to none")


def _check_optimizer(args: TrainingArguments) -> None:
    """Make the optimizer and its schedule once, for one number."""
    name = str(getattr(args.optim, "value", args.optim))
    if args.optim_target_modules and not name.startswith(_LOW_RANK):
        raise ValueError(f"leave optim_target_modules out: {name} reads none, but galore_* and apollo_* do")
    try:
        kind, settings = Trainer.get_optimizer_cls_and_kwargs(args)
    except ImportError as error:
        raise ImportError(f"optim {name} needs a package that is not installed: {error}") from error
    except (ValueError, TypeError, KeyError, RuntimeError, NotImplementedError) as error:
        if name.startswith((*_LOW_RANK, "lomo", "adalomo")) and args.optim_target_modules:
            return  # what it says of a model can be told with one alone
        raise ValueError(f"optim {name}, optim_args {args.optim_args!r}: {error}") from error
    _refuse_unread(args, name, settings)
    number = torch.nn.Parameter(torch.zeros(1))
    optimizer: torch.optim.Optimizer = torch.optim.SGD([number], lr=1.0)
    if not is_optimizer_factory(kind) and kind.__module__.startswith("torch.optim"):
        try:
            optimizer = kind([number], **settings)
        except (ValueError, TypeError, RuntimeError) as error:
            raise ValueError(f"optim {name} cannot be made with {settings}: {error}") from error
    try:
        get_scheduler(args.lr_scheduler_type, optimizer, 0, 10, scheduler_specific_kwargs=args.lr_scheduler_kwargs)
    except (ValueError, TypeError) as error:
        kind_of = getattr(args.lr_scheduler_type, "value", args.lr_scheduler_type)
        raise ValueError(
            f"lr_scheduler_type {kind_of} with lr_scheduler_kwargs {args.lr_scheduler_kwargs}: {error}"
        ) from error


def _refuse_unread(args: TrainingArguments, name: str, settings: Mapping[str, object]) -> None:
    """Refuse arguments of an optimizer that change nothing of what it is made with."""

    def with_changes(**changes: object) -> Mapping[str, object]:
        other = copy.copy(args)
        vars(other).update(changes)
        keywords: Mapping[str, object] = Trainer.get_optimizer_cls_and_kwargs(other)[1]
        return keywords

    plain = with_changes(optim_args=None)
    for argument in (args.optim_args or "").replace(" ", "").split(","):
        if argument and with_changes(optim_args=argument) == plain:
            raise ValueError(f"optim_args: {argument} changes nothing of {name}: leave it out")
    defaults = {each.name: each.default for each in dataclasses.fields(args)}
    for field in ("adam_beta1", "adam_beta2", "adam_epsilon"):
        if getattr(args, field) != defaults[field] and with_changes(**{field: defaults[field]}) == settings:
            raise ValueError(f"{field} changes nothing of optim {name}: leave it out")
