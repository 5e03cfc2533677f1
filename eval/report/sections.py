"""What a report says, in order, and in which words. What was not measured has no section."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from data.experiment.conditions import CONDITIONS, FAST
from eval.audit import super_classes
from eval.audit.ladder import RUNGS
from eval.report.headline import VERDICTS, Report, facts, pairs
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
    points,
    points_span,
    signed_span,
    span,
)
from eval.scoring.numbers import NOISE, TEXT_ONLY
from eval.scoring.verdict import LEAST_ANSWERED, LEAST_GAP, LEAST_PAIRS, LEAST_PATIENTS, LEVEL

BY_QUESTION = "most common answer to each question"
PARAMETERS = {  # of simulated recordings: name, unit
    "heart_rate": ("heart rate", "per minute"),
    "pr_ms": ("PR interval", "ms"),
    "qrs_ms": ("QRS duration", "ms"),
    "st_mv": ("ST level", "mV"),
    "axis_deg": ("electrical axis", "degrees"),
    "gain": ("amplitude", "times normal"),
}


def sections(report: Report, pictures: Collection[str] = ()) -> list[Section]:
    """Everything a report has to say, without title, verdict and examples.

    Args:
        report: As `eval.ablation.run` makes it.
        pictures: Names of the figures that were drawn (`eval.report.figures.draw`).
    """
    made = [
        _verdict(report),
        _conditions(report),
        _flips(report),
        _groups(report),
        _types(report),
        _findings(report),
        _super_classes(report),
        _likelihood(report),
        _calibration(report),
        _shapley(report),
        _reports(report),
        _dose(report),
        _ladder(report),
        _controls(report),
        _detectable(report),
        Section("terms", "How to read this", [Terms(_terms(report))]),
        Section("limits", "What this does not show", [Items(_limits(report))]),
        Section("notes", "Notes on the questions", [Items(report["notes"])]) if report["notes"] else None,
        _again(report),
    ]
    return [
        Section(s.key, s.title, [p for p in s.parts if not isinstance(p, Picture) or p.name in pictures])
        for s in made
        if s is not None
    ]


def conditions_of(block: Report) -> list[str]:
    """The conditions asked, in the order of `CONDITIONS`: what is to be compared first stands together."""
    return [name for name in CONDITIONS if name in block["conditions"]]


def labels_of(block: Report) -> dict[str, str]:
    """What tables and pictures call what was asked, a model of reference last."""
    labels = {name: CONDITIONS[name].label for name in conditions_of(block)}
    return labels | ({TEXT_ONLY: "(a model trained without ECGs)"} if TEXT_ONLY in block["conditions"] else {})


def main_table(block: Report) -> Table:
    """Right answers under each condition, of a report or of one of its groups, and what needs no ECG for reference."""
    rows = []
    for name, label in labels_of(block).items():
        told, change = block["conditions"][name], block["changed"].get(name)
        right, changed = percent_span(told["accuracy"], told["interval"]), percent(change["rate"]) if change else ""
        rows.append([label, f"{told['n']:,}", right, _gap(block, name), percent(told["valid"]), changed])
    right, n = percent_span(block["majority_by_question"], block["majority_interval"]), f"{block['n']:,}"
    rows.append([f"({BY_QUESTION})", n, right, _gap(block, "majority_by_question"), "", ""])
    right, label = percent(block["majority"]), "(most common answer to each kind of question)"
    rows.append([label, n, right, _gap(block, "majority"), "", ""])
    head = ["the model is given", "questions", "right answers", "real ECG minus this", "valid answers"]
    return Table([*head, "answer changed"], rows)


def without_text_only(block: Report) -> str | None:
    """How to get the row of reference that is missing, if it is."""
    if TEXT_ONLY in block["conditions"]:
        return None
    return (
        "The fairest reference is missing: a model trained alike, but without ECGs. Train one with "
        "`--train_condition none`, and give its folder to the audit with `--text_only DIR`."
    )


# --- the sections -----------------------------------------------------------------------------------------------------


def _verdict(report: Report) -> Section | None:
    told = facts(report)
    if not told:
        return None
    found = report["verdict"]
    enough = (
        f"To be judged at all, it takes {LEAST_PAIRS} flip pairs of {LEAST_PATIENTS} patients and "
        f"{100 * LEAST_ANSWERED:.0f} % valid answers; here are {pairs(found)} and {percent(found['answered'])}."
    )
    if NOISE in found["groups"]:
        enough += " Questions about noise are not judged: to see noise is not to read an ECG."
    picture = Picture(
        "gap.png",
        "Swap-flip gap with its 95 % interval, for all questions, each group and each kind of question; numbers in "
        "the tables below",
        f"Swap-flip gap with 95 % intervals. Solid line: no reading. Dashed line: the {100 * LEAST_GAP:.0f} points "
        "that the lower limit must reach.",
    )
    return Section("verdict", "The verdict", [Facts(told), enough, picture])


def _conditions(report: Report) -> Section:
    names = conditions_of(report)
    text = [
        "Right means right about the ECG that the question belongs to, also where another one was shown: exactly the "
        "terms asked for, in any order. Answers that are empty, decline, or hold a term that answers no question of "
        "the set are not valid, and count as wrong.",
    ]
    if {"swap", "swap-flip", "swap-same"} & set(names):
        expected = {
            "swap": "with another patient's ECG, a reader is right as often as the two ECGs happen to agree",
            "swap-flip": "with one whose right answer differs, hardly ever",
            "swap-same": "with one whose right answer is the same, as often as with the real ECG",
        }
        told = "; ".join(text for name, text in expected.items() if name in names)
        text.append(f"{told[0].upper()}{told[1:]}. A guesser is right equally often with all of them.")
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
    parts: list[Part] = [main_table(report), picture, " ".join(text)]
    if missing := without_text_only(report):
        parts.append(missing)
    return Section("conditions", "What the model was given, and how often it was right", parts)


def _flips(report: Report) -> Section | None:
    rows = []
    kinds = report["by_type"] if len(report["by_type"]) > 1 else {}
    for name, block in {"all": report, **kinds}.items():
        if told := block["flips"]:
            rows.append(
                [
                    name,
                    f"{told['n']:,} ({told['patients']:,})",
                    points_span(told["gap"], told["gap_interval"]),
                    percent_span(told["paired_flip"], told["paired_flip_interval"]),
                    percent(told["exchanged"]),
                    p_value(told["p"]),
                    percent_span(told["follows"], told["follows_interval"]),
                ]
            )
    if not rows:
        return None
    head = ["questions", "pairs (patients)", "swap-flip gap", "both right", "both, exchanged", "p"]
    head.append("right about the other ECG")
    text = (
        "The same question, asked about two patients' ECGs whose right answers differ. Words, prompt and length are "
        "the same, so only the ECG can tell the two apart."
    )
    noise = report["verdict"] is not None and NOISE in report["verdict"]["groups"]
    note = ["Questions about noise are among these numbers, but not among those of the verdict."] if noise else []
    return Section("flips", "Flip pairs", [text, Table(head, rows), *note])


def _groups(report: Report) -> Section | None:
    if report["verdict"] is None or not facts(report):
        return None
    rows = []
    for name, told in report["verdict"]["groups"].items():
        rows.append(
            [
                name,
                f"`{told['verdict']}`" + ("" if told["counts"] else " (not counted)"),
                f"{told['questions']:,}",
                f"{told['pairs']:,} ({told['patients']:,})",
                "–" if told["gap"] is None else points_span(told["gap"], told["gap_interval"]),
                "–" if (both := told["paired_flip"]) is None else f"{percent(both)} ({percent(told['exchanged'])})",
                p_value(told["p_corrected"]),
                points_span(told["over_majority"], told["over_majority_interval"]),
            ]
        )
    head = [
        "group of findings", "verdict", "questions", "pairs (patients)", "swap-flip gap", "both right (exchanged)",
        "p, corrected", "over the most common answer",
    ]  # fmt: skip
    text = "The same rule, for each group of findings by itself; p is corrected after Holm for the number of groups."
    return Section("groups", "By group of findings", [text, Table(head, rows, words=2)])


def _types(report: Report) -> Section:
    blocks, parts = report["by_type"], []
    if any("swap_p_corrected" in block for block in blocks.values()):
        parts = ["p is that of the difference between the real ECG and another patient's, corrected after Holm."]
    return Section("kinds", "By kind of question", [*parts, _comparison(report, blocks, "kind of question")])


def _comparison(report: Report, blocks: Mapping[str, Report], heading: str) -> Table:
    """One row per group of questions: right answers under the conditions that matter most."""
    names = [name for name in FAST if name in report["conditions"]]
    swapped = "swap" in report["real_minus"]
    tested = any("swap_p_corrected" in block for block in blocks.values())
    head = [heading, "questions (patients)", *(CONDITIONS[name].label for name in names)]
    head += ["real minus another patient's"] * swapped + ["p"] * tested + [BY_QUESTION]
    rows = []
    for name, block in blocks.items():
        row = [name, f"{block['n']:,} ({block['patients']:,})"]
        row += [percent(block["conditions"][c]["accuracy"]) if c in block["conditions"] else "–" for c in names]
        row += [_gap(block, "swap") or "–"] * swapped + [p_value(block.get("swap_p_corrected"))] * tested
        rows.append([*row, percent(block["majority_by_question"])])
    return Table(head, rows)


def _findings(report: Report) -> Section | None:
    if not report["findings"]:
        return None
    swapped = any("auroc_swap" in told for told in report["findings"].values())
    rows = []
    for name, told in report["findings"].items():
        row = [name + (" (control)" if told["control"] else ""), told["group"]]
        row += [f"{told['n']:,} ({told['positives']:,})", auroc_span(told["auroc"], told["interval"])]
        row += ["–" if (other := told.get("auroc_swap")) is None else f"{other:.3f}"] * swapped
        rows.append([*row, percent(told["balanced_accuracy"])])
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


def _super_classes(report: Report) -> Section | None:
    if not (told := report.get("super_classes")):
        return None
    about, *rest = super_classes.sentences(told)
    return Section(
        "super-classes", "PTB-XL's super-classes, beside a plain CNN", [about, super_classes.table(told), *rest]
    )


def _likelihood(report: Report) -> Section | None:
    rows = []
    for name in conditions_of(report):
        told, lift = report["conditions"][name]["by_likelihood"], report["lift"].get(name)
        if told or lift:
            rows.append(
                [
                    CONDITIONS[name].label,
                    f"{percent(told['accuracy'])} of {told['n']:,}" if told else "",
                    signed_span(lift["mean"], lift["interval"]) if lift else "",
                ]
            )
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


def _calibration(report: Report) -> Section | None:
    if not (told := report["verify"]):
        return None
    shares = {"all" if share == "1" else f"surest {percent(float(share), 0)}": share for share in told["selective"]}
    rows = [[name, percent(told["selective"][share])] for name, share in shares.items()]
    text = (
        f"Of {told['n']:,} yes/no questions about the real ECG. Brier score {told['brier']:.3f}: the mean squared "
        "distance between the probability of yes and the truth; 0 is perfect, 0.25 is what always saying 50 % gets. "
        "If the model knows what it knows, it is right more often among the answers it is surest of:"
    )
    return Section("calibration", "Does the model know when it is right?", [text, Table(["answers", "right"], rows)])


def _shapley(report: Report) -> Section | None:
    if not (told := report["shapley"]):
        return None
    value = told["accuracy"]
    rows = [
        ["its own ECG", percent(value["both"]), percent(value["ecg"])],
        ["another patient's ECG", percent(value["question"]), percent(value["neither"])],
    ]
    text = (
        f"How often the likeliest option of {told['n']:,} closed questions is right, with ECG and question each kept "
        "or exchanged for another. Of the difference between both kept and both exchanged, "
        f"{points(value['both'] - value['neither'])} points, the ECG brings {points(told['ecg'])} and the question "
        f"{points(told['question'])} (their Shapley values: the mean of what each adds alone and beside the other)."
    )
    table = Table(["", "its own question", "another question"], rows)
    return Section("shapley", "What ECG and question bring", [text, table])


def _reports(report: Report) -> Section | None:
    if not (told := report["reports"]):
        return None
    names = {"f1": "words shared (F1)", "rougeL": "ROUGE-L", "sentence_bleu": "BLEU, mean", "bleu": "BLEU, corpus"}
    names = {name: label for name, label in names.items() if name in next(iter(told.values()))}
    rows = [
        [
            CONDITIONS[condition].label,
            f"{scores['n']:,}",
            *(
                percent_span(told["value"], told["interval"]) if told["interval"] else percent(told["value"])
                for told in (scores[name] for name in names)
            ),
        ]
        for condition, scores in told.items()
    ]
    text = (
        "The model was asked for the report of each recording, and what it wrote was compared with a reader's. Shared "
        'words say little about findings, since "ST elevation" and "no ST elevation" share most of theirs: look at '
        "what the real ECG adds to another patient's."
    )
    return Section("reports", "Reports", [text, Table(["the model is given", "reports", *names.values()], rows)])


def _dose(report: Report) -> Section | None:
    if not report["dose_response"]:
        return None
    rows = []
    for name, told in report["dose_response"].items():
        parameter, unit, question = dose_name(name)
        first, last = told["curve"][0], told["curve"][-1]
        rows.append(
            [
                f"{parameter}: {question}",
                f"{told['patients']:,}",
                f"{first['dose']:g} to {last['dose']:g} {unit}".rstrip(),
                f"{percent(first['p_yes'], 0)} to {percent(last['p_yes'], 0)}",
                signed_span(told["correlation"], told["interval"]),
            ]
        )
    text = (
        "One thing about simulated ECGs is moved in steps while all else stays. The correlation (Spearman, mean over "
        "patients) is 1 where the probability of yes moves as it should with every step, 0 where it does not follow, "
        "and negative where it moves the wrong way."
    )
    if any(name.startswith("gain: ") for name in report["dose_response"]):
        text += " An encoder that is blind to gain cannot follow the gain: its curve is expected to be flat."
    picture = Picture(
        "dose.png",
        "Probability of yes over the planted value, one panel for each parameter; numbers in the table",
        "Mean probability of yes. Shaded: where yes is right. A reader's curve is low outside and high inside.",
    )
    head = ["what is moved: question", "patients", "moved", "p(yes)", "correlation"]
    return Section("dose", "Does the answer follow a planted finding?", [text, Table(head, rows), picture])


def _ladder(report: Report) -> Section | None:
    if not (told := report.get("ladder")):
        return None
    rows = [
        [
            RUNGS[name],
            auroc_span(rung["auroc"], rung["interval"]),
            "" if rung["change"] is None else signed_span(rung["change"], rung["change_interval"], 3),
        ]
        for name, rung in told["rungs"].items()
    ]
    text = (
        "Where is a finding lost on its way through the model? How well it can be told at four places, on the same "
        f"{told['n']:,} yes/no questions ({told['findings_in_headline']} findings, {told['patients']:,} patients): "
        f"by a linear probe, fitted to at most {told['max_train']:,} training questions of a finding, and at last by "
        "the answer itself."
    )
    fraction = told["fraction_read"]
    if fraction is None:
        read = (
            "The encoder's features do not tell these findings from chance, so there is nothing to be read from them."
        )
    else:
        limits = span(told["fraction_interval"], lambda value: f"{100 * value:.0f}")
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
    details = [f"An ECG's {told['representation']}.", *told["notes"]]
    return Section("ladder", "From encoder to answer", [*parts, Items(details)])


def _controls(report: Report) -> Section | None:
    if not report["controls"]:
        return None
    but = ", but for the table of findings" if report["findings"] else ""
    text = (
        f"These questions are kept out of every number above{but}. They check the questions, not the model: where "
        "the encoder cannot see what is asked for, as one blind to gain cannot see voltage, more right answers than "
        "in the last column would mean that something else gives them away."
    )
    return Section("controls", "Controls", [text, _comparison(report, report["controls"], "control")])


def _detectable(report: Report) -> Section | None:
    if (least := report.get("smallest_detectable")) is None:
        return None
    text = (
        f"With these questions and patients, a true difference of {100 * least:.1f} points between the real ECG and "
        f"another patient's would be found in four of five audits (power 80 %, level {100 * LEVEL:g} %). A smaller "
        "one may be missed."
    )
    return Section("detectable", "The smallest difference that would have been seen", [text])


def _terms(report: Report) -> dict[str, str]:
    names = report["conditions"]
    told = {
        "Real ECG": "the ECG that the question belongs to.",
        "Points": "difference of two shares in percent: from 60 % to 70 % are 10 points.",
        "95 % interval": "what the number could also have come to with other patients of the same kind: from "
        f"{report['draws']:,} random resamples of the patients, since answers about one patient go together.",
        "Most common answer": "the answer given most often to a question in training. Who knows it needs no ECG; on "
        "unbalanced questions it is often right.",
        "Valid answer": "made of terms that answer some question of the set, right or wrong.",
        "Answer changed": "the answer is another than about the real ECG, whether right or wrong.",
    }
    if "swap" in names:
        told["Swap"] = (
            "the question is asked about another patient's ECG. A model that is as often right does not read the ECG."
        )
    if report["flips"]:
        told["Flip pair"] = (
            "one question and two patients' ECGs whose right answers to it differ. A reader answers both rightly; a "
            "guesser gives the same answer twice and is right once."
        )
        told["p"] = (
            "how often chance alone would give a result at least as clear. Corrected after Holm: made stricter, "
            "because several groups are looked at."
        )
    if report["findings"] or report.get("ladder"):
        told["AUROC"] = (
            "how often an ECG with a finding is given a higher probability of it than one without: 1 is perfect, 0.5 "
            "is chance."
        )
    if report["controls"]:
        told["Control"] = "a question that checks the questions themselves. It counts for no verdict."
    if report["verdict"] is not None:
        told |= {f"Verdict `{name}`": f"{meaning}." for name, meaning in VERDICTS.items()}
    return told


def _limits(report: Report) -> list[str]:
    told = [
        f"It is about these questions and about patients like those of this data set ({report['dataset']}). Other "
        "hospitals, devices and questions are another audit.",
        "To read an ECG is not to read it rightly: a model can follow the ECG and still be wrong too often for any "
        "use.",
        "Intervals are about patients. How another training run of the same model would have come out is not among "
        "them.",
    ]
    if report["patients"] < LEAST_PATIENTS:
        told.append(f"With {report['patients']} patients, the intervals are too narrow to be trusted.")
    if TEXT_ONLY not in report["conditions"]:
        told.append("It was not compared with a model trained without ECGs.")
    return told


def _again(report: Report) -> Section:
    files = (
        "`report.json` holds these numbers, and those of every attribute and template; `predictions.jsonl` holds "
        "every answer. The rule of the verdict was fixed in advance, in docs/audit.md. The same command gives the "
        "same numbers."
    )
    return Section("again", "How to repeat it", [Command(report["command"]), files])


# --- small things -----------------------------------------------------------------------------------------------------


def _gap(block: Report, name: str) -> str:
    if name not in block["real_minus"]:
        return ""
    gap = block["real_minus"][name]
    return points_span(gap["difference"], gap["interval"])


def dose_name(name: str) -> tuple[str, str, str]:
    """What was moved, its unit, and the finding asked for, of a name in `dose_response`."""
    parameter, question = name.split(": ", 1)
    return *PARAMETERS.get(parameter, (parameter.replace("_", " "), "")), question
