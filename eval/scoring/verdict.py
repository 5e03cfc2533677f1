"""The verdict: does a model read the ECG? One rule, stated in docs/audit.md, applied to numbers.

It rests on flip pairs: one question asked about two patients' ECGs whose right answers differ. A reader gives two right
answers; a guesser, however good, gives the same answer twice and is right once. What a model does without an ECG, or on
zeros, decides nothing: a guesser may break there, and a reader need not (`brittle` names that case).

`eval.calibrate` measures how often the rule errs, on answerers whose reading is known.
"""

import dataclasses
import math
from collections.abc import Collection, Mapping, Sequence
from typing import Literal, Self

import numpy as np
from numpy.typing import NDArray

from eval.scoring.jsonable import INLINE, Json
from eval.statistics import (
    Clusters,
    Floats,
    Interval,
    cluster_intervals,
    holm,
    patients_of,
    robust_interval,
    sign_flip_p,
)

Verdict = Literal["reads", "partly", "brittle", "ignores", "inconclusive"]
Flags = NDArray[np.bool_]

SENTENCES: Mapping[Verdict, str] = {
    "reads": "The model reads the ECG.",
    "partly": "The model reads the ECG in part.",
    "brittle": "The model does not read the ECG: it only breaks when there is none.",
    "ignores": "The model ignores the ECG.",
    "inconclusive": "These answers do not show whether the model reads the ECG.",
}

# The rule's numbers. docs/audit.md states them; changing one means calibrating again.
LEAST_GAP = 0.10  # of the swap-flip gap, to be called reading
LEVEL = 0.05
LEAST_PATIENTS = 20  # with a flip pair: with fewer, intervals over patients are too narrow
LEAST_PAIRS = 50
LEAST_ANSWERED = 0.5  # share of valid answers about the real ECG
FLIPS = 10_000  # sign flips of the permutation test


@dataclasses.dataclass(frozen=True)
class Answers:
    """Columns that the rule looks at, per question `[n]`."""

    clusters: Clusters  # patients of each question
    # Patients of each flip pair: the question's, and those of the other ECG. Every ECG is in two pairs, as the
    # question's own and as the other one; without the second patients intervals would be too narrow by about 1.4.
    pair_clusters: Clusters
    real: Flags  # right about the real ECG
    answered: Flags  # a valid answer about the real ECG, right or wrong
    majority: Flags  # the most common answer to the question in training is right
    paired: Flags  # also asked about an ECG whose right answer differs; the next three are read there only
    flip_still: Flags  # the answer about the other ECG is the one that was right about the real ECG
    flip_follows: Flags  # the answer about the other ECG is right about that one
    real_as_flip: Flags  # the answer about the real ECG would have been right about the other one
    without: Mapping[str, Flags]  # right under conditions that take the ECG away (`zero`, `none`), where asked

    def take(self, index: NDArray[np.intp]) -> Self:
        """The answers to some questions, by their indices."""
        columns = {name: column[index] for name, column in vars(self).items() if isinstance(column, np.ndarray)}
        return dataclasses.replace(
            self,
            clusters=[self.clusters[i] for i in index.tolist()],
            pair_clusters=[self.pair_clusters[i] for i in index.tolist()],
            without={name: right[index] for name, right in self.without.items()},
            **columns,
        )

    @property
    def pairs(self) -> tuple[list[Sequence[str]], Floats, Floats, Floats]:
        """Flip pairs: their patients, and `[pairs]` the gap, both right, both right had the ECGs been exchanged."""
        paired = np.flatnonzero(self.paired)
        real, still = self.real[paired].astype(float), self.flip_still[paired].astype(float)
        clusters = [self.pair_clusters[i] for i in paired.tolist()]
        return clusters, real - still, real * self.flip_follows[paired], self.real_as_flip[paired] * still


class Evidence(Json):
    """The numbers a verdict is made of; `judge` derives it from them, and from the p-value after correction."""

    questions: int  # how many
    pairs: int  # how many flip pairs among them
    patients: int  # patients of these pairs
    answered: float  # share of valid answers about the real ECG
    # Swap-flip gap, with its interval: right about the real ECG minus the same answer about the other.
    gap: float | None
    gap_interval: Interval
    paired_flip: float | None  # share of pairs with both answers right
    exchanged: float | None  # share of pairs where both would be right had the ECGs been exchanged: what chance gives
    p: float | None  # p-value of the difference of the two, by sign flips of patients; NaN or None without pairs
    over_majority: float  # right about the real ECG minus majority-by-question, with its interval
    over_majority_interval: Interval
    breaks: float | None  # the largest lower limit of real minus a condition without an ECG; None where none was asked

    @property
    def pair_numbers(self) -> tuple[float, float, float] | None:
        """Gap, paired-flip accuracy, and the same with the ECGs exchanged; None without flip pairs."""
        if self.gap is None or self.paired_flip is None or self.exchanged is None:
            return None
        return self.gap, self.paired_flip, self.exchanged


def weigh(answers: Answers, draws: int = 2000, seed: int = 0) -> Evidence:
    """The evidence in the answers to a set of questions.

    Raises:
        ValueError: There are no questions.
    """
    if len(answers.real) == 0:
        raise ValueError("no questions to weigh")
    real = answers.real.astype(float)
    names = list(answers.without)
    columns = np.column_stack([real - answers.majority, *(real - answers.without[name] for name in names)])
    over, *breaking = cluster_intervals(columns, answers.clusters, draws, seed)
    lows = [interval.low for interval in breaking if not np.isnan(interval.low)]
    clusters, gap, both, exchanged = answers.pairs
    return Evidence(
        questions=len(real),
        pairs=len(gap),
        patients=len(patients_of(clusters)),
        answered=float(answers.answered.mean()),
        gap=float(gap.mean()) if len(gap) else None,
        gap_interval=robust_interval(gap, clusters) if len(gap) else Interval(math.nan, math.nan),
        paired_flip=float(both.mean()) if len(gap) else None,
        exchanged=float(exchanged.mean()) if len(gap) else None,
        p=sign_flip_p(both - exchanged, clusters, draws=FLIPS, seed=seed) if len(gap) else math.nan,
        over_majority=float(columns[:, 0].mean()),
        over_majority_interval=over,
        breaks=max(lows) if lows else None,
    )


def judge(evidence: Evidence, p: float | None = None) -> Verdict:
    """The verdict on one set of questions; `p` is the p-value after correction for several sets."""
    p = next((value for value in (p, evidence.p) if value is not None), math.nan)
    low, high = evidence.gap_interval
    if (
        evidence.patients < LEAST_PATIENTS
        or evidence.pairs < LEAST_PAIRS
        or evidence.answered < LEAST_ANSWERED
        or np.isnan([low, high, p]).any()
    ):
        return "inconclusive"
    follows = low > 0 and p < LEVEL
    if follows and low >= LEAST_GAP and evidence.over_majority_interval.low > 0:
        return "reads"
    if follows:
        return "partly"
    if high >= LEAST_GAP:
        return "inconclusive"
    return "brittle" if evidence.breaks is not None and evidence.breaks >= LEAST_GAP else "ignores"


class GroupVerdict(Json):
    """The verdict on one group of questions."""

    verdict: Verdict  # by `p_corrected`, the p-value corrected for the number of groups
    evidence: Evidence = dataclasses.field(metadata=INLINE)  # what it is made of
    p_corrected: float | None
    counts: bool  # whether the group takes part in the verdict on the model


class ModelVerdict(Json):
    """The verdict on a model: on all questions that count, and on each group of attributes."""

    verdict: Verdict  # after the groups' verdicts have corrected that on all questions
    sentence: str  # the verdict in words, with the groups it rests on
    evidence: Evidence = dataclasses.field(metadata=INLINE)  # numbers of all questions that count
    groups: Mapping[str, GroupVerdict]  # by name


def _sentence(verdict: Verdict, evidence: Evidence, groups: Mapping[str, GroupVerdict]) -> str:
    reading = [name for name, group in groups.items() if group.counts and group.verdict == "reads"]
    words = SENTENCES[verdict]
    if verdict == "partly" and reading:
        words += f" It reads: {', '.join(reading)}."
    if verdict == "inconclusive" and evidence.answered < LEAST_ANSWERED:
        words += f" Only {100 * evidence.answered:.0f} % of its answers are valid."
    if verdict in ("ignores", "brittle") and evidence.over_majority_interval.low > 0:
        words += (
            " Yet it is more often right than the most common answer: something other than the ECG tells it, so look "
            "for answers that leak through the question, the prompt or the choice of patients."
        )
    return words


def verdict(
    answers: Answers, groups: Sequence[str], excluded: Collection[str] = ("noise",), draws: int = 2000, seed: int = 0
) -> ModelVerdict:
    """The verdict on a model, from the answers to all ordinary questions and the group of attributes of each.

    Excluded groups are judged and shown, but neither count for nor against it: seeing noise is not reading an ECG.

    Raises:
        ValueError: Groups and answers differ in number, or no question counts.
    """
    if len(groups) != len(answers.real):
        raise ValueError(f"{len(answers.real)} answers but {len(groups)} groups")
    of = np.array(groups, dtype=object)
    counts = ~np.isin(of, list(excluded))
    if not counts.any():
        raise ValueError(f"no question counts: all belong to {', '.join(sorted(set(groups)))}")
    names = sorted(set(groups))
    weighed = {name: weigh(answers.take(np.flatnonzero(of == name)), draws, seed) for name in names}
    corrected = holm([math.nan if (p := weighed[name].p) is None else p for name in names])
    judged = {
        name: GroupVerdict(judge(weighed[name], p), weighed[name], p, name not in excluded)
        for name, p in zip(names, corrected)
    }
    everything = weigh(answers.take(np.flatnonzero(counts)), draws, seed)
    overall = judge(everything)
    clear = [group.verdict for group in judged.values() if group.counts and group.verdict != "inconclusive"]
    reading = clear.count("reads")
    if (overall == "reads" and 2 * reading < len(clear)) or (overall not in ("reads", "partly") and reading):
        overall = "partly"
    return ModelVerdict(overall, _sentence(overall, everything, judged), everything, judged)
