"""Effects of another ECG: flip pairs, changed answers, likelihoods, and the verdict that follows."""

from collections.abc import Sequence

import numpy as np

from eval.scoring import answers as score
from eval.scoring.lines import Line, Lines
from eval.scoring.results import NOISE, TEXT_ONLY, Changed, Flips, Lift
from eval.scoring.verdict import Answers, ModelVerdict, verdict
from eval.statistics import Floats, Interval, cluster_interval, patients_of, robust_interval, sign_flip_p


def flips(lines: Lines, ids: Sequence[str], seed: int) -> Flips | None:
    """Answers to one question about two ECGs whose right answers differ."""
    pairs = _beside_real(lines, "swap-flip", ids)
    if not pairs:
        return None
    answers = _answers(lines, [real.id for real, _ in pairs])
    (clusters, gap, both, exchanged), follows = answers.pairs, answers.flip_follows.astype(float)
    return Flips(
        n=len(pairs),
        patients=len(patients_of(clusters)),
        gap=float(gap.mean()),
        gap_interval=robust_interval(gap, clusters),
        paired_flip=float(both.mean()),
        paired_flip_interval=robust_interval(both, clusters),
        exchanged=float(exchanged.mean()),
        p=sign_flip_p(both - exchanged, clusters, seed=seed),
        follows=float(follows.mean()),
        follows_interval=robust_interval(follows, clusters),
    )


def changed(lines: Lines, ids: Sequence[str]) -> dict[str, Changed]:
    """How often the answer is another one than about the real ECG, whether right or wrong."""
    pairs = {name: _beside_real(lines, name, ids) for name in lines if name not in ("real", TEXT_ONLY)}
    return {
        name: Changed(float(np.mean([_terms(a) != _terms(b) for a, b in both])), len(both))
        for name, both in pairs.items()
        if both
    }


def lift(lines: Lines, ids: Sequence[str], draws: int, seed: int) -> dict[str, Lift]:
    """Mean of log p(right answer | real ECG) - log p(right answer | this condition), in nats.

    The right answer is that about the real ECG under both. Continuous, so it shows reading that changes no answer yet.
    """
    lifts = {}
    for condition in ("swap", "swap-flip", "zero", "none"):
        scored = [
            (a.gold_logp - b.gold_logp, b)
            for a, b in _beside_real(lines, condition, ids)
            if a.gold_logp is not None and b.gold_logp is not None
        ]
        if scored:
            values = np.array([value for value, _ in scored])
            interval = interval_of(values, [line for _, line in scored], draws, seed)
            lifts[condition] = Lift(float(values.mean()), interval, len(scored))
    return lifts


def judge(lines: Lines, ids: Sequence[str], draws: int, seed: int) -> ModelVerdict | None:
    """The verdict on the answers to these questions; None without answers about the real ECG."""
    real = lines.get("real", {})
    answered = [id for id in ids if id in real]
    groups = [real[id].group or real[id].attribute or "other" for id in answered]
    if all(group == NOISE for group in groups):
        return None
    return verdict(_answers(lines, answered), groups, (NOISE,), draws, seed)


def _answers(lines: Lines, ids: Sequence[str]) -> Answers:
    """Columns that the verdict looks at, of questions asked about the real ECG."""
    real, flip = [lines["real"][id] for id in ids], [lines.get("swap-flip", {}).get(id) for id in ids]
    return Answers(
        clusters=clusters_of(real),
        pair_clusters=clusters_of([other or line for line, other in zip(real, flip)]),
        real=right_answers(real) > 0,
        answered=np.array([line.outcome in ("right", "wrong") for line in real]),
        majority=flags([line.majority_by_question_right for line in real]) > 0,
        paired=np.array([line is not None for line in flip]),
        flip_still=np.array([line is not None and line.correct for line in flip]),
        flip_follows=np.array([line is not None and _is(line, line.shown_answer) for line in flip]),
        real_as_flip=np.array([b is not None and _is(a, b.shown_answer) for a, b in zip(real, flip)]),
        without={
            condition: right_answers([lines[condition][id] for id in ids]) > 0
            for condition in ("zero", "none")
            if all(id in lines.get(condition, {}) for id in ids)
        },
    )


def _beside_real(lines: Lines, condition: str, ids: Sequence[str]) -> list[tuple[Line, Line]]:
    """Lines of questions asked about the real ECG and under a condition."""
    real, other = lines.get("real", {}), lines.get(condition, {})
    return [(real[id], other[id]) for id in ids if id in real and id in other]


def _is(line: Line, answer: Sequence[str] | None) -> bool:
    return bool(answer) and score.is_correct(line.prediction, answer or ())


def _terms(line: Line) -> tuple[str, ...] | str:
    return tuple(line.parsed) if line.parsed is not None else score.normalise(line.prediction)


def clusters_of(lines: Sequence[Line]) -> list[list[str]]:
    """Patients of each line; those of both ECGs for the other ECG of a flip pair."""
    return [[*line.patient_ids, *(line.donor_patients if line.condition == "swap-flip" else ())] for line in lines]


def interval_of(values: Floats, lines: Sequence[Line], draws: int, seed: int) -> Interval:
    """Interval of a mean over lines of one condition; flip pairs are about two patients each (`robust_interval`)."""
    if lines[0].condition == "swap-flip":
        return robust_interval(values, clusters_of(lines))
    return cluster_interval(values, clusters_of(lines), draws, seed)


def right_answers(lines: Sequence[Line]) -> Floats:
    """1 for each right answer, 0 for each other `[n]`."""
    return flags([line.correct for line in lines])


def flags(values: Sequence[bool]) -> Floats:
    """Truth values as numbers."""
    return np.array(values, dtype=np.float64)
