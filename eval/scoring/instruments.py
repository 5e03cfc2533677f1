"""Measures of the whole that rest on probabilities, simulated recordings or written reports."""

from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np

from eval.scoring import answers as score
from eval.scoring import text
from eval.scoring.flips import clusters_of
from eval.scoring.likelihood import brier, likeliest_is_right, margin_of, p_yes, probabilities, selective_accuracy
from eval.scoring.lines import Line, Lines
from eval.scoring.results import Certainty, DosePoint, DoseResponse, FindingResult, ReportScores, Shapley, TextResult
from eval.statistics import auroc, auroc_interval, balanced_accuracy, cluster_interval, spearman

COVERAGES = (0.25, 0.5, 0.75, 1.0)
LEAST_OF_A_CLASS = 5  # for an AUROC
REPORT = "report"  # type of the questions whose answer is a text

Scored = tuple[Line, float, bool]  # line, its score for a finding, and whether the finding is there


def verify(real: Sequence[Line]) -> Certainty | None:
    """Calibration of yes/no answers about the real ECG: Brier score, and accuracy among the most certain answers."""
    lines = [line for line in real if margin_of(line) is not None and set(line.answer) <= {"yes", "no"}]
    if not lines:
        return None
    p = np.array([p_yes(line) for line in lines])
    is_yes = np.array([line.answer == ["yes"] for line in lines])
    selective = selective_accuracy(np.maximum(p, 1 - p), (p >= 0.5) == is_yes, COVERAGES)
    return Certainty(len(lines), brier(p, is_yes), {f"{c:g}": value for c, value in zip(COVERAGES, selective)})


def findings(lines: Lines, draws: int, seed: int) -> dict[str, FindingResult]:
    """AUROC and balanced accuracy of every finding that closed questions ask about, controls included.

    A yes/no question ranks recordings by log p(yes) - log p(no). Any other closed question ranks them by the
    probability of each of its options among all of them, and is named `attribute: option`.
    """
    scored: dict[str, dict[str, list[Scored]]] = defaultdict(lambda: defaultdict(list))
    for condition in ("real", "swap"):
        for line in lines.get(condition, {}).values():
            if line.options is None or line.logp is None or len(line.ecgs) != 1 or not line.attribute:
                continue
            margin = margin_of(line)
            if margin is not None:
                if set(line.answer) <= {"yes", "no"}:
                    scored[line.attribute][condition].append((line, margin, line.answer == ["yes"]))
                continue
            for option, p in zip(line.options, probabilities(line.logp)):
                name = f"{line.attribute}: {option}"
                scored[name][condition].append((line, float(p), score.is_correct(option, line.answer)))
    return {name: result for name in sorted(scored) if (result := _finding(scored[name], draws, seed)) is not None}


def _finding(scored: Mapping[str, list[Scored]], draws: int, seed: int) -> FindingResult | None:
    real, other = scored.get("real", []), scored.get("swap", [])
    positives = sum(present for _, _, present in real)
    if min(positives, len(real) - positives) < LEAST_OF_A_CLASS:
        return None
    first = real[0][0]
    values, present = np.array([value for _, value, _ in real]), np.array([p for _, _, p in real])
    clusters = clusters_of([line for line, _, _ in real])
    swapped = 0 < sum(p for _, _, p in other) < len(other)
    return FindingResult(
        n=len(real),
        positives=positives,
        group=first.group,
        control=first.control,
        auroc=auroc(values, present),
        interval=auroc_interval(values, present, clusters, draws=draws, seed=seed),
        balanced_accuracy=balanced_accuracy(values > (0.5 if margin_of(first) is None else 0.0), present),
        auroc_swap=auroc([v for _, v, _ in other], [p for _, _, p in other]) if swapped else None,
    )


def shapley(lines: Lines, ids: Sequence[str]) -> Shapley | None:
    """Accuracy that ECG and question each add to the likeliest option: exact Shapley values of two players.

    A player is absent when another one of its kind stands in its place (another patient's ECG, a question about
    something else): the inputs stay such as the model knows. Options and right answer stay those of the row.
    """
    coalitions = {"both": "real", "question": "swap", "ecg": "question-swap", "neither": "both-swap"}
    if not all(condition in lines for condition in coalitions.values()):
        return None
    coalition_lines = [lines[condition] for condition in coalitions.values()]
    answers = [[by_id[id] for by_id in coalition_lines] for id in ids if all(id in by_id for by_id in coalition_lines)]
    # One row for each closed question that was scored under all.
    right = [row for some in answers if None not in (row := [likeliest_is_right(line) for line in some])]
    if not right:
        return None
    value = dict(zip(coalitions, np.array(right, dtype=float).mean(axis=0).tolist()))
    ecg = ((value["both"] - value["question"]) + (value["ecg"] - value["neither"])) / 2
    question = ((value["both"] - value["ecg"]) + (value["question"] - value["neither"])) / 2
    return Shapley(len(right), value, ecg, question)


def dose_response(planted: Mapping[str, Line], draws: int, seed: int) -> dict[str, DoseResponse]:
    """How the answer follows one parameter of a simulated recording that is moved while all else stays.

    Per patient, Spearman's correlation of the dose with log p(yes) - log p(no), signed so that 1 is what the question
    asks for; the mean over patients with its interval. A patient whose answers never move counts as 0.
    """
    curves: dict[str, dict[str, list[tuple[float, Line]]]] = defaultdict(lambda: defaultdict(list))
    for line in planted.values():
        if line.planted is not None and margin_of(line) is not None:
            name = f"{line.planted.parameter}: {line.attribute}"
            curves[name][line.patient_ids[0]].append((line.planted.dose, line))
    return {name: _curve(patients, draws, seed) for name, patients in sorted(curves.items())}


def _curve(patients: Mapping[str, Sequence[tuple[float, Line]]], draws: int, seed: int) -> DoseResponse:
    correlations, by_dose = [], defaultdict(list)
    for doses in patients.values():
        doses = sorted(doses, key=lambda pair: pair[0])
        margins = [margin for _, line in doses if (margin := margin_of(line)) is not None]
        correlation = spearman([dose for dose, _ in doses], margins)
        sign = 0 if (moved := doses[0][1].planted) is None else moved.sign
        correlations.append(0.0 if np.isnan(correlation) else correlation * sign)
        for dose, line in doses:
            by_dose[dose].append(line)
    return DoseResponse(
        patients=len(patients),
        correlation=float(np.mean(correlations)),
        interval=cluster_interval(correlations, list(patients), draws, seed),
        curve=[
            DosePoint(dose, float(np.mean([p_yes(line) for line in lines])), lines[0].answer[0])
            for dose, lines in sorted(by_dose.items())
        ],
    )


def reports(lines: Lines, draws: int, seed: int) -> dict[str, ReportScores] | None:
    """How much the reports a model writes have in common with those of a reader, about the real ECG and others."""
    results = {}
    for condition, by_id in lines.items():
        if not (written := [line for line in by_id.values() if line.question_type == REPORT]):
            continue
        predictions, references = zip(*((line.prediction, ". ".join(line.answer)) for line in written))
        clusters, metrics = clusters_of(written), {}
        for name, (value, each, settings) in text.report_scores(predictions, references, text.installed()).items():
            interval = None if each is None else cluster_interval(each, clusters, draws, seed)
            metrics[name] = TextResult(value, interval, settings)
        results[condition] = ReportScores(len(written), metrics)
    return results or None
