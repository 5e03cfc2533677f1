"""The numbers of a report, from scored answers (the lines of predictions.jsonl): no model is needed to repeat them.

A line is one question under one condition. Numbers are given for all ordinary questions, for each kind, group of
attributes, attribute and template, and for the controls apart from all of these.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eval.scoring import answers as score
from eval.scoring import text
from eval.scoring.verdict import Answers, Evidence, Finding, verdict
from eval.statistics import (
    Interval,
    auroc,
    auroc_interval,
    balanced_accuracy,
    cluster_interval,
    cluster_intervals,
    holm,
    mcnemar_p,
    patients_of,
    robust_interval,
    rounded,
    sign_flip_p,
    smallest_detectable_difference,
    spearman,
)

Line = Mapping[str, Any]
Lines = Mapping[str, Mapping[str, Line]]  # condition -> id of the question -> line
Numbers = dict[str, Any]

TEXT_ONLY = "text-only"  # lines of another model, trained without ECGs
COVERAGES = (0.25, 0.5, 0.75, 1.0)
LEAST_OF_A_CLASS = 5  # for an AUROC
NOISE = "noise"
REPORT = "report"  # type of the questions whose answer is a text
# Asked for one measure alone: as conditions like the others they would say nothing.
APART = ("planted", "question-swap", "both-swap")


def by_condition(lines: Sequence[Line]) -> dict[str, dict[str, Line]]:
    """Lines sorted into conditions, in the order in which they come."""
    found: dict[str, dict[str, Line]] = {}
    for line in lines:
        found.setdefault(line["condition"], {})[line["id"]] = line
    return found


def measure(lines: Lines, draws: int = 2000, seed: int = 0) -> Numbers:
    """All numbers of a report.

    Args:
        lines: Scored answers. Questions of `planted` recordings are a dose-response of their own.
        draws: Resamples of the intervals.
        seed: Of resamples and sign flips.

    Raises:
        ValueError: No ordinary question was asked.
    """
    asked = {
        condition: {id: line for id, line in told.items() if line["question_type"] != REPORT}
        for condition, told in lines.items()
        if condition not in APART
    }
    questions = {id: line for told in asked.values() for id, line in told.items()}
    ordinary = [id for id, line in questions.items() if not line["control"]]
    if not ordinary:
        raise ValueError(f"of {len(questions)} questions none is other than a control: there is no headline")

    def grouped(ids: Collection[str], key: Callable[[Line], Any]) -> dict[str, Numbers]:
        groups: dict[Any, list[str]] = defaultdict(list)
        for id in ids:
            groups[key(questions[id])].append(id)
        return {str(name): block(asked, groups[name], draws, seed) for name in sorted(groups) if name != ""}

    by_type = grouped(ordinary, lambda line: line["question_type"])
    _correct(by_type)
    controls = grouped(questions, lambda line: line["control"])
    found = {
        **block(asked, ordinary, draws, seed),
        "excluded_controls": list(controls),
        "by_type": by_type,
        "by_group": grouped(ordinary, lambda line: line["group"]),
        "by_attribute": grouped(ordinary, lambda line: line["attribute"]),
        "by_template": grouped(ordinary, lambda line: line["template_id"]),
        "controls": controls,
        "findings": findings(asked, draws, seed),
        "shapley": shapley(lines, ordinary),
        "dose_response": dose_response(lines.get("planted", {}), draws, seed),
        "reports": reports(lines, draws, seed),
    }
    judged = judge(asked, ordinary, draws, seed)
    return {"verdict": None if judged is None else verdict_numbers(judged), **found}


# --- one group of questions -------------------------------------------------------------------------------------------


def block(lines: Lines, ids: Sequence[str], draws: int, seed: int) -> Numbers:
    """The numbers of one group of questions."""
    told = {condition: [of[id] for id in ids if id in of] for condition, of in lines.items()}
    told = {condition: some for condition, some in told.items() if some}
    first = {id: next(of[id] for of in lines.values() if id in of) for id in ids}
    clusters = _clusters([first[id] for id in ids])
    whole = {c: _right(some) for c, some in told.items() if len(some) == len(ids) and c != "swap-flip"}
    columns = {
        "majority": _flags([line["majority_right"] for line in first.values()]),
        "majority_by_question": _flags([line["majority_by_question_right"] for line in first.values()]),
        **whole,
    }
    gaps = {name: whole["real"] - right for name, right in columns.items() if name != "real"} if "real" in whole else {}
    # One call for all: accuracies and differences see the same resampled patients.
    intervals = cluster_intervals(np.column_stack([*columns.values(), *gaps.values()]), clusters, draws, seed)
    limits = dict(zip([*columns, *(("gap", name) for name in gaps)], intervals))
    differences = {
        name: {"difference": rounded(gap.mean()), "interval": _limits(limits["gap", name]), "n": len(ids)}
        for name, gap in gaps.items()
    }
    for condition, some in told.items():
        if condition in whole:
            continue
        columns[condition] = _right(some)
        limits[condition] = _interval(columns[condition], some, draws, seed)
        if "real" in lines and all(line["id"] in lines["real"] for line in some):
            gap = _right([lines["real"][line["id"]] for line in some]) - columns[condition]
            interval = _interval(gap, some, draws, seed)
            differences[condition] = {
                "difference": rounded(gap.mean()), "interval": _limits(interval), "n": len(some),
            }  # fmt: skip
    numbers: Numbers = {
        "n": len(ids),
        "patients": len(patients_of(clusters)),
        "conditions": {
            condition: {
                "accuracy": rounded(columns[condition].mean()),
                "interval": _limits(limits[condition]),
                **outcomes(some),
                "by_likelihood": _by_likelihood(some),
            }
            for condition, some in told.items()
        },
        "majority": rounded(columns["majority"].mean()),
        "majority_by_question": rounded(columns["majority_by_question"].mean()),
        "majority_interval": _limits(limits["majority_by_question"]),
        "real_minus": {name: differences[name] for name in (*columns, *differences) if name in differences},
        "flips": flips(lines, ids, seed),
        "changed": changed(lines, ids),
        "lift": lift(lines, ids, draws, seed),
        "verify": verify(told.get("real", [])),
    }
    if "swap" in gaps:
        least = smallest_detectable_difference(gaps["swap"], clusters)
        numbers["smallest_detectable"] = None if np.isnan(least) else rounded(least)
        numbers["swap_p"] = sign_flip_p(gaps["swap"], clusters, seed=seed, alternative="two-sided")
        if numbers["patients"] == len(ids) == sum(map(len, clusters)):  # one answer of each patient: an exact test
            numbers["swap_mcnemar_p"] = mcnemar_p(int((gaps["swap"] > 0).sum()), int((gaps["swap"] < 0).sum()))
    return numbers


def outcomes(lines: Sequence[Line]) -> Numbers:
    """How the answers fall: right, wrong, or no valid answer at all, which counts as wrong."""
    counts = {name: sum(line["outcome"] == name for line in lines) for name in ("abstained", "empty", "unparsed")}
    return {"n": len(lines), "valid": rounded(1 - sum(counts.values()) / len(lines)), **counts}


def _by_likelihood(lines: Sequence[Line]) -> Numbers | None:
    """Accuracy of the likeliest option of closed questions; needs no words to be generated or understood."""
    closed = [line for line in lines if line["options"] is not None and line["logp"] is not None]
    if not closed:
        return None
    right = [score.is_correct(score.choice(line["options"], line["logp"]), line["answer"]) for line in closed]
    return {"accuracy": rounded(np.mean(right)), "n": len(closed)}


def flips(lines: Lines, ids: Sequence[str], seed: int) -> Numbers | None:
    """Answers to one question about two ECGs whose right answers differ."""
    pairs = _pairs(lines, ids)
    if not pairs:
        return None
    clusters = _clusters([flip for _, flip in pairs])
    answered = _answers(lines, [real["id"] for real, _ in pairs])
    both = (answered.real & answered.flip_follows).astype(float)
    exchanged = (answered.real_as_flip & answered.flip_still).astype(float)
    gap = answered.real.astype(float) - answered.flip_still
    follows = answered.flip_follows.astype(float)
    of_gap, of_both, of_follows = (robust_interval(values, clusters) for values in (gap, both, follows))
    return {
        "n": len(pairs),
        "patients": len(patients_of(clusters)),
        "gap": rounded(gap.mean()),
        "gap_interval": _limits(of_gap),
        "paired_flip": rounded(both.mean()),
        "paired_flip_interval": _limits(of_both),
        "exchanged": rounded(exchanged.mean()),
        "p": rounded(sign_flip_p(both - exchanged, clusters, seed=seed)),
        "follows": rounded(follows.mean()),
        "follows_interval": _limits(of_follows),
    }


def changed(lines: Lines, ids: Sequence[str]) -> dict[str, Numbers]:
    """How often the answer is another one than about the real ECG, whether right or wrong."""
    found = {}
    for condition, of in lines.items():
        both = [(lines["real"][id], of[id]) for id in ids if id in of and id in lines.get("real", {})]
        if condition in ("real", TEXT_ONLY) or not both:
            continue
        found[condition] = {"rate": rounded(np.mean([_said(a) != _said(b) for a, b in both])), "n": len(both)}
    return found


def lift(lines: Lines, ids: Sequence[str], draws: int, seed: int) -> dict[str, Numbers]:
    """Mean of log p(right answer | real ECG) - log p(right answer | this condition), in nats.

    The right answer is that about the real ECG under both. Continuous, so it shows reading that changes no answer yet.
    """
    found = {}
    for condition in ("swap", "swap-flip", "zero", "none"):
        of = lines.get(condition, {})
        both = [(lines["real"][id], of[id]) for id in ids if id in of and id in lines.get("real", {})]
        both = [(a, b) for a, b in both if a["gold_logp"] is not None and b["gold_logp"] is not None]
        if not both:
            continue
        values = np.array([a["gold_logp"] - b["gold_logp"] for a, b in both])
        interval = _interval(values, [b for _, b in both], draws, seed)
        found[condition] = {"mean": rounded(values.mean()), "interval": _limits(interval), "n": len(both)}
    return found


def verify(real: Sequence[Line]) -> Numbers | None:
    """Calibration of yes/no answers about the real ECG: Brier score, and accuracy among the most certain answers."""
    asked = [line for line in real if _margin(line) is not None and set(line["answer"]) <= {"yes", "no"}]
    if not asked:
        return None
    p_yes = np.array([_p_yes(line) for line in asked])
    is_yes = np.array([line["answer"] == ["yes"] for line in asked])
    right = (p_yes >= 0.5) == is_yes
    selective = score.selective_accuracy(np.maximum(p_yes, 1 - p_yes), right, COVERAGES)
    return {
        "n": len(asked),
        "brier": rounded(score.brier(p_yes, is_yes)),
        "selective": {f"{coverage:g}": rounded(value) for coverage, value in zip(COVERAGES, selective)},
    }


# --- measures of the whole --------------------------------------------------------------------------------------------


def findings(lines: Lines, draws: int, seed: int) -> dict[str, Numbers]:
    """AUROC and balanced accuracy of every finding that closed questions ask about, controls included.

    A yes/no question ranks recordings by log p(yes) - log p(no). Any other closed question ranks them by the
    probability of each of its options among all of them, and is named `attribute: option`.
    """
    scored: dict[str, dict[str, list[tuple[Line, float, bool]]]] = defaultdict(lambda: defaultdict(list))
    for condition in ("real", "swap"):
        for line in lines.get(condition, {}).values():
            if line["options"] is None or line["logp"] is None or len(line["ecgs"]) != 1 or not line["attribute"]:
                continue
            margin = _margin(line)
            if margin is not None:
                if set(line["answer"]) <= {"yes", "no"}:
                    scored[line["attribute"]][condition].append((line, margin, line["answer"] == ["yes"]))
                continue
            for option, p in zip(line["options"], score.probabilities(line["logp"])):
                name = f"{line['attribute']}: {option}"
                scored[name][condition].append((line, float(p), score.is_correct(option, line["answer"])))
    return {name: number for name in sorted(scored) if (number := _finding(scored[name], draws, seed)) is not None}


def _finding(scored: Mapping[str, list[tuple[Line, float, bool]]], draws: int, seed: int) -> Numbers | None:
    told = scored.get("real", [])
    positives = sum(present for _, _, present in told)
    if min(positives, len(told) - positives) < LEAST_OF_A_CLASS:
        return None
    values, present = np.array([value for _, value, _ in told]), np.array([p for _, _, p in told])
    verifies = _margin(told[0][0]) is not None
    threshold = 0.0 if verifies else 0.5
    found = {
        "n": len(told),
        "positives": positives,
        "group": told[0][0]["group"],
        "control": told[0][0]["control"],
        "auroc": rounded(auroc(values, present)),
        "interval": _limits(
            auroc_interval(values, present, _clusters([line for line, _, _ in told]), draws=draws, seed=seed)
        ),
        "balanced_accuracy": rounded(balanced_accuracy(values > threshold, present)),
    }
    other = scored.get("swap", [])
    if other and 0 < sum(p for _, _, p in other) < len(other):
        found["auroc_swap"] = rounded(auroc(np.array([v for _, v, _ in other]), np.array([p for _, _, p in other])))
    return found


def shapley(lines: Lines, ids: Sequence[str]) -> Numbers | None:
    """What ECG and question each add to the accuracy of the likeliest option: exact Shapley values of two players.

    A player is absent when another one of its kind stands in its place (another patient's ECG, a question about
    something else): the inputs stay such as the model knows. Options and right answer stay those of the row.
    """
    coalitions = {"both": "real", "question": "swap", "ecg": "question-swap", "neither": "both-swap"}
    if not all(condition in lines for condition in coalitions.values()):
        return None
    closed = [
        id
        for id in ids
        if all(id in lines[c] and lines[c][id]["logp"] is not None for c in coalitions.values())
        and lines["real"][id]["options"] is not None
    ]
    if not closed:
        return None
    value = {}
    for name, condition in coalitions.items():
        told = [lines[condition][id] for id in closed]
        value[name] = float(
            np.mean([score.is_correct(score.choice(line["options"], line["logp"]), line["answer"]) for line in told])
        )
    ecg = ((value["both"] - value["question"]) + (value["ecg"] - value["neither"])) / 2
    question = ((value["both"] - value["ecg"]) + (value["question"] - value["neither"])) / 2
    return {
        "n": len(closed),
        "accuracy": {name: rounded(v) for name, v in value.items()},
        "ecg": rounded(ecg),
        "question": rounded(question),
    }


def dose_response(planted: Mapping[str, Line], draws: int, seed: int) -> dict[str, Numbers]:
    """How the answer follows one parameter of a simulated recording that is moved while all else stays.

    Per patient, Spearman's correlation of the dose with log p(yes) - log p(no), signed so that 1 is what the question
    asks for; the mean over patients with its interval. A patient whose answers never move counts as 0.
    """
    curves: dict[str, dict[str, list[Line]]] = defaultdict(lambda: defaultdict(list))
    for line in planted.values():
        if _margin(line) is not None:
            curves[f"{line['parameter']}: {line['attribute']}"][line["patient_ids"][0]].append(line)
    found = {}
    for name, patients in sorted(curves.items()):
        followed, doses = [], defaultdict(list)
        for told in patients.values():
            told = sorted(told, key=lambda line: line["dose"])
            margins = [margin for line in told if (margin := _margin(line)) is not None]
            correlation = spearman([line["dose"] for line in told], margins)
            followed.append(0.0 if np.isnan(correlation) else correlation * told[0]["sign"])
            for line in told:
                doses[line["dose"]].append(line)
        interval = cluster_interval(followed, list(patients), draws, seed)
        found[name] = {
            "patients": len(patients),
            "correlation": rounded(np.mean(followed)),
            "interval": _limits(interval),
            "curve": [
                {
                    "dose": dose,
                    "p_yes": rounded(np.mean([_p_yes(line) for line in told])),
                    "right_answer": told[0]["answer"][0],
                }
                for dose, told in sorted(doses.items())
            ],
        }
    return found


def reports(lines: Lines, draws: int, seed: int) -> Numbers | None:
    """How much the reports a model writes have in common with those of a reader, about the real ECG and others."""
    told = {c: [line for line in of.values() if line["question_type"] == REPORT] for c, of in lines.items()}
    told = {condition: some for condition, some in told.items() if some}
    if not told:
        return None
    found: Numbers = {}
    for condition, some in told.items():
        scores = text.report_scores(
            [line["prediction"] for line in some], [". ".join(line["answer"]) for line in some], text.installed()
        )
        found[condition] = {
            "n": len(some),
            **{
                name: {
                    "value": rounded(value.value),
                    "interval": None
                    if value.each is None
                    else _limits(cluster_interval(value.each, _clusters(some), draws, seed)),
                    "settings": value.settings,
                }
                for name, value in scores.items()
            },
        }
    return found


# --- the verdict ------------------------------------------------------------------------------------------------------


def judge(lines: Lines, ids: Sequence[str], draws: int, seed: int) -> Finding | None:
    """The verdict on the answers to these questions; None without answers about the real ECG."""
    asked = [id for id in ids if id in lines.get("real", {})]
    if not asked:
        return None
    groups = [lines["real"][id]["group"] or lines["real"][id]["attribute"] or "other" for id in asked]
    if all(group == NOISE for group in groups):
        return None
    return verdict(_answers(lines, asked), groups, (NOISE,), draws, seed)


def verdict_numbers(found: Finding) -> Numbers:
    """A verdict as it stands in report.json."""
    return {
        "verdict": found.verdict,
        "sentence": found.sentence,
        **_evidence(found.evidence),
        "groups": {
            name: {
                "verdict": told,
                **_evidence(evidence),
                "p_corrected": _number(p),
                "counts": name not in found.excluded,
            }
            for name, (told, evidence, p) in found.groups.items()
        },
    }


def _evidence(evidence: Evidence) -> Numbers:
    return {
        "questions": evidence.questions,
        "pairs": evidence.pairs,
        "patients": evidence.patients,
        "answered": _number(evidence.answered),
        "gap": _number(evidence.gap),
        "gap_interval": _limits(evidence.gap_interval),
        "paired_flip": _number(evidence.paired_flip),
        "exchanged": _number(evidence.exchanged),
        "p": _number(evidence.p),
        "over_majority": _number(evidence.over_majority),
        "over_majority_interval": _limits(evidence.over_majority_interval),
        "breaks": _number(evidence.breaks),
    }


def _answers(lines: Lines, ids: Sequence[str]) -> Answers:
    """What the verdict looks at, of questions asked about the real ECG."""
    real, flip = [lines["real"][id] for id in ids], [lines.get("swap-flip", {}).get(id) for id in ids]
    return Answers(
        clusters=_clusters(real),
        pair_clusters=_clusters([line or real[i] for i, line in enumerate(flip)]),
        real=_right(real) > 0,
        answered=np.array([line["outcome"] in ("right", "wrong") for line in real]),
        majority=_flags([line["majority_by_question_right"] for line in real]) > 0,
        paired=np.array([line is not None for line in flip]),
        flip_still=np.array([line is not None and line["correct"] for line in flip]),
        flip_follows=np.array([_is(line, line["shown_answer"]) if line else False for line in flip]),
        real_as_flip=np.array([_is(a, b["shown_answer"]) if b else False for a, b in zip(real, flip)]),
        without={
            condition: _right([lines[condition][id] for id in ids]) > 0
            for condition in ("zero", "none")
            if all(id in lines.get(condition, {}) for id in ids)
        },
    )


def _correct(groups: Mapping[str, Numbers]) -> None:
    """Holm's correction of the p-values of real against swap, over kinds of question."""
    with_p = [numbers for numbers in groups.values() if "swap_p" in numbers]
    for numbers, corrected in zip(with_p, holm([numbers["swap_p"] for numbers in with_p])):
        numbers["swap_p_corrected"] = _number(corrected)


# --- small things -----------------------------------------------------------------------------------------------------


def _pairs(lines: Lines, ids: Sequence[str]) -> list[tuple[Line, Line]]:
    real, flip = lines.get("real", {}), lines.get("swap-flip", {})
    return [(real[id], flip[id]) for id in ids if id in real and id in flip]


def _is(line: Line, answer: Sequence[str]) -> bool:
    return bool(answer) and score.is_correct(line["prediction"], answer)


def _said(line: Line) -> Any:
    return tuple(line["parsed"]) if line["parsed"] is not None else score.normalise(line["prediction"])


def _margin(line: Line) -> float | None:
    if line["options"] is None or line["logp"] is None:
        return None
    return score.yes_margin(line["options"], line["logp"])


def _p_yes(line: Line) -> float:
    """Probability of yes against no: other options, such as "not sure", aside."""
    margin = _margin(line)
    assert margin is not None
    return float(1 / (1 + np.exp(-np.clip(margin, -50, 50))))


def _clusters(lines: Sequence[Line]) -> list[list[str]]:
    """Patients of each line; of one about the other ECG of a flip pair, those of both."""
    return [
        [*line["patient_ids"], *(line["donor_patients"] if line["condition"] == "swap-flip" else [])] for line in lines
    ]


def _interval(values: NDArray[np.float64], lines: Sequence[Line], draws: int, seed: int) -> Interval:
    """Of a mean over lines of one condition; flip pairs are about two patients each (`robust_interval` says why)."""
    if lines[0]["condition"] == "swap-flip":
        return robust_interval(values, _clusters(lines))
    return cluster_interval(values, _clusters(lines), draws, seed)


def _right(lines: Sequence[Line]) -> NDArray[np.float64]:
    return _flags([line["correct"] for line in lines])


def _flags(values: Sequence[bool]) -> NDArray[np.float64]:
    return np.array(values, dtype=np.float64)


def _number(value: float | None) -> float | None:
    return None if value is None or np.isnan(value) else rounded(value)


def _limits(interval: Interval) -> list[float | None]:
    return [_number(limit) for limit in interval]
