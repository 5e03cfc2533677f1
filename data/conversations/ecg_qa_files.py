"""ECG-QA's files of questions: read, checked against their schema, and made rows."""

import json
from collections.abc import Iterator, Mapping
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

from data.conversations.rows import Row, question_row
from data.corpora.folder import whole_number
from data.corpora.ptbxl import VOLTAGE_CODES
from data.support.files import visible_files

Fields = dict[str, Any]  # of a question, as the file has them

QUESTION_TYPES = {
    "single-verify": 1,
    "single-choose": 1,
    "single-query": 1,
    "comparison_consecutive-verify": 2,
    "comparison_consecutive-query": 2,
    "comparison_irrelevant-verify": 2,
    "comparison_irrelevant-query": 2,
}  # and how many ECGs each is about

_FIELDS = {
    "template_id": int,
    "sample_id": int,
    "question_type": str,
    "attribute_type": str,
    "question": str,
    "answer": list,
    "ecg_id": list,
}
_WHERE = "see https://github.com/Jwoo5/ecg-qa, or pass only the sets and the version that are there"


def read_questions(folder: Path) -> Iterator[tuple[str, Fields]]:
    """Split and fields of each question below a version's folder."""
    for split in ("train", "valid", "test"):
        files = visible_files(folder / split, "*.json")
        if split == "train" and not files:
            raise ValueError(f"{folder / split}: no .json files of questions: {_WHERE}")
        for file in files:
            try:
                questions = json.loads(file.read_bytes())  # UTF-8, with or without a byte order mark
            except ValueError as error:
                raise ValueError(f"{file}: not valid JSON: {error}") from error
            if not isinstance(questions, list):
                raise ValueError(f"{file}: expected a list of questions, got {type(questions).__name__}")
            for index, question in enumerate(questions):
                _check(question, f"{file}: question {index}")
                yield split, question


def _check(question: object, where: str) -> None:
    if not isinstance(question, dict):
        raise ValueError(f"{where}: expected an object, got {type(question).__name__}")
    for field, wanted in _FIELDS.items():
        if field not in question:
            raise ValueError(f"{where}: no field {field!r}: download the file again")
        if not isinstance(question[field], wanted):
            raise ValueError(f"{where}: {field}: expected {wanted.__name__}, got {question[field]!r}")
    kind, ecgs = question["question_type"], question["ecg_id"]
    if kind not in QUESTION_TYPES:
        raise ValueError(f"{where}: question_type {kind!r} is unknown: expected one of {', '.join(QUESTION_TYPES)}")
    for ecg in ecgs:
        _record_id(ecg, where)
    if len(ecgs) != (count := QUESTION_TYPES[kind]):
        raise ValueError(f"{where}: ecg_id: {kind} is about {count} ECGs, got {ecgs}")
    if not question["answer"] or not all(isinstance(answer, str) for answer in question["answer"]):
        raise ValueError(f"{where}: answer: expected texts (['none'] for no finding), got {question['answer']}")


def _record_id(ecg: object, where: str = "") -> str:
    """A record's id: that of `1`, `1.0` (as pandas makes them), `"1"`, `"1.0"` and `"00001"` is `"1"`.

    Raises:
        ValueError: It is no such number. Begins with `where`, the file and the question.
    """
    if type(ecg) is int and ecg >= 0:  # as published, a million times
        return str(ecg)
    if isinstance(ecg, float | str):
        with suppress(ValueError):
            if (number := whole_number(str(ecg))) >= 0:
                return str(number)
    raise ValueError(f"{where}: ecg_id: {ecg!r} is no number of a record: write whole numbers, such as 1")


def row_of(prefix: str, question: Fields, patient_of: Mapping[str, str]) -> Row:
    """A question as a row; the patient of a recording that is not on disk is empty."""
    ecgs = [_record_id(ecg) for ecg in question["ecg_id"]]
    attributes = tuple(map(str, question.get("attribute") or ()))
    shared = _shared_row(
        question["question_type"],
        question["template_id"],
        question["attribute_type"],
        attributes,
        question["question"],
        tuple(question["answer"]),
    )
    patients = [patient_of.get(ecg, "") for ecg in ecgs]
    return {**shared, "id": f"{prefix}/{question['sample_id']}", "ecgs": ecgs, "patient_ids": patients}


@lru_cache(maxsize=1 << 16)
def _shared_row(
    kind: str, template: int, group: str, attributes: tuple[str, ...], question: str, answer: tuple[str, ...]
) -> Row:
    """A row without its ECGs. A question is asked about hundreds: a million rows share some thousands of these."""
    words = [word.casefold() for word in (*attributes, *answer)]
    voltage = any("voltage" in word for word in words) or not VOLTAGE_CODES.isdisjoint((*attributes, *answer))
    return question_row(
        id="",
        ecgs=[""] * QUESTION_TYPES[kind],
        patient_ids=[],
        question_type=kind,
        question=question,
        answer=answer,
        template_id=template,
        # Comparisons come without attributes. Those of a query are what its answer names: a key must not tell it.
        attribute="" if kind.endswith("query") else ", ".join(attributes),
        group=group,
        control="noise" if group == "noise" else "voltage" if voltage else "",
    )
