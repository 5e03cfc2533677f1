"""How well scores separate two classes, and follow a quantity: AUROC with its resamples, and two textbook numbers.

The area is scikit-learn's (a test compares them), from the same sorted scores as its resamples, infinite ones included.
Balanced accuracy is written out because scikit-learn's refuses predictions that are no class, such as None.
"""

from collections import Counter
from collections.abc import Hashable, Iterable

import numpy as np
from numpy.typing import ArrayLike

from eval.statistics.intervals import Interval, percentile_interval
from eval.statistics.partition import Clusters, Floats, Indices, check_draws, partition_of, refuse_unless, resamples


def auroc(scores: ArrayLike, positive: ArrayLike) -> float:
    """Area under the ROC curve: the chance that a positive scores above a negative, ties counting half.

    Scores `[n]` may be infinite; `positive` `[n]` is bool, or 0 and 1. The area is NaN where one class is absent.

    Raises:
        ValueError: No scores, a score that is NaN, or a class that is neither.
    """
    present, _, below, upto = _ranked(scores, positive)
    pairs = len(present) * (np.size(positive) - len(present))
    return float((below + upto).sum() / 2 / pairs) if pairs else np.nan


def auroc_interval(
    scores: ArrayLike, positive: ArrayLike, clusters: Clusters, draws: int = 2000, seed: int = 0, level: float = 0.95
) -> Interval:
    """Interval of `auroc`, resampling patients (Rutter, Academic Radiology 2000) as `cluster_interval` does.

    NaN and NaN where a class is absent or all answers share their patients.
    """
    return percentile_interval(resampled_aurocs(scores, positive, clusters, draws, seed), level)


def resampled_aurocs(
    scores: ArrayLike, positive: ArrayLike, clusters: Clusters, draws: int = 2000, seed: int = 0
) -> Floats:
    """`auroc` in the resamples of patients `[draws]`, NaN in those without both classes.

    The same clusters and seed give the same resamples in the same places, so any combination of two areas has its
    interval: `percentile_interval((a - 0.5) / (b - 0.5))`.
    """
    present, absent, below, upto = _ranked(scores, positive)
    partition = partition_of(clusters, len(present) + len(absent))
    check_draws(draws)
    areas = np.full(draws, np.nan)
    if partition.groups == 1:
        return areas
    for rows, weights in resamples(partition, draws, seed, len(present) + len(absent)):
        of_group = np.empty((len(weights), partition.groups))
        for groups, together in partition.group_weights(weights):
            of_group[:, groups] = together
        ups = of_group[:, partition.group_of[present]]
        passed = np.zeros((len(weights), len(absent) + 1))  # weight of the negatives up to the k-th lowest
        np.cumsum(of_group[:, partition.group_of[absent]], axis=1, out=passed[:, 1:])
        won = np.einsum("ij,ij->i", ups, passed[:, below] + passed[:, upto]) / 2
        pairs = ups.sum(axis=1) * passed[:, -1]
        np.divide(won, pairs, out=areas[rows], where=pairs > 0)
    return areas


def _ranked(scores: ArrayLike, positive: ArrayLike) -> tuple[Indices, Indices, Indices, Indices]:
    """Which answers are positive `[p]`, which negative from low to high score, and where the former stand.

    The last two `[p]` say how many negatives score below each positive, and how many below or the same.
    """
    scores, positive = np.asarray(scores, dtype=np.float64), np.asarray(positive)
    if scores.ndim != 1 or len(scores) == 0 or scores.shape != positive.shape:
        raise ValueError(f"one score and one class per answer are needed, got {scores.shape} and {positive.shape}")
    refuse_unless(~np.isnan(scores), "a number")
    refuse_unless((positive == 0) | (positive == 1), "positive or negative")
    present, absent = np.flatnonzero(positive), np.flatnonzero(positive == 0)
    absent = absent[np.argsort(scores[absent])]
    below, upto = (np.searchsorted(scores[absent], scores[present], side) for side in ("left", "right"))
    return present, absent, below, upto


def balanced_accuracy(predicted: Iterable[Hashable], actual: Iterable[Hashable]) -> float:
    """The mean, over the classes that occur in `actual`, of how often answers of that class are right."""
    predicted, actual = list(predicted), list(actual)
    if len(predicted) != len(actual) or not actual:
        raise ValueError(f"as many predicted as actual classes are needed, got {len(predicted)} and {len(actual)}")
    of_class, right = Counter(actual), Counter(a for p, a in zip(predicted, actual) if p == a)
    return sum(right[name] / count for name, count in of_class.items()) / len(of_class)


def spearman(x: ArrayLike, y: ArrayLike) -> float:
    """Spearman's rank correlation, ties sharing their mean rank; NaN where either is constant."""
    from scipy.stats import rankdata

    x, y = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    if x.ndim != 1 or x.shape != y.shape:
        raise ValueError(f"two lists of as many numbers are correlated, got shapes {x.shape} and {y.shape}")
    refuse_unless(~np.isnan(x) & ~np.isnan(y), "a number")
    # `spearmanr` warns of constant lists and rounds: ranks less their mean are exact, and so is a correlation of 1.
    a, b = (rankdata(values) - (len(values) + 1) / 2 for values in (x, y))
    spread = np.sqrt((a @ a) * (b @ b))
    return float(a @ b / spread) if spread else np.nan
