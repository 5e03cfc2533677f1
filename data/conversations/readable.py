"""Questions about recordings that no model can be asked about: refused before anything is trained, or left out.

`load_questions` looks at the recordings' files; a run reads all samples before it builds anything
(`data.corpora.verdicts` says how). By default both refuse, and name what cannot be read. `"leave_out"` drops the
questions about it and says so in the notes, which go into the model card and the report of the audit.
"""

import dataclasses
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TypeVar

from data.conversations.rows import QuestionSet, Row
from data.corpora.verdicts import counted, first_of, read_recordings, refusal

T = TypeVar("T")
UNREADABLE = ("refuse", "leave_out")  # what may be done about recordings that cannot be read
PARTS = {
    "train": "training questions",
    "test": "test questions",
    "reports": "training reports",
    "test_reports": "test reports",
}  # of a question set, and what notes call their rows


def records_of(questions: QuestionSet) -> list[str]:
    """Records that a question set is about, each once."""
    rows = (*questions.train, *questions.reports, *questions.test, *questions.test_reports)
    return list(dict.fromkeys(record for row in rows for record in row["ecgs"]))


def check_policy(unreadable: str) -> None:
    """Refuse, with a `ValueError`, a policy that is none."""
    if unreadable not in UNREADABLE:
        raise ValueError(f"unreadable must be one of {', '.join(UNREADABLE)}, got {unreadable!r}")


def readable_questions(
    questions: QuestionSet, unreadable: str, cache: Path | str | None = None, jobs: int | None = None
) -> QuestionSet:
    """The question set once all its recordings were read, without questions about those that cannot be.

    Raises:
        ValueError: There are such, and they are not to be left out; names them.
    """
    verdicts = read_recordings(questions.source, questions.source_key, records_of(questions), cache, jobs)
    reasons = {record: verdict.reason for record, verdict in verdicts.items() if verdict.reason}
    shared: dict[tuple[str, ...], tuple[str, ...]] = {}  # of 800,000 recordings most have the same leads
    leads = {record: shared.setdefault(verdict.leads, verdict.leads) for record, verdict in verdicts.items()}
    return without_unreadable(dataclasses.replace(questions, leads=leads), reasons, unreadable)


def without_unreadable(questions: QuestionSet, reasons: Mapping[str, str], unreadable: str) -> QuestionSet:
    """The question set without questions about some recordings; `reasons` says why, by record. A note counts them.

    Raises:
        ValueError: There are such, and the policy is `"refuse"`; names them.
    """
    check_policy(unreadable)
    if not reasons:
        return questions
    if unreadable == "refuse":
        raise ValueError(refusal(reasons, len(records_of(questions))))
    left = dataclasses.replace(
        questions,
        train=_about_others(questions.train, reasons),
        test=_about_others(questions.test, reasons),
        reports=_about_others(questions.reports, reasons),
        test_reports=_about_others(questions.test_reports, reasons),
        patient_of=_of_others(questions.patient_of, reasons),
        traits=_of_others(questions.traits, reasons),
        fold_of=_of_others(questions.fold_of, reasons),
        leads=_of_others(questions.leads, reasons),
    )
    lost = {words: len(getattr(questions, part)) - len(getattr(left, part)) for part, words in PARTS.items()}
    counts = ", ".join(f"{count:,} {words}" for words, count in lost.items() if count) or "no question"
    was, it = ("was", "it") if len(reasons) == 1 else ("were", "them")
    note = (
        f"{counted(reasons)} that cannot be read {was} left out, and with {it} {counts}: {first_of(reasons)} "
        f"({next(iter(reasons.values()))})."
    )
    return dataclasses.replace(left, notes=[*questions.notes, note])


def _about_others(rows: list[Row], records: Collection[str]) -> list[Row]:
    return [row for row in rows if not any(record in records for record in row["ecgs"])]


def _of_others(values: dict[str, T], records: Collection[str]) -> dict[str, T]:
    return {record: value for record, value in values.items() if record not in records}
