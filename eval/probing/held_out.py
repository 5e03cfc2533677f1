"""Numbers about held-out recordings that pretraining reports, with intervals that know whose recordings go together."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from eval.statistics import Interval, percentile_interval, resampled_means, rounded


def ratio_interval(above: ArrayLike, below: ArrayLike, patients: Sequence[str], draws: int = 2000) -> Interval:
    """The 95 % interval of `sum(above) / sum(below)`, resampling patients.

    Args:
        above: What each recording adds above the line `[n]`.
        below: What it adds below it, 0 or more `[n]`.
        patients: Of each recording.
        draws: Number of resamples.

    Returns:
        The interval; NaN and NaN where all recordings are of one patient.

    Raises:
        ValueError: No recordings, or numbers that are not finite.
    """
    means = resampled_means(np.column_stack([above, below]).astype(np.float64), patients, draws, seed=0)
    if means is None:
        return Interval(np.nan, np.nan)
    kept = means[means[:, 1] > 0]
    return percentile_interval(kept[:, 0] / kept[:, 1])


def with_intervals(
    above: Mapping[str, ArrayLike], below: Mapping[str, ArrayLike], patients: Sequence[str]
) -> dict[str, dict[str, float | None]]:
    """Each `sum(above) / sum(below)` with its interval, for JSON: `value`, `low`, `high`; None where there is none."""
    found: dict[str, dict[str, float | None]] = {}
    for name in above:
        total = float(np.sum(below[name]))
        value = float(np.sum(above[name])) / total if total else np.nan
        limits = ratio_interval(above[name], below[name], patients)
        found[name] = {key: _known(number) for key, number in zip(("value", "low", "high"), (value, *limits))}
    return found


class Measure:
    """Measures a model on held-out recordings and keeps what was found last.

    Args:
        measurement: Gives, of a model, sums `above` and `below` the line by name, one of each for every recording, and
            `numbers` that have no interval.
        patients: Of each recording.

    Attributes:
        found: As `with_intervals` has it, and the numbers.
    """

    def __init__(self, measurement: Callable[[Any], Any], patients: Sequence[str]) -> None:
        self.measurement, self.patients = measurement, patients
        self.found: dict[str, Any] = {}

    def __call__(self, model: Any) -> dict[str, float]:
        """The numbers by name, without intervals."""
        sums = self.measurement(model)
        self.found = with_intervals(sums.above, sums.below, self.patients) | sums.numbers
        return {name: number["value"] if isinstance(number, dict) else number for name, number in self.found.items()}


def as_lines(metrics: Mapping[str, Any]) -> list[str]:
    """The numbers for the screen, one per line; plain ones without an interval."""
    lines = []
    for name, number in metrics.items():
        if not isinstance(number, Mapping):
            lines.append(f"{name:<34}{number:>10.6g}")
            continue
        value, low, high = ("none" if limit is None else f"{limit:.4f}" for limit in number.values())
        lines.append(f"{name:<34}{value:>10}  ({low} to {high})")
    return lines


def _known(number: float) -> float | None:
    return None if np.isnan(number) else rounded(number)
