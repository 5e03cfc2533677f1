"""Means of answers, and intervals that know whose answers go together: the one home of clustered statistics.

Twenty-five questions about one ECG are not twenty-five independent observations. The unit that is resampled, or whose
signs are flipped, is the patient. `_Partition` is the one place where answers meet patients; all below build on it.

**Intervals** are a cluster bootstrap (Field and Welsh, JRSS B 2007; for language-model evaluations Miller,
arXiv:2411.00640): every draw gives each patient a multinomial weight, and the mean is taken over all answers with their
patients' weights.

An answer about ECGs of two patients goes together with the other answers about either one. Its weight is the product of
their two weights (the pigeonhole bootstrap; Owen, Annals of Applied Statistics 2007), which errs to the wide side. The
mean of the two weights errs to the narrow side: it halves what a patient does to each answer. Simulated for 1,000
answers about pairs of 200 patients, whose effect on the log-odds has a standard deviation of 0, 0.5 and 1, intervals
of 95 % held the truth in 83, 81 and 72 % of cases with the mean, and in 100, 99.5 and 98.5 % with the product.

They are percentile intervals. They are too narrow for fewer than about twenty patients, and of zero width where
every answer is right (or wrong): no resampling shows what was never seen.

**Standard errors** are sandwiches with one term for every two answers that share a patient (Cameron, Gelbach and
Miller, JBES 2011; for pairs Aronow, Samii and Assenova, Political Analysis 2015).

**Tests** flip the signs of paired differences by patient (`sign_flip_p` says what that means for pairs).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

Clusters = Sequence[str | Sequence[str]]  # per answer, its patient or its patients
Floats = NDArray[np.float64]
Indices = NDArray[np.intp]

_AT_ONCE = 1_000_000  # draws x patients in memory, 8 MB: larger blocks leave the cache and are slower
_ENUMERATED = 12  # patients whose signs are flipped in all 2^12 ways


class Interval(NamedTuple):
    """Limits of a confidence interval; both NaN where there is none."""

    low: float
    high: float


def patients_of(clusters: Clusters) -> set[str]:
    """All patients the answers are about."""
    return {name for cluster in clusters for name in _names(cluster)}


def rounded(value: float | np.floating[Any]) -> float:
    """As a report keeps a number: the last digits of a sum depend on the number of threads."""
    return round(float(value), 6)


def cluster_interval(
    values: ArrayLike, clusters: Clusters, draws: int = 2000, seed: int = 0, level: float = 0.95
) -> Interval:
    """The interval of the mean of `values`, resampling patients.

    Args:
        values: One number per answer `[n]`, such as 1 for a right answer.
        clusters: Whom each answer is about: a patient, or a sequence of patients.
        draws: Number of resamples.
        seed: Of the resamples. The same clusters and seed give the same resamples.
        level: Coverage aimed at.

    Returns:
        The interval; NaN and NaN where all answers are about one and the same patient (or pair), who says nothing
        about others.

    Raises:
        ValueError: No values, values that are not finite, or clusters that do not match them.
    """
    return cluster_intervals(_one_each(values)[:, None], clusters, draws, seed, level)[0]


def paired_interval(
    first: ArrayLike, second: ArrayLike, clusters: Clusters, draws: int = 2000, seed: int = 0, level: float = 0.95
) -> Interval:
    """The interval of `mean(first) - mean(second)`, both measured on the same answers.

    Both means see the same resampled patients, so what makes a patient easy or hard under both drops out: the interval
    of the difference is narrower than two separate intervals suggest. Arguments and errors as `cluster_interval`.
    """
    first, second = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if first.shape != second.shape:
        raise ValueError(f"paired values must match: {first.shape} and {second.shape}")
    return cluster_interval(first - second, clusters, draws, seed, level)


def cluster_intervals(
    columns: ArrayLike, clusters: Clusters, draws: int = 2000, seed: int = 0, level: float = 0.95
) -> list[Interval]:
    """`cluster_interval` of several columns `[n, k]` at once, with the same resamples."""
    columns = np.asarray(columns, dtype=np.float64)
    means = resampled_means(columns, clusters, draws, seed)
    if means is None:
        means = np.empty((0, columns.shape[1]))
    return [percentile_interval(column, level) for column in means.T]


def resampled_means(columns: Floats, clusters: Clusters, draws: int, seed: int) -> Floats | None:
    """Means of `columns` `[n, k]` in the resamples: `[draws, k]`, or None where all answers share their patients.

    A resample that holds no answer at all (possible with a handful of pairs) is left out.
    """
    if columns.ndim != 2 or len(columns) == 0:
        raise ValueError(f"there are no values to take a mean of (shape {columns.shape})")
    partition = _partition(clusters, len(columns))
    _refuse_no_draws(draws)
    _refuse_beyond(np.isfinite(columns).all(axis=1), "finite")
    if partition.groups == 1:
        return None
    # What each group of patients adds to every sum, and to the count, when its weight is 1: [groups, k + 1].
    terms = np.column_stack([columns, np.ones(len(columns))])
    sums = np.column_stack([partition.sums(term) for term in terms.T])
    totals = np.zeros((draws, sums.shape[1]))
    for rows, weights in _resamples(partition, draws, seed, partition.groups):
        for groups, together in partition.group_weights(weights):
            totals[rows] += together @ sums[groups]
    kept = totals[totals[:, -1] > 0]
    means: Floats = kept[:, :-1] / kept[:, -1:]
    return means


def percentile_interval(resampled: ArrayLike, level: float = 0.95) -> Interval:
    """The interval between the outer percentiles of a quantity in the resamples `[draws]`; NaN are left out."""
    _refuse_level(level)
    resampled = np.asarray(resampled, dtype=np.float64)
    kept = resampled[~np.isnan(resampled)]
    if len(kept) == 0:
        return Interval(np.nan, np.nan)
    tail = 100 * (1 - level) / 2
    low, high = np.percentile(kept, [tail, 100 - tail])
    return Interval(float(low), float(high))


def cluster_se(values: ArrayLike, clusters: Clusters) -> float:
    """The cluster-robust standard error of the mean of `values`.

    `sqrt(G / (G - 1) * sum(r_i r_j)) / n` over all answers i and j that share a patient, r being the difference of an
    answer from the mean and G the number of patients, where those who only occur together are one. With pairs the sum
    can come out too small, even negative: it is taken to be at least what it would be if every pair's answers were
    independent of other pairs'.

    With pairs and few patients it is too small (taking off the mean takes more off than G / (G - 1) gives back): for
    differences simulated as `sign_flip_p` says, with an effect of 1, it was 0.99 of the true standard error for 200
    patients, 0.96 for 60, 0.89 for 20, and 0.72 for 60 of whom a few are in most pairs.

    Returns:
        The standard error; NaN where all answers share their patients.

    Raises:
        ValueError: As `cluster_interval`.
    """
    values = _one_each(values)
    return _standard_error(values, _partition(_units(clusters), len(values)))


def robust_interval(values: ArrayLike, clusters: Clusters, level: float = 0.95) -> Interval:
    """The interval of the mean of `values` from `cluster_se`, by Student's t for one less than the number of patients.

    For values that are all about two patients, such as the flip pairs of `eval.scoring.verdict`, in which every ECG is
    seen twice. There the bootstrap's product weights give intervals up to 1.7 times too wide, and patients of one side
    alone give intervals 1.4 times too narrow. Simulated for flip pairs about 20 questions whose answers are right in 62
    % of cases, with effects of patients as above of 0 and 1, intervals of 95 % held the mean in 95.5 and 96.0 % of
    cases with 200 patients (10 questions each), and in 94.8 and 94.5 % with 50 (8 each).

    Args:
        values: One number per answer `[n]`.
        clusters: As for `cluster_interval`.
        level: Coverage aimed at.

    Returns:
        The interval; NaN and NaN where all answers share their patients.

    Raises:
        ValueError: As `cluster_interval`.
    """
    from scipy.special import stdtrit

    _refuse_level(level)
    values = _one_each(values)
    partition = _partition(_units(clusters), len(values))
    error, mean = _standard_error(values, partition), float(values.mean())
    if np.isnan(error):
        return Interval(np.nan, np.nan)
    half = float(stdtrit(partition.patients - 1, (1 + level) / 2)) * error
    return Interval(mean - half, mean + half)


def smallest_detectable_difference(
    differences: ArrayLike, clusters: Clusters, power: float = 0.8, level: float = 0.05
) -> float:
    """The true mean difference that as many answers about as many patients would show with this power.

    `(t(1 - level / 2) + t(power)) * cluster_se(differences)` with the quantiles of Student's t for one degree of
    freedom less than there are patients: the minimum detectable effect (Bloom, Evaluation Review 1995) of a two-sided
    test. Simulated at 80 %, two-sided `sign_flip_p` found such differences in 78 to 82 % of cases with 200 patients and
    in 74 to 78 % with 40, but about pairs of 40 patients in 60 to 73 %, where `cluster_se` is too small.

    Args:
        differences: Paired differences `[n]`. Their mean plays no part, only how they spread over patients.
        clusters: As for `cluster_interval`.
        power: Chance to find a difference of this size.
        level: Of the test.

    Returns:
        The difference, in the unit of `differences`; NaN where there is nothing to tell it from, because all answers
        share their patients or no patient differs from another.

    Raises:
        ValueError: As `cluster_interval`; power or level out of range.
    """
    from scipy.special import stdtrit

    if not 0 < level < power < 1:
        raise ValueError(f"0 < level < power < 1 must hold, got level {level} and power {power}")
    values = _one_each(differences)
    partition = _partition(_units(clusters), len(values))
    error, freedom = _standard_error(values, partition), partition.patients - 1
    if not error > 1e-12 * np.abs(values).max():  # what is left of 0 after rounding
        return np.nan
    return float((stdtrit(freedom, 1 - level / 2) + stdtrit(freedom, power)) * error)


def sign_flip_p(
    differences: ArrayLike,
    clusters: Clusters,
    draws: int = 10_000,
    seed: int = 0,
    alternative: Literal["greater", "two-sided"] = "greater",
) -> float:
    """The p-value of the mean of paired differences: how often it is as large when patients' signs fall by chance.

    If two conditions are alike, a patient's differences might as well have the opposite sign. All differences of a
    patient are flipped together (Winkler et al., NeuroImage 2015): with one patient per answer the test is exact.

    So it is for pairs of patients who only occur together. Of other pairs, all that hang together by a shared patient
    would have to be flipped at once, mostly everybody, which tests nothing. What is flipped then is the sum of each
    patient's differences, so that an answer counts with both its patients' signs, and the flipped totals are scaled to
    the variance of the sandwich (as in `cluster_se`, but about 0, the mean under the null hypothesis). With one patient
    per answer that scale is 1.

    Simulated for differences of right and wrong in 1,000 answers about pairs of 200 patients, who have an effect of
    their own under each condition with a standard deviation of 0, 0.5 and 1 on the log-odds, 4,000 times each: of
    one-sided tests at 5 % this rejected 4.5, 5.2 and 4.9 % (for 100 answers and 20 patients 2.4, 2.8 and 3.0 %). The
    product of the two patients' signs, which takes pairs to be independent, rejected 4.6, 11.9 and 18.1 %; the sign of
    one of the two patients 4.4, 8.8 and 11.1 %; the sums without the scale 1.0, 2.0 and 3.1 %.

    Args:
        differences: One per answer `[n]`.
        clusters: As for `cluster_interval`.
        draws: Random flips. Up to 12 patients, all flips are counted instead.
        seed: Of the flips.
        alternative: "greater" asks whether the mean is above 0, "two-sided" whether it is not 0.

    Returns:
        `(b + 1) / (draws + 1)` for b flips as extreme as what was seen (Phipson and Smyth, SAGMB 2010), or their share
        of all flips; 1 where all differences are 0.

    Raises:
        ValueError: As `cluster_interval`; an unknown alternative.
    """
    if alternative not in ("greater", "two-sided"):
        raise ValueError(f"alternative must be 'greater' or 'two-sided', got {alternative!r}")
    values = _one_each(differences)
    partition = _partition(_units(clusters), len(values))
    _refuse_no_draws(draws)
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

    if partition.patients <= _ENUMERATED:
        flips = np.arange(2**partition.patients)[:, None] >> np.arange(partition.patients) & 1
        return max(1, extreme(flips)) / len(flips)  # with pairs, no flip need give what was seen
    rng, block = np.random.default_rng(seed), max(1, _AT_ONCE // partition.patients)
    sizes = (min(block, draws - start) for start in range(0, draws, block))
    count = sum(extreme(rng.integers(2, size=(size, partition.patients), dtype=np.int8)) for size in sizes)
    return (count + 1) / (draws + 1)


def mcnemar_p(only_first: int, only_second: int) -> float:
    """McNemar's exact two-sided test: the p-value of how often only the first, and only the second, of two was right.

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


def auroc(scores: ArrayLike, positive: ArrayLike) -> float:
    """The area under the ROC curve: the chance that a positive scores above a negative, ties counting half.

    Args:
        scores: One per answer `[n]`; infinite ones are allowed.
        positive: Whether the finding is there `[n]`, bool (or 0 and 1).

    Returns:
        The area; NaN where one of the two classes is absent.

    Raises:
        ValueError: No scores, a score that is NaN, or a class that is neither.
    """
    there, _, below, upto = _compared(scores, positive)
    pairs = len(there) * (np.size(positive) - len(there))
    return float((below + upto).sum() / 2 / pairs) if pairs else np.nan


def auroc_interval(
    scores: ArrayLike, positive: ArrayLike, clusters: Clusters, draws: int = 2000, seed: int = 0, level: float = 0.95
) -> Interval:
    """The interval of `auroc`, resampling patients (Rutter, Academic Radiology 2000) as `cluster_interval` does.

    NaN and NaN where a class is absent or all answers share their patients.
    """
    return percentile_interval(resampled_aurocs(scores, positive, clusters, draws, seed), level)


def auroc_difference_interval(
    scores_a: ArrayLike,
    scores_b: ArrayLike,
    positive: ArrayLike,
    clusters: Clusters,
    draws: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> Interval:
    """The interval of `auroc(scores_a) - auroc(scores_b)` over the same answers, in the same resamples."""
    first, second = (resampled_aurocs(scores, positive, clusters, draws, seed) for scores in (scores_a, scores_b))
    return percentile_interval(first - second, level)


def resampled_aurocs(
    scores: ArrayLike, positive: ArrayLike, clusters: Clusters, draws: int = 2000, seed: int = 0
) -> Floats:
    """`auroc` in the resamples of patients `[draws]`, NaN in those without both classes.

    The same clusters and seed give the same resamples in the same places, so any combination of two areas has its
    interval: `percentile_interval((a - 0.5) / (b - 0.5))`.
    """
    there, absent, below, upto = _compared(scores, positive)
    partition = _partition(clusters, len(there) + len(absent))
    _refuse_no_draws(draws)
    areas = np.full(draws, np.nan)
    if partition.groups == 1:
        return areas
    for rows, weights in _resamples(partition, draws, seed, len(there) + len(absent)):
        of_group = np.empty((len(weights), partition.groups))
        for groups, together in partition.group_weights(weights):
            of_group[:, groups] = together
        ups = of_group[:, partition.group_of[there]]
        passed = np.zeros((len(weights), len(absent) + 1))  # weight of the negatives up to the k-th lowest
        np.cumsum(of_group[:, partition.group_of[absent]], axis=1, out=passed[:, 1:])
        won = np.einsum("ij,ij->i", ups, passed[:, below] + passed[:, upto]) / 2
        pairs = ups.sum(axis=1) * passed[:, -1]
        np.divide(won, pairs, out=areas[rows], where=pairs > 0)
    return areas


def balanced_accuracy(predicted: Iterable[Hashable], actual: Iterable[Hashable]) -> float:
    """The mean, over the classes that occur in `actual`, of how often answers of that class are right."""
    predicted, actual = list(predicted), list(actual)
    if len(predicted) != len(actual) or not actual:
        raise ValueError(f"as many predicted as actual classes are needed, got {len(predicted)} and {len(actual)}")
    of_class, right = Counter(actual), Counter(a for p, a in zip(predicted, actual) if p == a)
    return sum(right[name] / count for name, count in of_class.items()) / len(of_class)


def spearman(x: ArrayLike, y: ArrayLike) -> float:
    """Spearman's rank correlation, ties sharing their mean rank; NaN where either is constant."""
    x, y = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    if x.ndim != 1 or x.shape != y.shape:
        raise ValueError(f"two lists of as many numbers are correlated, got shapes {x.shape} and {y.shape}")
    _refuse_beyond(~np.isnan(x) & ~np.isnan(y), "a number")
    a, b = (_ranks(values) - (len(values) + 1) / 2 for values in (x, y))
    spread = np.sqrt((a @ a) * (b @ b))
    return float(a @ b / spread) if spread else np.nan


@dataclass(frozen=True)
class _Partition:
    """Whose answers go together. Answers about the same patient, or the same set of patients, form a group.

    Patients and groups are numbered in the order of their names: nothing depends on the order of the answers.
    """

    patients: int
    groups: int
    group_of: Indices  # of every answer [n]
    by_size: list[tuple[Indices, Indices]]  # groups of as many patients: their numbers [m], their patients [m, size]

    def sums(self, values: Floats) -> Floats:
        """Sums by group `[groups]` of one value per answer."""
        return np.asarray(np.bincount(self.group_of, values, self.groups), dtype=np.float64)

    def group_weights(self, weights: Floats) -> Iterator[tuple[Indices, Floats]]:
        """From patients' weights `[b, patients]`, those of the groups: numbers `[m]` and weights `[b, m]` by size."""
        for groups, members in self.by_size:
            together = weights[:, members[:, 0]]
            for column in members.T[1:]:
                together *= weights[:, column]
            yield groups, together

    def variance(self, sums: Floats) -> float:
        """The sandwich: the sum of `sums[g] * sums[h]` over groups that share a patient, at least that over g = h.

        Groups that share two patients are met twice when going by patient, so what shares two is taken off again, what
        shares three is added again, and so on: inclusion and exclusion.
        """
        total = 0.0
        for size in range(1, 1 + max(members.shape[1] for _, members in self.by_size)):
            shared, added = [], []
            for groups, members in self.by_size:
                for columns in combinations(range(members.shape[1]), size):
                    shared.append(members[:, columns])
                    added.append(sums[groups])
            _, which = np.unique(np.concatenate(shared), axis=0, return_inverse=True)
            of_shared = np.bincount(which.ravel(), np.concatenate(added))
            total -= (-1) ** size * float(of_shared @ of_shared)
        return max(total, float(sums @ sums))


def _standard_error(values: Floats, partition: _Partition) -> float:
    if partition.groups == 1:
        return np.nan
    correction = partition.patients / (partition.patients - 1)
    return float(np.sqrt(correction * partition.variance(partition.sums(values - values.mean()))) / len(values))


def _partition(clusters: Clusters, answers: int) -> _Partition:
    if answers != len(clusters):
        raise ValueError(f"{answers} values but {len(clusters)} clusters")
    sets = [_names(cluster) for cluster in clusters]
    if () in sets:
        raise ValueError(f"value {sets.index(())} belongs to no cluster")
    groups = sorted(set(sets))
    number = {group: i for i, group in enumerate(groups)}
    names = {name: i for i, name in enumerate(sorted({name for group in groups for name in group}))}
    by_size = []
    for size in sorted({len(group) for group in groups}):
        here = [i for i, group in enumerate(groups) if len(group) == size]
        by_size.append((np.array(here), np.array([[names[name] for name in groups[i]] for i in here])))
    return _Partition(len(names), len(groups), np.array([number[group] for group in sets]), by_size)


def _units(clusters: Clusters) -> list[tuple[str, ...]]:
    """The same clusters with one name for patients who only ever occur together: they are one, and count as one."""
    sets = [_names(cluster) for cluster in clusters]
    answers_of: dict[str, list[int]] = {}
    for i, names in enumerate(sets):
        for name in names:
            answers_of.setdefault(name, []).append(i)
    first: dict[tuple[int, ...], str] = {}
    unit = {name: first.setdefault(tuple(answers), name) for name, answers in sorted(answers_of.items())}
    return [tuple({unit[name] for name in names}) for names in sets]


def _names(cluster: str | Sequence[str]) -> tuple[str, ...]:
    return (cluster,) if isinstance(cluster, str) else tuple(sorted(set(cluster)))


def _resamples(partition: _Partition, draws: int, seed: int, width: int) -> Iterator[tuple[slice, Floats]]:
    """Weights of the patients `[b, patients]` in draws `slice`, in blocks that leave room for `[b, width]`."""
    rng, patients = np.random.default_rng(seed), partition.patients
    block = max(1, _AT_ONCE // max(patients, width))
    for start in range(0, draws, block):
        count = min(block, draws - start)
        # Counting where as many throws as there are patients fall is a multinomial draw, ten times as fast as numpy's.
        thrown = rng.integers(patients, size=(count, patients)) + patients * np.arange(count)[:, None]
        weights = np.bincount(thrown.ravel(), minlength=count * patients).reshape(count, patients)
        yield slice(start, start + count), weights.astype(np.float64)


def _compared(scores: ArrayLike, positive: ArrayLike) -> tuple[Indices, Indices, Indices, Indices]:
    """Which answers are positive `[p]`, which negative from low to high score, and where the former stand.

    The last two `[p]` say how many negatives score below each positive, and how many below or the same.
    """
    scores, positive = np.asarray(scores, dtype=np.float64), np.asarray(positive)
    if scores.ndim != 1 or len(scores) == 0 or scores.shape != positive.shape:
        raise ValueError(f"one score and one class per answer are needed, got {scores.shape} and {positive.shape}")
    _refuse_beyond(~np.isnan(scores), "a number")
    _refuse_beyond((positive == 0) | (positive == 1), "positive or negative")
    there, absent = np.flatnonzero(positive), np.flatnonzero(positive == 0)
    absent = absent[np.argsort(scores[absent])]
    below, upto = (np.searchsorted(scores[absent], scores[there], side) for side in ("left", "right"))
    return there, absent, below, upto


def _ranks(values: Floats) -> Floats:
    _, which, counts = np.unique(values, return_inverse=True, return_counts=True)
    ranks: Floats = np.cumsum(counts) - (counts - 1) / 2
    return ranks[which]


def _one_each(values: ArrayLike) -> Floats:
    values = np.asarray(values, dtype=np.float64)
    if values.ndim != 1:
        raise ValueError(f"values must be one number per answer, got shape {values.shape}")
    if len(values) == 0:
        raise ValueError("there are no values to take a mean of")
    _refuse_beyond(np.isfinite(values), "finite")
    return values


def _refuse_beyond(fit: ArrayLike, what: str) -> None:
    if not np.all(fit):
        raise ValueError(f"value {int(np.argmin(fit))} is not {what}")


def _refuse_level(level: float) -> None:
    if not 0 < level < 1:
        raise ValueError(f"level must lie between 0 and 1, got {level}")


def _refuse_no_draws(draws: int) -> None:
    if draws < 1:
        raise ValueError(f"draws must be positive, got {draws}")
