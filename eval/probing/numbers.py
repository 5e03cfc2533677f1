"""Numbers with their intervals by patient: areas under ROC curves of probes, and ratios that pretraining reports."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch import nn

from encoders.training import Ratios
from eval.statistics import Interval, auroc, percentile_interval, resampled_aurocs, resampled_means, rounded

Numbers = dict[str, Any]  # what JSON can hold
Floats = NDArray[np.float64]
Ratio = dict[str, float | None]  # value, low, high; None where there is none


@dataclass(frozen=True)
class Areas:
    """AUROCs of the classes, `[classes]`, and in the resamples of test patients, `[classes, draws]`."""

    point: Floats
    resampled: Floats

    @classmethod
    def of(cls, scores: Floats, truth: NDArray[np.bool_], patients: Sequence[str], draws: int, seed: int) -> "Areas":
        """AUROCs of scores `[records, classes]`; every class is there in some records and not in others."""
        columns = list(zip(scores.T, truth.T))
        resampled = [_filled(resampled_aurocs(*column, patients, draws, seed)) for column in columns]
        return cls(np.array([auroc(*column) for column in columns]), np.stack(resampled))

    @classmethod
    def mean(cls, areas: Sequence["Areas"]) -> "Areas":
        """Mean over several models."""
        return cls(np.mean([one.point for one in areas], axis=0), np.mean([one.resampled for one in areas], axis=0))

    def __sub__(self, other: "Areas") -> "Areas":
        return Areas(self.point - other.point, self.resampled - other.resampled)

    def __getitem__(self, classes: Sequence[int]) -> "Areas":
        return Areas(self.point[classes], self.resampled[classes])

    @property
    def macro(self) -> tuple[float, Floats]:
        """Mean over the classes, and in the resamples."""
        return float(self.point.mean()), np.asarray(self.resampled.mean(axis=0))


def _filled(areas: Floats) -> Floats:
    """A class's AUROC in the resamples, where a resample lacks the class that of the next resample which has it.

    Such resamples would else be lost to the macro mean, and with a few rare classes nearly all are; and a mean over the
    classes that are there would move with which these are.
    """
    present = np.flatnonzero(~np.isnan(areas))
    if not present.size:
        return areas
    return np.asarray(areas[present[np.searchsorted(present, np.arange(len(areas))) % len(present)]])


def with_interval(name: str, value: float, resampled: Floats) -> Numbers:
    """A number by name, and its interval of 95 %."""
    limits = percentile_interval(resampled)
    return {name: rounded(value), "interval": [rounded(x) if x == x else None for x in limits]}


def compared(model: Areas, random: Sequence[Areas]) -> Numbers:
    """Macro AUROC of a model, that of random weights (mean over seeds) and the difference in the same resamples."""
    mean = Areas.mean(random)
    beside = {**with_interval("auroc", *mean.macro), "by_seed": [rounded(one.macro[0]) for one in random]}
    difference = with_interval("value", *(model - mean).macro)
    return {**with_interval("auroc", *model.macro), "random": beside, "difference": difference}


def ratio_interval(above: ArrayLike, below: ArrayLike, patients: Sequence[str], draws: int = 2000) -> Interval:
    """Interval of `sum(above) / sum(below)`, resampling patients; 95 %, NaN where all recordings are of one patient.

    `above` and `below` are what each recording adds above and below the line `[n]`, the latter 0 or more.

    Raises:
        ValueError: No recordings, or numbers that are not finite.
    """
    means = resampled_means(np.column_stack([above, below]).astype(np.float64), patients, draws, seed=0)
    means = means[means[:, 1] > 0]
    return percentile_interval(means[:, 0] / means[:, 1])


def with_intervals(
    above: Mapping[str, ArrayLike], below: Mapping[str, ArrayLike], patients: Sequence[str]
) -> dict[str, Ratio]:
    """Each `sum(above) / sum(below)` with its interval, for JSON."""
    ratios: dict[str, Ratio] = {}
    for name in above:
        total = float(np.sum(below[name]))
        value = float(np.sum(above[name])) / total if total else np.nan
        numbers = {"value": value, **ratio_interval(above[name], below[name], patients)._asdict()}
        ratios[name] = {key: None if np.isnan(number) else rounded(number) for key, number in numbers.items()}
    return ratios


class Measure:
    """Measures a model on held-out recordings; `numbers` are the last ones, as `with_intervals` has them."""

    def __init__(self, measurement: Callable[[Any], Ratios], patients: Sequence[str]) -> None:
        self.measurement, self.patients = measurement, patients
        self.numbers: dict[str, Ratio | float] = {}

    def __call__(self, model: nn.Module) -> dict[str, float | None]:
        """The numbers by name, without intervals."""
        sums = self.measurement(model)
        self.numbers = {**with_intervals(sums.above, sums.below, self.patients), **sums.numbers}
        return {name: one["value"] if isinstance(one, dict) else one for name, one in self.numbers.items()}


def as_lines(numbers: Mapping[str, Ratio | float]) -> list[str]:
    """The numbers for the screen, one per line; plain ones without an interval."""
    lines = []
    for name, number in numbers.items():
        if isinstance(number, Mapping):
            value, low, high = ("none" if limit is None else f"{limit:.4f}" for limit in number.values())
            lines.append(f"{name:<34}{value:>10}  ({low} to {high})")
        else:
            lines.append(f"{name:<34}{number:>10.6g}")
    return lines
