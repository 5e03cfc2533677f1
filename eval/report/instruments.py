"""Sections of a report on measures of the whole: likelihoods, planted doses, the ladder, the super-classes, reports."""

from __future__ import annotations

from data.experiment.conditions import CONDITIONS
from eval.report.parts import (
    Items,
    Part,
    Picture,
    Section,
    Table,
    auroc_span,
    percent,
    percent_span,
    points,
    signed_span,
    span,
)
from eval.report.tables import conditions_of, super_class_sentences, super_class_table
from eval.scoring.results import RUNGS, Report

PARAMETERS = {  # of simulated recordings: name, unit
    "heart_rate": ("heart rate", "per minute"),
    "pr_ms": ("PR interval", "ms"),
    "qrs_ms": ("QRS duration", "ms"),
    "st_mv": ("ST level", "mV"),
    "axis_deg": ("electrical axis", "degrees"),
    "gain": ("amplitude", "times normal"),
}


def super_classes(report: Report) -> Section | None:
    """PTB-XL's super-classes, asked about every held-out record."""
    if (numbers := report.super_classes) is None:
        return None
    about, *others = super_class_sentences(numbers)
    parts: list[Part] = [about, super_class_table(numbers), *others]
    return Section("super-classes", "PTB-XL's super-classes, beside a plain CNN", parts)


def likelihood(report: Report) -> Section | None:
    """Answers judged by their probabilities."""
    rows = []
    for name in conditions_of(report.overall):
        likeliest, lift = report.overall.conditions[name].by_likelihood, report.overall.lift.get(name)
        if likeliest or lift:
            right = f"{percent(likeliest.accuracy)} of {likeliest.n:,}" if likeliest else ""
            rows.append([CONDITIONS[name].label, right, signed_span(lift.mean, lift.interval) if lift else ""])
    if not rows:
        return None
    text = (
        "Judged by probabilities, not by what the model writes: how often the likeliest of a closed question's "
        "options is right; and how much likelier the right answer is with the real ECG than under a condition, as "
        "the natural logarithm of the ratio (0.7 is twice as likely). That shows reading even where it does not "
        "change an answer yet."
    )
    head = ["the model is given", "likeliest option right", "right answer likelier with the real ECG"]
    return Section("likelihood", "Probabilities of the answers", [text, Table(head, rows)])


def calibration(report: Report) -> Section | None:
    """Brier score and selective accuracy of yes/no answers."""
    if (certainty := report.overall.verify) is None:
        return None
    rows = [
        ["all" if share == "1" else f"surest {percent(float(share), 0)}", percent(right)]
        for share, right in certainty.selective.items()
    ]
    text = (
        f"Of {certainty.n:,} yes/no questions about the real ECG. Brier score {certainty.brier:.3f}: the mean squared "
        "distance between the probability of yes and the truth; 0 is perfect, 0.25 is what always saying 50 % gets. "
        "If the model knows what it knows, it is right more often among the answers it is surest of:"
    )
    return Section("calibration", "Does the model know when it is right?", [text, Table(["answers", "right"], rows)])


def shapley(report: Report) -> Section | None:
    """Shapley values of ECG and question."""
    if (values := report.shapley) is None:
        return None
    value = values.accuracy
    rows = [
        ["its own ECG", percent(value["both"]), percent(value["ecg"])],
        ["another patient's ECG", percent(value["question"]), percent(value["neither"])],
    ]
    text = (
        f"How often the likeliest option of {values.n:,} closed questions is right, with ECG and question each kept "
        "or exchanged for another. Of the difference between both kept and both exchanged, "
        f"{points(value['both'] - value['neither'])} points, the ECG brings {points(values.ecg)} and the question "
        f"{points(values.question)} (their Shapley values: the mean of what each adds alone and beside the other)."
    )
    table = Table(["", "its own question", "another question"], rows)
    return Section("shapley", "What ECG and question bring", [text, table])


def reports(report: Report) -> Section | None:
    """Reports the model wrote, compared with a reader's."""
    if not (results := report.reports):
        return None
    names = {"f1": "words shared (F1)", "rougeL": "ROUGE-L", "sentence_bleu": "BLEU, mean", "bleu": "BLEU, corpus"}
    names = {name: label for name, label in names.items() if name in next(iter(results.values())).scores}
    rows = []
    for condition, result in results.items():
        scores = [result.scores[name] for name in names]
        shares = [percent_span(s.value, s.interval) if s.interval else percent(s.value) for s in scores]
        rows.append([CONDITIONS[condition].label, f"{result.n:,}", *shares])
    text = (
        "The model was asked for the report of each recording, and what it wrote was compared with a reader's. Shared "
        'words say little about findings, since "ST elevation" and "no ST elevation" share most of theirs: look at '
        "what the real ECG adds to another patient's."
    )
    return Section("reports", "Reports", [text, Table(["the model is given", "reports", *names.values()], rows)])


def dose(report: Report) -> Section | None:
    """Answers about simulated recordings in which one parameter is moved."""
    if not report.dose_response:
        return None
    rows = []
    for name, response in report.dose_response.items():
        parameter, unit, question = dose_name(name)
        first, last = response.curve[0], response.curve[-1]
        rows.append(
            [
                f"{parameter}: {question}",
                f"{response.patients:,}",
                f"{first.dose:g} to {last.dose:g} {unit}".rstrip(),
                f"{percent(first.p_yes, 0)} to {percent(last.p_yes, 0)}",
                signed_span(response.correlation, response.interval),
            ]
        )
    text = (
        "One thing about simulated ECGs is moved in steps while all else stays. The correlation (Spearman, mean over "
        "patients) is 1 where the probability of yes moves as it should with every step, 0 where it does not follow, "
        "and negative where it moves the wrong way."
    )
    if any(name.startswith("gain: ") for name in report.dose_response):
        text += " An encoder that is blind to gain cannot follow the gain: its curve is expected to be flat."
    picture = Picture(
        "dose.png",
        "Probability of yes over the planted value, one panel for each parameter; numbers in the table",
        "Mean probability of yes. Shaded: where yes is right. A reader's curve is low outside and high inside.",
    )
    head = ["what is moved: question", "patients", "moved", "p(yes)", "correlation"]
    return Section("dose", "Does the answer follow a planted finding?", [text, Table(head, rows), picture])


def ladder(report: Report) -> Section | None:
    """Where a finding is lost between encoder and answer."""
    if (numbers := report.ladder) is None:
        return None
    rows = [
        [
            RUNGS[name],
            auroc_span(rung.auroc, rung.interval),
            "" if rung.change is None else signed_span(rung.change, rung.change_interval, 3),
        ]
        for name, rung in numbers.rungs.items()
    ]
    text = (
        "Where is a finding lost on its way through the model? How well it can be told at four places, on the same "
        f"{numbers.n:,} yes/no questions ({numbers.findings_in_headline} findings, {numbers.patients:,} patients): "
        f"by a linear probe, fitted to at most {numbers.max_train:,} training questions of a finding, and at last by "
        "the answer itself."
    )
    fraction = numbers.fraction_read
    if fraction is None:
        read = (
            "The encoder's features do not tell these findings from chance, so there is nothing to be read from them."
        )
    else:
        limits = span(numbers.fraction_interval, lambda value: f"{100 * value:.0f}")
        read = (
            f"The answers hold {percent(fraction, 0)} (95 % {limits}) of what the encoder's features tell above "
            "chance. More than 100 % is possible: a linear probe may miss what the model finds."
        )
    picture = Picture(
        "ladder.png",
        "AUROC at each place from encoder to answer, mean with its 95 % interval and each finding; numbers in the "
        "table",
        "AUROC from the encoder to the answer. Grey: single findings. A step down shows where signal is lost.",
    )
    parts: list[Part] = [text, Table(["told from", "AUROC", "change"], rows), picture, read]
    details = [f"An ECG's {numbers.representation}.", *numbers.notes]
    return Section("ladder", "From encoder to answer", [*parts, Items(details)])


def dose_name(name: str) -> tuple[str, str, str]:
    """Parameter, unit and finding of a name in `dose_response`."""
    parameter, question = name.split(": ", 1)
    return *PARAMETERS.get(parameter, (parameter.replace("_", " "), "")), question
