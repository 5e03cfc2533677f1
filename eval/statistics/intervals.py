"""Intervals and standard errors of means of answers, by patient."""

from typing import NamedTuple, SupportsFloat

import numpy as np
from numpy.typing import ArrayLike

from eval.statistics.partition import (
    Clusters,
    Floats,
    check_draws,
    one_each,
    partition_of,
    refuse_unless,
    resamples,
    units_of,
)


class Interval(NamedTuple):
    """Limits of a confidence interval; both NaN where there is none."""

    low: float
    high: float


def rounded(value: SupportsFloat) -> float:
    """Six digits, as reports keep: the last digits of a sum depend on the number of threads."""
    return round(float(value), 6)


def cluster_interval(
    values: ArrayLike, clusters: Clusters, draws: int = 2000, seed: int = 0, level: float = 0.95
) -> Interval:
    """Interval of the mean of `values`, resampling patients.

    NaN and NaN where all answers are about one patient (or pair), who says nothing about others.

    Values are one number per answer `[n]`, such as 1 for a right answer; clusters say whom each answer is about, a
    patient or a sequence of patients. The same clusters and seed give the same resamples.

    Raises:
        ValueError: No values, values that are not finite, or clusters that do not match them.
    """
    return cluster_intervals(one_each(values)[:, None], clusters, draws, seed, level)[0]


def paired_interval(
    first: ArrayLike, second: ArrayLike, clusters: Clusters, draws: int = 2000, seed: int = 0, level: float = 0.95
) -> Interval:
    """Interval of `mean(first) - mean(second)`, both measured on the same answers, as `cluster_interval`.

    Both means see the same resampled patients, so what makes a patient easy or hard under both drops out: the interval
    of the difference is narrower than two separate intervals suggest.
    """
    first, second = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if first.shape != second.shape:
        raise ValueError(f"paired values must match: {first.shape} and {second.shape}")
    return cluster_interval(first - second, clusters, draws, seed, level)


def cluster_intervals(
    columns: ArrayLike, clusters: Clusters, draws: int = 2000, seed: int = 0, level: float = 0.95
) -> list[Interval]:
    """`cluster_interval` of several columns `[n, k]` at once, with the same resamples."""
    means = resampled_means(np.asarray(columns, dtype=np.float64), clusters, draws, seed)
    return [percentile_interval(column, level) for column in means.T]


def resampled_means(columns: Floats, clusters: Clusters, draws: int, seed: int) -> Floats:
    """Means of `columns` `[n, k]` in the resamples: `[draws, k]`, or `[0, k]` where all answers share their patients.

    A resample that holds no answer at all (possible with a handful of pairs) is left out.
    """
    if columns.ndim != 2 or len(columns) == 0:
        raise ValueError(f"there are no values to take a mean of (shape {columns.shape})")
    partition = partition_of(clusters, len(columns))
    check_draws(draws)
    refuse_unless(np.isfinite(columns).all(axis=1), "finite")
    if partition.groups == 1:
        return np.empty((0, columns.shape[1]))
    # What each group of patients adds to every sum, and to the count, when its weight is 1: [groups, k + 1].
    terms = np.column_stack([columns, np.ones(len(columns))])
    sums = np.column_stack([partition.sums(term) for term in terms.T])
    totals = np.zeros((draws, sums.shape[1]))
    for rows, weights in resamples(partition, draws, seed, partition.groups):
        for groups, together in partition.group_weights(weights):
            totals[rows] += together @ sums[groups]
    totals = totals[totals[:, -1] > 0]
    means: Floats = totals[:, :-1] / totals[:, -1:]
    return means


def percentile_interval(resampled: ArrayLike, level: float = 0.95) -> Interval:
    """Interval between the outer percentiles of a quantity in the resamples `[draws]`; NaN are left out."""
    _check_level(level)
    values: Floats = np.asarray(resampled, dtype=np.float64)
    values = values[~np.isnan(values)]
    if len(values) == 0:
        return Interval(np.nan, np.nan)
    tail = 100 * (1 - level) / 2
    return Interval(*np.percentile(values, [tail, 100 - tail]).tolist())


def cluster_se(values: ArrayLike, clusters: Clusters) -> float:
    """Cluster-robust standard error of the mean of `values`; NaN where all answers share their patients.

    `sqrt(G / (G - 1) * sum(r_i r_j)) / n` over all answers i and j that share a patient, r being the difference of an
    answer from the mean and G the number of patients, where those who only occur together are one. With pairs the sum
    can come out too small, even negative: it is taken to be at least what it would be if every pair's answers were
    independent of other pairs'. With pairs and fewer than some sixty patients it errs to the low side (docs/audit.md).

    Raises:
        ValueError: As `cluster_interval`.
    """
    return _sandwich(one_each(values), clusters)[0]


def robust_interval(values: ArrayLike, clusters: Clusters, level: float = 0.95) -> Interval:
    """Interval of the mean of `values` from `cluster_se`, by Student's t for one less than the number of patients.

    For values that are all about two patients, such as the flip pairs of `eval.scoring`, in which every ECG is seen
    twice. There the bootstrap's product weights give intervals up to 1.7 times too wide, and patients of one side alone
    give intervals 1.4 times too narrow (docs/audit.md). Arguments, errors and NaN as `cluster_interval`.
    """
    from scipy.special import stdtrit

    _check_level(level)
    values = one_each(values)
    error, freedom = _sandwich(values, clusters)
    mean, half = float(values.mean()), float(stdtrit(freedom, (1 + level) / 2)) * error
    return Interval(mean - half, mean + half)


def smallest_detectable_difference(
    differences: ArrayLike, clusters: Clusters, power: float = 0.8, level: float = 0.05
) -> float:
    """The true mean difference that as many answers about as many patients would show with this power.

    `(t(1 - level / 2) + t(power)) * cluster_se(differences)` with the quantiles of Student's t for one degree of
    freedom less than there are patients: the minimum detectable effect (Bloom, Evaluation Review 1995) of a two-sided
    test. How often `sign_flip_p` finds it is in docs/audit.md.

    It is in the unit of the differences `[n]`, whose mean plays no part, only how they spread over patients; NaN where
    all answers share their patients or no patient differs.

    Raises:
        ValueError: As `cluster_interval`; power or level out of range.
    """
    from scipy.special import stdtrit

    if not 0 < level < power < 1:
        raise ValueError(f"0 < level < power < 1 must hold, got level {level} and power {power}")
    values = one_each(differences)
    error, freedom = _sandwich(values, clusters)
    if not error > 1e-12 * np.abs(values).max():  # what is left of 0 after rounding
        return np.nan
    return float((stdtrit(freedom, 1 - level / 2) + stdtrit(freedom, power)) * error)


def _sandwich(values: Floats, clusters: Clusters) -> tuple[float, int]:
    """Standard error of the mean, NaN where all answers share their patients; and one less than the patients."""
    partition = partition_of(units_of(clusters), len(values))
    freedom = partition.patients - 1
    if partition.groups == 1:
        return np.nan, freedom
    variance = partition.variance(partition.sums(values - values.mean()))
    return float(np.sqrt(partition.patients / freedom * variance)) / len(values), freedom


def _check_level(level: float) -> None:
    if not 0 < level < 1:
        raise ValueError(f"level must lie between 0 and 1, got {level}")
