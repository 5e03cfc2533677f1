"""Scored answers: the lines of predictions.jsonl, one per question and condition, from which every number follows."""

import dataclasses
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, Self

from data.conversations.rows import QuestionSet, Row
from data.experiment.donors import Donor
from eval.scoring import answers as score
from eval.scoring.answers import Majority, Options, Outcome
from eval.scoring.jsonable import INLINE, Json


class Answer(NamedTuple):
    """Answer to one question under one condition."""

    text: str  # the answer
    # Log p of each of the question's options, or `None` where it has none or the responder does not score.
    logp: list[float] | None
    gold_logp: float | None  # log p of the right answer's text, or `None` where the responder does not score


class Planted(Json):
    """Parameter moved in a simulated recording, its value, and the direction in which "yes" lies."""

    parameter: str
    dose: float
    sign: int


@dataclass(frozen=True)
class Asked:
    """A question as it was asked under a condition."""

    row: Row  # the question, as it is about the real ECG
    options: Sequence[str] | None = None  # answers whose log-probabilities are asked for; None for an open question
    donor: Donor | None = None  # who gave the other ECG, if one was shown
    donor_patients: Sequence[str] = ()  # patients of that ECG
    planted: Planted | None = None  # what was moved in the recording, if anything


class Line(Json):
    """One scored answer."""

    condition: str  # what was done to the ECG (`data.experiment.conditions`), or "text-only" for a model without ECGs
    id: str  # question, the same under every condition
    question: str  # its words
    question_type: str  # its kind, such as "single-verify"
    template_id: int  # its template
    attribute: str  # the finding it asks about; may be empty
    group: str  # group of findings that belongs to
    control: str  # name of a control, which counts for no number; else empty
    patient_ids: Sequence[str]  # patients of the question's own ECGs
    ecgs: Sequence[str]  # these ECGs
    donors: Sequence[str]  # ECGs shown in their place
    donor_patients: Sequence[str]  # patients of these
    answer: Sequence[str]  # right answer about the question's own ECGs, a set of terms
    shown_answer: Sequence[str] | None  # right answer about the ECGs that were shown; None where it is not known
    prediction: str  # answer of the model
    options: Sequence[str] | None  # answers of a closed question; None for an open one, and where nothing was scored
    logp: Sequence[float] | None  # natural log of the probability of each option
    gold_logp: float | None  # the same of the right answer
    majority_right: bool  # whether the most common answer to this kind of question is right
    majority_by_question_right: bool  # whether the most common answer to this question is right
    planted: Planted | None = field(default=None, metadata=INLINE)  # what was moved, under the condition of that name
    parsed: Sequence[str] | None = None  # terms of the prediction; None where it is no answer
    outcome: Outcome = "unparsed"  # what became of it
    correct: bool = False  # whether it is right about the question's own ECGs


Lines = Mapping[str, Mapping[str, Line]]  # condition -> id of the question -> line


@dataclass(frozen=True)
class Key:
    """Key that answers are scored with, learned from a question set."""

    vocabulary: frozenset[str]  # every term that is an answer
    options: Options  # the options of closed questions
    majority_by_type: Majority  # most common answer of each kind of question
    majority_by_question: Majority  # most common answer of each question

    @classmethod
    def of(cls, questions: QuestionSet) -> Self:
        """The key to a question set; a `ValueError` where it has no training rows to learn from."""
        return cls(
            score.vocabulary([*questions.train, *questions.test]),
            score.options_by_question(questions.train),
            score.majority(questions.train),
            score.majority_by_question(questions.train),
        )


def line(condition: str, question: Asked, answer: Answer, key: Key) -> Line:
    """The scored line of one answer."""
    row, donor = question.row, question.donor
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
        answer=row["answer"],
        donors=[] if donor is None else donor.ecgs,
        donor_patients=question.donor_patients,
        shown_answer=row["answer"] if donor is None else donor.answer or None,
        prediction=answer.text,
        options=question.options,
        logp=answer.logp,
        gold_logp=answer.gold_logp,
        majority_right=key.majority_by_type(row) == right,
        majority_by_question_right=key.majority_by_question(row) == right,
        planted=question.planted,
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
