"""Questions about recordings that no model can be asked about: refused before anything is trained, or left out.

`load_questions` looks at the recordings' files; a run reads all samples before it builds anything
(`data.corpora.verdicts` says how). By default both refuse, and name what cannot be read. `"leave_out"` drops the
questions about it and says so in the notes, which go into the model card and the report of the audit.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from data.conversations.rows import QuestionSet, Row
from data.corpora.verdicts import counted, first_of, read_recordings, refusal

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
    rows: dict[str, list[Row]] = {
        part: [row for row in getattr(questions, part) if reasons.keys().isdisjoint(row["ecgs"])] for part in PARTS
    }
    lost = {words: len(getattr(questions, part)) - len(rows[part]) for part, words in PARTS.items()}
    counts = ", ".join(f"{count:,} {words}" for words, count in lost.items() if count) or "no question"
    was, it = ("was", "it") if len(reasons) == 1 else ("were", "them")
    note = (
        f"{counted(reasons)} that cannot be read {was} left out, and with {it} {counts}: {first_of(reasons)} "
        f"({next(iter(reasons.values()))})."
    )
    by_record: dict[str, dict[str, Any]] = {
        name: {record: value for record, value in getattr(questions, name).items() if record not in reasons}
        for name in ("patient_of", "traits", "fold_of", "leads")
    }
    return dataclasses.replace(questions, notes=[*questions.notes, note], **rows, **by_record)
