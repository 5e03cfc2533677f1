"""ECG-QA on PTB-XL: questions about one ECG or two, with sets of answers (Oh et al., NeurIPS Datasets 2023).

Source: https://github.com/Jwoo5/ecg-qa (CC BY 4.0). Expected layout, for each set:

    root/ecgqa/ptbxl/{template,paraphrased}/{train,valid,test}/*.json    lists of questions

ECG-QA splits by patient, but not along PTB-XL's folds, which encoders are pretrained on. Here both must agree: a
training row comes from ECG-QA's `train` and its ECGs lie in training folds; a test row comes from `valid` or `test` and
its ECGs lie in test folds. What fits neither is dropped and counted in the notes.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

from data.conversations.rows import QuestionSet, Row, question_row
from data.corpora.ptbxl import VOLTAGE_CODES, PtbXl

QUESTION_TYPES = {
    "single-verify": 1,
    "single-choose": 1,
    "single-query": 1,
    "comparison_consecutive-verify": 2,
    "comparison_consecutive-query": 2,
    "comparison_irrelevant-verify": 2,
    "comparison_irrelevant-query": 2,
}  # and how many ECGs each is about

DERIVED = "ecgqa-derived"  # questions in ECG-QA's schema that are not ECG-QA

_FIELDS = {
    "template_id": int,
    "sample_id": int,
    "question_type": str,
    "attribute_type": str,
    "question": str,
    "answer": list,
    "ecg_id": list,
}
_ASK_REPORT = (
    "Write the report of this ECG.",
    "Describe this ECG.",
    "What does this ECG show?",
    "Interpret this ECG.",
    "Give the findings of this ECG as a report.",
)
_WHERE = "see https://github.com/Jwoo5/ecg-qa, or pass only the sets and the version that are there"


def load(
    root: Path | str,
    ptbxl: PtbXl | Path | str | None = None,
    *,
    sets: Sequence[str] = ("ecgqa", DERIVED),
    version: str = "template",
    train_folds: Collection[int] = tuple(range(1, 9)),
    test_folds: Collection[int] = (9,),
    voltage: bool = False,
    rate: int = 100,
) -> QuestionSet:
    """Load the questions whose ECGs are on disk, split so that no test patient was trained on.

    Rows about noise have `control="noise"` (noise can be filtered out of the records) and rows about voltage
    `control="voltage"`. The rows for the align stage ask for the report of each training record: the English report
    where there is one, else the sentences its labels make.

    Args:
        root: Folder that holds the sets.
        ptbxl: The recordings, or the folder of them; `root/ptbxl` when not given.
        sets: Folders of `root`, in ECG-QA's layout.
        version: `"template"` or `"paraphrased"`: the wording of the questions.
        train_folds: PTB-XL folds of training rows.
        test_folds: PTB-XL folds of test rows.
        voltage: Whether reports may speak of voltage: only true millivolts show it, to an encoder that keeps them.
        rate: Sampling rate at which the records of a folder are read, 100 or 500 Hz.

    Returns:
        Rows, recordings, and notes on what was dropped and why.

    Raises:
        ValueError: A folder is missing, a question breaks the schema (names file and index), or the folds overlap.
    """
    if both := sorted(set(train_folds) & set(test_folds)):
        raise ValueError(
            f"folds {both} are both in train_folds and in test_folds: a test patient must not be trained on"
        )
    if not isinstance(ptbxl, PtbXl):
        ptbxl = PtbXl(ptbxl or Path(root) / "ptbxl", rate)
    train: list[Row] = []
    test: list[Row] = []
    notes: list[str] = []
    for name in sets:
        dropped: Counter[str] = Counter()
        kept: dict[bool, list[Row]] = {True: [], False: []}
        for where, split, question in _questions(Path(root) / name / "ptbxl" / version):
            row = _row(f"{name}/{version}/{split}", question, where, ptbxl)
            reason = _reason_to_drop(row, split == "train", ptbxl, train_folds, test_folds)
            if reason:
                dropped[reason] += 1
            else:
                kept[split == "train"].append(row)
        train += kept[True]
        test += kept[False]
        what = f"{name} ({version})"
        if name == DERIVED:
            notes.append(f"{name} is NOT ECG-QA: its questions were derived from PTB-XL's labels in ECG-QA's schema.")
        notes.append(f"{what}: {len(kept[True])} training and {len(kept[False])} test questions.")
        notes += [f"{what}: {count} {reason}." for reason, count in sorted(dropped.items())]
    _check_unique(train + test)
    reports, english = _reports(ptbxl, train_folds, voltage)
    test_reports, _ = _reports(ptbxl, test_folds, voltage, from_labels=False)
    notes.append(
        f"Reports: {english} training records have an English report; for {len(reports) - english} others sentences "
        "were made from their labels."
    )
    if not voltage:
        notes.append("Statements about voltage were left out of the reports.")
    patient_of = {
        ecg: patient
        for row in (*train, *test, *reports, *test_reports)
        for ecg, patient in zip(row["ecgs"], row["patient_ids"])
    }
    shared = {p for row in train + reports for p in row["patient_ids"]} & {
        p for row in test for p in row["patient_ids"]
    }
    if shared:
        raise ValueError(
            f"{len(shared)} patients are in training and in test folds, such as {min(shared)}: mend strat_fold"
        )
    key = f"ptbxl {ptbxl.root.resolve()} {ptbxl.rate} Hz"
    traits = {record: _traits(ptbxl, record) for record in patient_of}
    return QuestionSet("+".join(sets), ptbxl, key, train, test, reports, patient_of, notes, traits, test_reports)


def _traits(ptbxl: PtbXl, record: str) -> dict[str, Any]:
    """What donors are matched on, as far as it is known."""
    known = {"corpus": "ptb-xl", "sex": ptbxl.sex[record], "age": ptbxl.age[record]}
    return {name: value for name, value in known.items() if value not in ("", None)}


def _questions(folder: Path) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """File and index, split, and fields of each question below a version's folder."""
    for split in ("train", "valid", "test"):
        files = sorted((folder / split).glob("*.json"))
        if split == "train" and not files:
            raise ValueError(f"{folder / split}: no .json files of questions: {_WHERE}")
        for file in files:
            try:
                questions = json.loads(file.read_text(encoding="utf-8"))
            except ValueError as error:
                raise ValueError(f"{file}: not valid JSON: {error}") from error
            if not isinstance(questions, list):
                raise ValueError(f"{file}: expected a list of questions, got {type(questions).__name__}")
            for index, question in enumerate(questions):
                where = f"{file}: question {index}"
                _check(question, where)
                yield where, split, question


def _check(question: object, where: str) -> None:
    if not isinstance(question, dict):
        raise ValueError(f"{where}: expected an object, got {type(question).__name__}")
    for field, kind in _FIELDS.items():
        if field not in question:
            raise ValueError(f"{where}: no field {field!r}: download the file again")
        if not isinstance(question[field], kind):
            raise ValueError(f"{where}: {field}: expected {kind.__name__}, got {question[field]!r}")
    kind_of_question = question["question_type"]
    if kind_of_question not in QUESTION_TYPES:
        raise ValueError(
            f"{where}: question_type {kind_of_question!r} is unknown: expected one of {', '.join(QUESTION_TYPES)}"
        )
    if len(question["ecg_id"]) != QUESTION_TYPES[kind_of_question]:
        raise ValueError(
            f"{where}: ecg_id: {kind_of_question} is about {QUESTION_TYPES[kind_of_question]} ECGs, "
            f"got {question['ecg_id']}"
        )
    if not question["answer"] or not all(isinstance(answer, str) for answer in question["answer"]):
        raise ValueError(f"{where}: answer: expected texts (['none'] for no finding), got {question['answer']}")


def _row(prefix: str, question: dict[str, Any], where: str, ptbxl: PtbXl) -> Row:
    ecgs = [str(ecg) for ecg in question["ecg_id"]]
    attributes = [str(attribute) for attribute in question.get("attribute") or ()]
    about = (*attributes, *question["answer"])
    control = "voltage" if any("voltage" in word or word in VOLTAGE_CODES for word in about) else ""
    return question_row(
        id=f"{prefix}/{question['sample_id']}",
        ecgs=ecgs,
        patient_ids=[ptbxl.patient_of.get(ecg, "") for ecg in ecgs],
        question_type=question["question_type"],
        question=question["question"],
        answer=question["answer"],
        template_id=question["template_id"],
        # Comparisons come without attributes. Those of a query are what its answer names: as a key they would tell it.
        attribute="" if question["question_type"].endswith("query") else ", ".join(attributes),
        group=question["attribute_type"],
        control="noise" if question["attribute_type"] == "noise" else control,
    )


def _reason_to_drop(
    row: Row, training: bool, ptbxl: PtbXl, train_folds: Collection[int], test_folds: Collection[int]
) -> str:
    """Why a row fits neither split, in words that follow a count; empty when it fits its own."""
    split = "training" if training else "test"
    if not all(ecg in ptbxl.fold_of for ecg in row["ecgs"]):
        return f"{split} questions dropped: their ECGs are not on disk"
    folds = {ptbxl.fold_of[ecg] for ecg in row["ecgs"]}
    if folds <= set(train_folds if training else test_folds):
        return ""
    if folds & set(train_folds) and folds & set(test_folds):
        return f"{split} questions dropped: they compare an ECG of a training fold with one of a test fold"
    if folds & set(test_folds if training else train_folds):
        return f"{split} questions dropped: their ECGs are in a {'test' if training else 'training'} fold"
    return f"{split} questions dropped: their ECGs are in a fold that is used for neither split"


def _check_unique(rows: list[Row]) -> None:
    repeated = [id for id, count in Counter(row["id"] for row in rows).items() if count > 1]
    if repeated:
        raise ValueError(f"sample_id is not unique: {len(repeated)} rows are named twice, such as {repeated[0]}")


def _reports(ptbxl: PtbXl, folds: Collection[int], voltage: bool, from_labels: bool = True) -> tuple[list[Row], int]:
    """Rows that ask for the report of each record in these folds, and how many are answered in a reader's own words.

    `from_labels` says whether records without such a report get sentences made from their labels.
    """
    rows, english = [], 0
    for record in ptbxl.records:
        if ptbxl.fold_of[record] not in folds:
            continue
        report = ptbxl.report(record, voltage=voltage)
        own = report is not None and report[1] == "en"
        made = ptbxl.statements(record, voltage=voltage) if from_labels else None
        text = report[0] if report is not None and own else made
        if text is None:
            continue
        english += own
        rows.append(
            question_row(
                id=f"report/{record}",
                ecgs=[record],
                patient_ids=[ptbxl.patient_of[record]],
                question_type="report",
                question=_ASK_REPORT[int(record) % len(_ASK_REPORT)],
                answer=[text],
            )
        )
    return rows, english
