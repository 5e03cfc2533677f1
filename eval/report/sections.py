"""The sections of a report, in order, and their words. What was not measured has no section."""

from __future__ import annotations

from collections.abc import Collection

from eval.report import instruments
from eval.report.headline import VERDICTS, facts, pairs
from eval.report.parts import (
    Command,
    Facts,
    Items,
    Part,
    Picture,
    Section,
    Table,
    Terms,
    auroc_span,
    p_value,
    percent,
    percent_span,
    points_span,
)
from eval.report.tables import comparison, conditions_of, corrected_p, main_table, without_text_only
from eval.scoring.results import NOISE, TEXT_ONLY, Report
from eval.scoring.verdict import LEAST_ANSWERED, LEAST_GAP, LEAST_PAIRS, LEAST_PATIENTS, LEVEL


def sections(report: Report, pictures: Collection[str] = ()) -> list[Section]:
    """Everything a report has to say, without title, verdict and examples.

    Args:
        report: The numbers.
        pictures: Names of the figures that were drawn (`eval.report.figures.draw`).
    """
    all_sections = [
        _verdict(report),
        _conditions(report),
        _flips(report),
        _groups(report),
        _types(report),
        _findings(report),
        instruments.super_classes(report),
        instruments.likelihood(report),
        instruments.calibration(report),
        instruments.shapley(report),
        instruments.reports(report),
        instruments.dose(report),
        instruments.ladder(report),
        _controls(report),
        _detectable(report),
        Section("terms", "How to read this", [Terms(_terms(report))]),
        Section("limits", "What this does not show", [Items(_limits(report))]),
        Section("notes", "Notes on the questions", [Items(report.about.notes)]) if report.about.notes else None,
        _again(report),
    ]
    return [
        Section(s.key, s.title, [p for p in s.parts if not isinstance(p, Picture) or p.name in pictures])
        for s in all_sections
        if s is not None
    ]


# --- the sections -----------------------------------------------------------------------------------------------------


def _verdict(report: Report) -> Section | None:
    numbers = facts(report)
    if report.verdict is None or not numbers:
        return None
    evidence = report.verdict.evidence
    enough = (
        f"To be judged at all, it takes {LEAST_PAIRS} flip pairs of {LEAST_PATIENTS} patients and "
        f"{100 * LEAST_ANSWERED:.0f} % valid answers; here are {pairs(evidence)} and {percent(evidence.answered)}."
    )
    if NOISE in report.verdict.groups:
        enough += " Questions about noise are not judged: to see noise is not to read an ECG."
    picture = Picture(
        "gap.png",
        "Swap-flip gap with its 95 % interval, for all questions, each group and each kind of question; numbers in "
        "the tables below",
        f"Swap-flip gap with 95 % intervals. Solid line: no reading. Dashed line: the {100 * LEAST_GAP:.0f} points "
        "that the lower limit must reach.",
    )
    return Section("verdict", "The verdict", [Facts(numbers), enough, picture])


def _conditions(report: Report) -> Section:
    names = conditions_of(report.overall)
    text = [
        "Right means right about the ECG that the question belongs to, also where another one was shown: exactly the "
        "terms asked for, in any order. Answers that are empty, decline, or hold a term that answers no question of "
        "the set are not valid, and count as wrong."
    ]
    if {"swap", "swap-flip", "swap-same"} & set(names):
        expected = {
            "swap": "with another patient's ECG, a reader is right as often as the two ECGs happen to agree",
            "swap-flip": "with one whose right answer differs, hardly ever",
            "swap-same": "with one whose right answer is the same, as often as with the real ECG",
        }
        reader = "; ".join(words for name, words in expected.items() if name in names)
        text.append(f"{reader[0].upper()}{reader[1:]}. A guesser is right equally often with all of them.")
    if {"zero", "flat", "none", "mean", "noise", "phase"} & set(names):
        text.append(
            "Zeros, noise or no ECG are inputs that the model may never have seen: a drop there may be confusion, "
            "and says nothing about reading."
        )
    picture = Picture(
        "conditions.png",
        "Share of right answers with its 95 % interval under each condition, for all questions and for each kind; "
        "numbers in the table",
        "Right answers with 95 % intervals. Dashed line: the most common answer to each question, which needs no ECG "
        "and no model.",
    )
    parts: list[Part] = [main_table(report.overall), picture, " ".join(text)]
    if missing := without_text_only(report.overall):
        parts.append(missing)
    return Section("conditions", "What the model was given, and how often it was right", parts)


def _flips(report: Report) -> Section | None:
    kinds = report.by_type if len(report.by_type) > 1 else {}
    rows = [
        [
            name,
            f"{flips.n:,} ({flips.patients:,})",
            points_span(flips.gap, flips.gap_interval),
            percent_span(flips.paired_flip, flips.paired_flip_interval),
            percent(flips.exchanged),
            p_value(flips.p),
            percent_span(flips.follows, flips.follows_interval),
        ]
        for name, block in {"all": report.overall, **kinds}.items()
        if (flips := block.flips)
    ]
    if not rows:
        return None
    head = ["questions", "pairs (patients)", "swap-flip gap", "both right", "both, exchanged", "p"]
    head.append("right about the other ECG")
    text = (
        "The same question, asked about two patients' ECGs whose right answers differ. Words, prompt and length are "
        "the same, so only the ECG can tell the two apart."
    )
    noise = report.verdict is not None and NOISE in report.verdict.groups
    note = ["Questions about noise are among these numbers, but not among those of the verdict."] if noise else []
    return Section("flips", "Flip pairs", [text, Table(head, rows), *note])


def _groups(report: Report) -> Section | None:
    if report.verdict is None or not facts(report):
        return None
    rows = []
    for name, group in report.verdict.groups.items():
        evidence = group.evidence
        gap, both = "–", "–"
        if pair := evidence.pair_numbers:
            gap, both = points_span(pair[0], evidence.gap_interval), f"{percent(pair[1])} ({percent(pair[2])})"
        rows.append(
            [
                name,
                f"`{group.verdict}`" + ("" if group.counts else " (not counted)"),
                f"{evidence.questions:,}",
                f"{evidence.pairs:,} ({evidence.patients:,})",
                gap,
                both,
                p_value(group.p_corrected),
                points_span(evidence.over_majority, evidence.over_majority_interval),
            ]
        )
    head = ["group of findings", "verdict", "questions", "pairs (patients)", "swap-flip gap"]
    head += ["both right (exchanged)", "p, corrected", "over the most common answer"]
    text = "The same rule, for each group of findings by itself; p is corrected after Holm for the number of groups."
    return Section("groups", "By group of findings", [text, Table(head, rows, words=2)])


def _types(report: Report) -> Section:
    blocks, parts = report.by_type, []
    if any(corrected_p(block) is not None for block in blocks.values()):
        parts = ["p is that of the difference between the real ECG and another patient's, corrected after Holm."]
    return Section("kinds", "By kind of question", [*parts, comparison(report.overall, blocks, "kind of question")])


def _findings(report: Report) -> Section | None:
    if not report.findings:
        return None
    swapped = any(finding.auroc_swap is not None for finding in report.findings.values())
    rows = []
    for name, finding in report.findings.items():
        row = [name + (" (control)" if finding.control else ""), finding.group]
        row += [f"{finding.n:,} ({finding.positives:,})", auroc_span(finding.auroc, finding.interval)]
        row += ["–" if finding.auroc_swap is None else f"{finding.auroc_swap:.3f}"] * swapped
        rows.append([*row, percent(finding.balanced_accuracy)])
    head = ["finding", "group", "questions (with it)", "AUROC"]
    head += ["AUROC, another patient's ECG"] * swapped + ["balanced accuracy"]
    text = (
        "How well the probabilities of the model's answers tell ECGs with a finding from those without. Balanced "
        "accuracy is the mean of the shares recognised among both; it and the AUROC do not reward saying always the "
        "same."
        + " Another patient is one of like age and sex where these are known. They tell something of findings, too, so "
        "the AUROC with his ECG need not be 0.5." * swapped
    )
    return Section("findings", "Finding by finding", [text, Table(head, rows, words=2)])


def _controls(report: Report) -> Section | None:
    if not report.controls:
        return None
    but = ", but for the table of findings" if report.findings else ""
    text = (
        f"These questions are kept out of every number above{but}. They check the questions, not the model: where "
        "the encoder cannot see what is asked for, as one blind to gain cannot see voltage, more right answers than "
        "in the last column would mean that something else gives them away."
    )
    return Section("controls", "Controls", [text, comparison(report.overall, report.controls, "control")])


def _detectable(report: Report) -> Section | None:
    test = report.overall.swap_test
    if test is None or (least := test.smallest_detectable) is None:
        return None
    text = (
        f"With these questions and patients, a true difference of {100 * least:.1f} points between the real ECG and "
        f"another patient's would be found in four of five audits (power 80 %, level {100 * LEVEL:g} %). A smaller "
        "one may be missed."
    )
    return Section("detectable", "The smallest difference that would have been seen", [text])


def _terms(report: Report) -> dict[str, str]:
    names = report.overall.conditions
    terms = {
        "Real ECG": "the ECG that the question belongs to.",
        "Points": "difference of two shares in percent: from 60 % to 70 % are 10 points.",
        "95 % interval": "what the number could also have come to with other patients of the same kind: from "
        f"{report.about.draws:,} random resamples of the patients, since answers about one patient go together.",
        "Most common answer": "the answer given most often to a question in training. Who knows it needs no ECG; on "
        "unbalanced questions it is often right.",
        "Valid answer": "made of terms that answer some question of the set, right or wrong.",
        "Answer changed": "the answer is another than about the real ECG, whether right or wrong.",
    }
    if "swap" in names:
        terms["Swap"] = (
            "the question is asked about another patient's ECG. A model that is as often right does not read the ECG."
        )
    if report.overall.flips:
        terms["Flip pair"] = (
            "one question and two patients' ECGs whose right answers to it differ. A reader answers both rightly; a "
            "guesser gives the same answer twice and is right once."
        )
        terms["p"] = (
            "how often chance alone would give a result at least as clear. Corrected after Holm: made stricter, "
            "because several groups are looked at."
        )
    if report.findings or report.ladder:
        terms["AUROC"] = (
            "how often an ECG with a finding is given a higher probability of it than one without: 1 is perfect, 0.5 "
            "is chance."
        )
    if report.controls:
        terms["Control"] = "a question that checks the questions themselves. It counts for no verdict."
    if report.verdict is not None:
        terms |= {f"Verdict `{name}`": f"{meaning}." for name, meaning in VERDICTS.items()}
    return terms


def _limits(report: Report) -> list[str]:
    limits = [
        f"It is about these questions and about patients like those of this data set ({report.about.dataset}). Other "
        "hospitals, devices and questions are another audit.",
        "To read an ECG is not to read it rightly: a model can follow the ECG and still be wrong too often for any "
        "use.",
        "Intervals are about patients. How another training run of the same model would have come out is not among "
        "them.",
    ]
    if report.overall.patients < LEAST_PATIENTS:
        limits.append(f"With {report.overall.patients} patients, the intervals are too narrow to be trusted.")
    if TEXT_ONLY not in report.overall.conditions:
        limits.append("It was not compared with a model trained without ECGs.")
    return limits


def _again(report: Report) -> Section:
    files = (
        "`report.json` holds these numbers, and those of every attribute and template; `predictions.jsonl` holds "
        "every answer. The rule of the verdict was fixed in advance, in docs/audit.md. The same command gives the "
        "same numbers."
    )
    return Section("again", "How to repeat it", [Command(report.about.command), files])
