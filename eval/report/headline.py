"""The first words of a report: what was asked and why, the verdict, and the three numbers it rests on."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from eval.report.parts import Fact, p_value, percent, points, span
from eval.scoring.numbers import TEXT_ONLY
from eval.scoring.verdict import (
    LEAST_ANSWERED,
    LEAST_GAP,
    LEAST_PAIRS,
    LEAST_PATIENTS,
    LEVEL,
    SENTENCES,
    Evidence,
    judge,
)
from eval.statistics import Interval

Report = Mapping[str, Any]

DISCLAIMER = "Research use only. Not a medical device. Not for diagnosis or treatment."
VERDICTS = {  # in the order of docs/audit.md's scale, from least to most reading
    "ignores": "its answers do not follow the ECG",
    "brittle": "its answers do not follow the ECG, but get worse when it is taken away",
    "inconclusive": "there are too few answers, or too few valid ones, to tell",
    "partly": "its answers follow the ECG a little, or in some groups of findings only",
    "reads": "its answers follow the ECG",
}


def model_name(report: Report) -> str:
    """What the model is called: the last part of its folder."""
    return Path(report["model"]).name or str(report["model"])


def finding(report: Report) -> str:
    """The verdict in a few sentences, with the three numbers it rests on."""
    return " ".join([headline(report), *reasons(report), *_three(report)])


def headline(report: Report) -> str:
    """The verdict in a sentence."""
    if report["verdict"] is None:
        return "No verdict: it takes answers about real ECGs, to questions other than about noise."
    return SENTENCES[report["verdict"]["verdict"]]


def reasons(report: Report) -> list[str]:
    """What else there is to say about the verdict, in sentences: what it rests on, and why it is not another one."""
    found = report["verdict"]
    if found is None:
        return []
    more = found["sentence"].removeprefix(headline(report)).strip()
    return [text for text in (more, _why(found)) if text]


def purpose(report: Report) -> str:
    """What was asked and why, in three sentences for a reader who knows nothing of it."""
    names, other = report["conditions"], []
    if {"swap", "swap-flip", "swap-same"} & set(names):
        other.append("about other patients' ECGs")
    if set(names) - {"real", "swap", "swap-flip", "swap-same", TEXT_ONLY}:
        other.append("with the ECG altered or taken away")
    again = f", and the same questions {' and '.join(other)}" if other else ""
    return (
        "A model that answers questions about ECGs can often be right without looking at them, because many "
        f"questions have a usual answer. So it was asked held-out questions about the ECGs they belong to{again}. If "
        "it reads the ECG, its answers follow the ECG; if it guesses from the question, they stay the same."
    )


def asked(report: Report) -> str:
    """What was asked, in a sentence."""
    text = f"{report['n']:,} held-out questions about {report['patients']:,} patients of {report['dataset']}"
    if report["limit"] is not None and report["limit"] < report["available"]:
        text += (
            f" (a sample of {report['limit']:,} of {report['available']:,}, evenly over templates, controls "
            "included: another mixture of questions than the whole set)"
        )
    return text


def facts(report: Report) -> list[Fact]:
    """The three numbers of the rule, with what `reads` asks of each; none without flip pairs."""
    found = report["verdict"]
    if found is None or found["pairs"] == 0:
        return []
    low, p, over = found["gap_interval"][0], found["p"], found["over_majority_interval"][0]
    return [
        Fact(
            "swap-flip gap",
            f"{points(found['gap'])} points",
            f"95 % {span(found['gap_interval'], points)}; {pairs(found)}",
            f"lower limit at least {points(LEAST_GAP, 0)}",
            low is not None and low >= LEAST_GAP,
            "How much more often the answer that is right about the real ECG is given when that ECG is shown than "
            "when the other ECG of the pair is. 100 points: always follows the ECG. 0: never looks.",
        ),
        Fact(
            "paired-flip accuracy",
            percent(found["paired_flip"]),
            f"{percent(found['exchanged'])} with the two ECGs exchanged; {f'p = {p_value(p)}'.replace('= <', '<')}",
            f"p below {LEVEL:g}",
            p is not None and p < LEVEL,
            "How often both answers of a pair are right. Who does not look is as often right when the two ECGs are "
            "exchanged; p is how easily the difference would arise by chance.",
        ),
        Fact(
            "over the most common answer",
            f"{points(found['over_majority'])} points",
            f"95 % {span(found['over_majority_interval'], points)}; {found['questions']:,} questions",
            "lower limit above 0",
            over is not None and over > 0,
            "How much more often the model is right with the real ECG than someone who gives each question its most "
            "common answer in training.",
        ),
    ]


def _three(report: Report) -> list[str]:
    told = [f"{fact.name} {fact.value} ({fact.detail})" for fact in facts(report)]
    return [text[0].upper() + text[1:] for text in ["; ".join(told) + "."] if told]


def _why(found: Report) -> str:
    """Why the verdict is not what the numbers of all questions suggest; empty where it is."""
    if found["pairs"] == 0:
        return "No flip pair was asked: it takes the conditions `real` and `swap-flip`."
    whole = _judged(found)
    if whole != found["verdict"]:
        if whole != "reads":
            return f"By all questions together the verdict would be `{whole}`: only these groups follow the ECG."
        known = [g["verdict"] for g in found["groups"].values() if g["counts"] and g["verdict"] != "inconclusive"]
        few = f"only {known.count('reads')} of the {len(known)} groups that can be judged read"
        return f"By all questions together the verdict would be `reads`, but {few}."
    if found["verdict"] != "inconclusive":
        return ""
    if found["pairs"] < LEAST_PAIRS or found["patients"] < LEAST_PATIENTS:
        return f"There are {pairs(found)}; it takes {LEAST_PAIRS} pairs of {LEAST_PATIENTS} patients to judge."
    if found["answered"] < LEAST_ANSWERED:
        return ""  # the verdict's own sentence says so
    return (
        f"The interval of the gap, {span(found['gap_interval'], points)} points, excludes neither reading nor guessing."
    )


def _judged(found: Report) -> str:
    """What the rule says of all questions together, before groups correct it."""
    numbers = {name: found[name] for name in Evidence.__dataclass_fields__}
    for name in ("gap_interval", "over_majority_interval"):
        numbers[name] = Interval(*(float("nan") if limit is None else limit for limit in numbers[name]))
    numbers["p"] = float("nan") if numbers["p"] is None else numbers["p"]
    return judge(Evidence(**numbers))


def pairs(found: Report) -> str:
    """How many flip pairs there are, of how many patients."""
    return f"{found['pairs']:,} flip pairs of {found['patients']:,} patients"
