"""Flip pairs for people to look at: one question, two ECGs, what is right about each and what the model said."""

from collections.abc import Sequence

import numpy as np

from data.conversations.rows import QuestionSet
from eval.report.strips import SECONDS, Example, ShownEcg
from eval.scoring.answers import is_correct
from eval.scoring.likelihood import probabilities
from eval.scoring.lines import Line, by_condition

LEADS = ("II", "V1", "V5")


def examples(questions: QuestionSet, lines: Sequence[Line], seed: int, count: int = 4) -> list[Example]:
    """Flip pairs to be shown, each of another group, with their ECGs: drawn at random, right answered or not."""
    by_name = by_condition(lines)
    real, flip = by_name.get("real", {}), by_name.get("swap-flip", {})
    rng = np.random.default_rng(seed)
    ids = sorted(id for id in real.keys() & flip.keys() if len(real[id].ecgs) == 1 and not real[id].control)
    by_group: dict[str, Example] = {}
    for i in rng.permutation(len(ids)):
        first, second = real[ids[i]], flip[ids[i]]
        if len(by_group) < count and first.group not in by_group:
            shown = [_shown(questions, first, first.ecgs[0]), _shown(questions, second, second.donors[0])]
            by_group[first.group] = Example(first.question, shown)
    return list(by_group.values())


def _shown(questions: QuestionSet, line: Line, record: str) -> ShownEcg:
    """Some leads of a recording in mV, as a page can hold them: 0.01 mV is less than the width of a pen's line."""
    ecg = questions.source[record]
    leads: list[str] = [lead for lead in LEADS if lead in ecg.leads] or list(ecg.leads[:3])
    signal = ecg.select(leads).crop(0, min(SECONDS, ecg.signal.shape[1] / ecg.fs)).signal
    p = None
    if line.options is not None and line.logp is not None:
        p = {option: round(float(share), 3) for option, share in zip(line.options, probabilities(line.logp))}
    return ShownEcg(
        record=record,
        fs=ecg.fs,
        leads={lead: [round(float(v), 2) for v in values] for lead, values in zip(leads, signal)},
        right=line.shown_answer or (),
        said=line.prediction,
        correct=line.shown_answer is not None and is_correct(line.prediction, line.shown_answer),
        p=p,
    )
