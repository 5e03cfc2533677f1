"""Flip pairs for people to look at: one question, two ECGs, what is right about each and what the model said."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from eval.scoring.answers import is_correct, probabilities
from eval.scoring.numbers import by_condition

if TYPE_CHECKING:
    from data.conversations.rows import QuestionSet
    from eval.scoring.lines import Line

STRIP_SECONDS = 5.0
LEADS = ("II", "V1", "V5")


def examples(questions: QuestionSet, lines: Sequence[Line], seed: int, count: int = 4) -> list[dict[str, Any]]:
    """Flip pairs to be shown, each of another group, with their ECGs: drawn at random, right answered or not."""
    told = by_condition(lines)
    real, flip = told.get("real", {}), told.get("swap-flip", {})
    rng = np.random.default_rng(seed)
    ids = sorted(id for id in real.keys() & flip.keys() if len(real[id]["ecgs"]) == 1 and not real[id]["control"])
    found: dict[str, dict[str, Any]] = {}
    for i in rng.permutation(len(ids)):
        pair = real[ids[i]], flip[ids[i]]
        if len(found) == count or pair[0]["group"] in found:
            continue
        found[pair[0]["group"]] = {
            "question": pair[0]["question"],
            "ecgs": [
                {
                    **_strips(questions, record),
                    "right": line["shown_answer"],
                    "said": line["prediction"],
                    "correct": is_correct(line["prediction"], line["shown_answer"]),
                    "p": None
                    if line["logp"] is None
                    else {o: round(float(p), 3) for o, p in zip(line["options"], probabilities(line["logp"]))},
                }
                for line, record in zip(pair, (pair[0]["ecgs"][0], pair[1]["donors"][0]))
            ],
        }
    return list(found.values())


def _strips(questions: QuestionSet, record: str) -> dict[str, Any]:
    """Some leads of a recording in mV, as a page can hold them: 0.01 mV is less than the width of a pen's line."""
    ecg = questions.source[record]
    leads: list[str] = [lead for lead in LEADS if lead in ecg.leads] or list(ecg.leads[:3])
    signal = ecg.select(leads).crop(0, min(STRIP_SECONDS, ecg.signal.shape[1] / ecg.fs)).signal
    return {
        "record": record,
        "fs": ecg.fs,
        "leads": {lead: [round(float(v), 2) for v in values] for lead, values in zip(leads, signal)},
    }
