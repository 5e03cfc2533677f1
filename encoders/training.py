"""What pretraining has in common on transformers' Trainer, whatever the encoder.

What follows from chance follows from seed, epoch and recording: neither the number of processes and workers nor an
interruption changes the order of recordings, or what is drawn for one of them.
"""

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.utils.data import Sampler
from transformers import Trainer

logger = logging.getLogger(__name__)

Column = NDArray[np.float64]


@dataclass(frozen=True)
class Ratios:
    """Measured quantities, each a sum over recordings divided by another."""

    above: dict[str, Column]  # by name, what each recording adds above the line `[records]`
    below: dict[str, Column]  # the same below it
    numbers: dict[str, float]  # what is no such ratio

    @classmethod
    def of(cls, pairs: Mapping[str, tuple[Column, Column]], **numbers: float) -> Self:
        """The quantities whose parts above and below the line are these."""
        return cls({name: above for name, (above, _) in pairs.items()}, {n: b for n, (_, b) in pairs.items()}, numbers)


def generator_for(seed: int, number: int) -> torch.Generator:
    """A generator of its own for an item of a data set."""
    (state,) = np.random.SeedSequence([seed, number]).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(state >> np.uint64(1)))


def columns(batches: Iterable[Mapping[str, torch.Tensor]]) -> dict[str, Column]:
    """What was measured in batches, by name, as columns of all recordings."""
    rows = list(batches)
    return {name: torch.cat([batch[name].cpu().double() for batch in rows]).numpy() for name in rows[0]}


def report_refused(refused: Mapping[str, str], records: Sequence[str]) -> None:
    """Warns how many recordings are left out, and of the first why."""
    if refused:
        first, why = next(iter(refused.items()))
        logger.warning("%d of %d recordings left out, such as %s: %s", len(refused), len(records), first, why)


class Shuffled(Sampler[int]):
    """Numbers of all items in an order that follows from seed and epoch alone.

    With `anew` the epoch's number times `items` is added, for items that differ from epoch to epoch.
    """

    def __init__(self, items: int, seed: int, anew: bool) -> None:
        self.items, self.seed, self.anew, self.epoch = items, seed, anew, 0

    def set_epoch(self, epoch: int) -> None:
        """Begin an epoch, which the trainer says."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.items

    def __iter__(self) -> Iterator[int]:
        first = self.epoch * self.items if self.anew else 0
        for number in np.random.default_rng([self.seed, self.epoch]).permutation(self.items).tolist():
            yield first + number


class PretrainingTrainer(Trainer):
    """A Trainer that measures held-out recordings its own way, and decays neither biases nor norms.

    What `measure` says of the model, by name, is logged when the Trainer evaluates, by the first process; `anew` says
    whether items of the training set differ from epoch to epoch (`Shuffled`).
    """

    def __init__(self, measure: Callable[[nn.Module], dict[str, float]], anew: bool, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.measure, self.anew = measure, anew

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        """All but biases and vectors, such as those of norms."""
        return [name for name, weight in model.named_parameters() if weight.ndim > 1]

    def _get_train_sampler(self, train_dataset: object = None) -> Shuffled:
        return Shuffled(len(self.train_dataset), self.args.seed, self.anew)

    def evaluate(
        self, eval_dataset: object = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """What `measure` says, on the first process; the others go on and wait where they next need it."""
        if not self.is_world_process_zero():
            return {}
        model = self.accelerator.unwrap_model(self.model)
        training = model.training
        measured = {f"{metric_key_prefix}_{name}": value for name, value in self.measure(model.eval()).items()}
        model.train(training)
        self.log(measured)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, measured)
        return measured
