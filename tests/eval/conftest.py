"""A small set of questions whose every answer is known: what the responders of these tests are scored on."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest

from data.conversations.rows import QuestionSet, Row, question_row
from data.ecg import LEADS, Ecg
from eval.scoring.lines import Line

RHYTHMS = ("sinus rhythm", "atrial fibrillation", "bigeminal pattern (unknown origin, sv or ventricular)")


@dataclass
class Cohort:
    questions: QuestionSet
    rhythm: dict[str, str]  # of every record

    def answer(self, row: Row) -> list[str]:
        """What a perfect reader of the row's ECGs answers."""
        shown = [self.rhythm[record] for record in row["ecgs"]]
        match row["question_type"]:
            case "single-verify":
                return ["yes" if shown[0] == RHYTHMS[1] else "no"]
            case "single-query":
                return [shown[0]]
            case _:
                return sorted(set(shown))


@pytest.fixture(scope="session")
def cohort() -> Cohort:
    rng = np.random.default_rng(7)
    patients = [f"p{i:02d}" for i in range(60)]
    patient_of = {f"{patient}-{visit}": patient for patient in patients for visit in range(2)}
    rhythm = {record: RHYTHMS[rng.integers(3)] for record in patient_of}
    # Nothing here reads a signal, but its record number is in it, so that a fake model can.
    source = {
        record: Ecg(np.full((12, 4), i + 1, np.float32), 100, LEADS, record)
        for i, record in enumerate(sorted(patient_of))
    }
    made = Cohort(QuestionSet("tiny", source, "tiny", [], [], [], patient_of, ["Two questions were dropped."]), rhythm)

    def rows(records: list[str]) -> list[Row]:
        out = []
        for i, record in enumerate(records):
            other = records[(i + 2) % len(records)]  # the next patient's
            for template, kind, ecgs, question, attribute, control in (
                (1, "single-verify", [record], "Does this ECG show atrial fibrillation?", "atrial fibrillation", ""),
                (2, "single-query", [record], "What is the rhythm?", "", ""),
                (3, "comparison_irrelevant-query", [record, other], "Which rhythms do these ECGs show?", "rhythm", ""),
                (4, "single-verify", [record], "Does this ECG show high voltage?", "voltage", "voltage"),
            ):
                row = question_row(
                    id=f"{record}/{template}",
                    ecgs=ecgs,
                    patient_ids=[patient_of[e] for e in ecgs],
                    question_type=kind,
                    question=question,
                    answer=["no"],
                    template_id=template,
                    attribute=attribute,
                    group="voltage" if control else "rhythm",
                    control=control,
                )
                answer = made.answer(row) if not control else ["yes" if i % 2 else "no"]
                out.append(
                    question_row(**{k: v for k, v in row.items() if k not in ("messages", "answer")}, answer=answer)
                )
        return out

    records = sorted(patient_of)
    made.questions.train, made.questions.test = rows(records[:60]), rows(records[60:])
    return made


@pytest.fixture(scope="session")
def line_of():
    """Makes the scored line of a row that was asked under a condition."""

    def line(row: Row, condition: str, prediction: str) -> Line:
        unasked = dict.fromkeys(("shown_answer", "options", "logp", "gold_logp"))
        unasked |= {"donors": [], "donor_patients": [], "majority_right": False, "majority_by_question_right": False}
        correct = prediction.lower() == row["answer"][0]
        return Line.from_json({**row, **unasked, "condition": condition, "prediction": prediction, "correct": correct})

    return line
