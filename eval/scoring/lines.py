"""Scored answers: the lines of predictions.jsonl, one per question and condition, from which every number follows."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from data.conversations.rows import QuestionSet, Row
from data.experiment.donors import Donor
from eval.scoring import answers as score
from eval.scoring.answers import Majority, Options, Outcome
from eval.scoring.jsonable import INLINE, Json


class Answer(NamedTuple):
    """Answer to one question under one condition.

    Attributes:
        text: The answer.
        logp: log p of each of the question's options, or `None` where it has none or the responder does not score.
        gold_logp: log p of the right answer's text, or `None` where the responder does not score.
    """

    text: str
    logp: list[float] | None
    gold_logp: float | None


@dataclass(frozen=True)
class Planted(Json):
    """What was moved in a simulated recording: the parameter, its value, and the direction in which "yes" lies."""

    parameter: str
    dose: float
    sign: int


@dataclass(frozen=True)
class Asked:
    """A question as it was asked under a condition.

    Attributes:
        row: The question, as it is about the real ECG.
        options: Answers whose log-probabilities are asked for; None for an open question.
        donor: Who gave the other ECG, if one was shown.
        donor_patients: Patients of that ECG.
        planted: What was moved in the recording, if anything.
    """

    row: Row
    options: Sequence[str] | None = None
    donor: Donor | None = None
    donor_patients: Sequence[str] = ()
    planted: Planted | None = None


@dataclass(frozen=True)
class Line(Json):
    """One scored answer.

    Attributes:
        condition: What was done to the ECG (`data.experiment.conditions`), or "text-only" for a model without ECGs.
        id: Question, the same under every condition.
        question: Its words.
        question_type: Its kind, such as "single-verify".
        template_id: Its template.
        attribute: The finding it asks about; may be empty.
        group: Group of findings that belongs to.
        control: Name of a control, which counts for no number; else empty.
        patient_ids: Patients of the question's own ECGs.
        ecgs: These ECGs.
        donors: ECGs shown in their place.
        donor_patients: Patients of these.
        answer: Right answer about the question's own ECGs, a set of terms.
        shown_answer: Right answer about the ECGs that were shown; None where it is not known.
        prediction: Answer of the model.
        options: Answers of a closed question; None for an open one, and where nothing was scored.
        logp: Natural log of the probability of each option.
        gold_logp: The same of the right answer.
        majority_right: Whether the most common answer to this kind of question is right.
        majority_by_question_right: Whether the most common answer to this question is right.
        planted: What was moved in the recording, under the condition `planted`.
        parsed: Terms of the prediction; None where it is no answer.
        outcome: What became of it.
        correct: Whether it is right about the question's own ECGs.
    """

    condition: str
    id: str
    question: str
    question_type: str
    template_id: int
    attribute: str
    group: str
    control: str
    patient_ids: Sequence[str]
    ecgs: Sequence[str]
    donors: Sequence[str]
    donor_patients: Sequence[str]
    answer: Sequence[str]
    shown_answer: Sequence[str] | None
    prediction: str
    options: Sequence[str] | None
    logp: Sequence[float] | None
    gold_logp: float | None
    majority_right: bool
    majority_by_question_right: bool
    planted: Planted | None = field(default=None, metadata=INLINE)
    parsed: Sequence[str] | None = None
    outcome: Outcome = "unparsed"
    correct: bool = False


Lines = Mapping[str, Mapping[str, Line]]  # condition -> id of the question -> line


@dataclass(frozen=True)
class Key:
    """What answers are scored with, learned from a question set.

    Attributes:
        vocabulary: Every term that is an answer.
        options: The options of closed questions.
        majority_by_type: Most common answer of each kind of question.
        majority_by_question: Most common answer of each question.
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


def line(condition: str, asked: Asked, answer: Answer, key: Key) -> Line:
    """The scored line of one answer."""
    row, donor = asked.row, asked.donor
    right = score.answer_set(row["answer"])
    unscored = Line(
        condition=condition,
        id=row["id"],
        question=row["question"],
        question_type=row["question_type"],
        template_id=row["template_id"],
        attribute=row["attribute"],
        group=row["group"],
        control=row["control"],
        patient_ids=row["patient_ids"],
        ecgs=row["ecgs"],
        donors=[] if donor is None else donor.ecgs,
        donor_patients=asked.donor_patients,
        answer=row["answer"],
        shown_answer=row["answer"] if donor is None else donor.answer or None,
        prediction=answer.text,
        options=asked.options,
        logp=answer.logp,
        gold_logp=answer.gold_logp,
        majority_right=key.majority_by_type(row) == right,
        majority_by_question_right=key.majority_by_question(row) == right,
        planted=asked.planted,
    )
    return scored(unscored, key.vocabulary)


def scored(line: Line, vocabulary: Collection[str]) -> Line:
    """The line with its prediction scored (again)."""
    parsed = score.parse(line.prediction, vocabulary)
    return dataclasses.replace(
        line,
        parsed=None if parsed is None else sorted(parsed),
        outcome=score.outcome(line.prediction, line.answer, vocabulary),
        correct=score.is_correct(line.prediction, line.answer),
    )


def by_condition(lines: Sequence[Line]) -> dict[str, dict[str, Line]]:
    """Lines sorted into conditions, in the order in which they come."""
    sorted_lines: dict[str, dict[str, Line]] = {}
    for line in lines:
        sorted_lines.setdefault(line.condition, {})[line.id] = line
    return sorted_lines


def read(path: Path) -> list[Line]:
    """The lines of a predictions.jsonl.

    Raises:
        ValueError: A line is no JSON, or lacks a field; names file and line.
    """
    lines = []
    # Bytes have no line ends but \n and \r, which JSON escapes; text has more, and an answer may hold any.
    for number, text in enumerate(path.read_bytes().splitlines(), start=1):
        try:
            data = json.loads(text)
            if not isinstance(data, dict):
                raise TypeError(f"{type(data).__name__} in place of an object")
        except (ValueError, TypeError) as error:
            raise ValueError(f"{path}, line {number}: not a JSON object: {error}") from error
        try:
            lines.append(Line.from_json(data))
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: {error}: it was not written by this audit") from error
    return lines
