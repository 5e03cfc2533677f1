"""The short of a report, for the model card and the chat page (`elm.saved.audit`)."""

import math
from collections.abc import Callable

from data.experiment.conditions import CONDITIONS, FAST
from elm.saved.audit import AuditSummary, Result
from eval.report.headline import headline
from eval.report.parts import p_value, percent, points, span, words
from eval.report.tables import BY_QUESTION, WITHOUT_ECGS
from eval.scoring.results import TEXT_ONLY, Report
from eval.scoring.verdict import Evidence
from eval.statistics import Interval


def summary(report: Report) -> AuditSummary:
    """The summary of a report."""
    verdict, dataset = report.verdict, report.about.dataset
    evidence = verdict.evidence if verdict is not None and verdict.evidence.pairs > 0 else None
    detail = f"Audited on {dataset}"
    if verdict is not None:
        detail += f": {verdict.evidence.pairs} pairs of ECGs"
    if evidence is not None and evidence.gap is not None:
        limits = span(evidence.gap_interval, lambda limit: f"{limit:.2f}")
        detail += f", swap-flip gap {evidence.gap:.2f} ({limits}; 1 reads, 0 guesses)"
    return AuditSummary(
        training=report.about.training,
        dataset=dataset,
        verdict=None if verdict is None else verdict.verdict,
        sentence=headline(report) if verdict is None else verdict.sentence,
        detail=detail,
        results=_results(report, evidence),
        card=_card(report, evidence),
    )


def _results(report: Report, evidence: Evidence | None) -> list[Result]:
    """Numbers for the hub, each of another kind: what is right without the ECG is no result of the model's."""
    results = []
    for condition in FAST:
        if result := report.overall.conditions.get(condition):
            kind = "accuracy" if condition == "real" else f"accuracy_{condition.replace('-', '_')}"
            label = f"right answers, given {CONDITIONS[condition].label}"
            results.append(Result(kind, label, result.accuracy, _finite(result.interval), result.n))
    if evidence is not None:
        over = "right answers, over the most common answer to each question"
        numbers = [
            ("swap_flip_gap", "swap-flip gap", evidence.gap, evidence.gap_interval, evidence.pairs),
            ("paired_flip", "both answers of a flip pair right", evidence.paired_flip, None, evidence.pairs),
            ("over_majority", over, evidence.over_majority, evidence.over_majority_interval, evidence.questions),
        ]
        for kind, label, value, limits, n in numbers:
            if value is not None:
                results.append(Result(kind, label, value, _finite(limits), n))
    return results


def _card(report: Report, evidence: Evidence | None) -> str:
    """The verdict, the three numbers it rests on, and right answers under the conditions that matter most."""
    overall = report.overall
    lines = [] if report.verdict is None else [f"**{report.verdict.sentence}**", ""]
    if evidence and (pair := evidence.pair_numbers):
        gap, both, exchanged = f"{points(pair[0])} points", percent(pair[1]), percent(pair[2])
        p = "unknown" if evidence.p is None else f"= {p_value(evidence.p)}".replace("= <", "<")
        over = f"{points(evidence.over_majority)} points{_limits(evidence.over_majority_interval)}"
        lines += [
            words("card gap", gap=gap + _limits(evidence.gap_interval), evidence=evidence),
            f"- Both answers of a pair right: {both}; with the two ECGs exchanged {exchanged}, p {p}.",
            f"- Over the {BY_QUESTION}: {over}.",
            "",
        ]
    labels = {name: CONDITIONS[name].label for name in FAST} | {TEXT_ONLY: WITHOUT_ECGS}
    results = {label: overall.conditions[name] for name, label in labels.items() if name in overall.conditions}
    shares = [(label, result.accuracy, result.interval) for label, result in results.items()]
    shares.append((f"({BY_QUESTION})", overall.majority_by_question, overall.majority_interval))
    lines += ["| the model is given | right about the question's own ECG |", "|---|---|"]
    for label, share, limits in shares:
        lines.append(f"| {label} | {percent(share)}{_limits(limits, lambda limit: f'{100 * limit:.1f}')} |")
    about = f"{overall.n:,} questions about {overall.patients:,} held-out patients"
    if report.about.limit is not None:
        about += f", a sample of {report.about.available:,}"
    return "\n".join([*lines, "", f"{about}. Intervals are 95 %, by patient."])


def _limits(limits: Interval, in_words: Callable[[float], str] = points) -> str:
    """An interval in brackets; nothing where there is none."""
    return "" if _finite(limits) is None else f" ({span(limits, in_words)})"


def _finite(limits: Interval | None) -> list[float] | None:
    return None if limits is None or math.isnan(limits.low) or math.isnan(limits.high) else list(limits)
