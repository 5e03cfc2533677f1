"""Sections of a report on measures of the whole: likelihoods, planted doses, the ladder, the super-classes, reports."""

from data.experiment.conditions import CONDITIONS
from eval.report.parts import (
    Items,
    Section,
    Table,
    auroc_span,
    percent,
    percent_span,
    picture,
    points,
    signed_span,
    span,
    words,
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
    table = super_class_table(numbers)
    return Section("super-classes", "PTB-XL's super-classes, beside a plain CNN", [about, table, *others])


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
    head = ["the model is given", "likeliest option right", "right answer likelier with the real ECG"]
    return Section("likelihood", "Probabilities of the answers", [words("likelihood"), Table(head, rows)])


def calibration(report: Report) -> Section | None:
    """Brier score and selective accuracy of yes/no answers."""
    if (certainty := report.overall.verify) is None:
        return None
    rows = [
        ["all" if share == "1" else f"surest {percent(float(share), 0)}", percent(right)]
        for share, right in certainty.selective.items()
    ]
    text = words("calibration", certainty=certainty)
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
    difference = points(value["both"] - value["neither"])
    ecg, question = points(values.ecg), points(values.question)
    text = words("shapley", n=values.n, difference=difference, ecg=ecg, question=question)
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
    table = Table(["the model is given", "reports", *names.values()], rows)
    return Section("reports", "Reports", [words("reports"), table])


def dose(report: Report) -> Section | None:
    """Answers about simulated recordings in which one parameter is moved."""
    if not report.dose_response:
        return None
    rows = []
    for name, response in report.dose_response.items():
        parameter, unit, question = dose_name(name)
        first, last = response.curve[0], response.curve[-1]
        moved = f"{first.dose:g} to {last.dose:g} {unit}".rstrip()
        p_yes = f"{percent(first.p_yes, 0)} to {percent(last.p_yes, 0)}"
        correlation = signed_span(response.correlation, response.interval)
        rows.append([f"{parameter}: {question}", f"{response.patients:,}", moved, p_yes, correlation])
    text = words("dose")
    if any(name.startswith("gain: ") for name in report.dose_response):
        text += " " + words("dose of gain")
    head = ["what is moved: question", "patients", "moved", "p(yes)", "correlation"]
    return Section("dose", "Does the answer follow a planted finding?", [text, Table(head, rows), picture("dose")])


def ladder(report: Report) -> Section | None:
    """Where a finding is lost between encoder and answer."""
    if (numbers := report.ladder) is None:
        return None
    rows = []
    for name, rung in numbers.rungs.items():
        change = "" if rung.change is None else signed_span(rung.change, rung.change_interval, 3)
        rows.append([RUNGS[name], auroc_span(rung.auroc, rung.interval), change])
    read = words("ladder unread")
    if numbers.fraction_read is not None:
        limits = span(numbers.fraction_interval, lambda value: f"{100 * value:.0f}")
        read = words("ladder read", fraction=percent(numbers.fraction_read, 0), limits=limits)
    table = Table(["told from", "AUROC", "change"], rows)
    details = Items([f"An ECG's {numbers.representation}.", *numbers.notes])
    text = words("ladder", ladder=numbers)
    return Section("ladder", "From encoder to answer", [text, table, picture("ladder"), read, details])


def dose_name(name: str) -> tuple[str, str, str]:
    """Parameter, unit and finding of a name in `dose_response`."""
    parameter, question = name.split(": ", 1)
    return *PARAMETERS.get(parameter, (parameter.replace("_", " "), "")), question


INSTRUMENTS = (super_classes, likelihood, calibration, shapley, reports, dose, ladder)
