"""Clustered statistics: cluster bootstrap, AUROC interval and sign flips, against a loop over the draws.

The loops do the same in the way it is explained: throw patients, collect their answers, compute. They are timed over
fewer draws, in the same run, and scaled to as many.
"""

from collections.abc import Callable, Sequence
from timeit import repeat, timeit

import numpy as np
from numpy.typing import NDArray

from eval import statistics
from eval.speed import Statistics

Floats = NDArray[np.float64]
Rng = np.random.Generator

LOOPED = 50  # draws the loops are timed over


def looped_means(values: Floats, answers_of: Sequence[NDArray[np.intp]], draws: int, rng: Rng) -> Floats:
    """Means of the answers of as many patients as there are, thrown with replacement: `[draws]`."""
    return np.array([values[_thrown(answers_of, rng)].mean() for _ in range(draws)])


def looped_aurocs(
    scores: Floats, positive: NDArray[np.bool_], answers_of: Sequence[NDArray[np.intp]], draws: int, rng: Rng
) -> Floats:
    """Areas under the ROC curve over the answers of thrown patients: `[draws]`."""
    thrown = (_thrown(answers_of, rng) for _ in range(draws))
    return np.array([statistics.auroc(scores[answers], positive[answers]) for answers in thrown])


def looped_flips(differences: Floats, patient_of: NDArray[np.intp], draws: int, rng: Rng) -> Floats:
    """Means of the differences with a random sign for every patient: `[draws]`."""
    signs = (rng.choice((-1, 1), size=patient_of.max() + 1)[patient_of] for _ in range(draws))
    return np.array([(differences * sign).mean() for sign in signs])


def main(settings: Statistics) -> None:
    """Print a table of three times, each beside that of a loop."""
    rng = np.random.default_rng(0)
    # Every patient has an answer, so that both ways throw the same patients.
    drawn = rng.integers(settings.patients, size=settings.items)
    patient_of = np.concatenate([np.arange(settings.patients), drawn])[: settings.items]
    names = [f"p{p}" for p in patient_of]
    answers_of = [np.flatnonzero(patient_of == p) for p in range(patient_of.max() + 1)]
    first, second = (rng.random((2, settings.items)) < 0.7).astype(float)
    scores, positive = rng.normal(size=settings.items), rng.random(settings.items) < 0.3

    def row(name: str, draws: int, ours: Callable[[], object], loop: Callable[[], object]) -> None:
        seconds, looped = min(repeat(ours, number=1, repeat=3)), timeit(loop, number=1) * draws / LOOPED
        print(f"{name:<28}{draws:>8,}{seconds:>10.3g} s{looped:>10.3g} s{looped / seconds:>9.3g}x")

    print(f"{settings.items:,} answers about {len(answers_of):,} patients; loops timed over {LOOPED} draws and scaled")
    print(f"{'':<28}{'draws':>8}{'here':>12}{'loop':>12}{'ratio':>10}")
    row(
        "mean, cluster bootstrap",
        settings.draws,
        lambda: statistics.cluster_interval(first, names, settings.draws),
        lambda: looped_means(first, answers_of, LOOPED, rng),
    )
    row(
        "AUROC, cluster bootstrap",
        settings.draws,
        lambda: statistics.auroc_interval(scores, positive, names, settings.draws),
        lambda: looped_aurocs(scores, positive, answers_of, LOOPED, rng),
    )
    row(
        "mean difference, sign flips",
        settings.flips,
        lambda: statistics.sign_flip_p(first - second, names, settings.flips),
        lambda: looped_flips(first - second, patient_of, LOOPED, rng),
    )


def _thrown(answers_of: Sequence[NDArray[np.intp]], rng: Rng) -> NDArray[np.intp]:
    return np.concatenate([answers_of[p] for p in rng.integers(len(answers_of), size=len(answers_of))])
