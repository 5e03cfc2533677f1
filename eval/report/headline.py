"""The first words of a report: what was asked and why, the verdict, and the three numbers it rests on."""

from pathlib import Path

from eval.report.parts import Fact, p_value, percent, points, span, words
from eval.scoring import verdict as rule
from eval.scoring.results import TEXT_ONLY, Report
from eval.scoring.verdict import LEAST_GAP, LEVEL, SENTENCES, Evidence, ModelVerdict, judge

DISCLAIMER = "Research use only. Not a medical device. Not for diagnosis or treatment."
VERDICTS = {  # in the order of docs/audit.md's scale, from least to most reading
    "ignores": "its answers do not follow the ECG",
    "brittle": "its answers do not follow the ECG, but get worse when it is taken away",
    "inconclusive": "there are too few answers, or too few valid ones, to tell",
    "partly": "its answers follow the ECG a little, or in some groups of findings only",
    "reads": "its answers follow the ECG",
}


def model_name(report: Report) -> str:
    """Last part of the model's folder."""
    return Path(report.about.model).name or report.about.model


def finding(report: Report) -> str:
    """The verdict in a few sentences, with the three numbers it rests on."""
    numbers = "; ".join(f"{fact.name} {fact.value} ({fact.detail})" for fact in facts(report))
    numbers = f"{numbers[0].upper()}{numbers[1:]}." if numbers else ""
    return " ".join(filter(None, [headline(report), *reasons(report), numbers]))


def headline(report: Report) -> str:
    """The verdict in a sentence."""
    if report.verdict is None:
        return "No verdict: it takes answers about real ECGs, to questions other than about noise."
    return SENTENCES[report.verdict.verdict]


def reasons(report: Report) -> list[str]:
    """Further sentences on the verdict: what it rests on, and why it is not another one."""
    if report.verdict is None:
        return []
    more = report.verdict.sentence.removeprefix(headline(report)).strip()
    return [text for text in (more, _why(report.verdict)) if text]


def purpose(report: Report) -> str:
    """Purpose of the audit, in three sentences for a reader who knows nothing of it."""
    names, other = report.overall.conditions, []
    if {"swap", "swap-flip", "swap-same"} & set(names):
        other.append("about other patients' ECGs")
    if set(names) - {"real", "swap", "swap-flip", "swap-same", TEXT_ONLY}:
        other.append("with the ECG altered or taken away")
    again = f", and the same questions {' and '.join(other)}" if other else ""
    return words("purpose", again=again)


def question_count(report: Report) -> str:
    """Number of questions and patients, in a sentence."""
    about, overall = report.about, report.overall
    text = f"{overall.n:,} held-out questions about {overall.patients:,} patients of {about.dataset}"
    if about.limit is not None and about.limit < about.available:
        text += " " + words("sample", about=about)
    return text


def facts(report: Report) -> list[Fact]:
    """The three numbers of the rule, with what `reads` asks of each; none without flip pairs."""
    if report.verdict is None or (pair := report.verdict.evidence.pair_numbers) is None:
        return []
    evidence, (gap, both, exchanged) = report.verdict.evidence, pair
    p = f"p = {p_value(evidence.p)}".replace("= <", "<")
    return [
        Fact(
            name="swap-flip gap",
            value=f"{points(gap)} points",
            detail=f"95 % {span(evidence.gap_interval, points)}; {pairs(evidence)}",
            needed=f"lower limit at least {points(LEAST_GAP, 0)}",
            holds=evidence.gap_interval.low >= LEAST_GAP,
            meaning=words("fact gap"),
        ),
        Fact(
            name="paired-flip accuracy",
            value=percent(both),
            detail=f"{percent(exchanged)} with the two ECGs exchanged; {p}",
            needed=f"p below {LEVEL:g}",
            holds=evidence.p is not None and evidence.p < LEVEL,
            meaning=words("fact paired"),
        ),
        Fact(
            name="over the most common answer",
            value=f"{points(evidence.over_majority)} points",
            detail=f"95 % {span(evidence.over_majority_interval, points)}; {evidence.questions:,} questions",
            needed="lower limit above 0",
            holds=evidence.over_majority_interval.low > 0,
            meaning=words("fact majority"),
        ),
    ]


def _why(verdict: ModelVerdict) -> str:
    """Why the verdict is not what the numbers of all questions suggest; empty where it is."""
    evidence = verdict.evidence
    if evidence.pairs == 0:
        return "No flip pair was asked: it takes the conditions `real` and `swap-flip`."
    whole = judge(evidence)
    if whole != verdict.verdict:
        if whole != "reads":
            return f"By all questions together the verdict would be `{whole}`: only these groups follow the ECG."
        clear = [g.verdict for g in verdict.groups.values() if g.counts and g.verdict != "inconclusive"]
        few = f"only {clear.count('reads')} of the {len(clear)} groups that can be judged read"
        return f"By all questions together the verdict would be `reads`, but {few}."
    if verdict.verdict != "inconclusive":
        return ""
    if evidence.pairs < rule.LEAST_PAIRS or evidence.patients < rule.LEAST_PATIENTS:
        least = f"{rule.LEAST_PAIRS} pairs of {rule.LEAST_PATIENTS} patients"
        return f"There are {pairs(evidence)}; it takes {least} to judge."
    if evidence.answered < rule.LEAST_ANSWERED:
        return ""  # the verdict's own sentence says so
    limits = span(evidence.gap_interval, points)
    return f"The interval of the gap, {limits} points, excludes neither reading nor guessing."


def pairs(evidence: Evidence) -> str:
    """How many flip pairs there are, of how many patients."""
    return f"{evidence.pairs:,} flip pairs of {evidence.patients:,} patients"
