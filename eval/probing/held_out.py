"""Numbers about held-out recordings that pretraining reports, with intervals that know whose recordings go together."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from torch import nn

from encoders.training import Ratios
from eval.statistics import Interval, percentile_interval, resampled_means, rounded

Ratio = dict[str, float | None]  # value, low, high; None where there is none


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
        limits = ratio_interval(above[name], below[name], patients)
        numbers = zip(("value", "low", "high"), (value, *limits))
        ratios[name] = {key: None if np.isnan(number) else rounded(number) for key, number in numbers}
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
        if not isinstance(number, Mapping):
            lines.append(f"{name:<34}{number:>10.6g}")
            continue
        value, low, high = ("none" if limit is None else f"{limit:.4f}" for limit in number.values())
        lines.append(f"{name:<34}{value:>10}  ({low} to {high})")
    return lines
