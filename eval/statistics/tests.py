"""Tests of paired differences by patient, and the correction for many tests."""

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from eval.statistics.partition import AT_ONCE, Clusters, check_draws, one_each, partition_of, units_of

ENUMERATED = 12  # patients whose signs are flipped in all 2^12 ways


def sign_flip_p(
    differences: ArrayLike,
    clusters: Clusters,
    draws: int = 10_000,
    seed: int = 0,
    alternative: Literal["greater", "two-sided"] = "greater",
) -> float:
    """P-value of the mean of paired differences: how often it is as large when patients' signs fall by chance.

    If two conditions are alike, a patient's differences might as well have the opposite sign. All differences of a
    patient are flipped together (Winkler et al., NeuroImage 2015): with one patient per answer the test is exact.

    So it is for pairs of patients who only occur together. Of other pairs, all that hang together by a shared patient
    would have to be flipped at once, mostly everybody, which tests nothing. What is flipped then is the sum of each
    patient's differences, so that an answer counts with both its patients' signs, and the flipped totals are scaled to
    the variance of the sandwich (as in `cluster_se`, but about 0, the mean under the null hypothesis). With one patient
    per answer that scale is 1. How often it rejects is in docs/audit.md.

    Up to 12 patients, all flips are counted in place of random `draws`. The alternative "greater" asks whether the mean
    is above 0, "two-sided" whether it is not 0.

    Returns:
        `(b + 1) / (draws + 1)` for b flips as extreme as what was seen (Phipson and Smyth, SAGMB 2010), or their share
        of all flips; 1 where all differences are 0.

    Raises:
        ValueError: As `cluster_interval`; an unknown alternative.
    """
    if alternative not in ("greater", "two-sided"):
        raise ValueError(f"alternative must be 'greater' or 'two-sided', got {alternative!r}")
    values = one_each(differences)
    partition = partition_of(units_of(clusters), len(values))
    check_draws(draws)
    sums = partition.sums(values)
    of_patient = np.zeros(partition.patients)
    for groups, members in partition.by_size:
        for column in members.T:
            of_patient += np.bincount(column, sums[groups], partition.patients)
    if not of_patient.any():
        return 1.0
    scale = np.sqrt(partition.variance(sums) / (of_patient @ of_patient))

    def extreme(flips: NDArray[np.integer]) -> int:  # [m, patients], 1 where a sign is flipped
        flipped, seen = scale * (of_patient.sum() - 2 * (flips @ of_patient)), sums.sum()
        if alternative == "two-sided":
            flipped, seen = abs(flipped), abs(seen)
        # Equal sums differ in their last digits, which depend on the order of adding.
        return int((flipped >= seen - 1e-9 * abs(of_patient).sum()).sum())

    if partition.patients <= ENUMERATED:
        flips = np.arange(2**partition.patients)[:, None] >> np.arange(partition.patients) & 1
        return max(1, extreme(flips)) / len(flips)  # with pairs, no flip need give what was seen
    rng, block = np.random.default_rng(seed), max(1, AT_ONCE // partition.patients)
    sizes = (min(block, draws - start) for start in range(0, draws, block))
    count = sum(extreme(rng.integers(2, size=(size, partition.patients), dtype=np.int8)) for size in sizes)
    return (count + 1) / (draws + 1)


def mcnemar_p(only_first: int, only_second: int) -> float:
    """McNemar's exact two-sided test of how often only the first, and only the second, of two was right.

    For one pair of answers per patient; others need `sign_flip_p`. 1 where the two never differ.
    """
    from scipy.special import bdtr

    if any(count < 0 or count % 1 != 0 for count in (only_first, only_second)):
        raise ValueError(f"counts must be whole numbers from 0 on, got {only_first} and {only_second}")
    return min(1.0, 2 * float(bdtr(min(only_first, only_second), only_first + only_second, 0.5)))


def holm(ps: Sequence[float]) -> list[float]:
    """Holm's step-down adjusted p-values (Scandinavian Journal of Statistics 1979), in the order given.

    Rejecting those up to 0.05 makes any false rejection at most 5 % likely, whatever the tests have to do with each
    other. A NaN is a test that was not done: it stays NaN and is not counted.
    """
    values = np.array(ps, dtype=np.float64)
    if wrong := [i for i, p in enumerate(values) if p < 0 or p > 1]:
        raise ValueError(f"p-value {wrong[0]} is {values[wrong[0]]}, not between 0 and 1")
    done = np.flatnonzero(~np.isnan(values))
    order = done[np.argsort(values[done], kind="stable")]
    steps = np.arange(len(order), 0, -1) * values[order]
    values[order] = np.minimum(1, np.maximum.accumulate(steps))
    return [float(p) for p in values]
