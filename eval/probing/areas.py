"""Areas under the ROC curve of classes with their resamples, and the numbers that reports keep of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eval.statistics import auroc, percentile_interval, resampled_aurocs, rounded

Numbers = dict[str, Any]  # what JSON can hold
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Areas:
    """AUROCs of the classes, `[classes]`, and in the resamples of test patients, `[classes, draws]`."""

    point: Floats
    resampled: Floats

    @classmethod
    def of(cls, scores: Floats, truth: NDArray[np.bool_], patients: Sequence[str], draws: int, seed: int) -> Areas:
        """AUROCs of scores `[records, classes]`; every class is there in some records and not in others."""
        columns = list(zip(scores.T, truth.T))
        resampled = [_filled(resampled_aurocs(*column, patients, draws, seed)) for column in columns]
        return cls(np.array([auroc(*column) for column in columns]), np.stack(resampled))

    @classmethod
    def mean(cls, areas: Sequence[Areas]) -> Areas:
        """Mean over several models."""
        return cls(np.mean([one.point for one in areas], axis=0), np.mean([one.resampled for one in areas], axis=0))

    def __sub__(self, other: Areas) -> Areas:
        return Areas(self.point - other.point, self.resampled - other.resampled)

    def __getitem__(self, classes: Sequence[int]) -> Areas:
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
    return {
        **with_interval("auroc", *model.macro),
        "random": {**with_interval("auroc", *mean.macro), "by_seed": [rounded(one.macro[0]) for one in random]},
        "difference": with_interval("value", *(model - mean).macro),
    }
