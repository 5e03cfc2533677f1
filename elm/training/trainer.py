"""`ElmTrainer`: TRL's trainer with an order of rows that follows from the seed alone, and a loss of answers alone."""

import platform
import time
from collections.abc import Collection, Iterator
from statistics import median

import torch
from torch import nn
from torch.utils.data import Sampler
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_pt_utils import LengthGroupedSampler

from elm.training.hooks import HookedTrainer


class LengthGrouped(LengthGroupedSampler):
    """Rows of like length together, in an order that follows from the seed and the epoch alone.

    The stock sampler draws from the global generator: what else was drawn from it, and where in an epoch a run was
    interrupted, would change the order.
    """

    def __init__(self, batch_size: int, lengths: list[int], seed: int) -> None:
        super().__init__(batch_size, lengths=lengths, generator=torch.Generator())
        self.seed, self.epoch = seed, 0

    def set_epoch(self, epoch: int) -> None:
        """The trainer says which epoch begins."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        """Indices of all rows."""
        self.generator.manual_seed(1_000_003 * self.seed + self.epoch)
        order: Iterator[int] = super().__iter__()
        return order


class ElmTrainer(HookedTrainer):
    """TRL's trainer, with rows of like length grouped over the global batch, and on a CPU only answers scored.

    The stock sampler groups over a process's own batch: the order of rows would depend on the number of processes. And
    the stock loss, on a CPU, asks the head for every position of a row, though most are an ECG's or a question's.
    """

    def ordered(self, sampler: Sampler[int] | None) -> Sampler[int] | None:
        """Groups of like length over the batches of all processes."""
        if isinstance(sampler, LengthGroupedSampler):
            return LengthGrouped(sampler.batch_size * self.args.world_size, sampler.lengths, self.args.seed)
        return sampler

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, torch.Tensor], *args: object, **kwargs: object
    ) -> object:
        """The stock loss, of answers alone."""
        labels: torch.Tensor = inputs["labels"]
        if labels.device.type == "cpu" and "shift_labels" not in inputs:
            is_answer = labels[:, 1:] != -100
            most = max(1, int(is_answer.sum(dim=1).max()))
            places = (~is_answer).long().argsort(dim=1, stable=True)[:, :most]  # a row's answers in order, then others
            inputs = {**inputs, "scored": places, "shift_labels": labels[:, 1:].gather(1, places)}
        return super().compute_loss(model, inputs, *args, **kwargs)

    def check_loaded(self, missing: Collection[str]) -> None:
        """Refuse a checkpoint without what is trained. Tied and 4-bit weights are not in it, and need not be."""
        trained = {name for name, parameter in self.model.named_parameters() if parameter.requires_grad}
        if lacking := sorted(trained.intersection(missing)):
            raise ValueError(f"the checkpoint has no {lacking[0]}, which is trained: give --resume false to start over")


class StepTimes(TrainerCallback):
    """Puts into each entry of the log the seconds of a step, the median of those since the last, and on what.

    From the end of one step to the end of the next: reading and collating counts, writing a checkpoint does not. The
    log is in the checkpoints, so that a run which was interrupted knows the times of its first part, too.
    """

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.since: float | None = None

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object) -> None:
        """Not the first step of a process, in which much is set up."""
        now = time.perf_counter()
        if self.since is not None:
            self.seconds.append(now - self.since)
        self.since = now

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object) -> None:
        """What follows is another step."""
        self.since = time.perf_counter()

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object) -> None:
        """The entry was just made."""
        if self.seconds:
            device = torch.cuda.get_device_name(args.device) if args.device.type == "cuda" else _processor()
            state.log_history[-1] |= {"seconds_per_step": round(median(self.seconds), 6), "measured_on": device}
            self.seconds = []


def _processor() -> str:
    threads = torch.get_num_threads()
    return f"{platform.processor() or platform.machine()} CPU, {threads} thread{'s' if threads > 1 else ''}"
