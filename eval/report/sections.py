"""The sections of a report, in order. What was not measured has no section; the words are those of `words.yaml`."""

from collections.abc import Collection

from eval.report.headline import VERDICTS, facts, pairs
from eval.report.instruments import INSTRUMENTS
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
    picture,
    points_span,
    words,
)
from eval.report.tables import comparison, conditions_of, corrected_p, main_table, without_text_only
from eval.scoring.results import NOISE, TEXT_ONLY, Report
from eval.scoring.verdict import LEAST_ANSWERED, LEAST_GAP, LEAST_PAIRS, LEAST_PATIENTS, LEVEL


def sections(report: Report, pictures: Collection[str] = ()) -> list[Section]:
    """Everything a report has to say, without title, verdict and examples; `pictures` are figures that were drawn."""
    measured = (_verdict, _conditions, _flips, _groups, _types, _findings, *INSTRUMENTS, _controls, _detectable)
    notes = report.about.notes
    all_sections = [
        *(section_of(report) for section_of in measured),
        Section("terms", "How to read this", [Terms(_terms(report))]),
        Section("limits", "What this does not show", [Items(_limits(report))]),
        Section("notes", "Notes on the questions", [Items(notes)]) if notes else None,
        Section("again", "How to repeat it", [Command(report.about.command), words("again")]),
    ]
    return [
        s._replace(parts=[p for p in s.parts if not isinstance(p, Picture) or p.name in pictures])
        for s in all_sections
        if s is not None
    ]


def _verdict(report: Report) -> Section | None:
    numbers = facts(report)
    if report.verdict is None or not numbers:
        return None
    evidence = report.verdict.evidence
    least = {"least_pairs": LEAST_PAIRS, "least_patients": LEAST_PATIENTS, "least_answered": 100 * LEAST_ANSWERED}
    enough = words("enough", **least, pairs=pairs(evidence), answered=percent(evidence.answered))
    if NOISE in report.verdict.groups:
        enough += " " + words("no noise")
    return Section("verdict", "The verdict", [Facts(numbers), enough, picture("gap", least_gap=100 * LEAST_GAP)])


def _conditions(report: Report) -> Section:
    names = conditions_of(report.overall)
    text = [words("conditions")]
    if swaps := [name for name in ("swap", "swap-flip", "swap-same") if name in names]:
        reader = "; ".join(words(f"reader of {name}") for name in swaps)
        text += [f"{reader[0].upper()}{reader[1:]}.", words("guesser")]
    if {"zero", "flat", "none", "mean", "noise", "phase"} & set(names):
        text.append(words("confusion"))
    parts: list[Part] = [main_table(report.overall), picture("conditions"), " ".join(text)]
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
    noise = report.verdict is not None and NOISE in report.verdict.groups
    note = [words("flips with noise")] if noise else []
    return Section("flips", "Flip pairs", [words("flips"), Table(head, rows), *note])


def _groups(report: Report) -> Section | None:
    if report.verdict is None or not facts(report):
        return None
    rows = []
    for name, group in report.verdict.groups.items():
        evidence = group.evidence
        gap, both = "–", "–"
        if pair := evidence.pair_numbers:
            gap, both = points_span(pair[0], evidence.gap_interval), f"{percent(pair[1])} ({percent(pair[2])})"
        verdict = f"`{group.verdict}`" + ("" if group.counts else " (not counted)")
        row = [name, verdict, f"{evidence.questions:,}", f"{evidence.pairs:,} ({evidence.patients:,})", gap, both]
        over = points_span(evidence.over_majority, evidence.over_majority_interval)
        rows.append([*row, p_value(group.p_corrected), over])
    head = ["group of findings", "verdict", "questions", "pairs (patients)", "swap-flip gap"]
    head += ["both right (exchanged)", "p, corrected", "over the most common answer"]
    return Section("groups", "By group of findings", [words("groups"), Table(head, rows, words=2)])


def _types(report: Report) -> Section:
    tested = any(corrected_p(block) is not None for block in report.by_type.values())
    table = comparison(report.overall, report.by_type, "kind of question")
    return Section("kinds", "By kind of question", [words("kinds"), table] if tested else [table])


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
    text = " ".join([words("findings"), *([words("findings swapped")] if swapped else [])])
    return Section("findings", "Finding by finding", [text, Table(head, rows, words=2)])


def _controls(report: Report) -> Section | None:
    if not report.controls:
        return None
    text = words("controls", but=", but for the table of findings" if report.findings else "")
    return Section("controls", "Controls", [text, comparison(report.overall, report.controls, "control")])


def _detectable(report: Report) -> Section | None:
    test = report.overall.swap_test
    if test is None or (least := test.smallest_detectable) is None:
        return None
    text = words("detectable", least=100 * least, level=100 * LEVEL)
    return Section("detectable", "The smallest difference that would have been seen", [text])


def _terms(report: Report) -> dict[str, str]:
    names = ["Real ECG", "Points", "95 % interval", "Most common answer", "Valid answer", "Answer changed"]
    names += ["Swap"] if "swap" in report.overall.conditions else []
    names += ["Flip pair", "p"] if report.overall.flips else []
    names += ["AUROC"] if report.findings or report.ladder else []
    names += ["Control"] if report.controls else []
    terms = {name: words(f"term {name}", draws=report.about.draws) for name in names}
    if report.verdict is not None:
        terms |= {f"Verdict `{name}`": f"{meaning}." for name, meaning in VERDICTS.items()}
    return terms


def _limits(report: Report) -> list[str]:
    limits = [words("limit questions", dataset=report.about.dataset), words("limit rightly"), words("limit intervals")]
    if report.overall.patients < LEAST_PATIENTS:
        limits.append(words("limit patients", patients=report.overall.patients))
    if TEXT_ONLY not in report.overall.conditions:
        limits.append(words("limit text-only"))
    return limits
