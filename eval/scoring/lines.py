"""Scored answers: the lines of predictions.jsonl, one per question and condition, from which every number follows."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eval.scoring import answers as score
from eval.scoring.answers import Majority, Options

if TYPE_CHECKING:
    from data.conversations.rows import QuestionSet, Row
    from data.experiment.donors import Donor
    from eval.audit.journal import Answer

Line = dict[str, Any]

_OF_A_ROW = ("id", "question", "question_type", "template_id", "attribute", "group", "control", "patient_ids", "ecgs")


@dataclass(frozen=True)
class Key:
    """What answers are scored with, learned from a question set.

    Attributes:
        vocabulary: Every term that is an answer.
        options: The options of closed questions.
        majority: Most common answer of each kind of question, and of each question.
    """

    vocabulary: frozenset[str]
    options: Options
    majority_by_type: Majority
    majority_by_question: Majority

    @classmethod
    def of(cls, questions: QuestionSet) -> Key:
        """The key to a question set.

        Raises:
            ValueError: It has no training rows to learn from.
        """
        return cls(
            score.vocabulary([*questions.train, *questions.test]),
            score.options_by_question(questions.train),
            score.majority(questions.train),
            score.majority_by_question(questions.train),
        )


def lines(
    condition: str,
    rows: Sequence[Row],
    answers: Sequence[Answer],
    options: Sequence[Sequence[str] | None],
    key: Key,
    donors: Sequence[Donor] | None = None,
    patient_of: Mapping[str, str] | None = None,
    more: Mapping[str, Mapping[str, Any]] | None = None,
) -> list[Line]:
    """The scored lines of the answers to some rows under a condition.

    Args:
        condition: Its name.
        rows: The questions, as they are about the real ECG.
        answers: One per row.
        options: Those the answers' log-probabilities belong to; None for an open question.
        key: What to score with.
        donors: Where other ECGs were given.
        patient_of: Then, the patient of each recording.
        more: Further fields of a line, by id of the row.
    """
    found = []
    for i, (row, answer, among) in enumerate(zip(rows, answers, options, strict=True)):
        right = score.answer_set(row["answer"])
        line: Line = {
            "condition": condition,
            **{name: row[name] for name in _OF_A_ROW},  # type: ignore[literal-required]
            "donors": donors[i].ecgs if donors is not None else [],
            "donor_patients": sorted({(patient_of or {})[ecg] for ecg in donors[i].ecgs}) if donors is not None else [],
            "answer": row["answer"],
            "shown_answer": row["answer"] if donors is None else donors[i].answer or None,
            "prediction": answer.text,
            "options": among,
            "logp": answer.logp,
            "gold_logp": answer.gold_logp,
            "majority_right": key.majority_by_type(row) == right,
            "majority_by_question_right": key.majority_by_question(row) == right,
            **((more or {}).get(row["id"], {})),
        }
        found.append(scored(line, key.vocabulary))
    return found


def scored(line: Line, vocabulary: frozenset[str]) -> Line:
    """The line with its prediction scored (again)."""
    parsed = score.parse(line["prediction"], vocabulary)
    return {
        **line,
        "parsed": None if parsed is None else sorted(parsed),
        "outcome": score.outcome(line["prediction"], line["answer"], vocabulary),
        "correct": score.is_correct(line["prediction"], line["answer"]),
    }


def read(path: Path) -> list[Line]:
    """The lines of a predictions.jsonl.

    Raises:
        ValueError: A line is no JSON, or lacks a field; names file and line.
    """
    found = []
    # Bytes have no line ends but \n and \r, which JSON escapes; text has more, and an answer may hold any.
    for number, text in enumerate(path.read_bytes().splitlines(), start=1):
        try:
            line = json.loads(text)
            missing = [name for name in (*_OF_A_ROW, "condition", "answer", "prediction") if name not in line]
        except (ValueError, TypeError) as error:
            raise ValueError(f"{path}, line {number}: not a JSON object: {error}") from error
        if missing:
            raise ValueError(f"{path}, line {number}: no field {missing[0]!r}: it was not written by this audit")
        found.append(line)
    return found
