"""ECG-QA: questions about one ECG or two of PTB-XL or MIMIC-IV-ECG, with sets of answers (Oh et al., NeurIPS 2023).

Source: https://github.com/Jwoo5/ecg-qa (CC BY 4.0), release 1.0.2. Expected layout, for each set:

    root/ecgqa/{ptbxl,mimic-iv-ecg}/{template,paraphrased}/{train,valid,test}/*.json    lists of questions
    root/ptbxl, root/mimic-iv-ecg                                                      the recordings, if not elsewhere

A question names its ECGs by PTB-XL's `ecg_id` or MIMIC-IV-ECG's `study_id`. Both wordings ask the same questions about
the same ECGs, sample by sample.

ECG-QA splits by patient, but not along PTB-XL's folds, which encoders are pretrained on: of its 3,214 test ECGs 2,324
lie in folds 1-8. By default both must agree: a training row comes from ECG-QA's `train` and its ECGs lie in training
folds; a test row comes from `valid` or `test` and its ECGs lie in test folds. What fits neither is dropped and counted
in the notes.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from data.conversations.reports import check_kinds, find_reports
from data.conversations.rows import QuestionSet, Row, question_row
from data.conversations.super_classes import super_class_rows
from data.corpora.mimic_iv_ecg import MimicIvEcg
from data.corpora.ptbxl import TRAIN_FOLDS, VOLTAGE_CODES, PtbXl
from data.support.translate import translate

QUESTION_TYPES = {
    "single-verify": 1,
    "single-choose": 1,
    "single-query": 1,
    "comparison_consecutive-verify": 2,
    "comparison_consecutive-query": 2,
    "comparison_irrelevant-verify": 2,
    "comparison_irrelevant-query": 2,
}  # and how many ECGs each is about

SOURCES = ("ptbxl", "mimic-iv-ecg")
SPLITS = ("folds+own", "folds", "own")
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


@dataclass(frozen=True)
class _Split:
    """Which questions are trained on and which are asked.

    Attributes:
        kind: One of `SPLITS`.
        fold_of: PTB-XL's fold of each ECG.
        train_folds: Folds of training rows.
        test_folds: Folds of test rows.
        held_out: ECG-QA's split that is asked when its own counts alone.
    """

    kind: str
    fold_of: dict[str, int]
    train_folds: Collection[int]
    test_folds: Collection[int]
    held_out: str

    def place(self, row: Row, own: str) -> tuple[bool, str]:
        """Whether a row of ECG-QA's split `own` is for training, and why it is for nothing, in words after a count."""
        if self.kind == "own":
            if own in ("train", self.held_out):
                return own == "train", ""
            return False, f"questions of ECG-QA's own {own} split left out"
        folds = {self.fold_of[ecg] for ecg in row["ecgs"]}
        into = own == "train" if self.kind == "folds+own" else not folds & set(self.test_folds)
        split = {"folds": "", "folds+own": "training " if into else "test "}[self.kind]
        if folds <= set(self.train_folds if into else self.test_folds):
            return into, ""
        if folds & set(self.train_folds) and folds & set(self.test_folds):
            return into, f"{split}questions dropped: they compare an ECG of a training fold with one of a test fold"
        if folds & set(self.test_folds if into else self.train_folds):
            return into, f"{split}questions dropped: their ECGs are in a {'test' if into else 'training'} fold"
        return into, f"{split}questions dropped: their ECGs are in a fold that is used for neither split"


def load(
    root: Path | str,
    recordings: PtbXl | MimicIvEcg | Path | str | None = None,
    *,
    source: str = "ptbxl",
    sets: Sequence[str] | None = None,
    version: str = "template",
    split: str | None = None,
    train_folds: Collection[int] = TRAIN_FOLDS,
    test_folds: Collection[int] = (9,),
    held_out: str = "test",
    super_classes: bool = False,
    voltage: bool = False,
    reports: Sequence[str] = ("english", "labels"),
    translator: Path | str | None = None,
    cache: Path | str | None = None,
    rate: int | None = None,
) -> QuestionSet:
    """Load the questions whose ECGs are there, split so that no test patient was trained on.

    Rows about noise have `control="noise"` (noise can be filtered out of the records) and rows about voltage
    `control="voltage"`. The rows for the align stage ask for the report of each training record.

    Args:
        root: Folder that holds the sets.
        recordings: The recordings, or the folder of them; `root/ptbxl` or `root/mimic-iv-ecg` when not given.
        source: `"ptbxl"` or `"mimic-iv-ecg"`: the ECGs that are asked about.
        sets: Folders of `root`, in ECG-QA's layout. When not given `ecgqa` and, with PTB-XL, `ecgqa-derived`.
        version: `"template"` or `"paraphrased"`: the wording of the questions; `"both"` has each of them twice.
        split: `"folds+own"`: PTB-XL's folds and ECG-QA's own split must agree (PTB-XL's default). `"folds"`: the folds
            alone. `"own"`: ECG-QA's alone, as its makers published it (MIMIC-IV-ECG has no other).
        train_folds: PTB-XL folds of training rows.
        test_folds: PTB-XL folds of test rows.
        held_out: With `split="own"`, ECG-QA's split that is asked: `"test"` or `"valid"`.
        super_classes: Whether to train on all five of `SUPER_CLASSES` about every training record of PTB-XL, too.
        voltage: Whether reports may speak of voltage: only true millivolts show it, to an encoder that keeps them.
        reports: Where a record's report comes from; the first of these that a record has is taken. `"english"`: its
            English report. `"german"`: its German report as written. `"translated"`: its German report in English, by
            `translator`. `"labels"`: sentences made from its labels, for training records only. German stands alone.
        translator: Hub id or folder of a sequence-to-sequence model from German to English.
        cache: Folder for translations; `root/cache` when not given.
        rate: Sampling rate at which PTB-XL's records are read from their folder, 100 (default) or 500 Hz.

    Returns:
        Rows, recordings, and notes on what was dropped and why.

    Raises:
        ValueError: A folder is missing, a question breaks the schema (names file and index), settings contradict each
            other, or the folds overlap.
    """
    if source not in SOURCES:
        raise ValueError(f"source must be one of {', '.join(SOURCES)}, got {source!r}")
    of_ptbxl = source == "ptbxl"
    split = split or ("folds+own" if of_ptbxl else "own")
    _check_settings(of_ptbxl, version, split, held_out, rate)
    check_kinds(reports, translator, english_only="" if of_ptbxl else "MIMIC-IV-ECG")
    if both := sorted(set(train_folds) & set(test_folds)):
        raise ValueError(
            f"folds {both} are both in train_folds and in test_folds: a test patient must not be trained on"
        )
    if isinstance(recordings, (str, Path)) or recordings is None:
        folder = Path(recordings or Path(root) / source)
        recordings = PtbXl(folder, rate or 100) if of_ptbxl else MimicIvEcg(folder)
    if isinstance(recordings, PtbXl) != of_ptbxl:
        raise ValueError(f"source is {source!r}, but the recordings are of {recordings.root}: pass those it asks about")
    fold_of = recordings.fold_of if isinstance(recordings, PtbXl) else {}
    splits = _Split(split, fold_of, train_folds, test_folds, held_out)
    sets = sets or (("ecgqa", DERIVED) if of_ptbxl else ("ecgqa",))
    train: list[Row] = []
    test: list[Row] = []
    notes: list[str] = []
    for name in sets:
        dropped: Counter[str] = Counter()
        kept: dict[bool, list[Row]] = {True: [], False: []}
        for wording in ("template", "paraphrased") if version == "both" else (version,):
            for where, own, question in _questions(Path(root) / name / source / wording):
                row = _row(f"{name}/{wording}/{own}", question, where, recordings)
                if all(row["patient_ids"]):
                    training, reason = splits.place(row, own)
                else:
                    training, reason = own == "train", "questions dropped: their ECGs are not on disk"
                    reason = f"{'training' if training else 'test'} {reason}"
                if reason:
                    dropped[reason] += 1
                else:
                    kept[training].append(row)
        train += kept[True]
        test += kept[False]
        what = f"{name} ({version})"
        if name == DERIVED:
            notes.append(f"{name} is NOT ECG-QA: its questions were derived from PTB-XL's labels in ECG-QA's schema.")
        notes.append(f"{what}: {len(kept[True])} training and {len(kept[False])} test questions.")
        notes += [f"{what}: {count} {reason}." for reason, count in sorted(dropped.items())]
    if super_classes:
        if not isinstance(recordings, PtbXl) or split == "own":
            raise ValueError(f"super_classes are those of PTB-XL's folds: not for source {source!r} split {split!r}")
        made = super_class_rows(recordings, train_folds)
        train += made
        notes.append(f"{len(made)} training questions about super-classes were made from PTB-XL's labels: NOT ECG-QA.")
    _check_unique(train + test)
    asked = {"train": _records(train), "test": _records(test)}
    if split != "own":  # a fold's records may have reports without being asked about
        asked = {
            name: [record for record, fold in fold_of.items() if fold in folds]
            for name, folds in (("train", train_folds), ("test", test_folds))
        }

    def translated(texts: Iterable[str]) -> dict[str, str]:
        return translate(texts, translator or "", cache or Path(root) / "cache")

    own_words = [kind for kind in reports if kind != "labels"]
    report_rows, said = _reports(recordings, asked["train"], reports, voltage, translated)
    test_reports, _ = _reports(recordings, asked["test"], own_words, voltage, translated)
    notes += said
    if not voltage:
        notes.append("Statements about voltage were left out of the reports.")
    patient_of = {
        ecg: patient
        for row in (*train, *test, *report_rows, *test_reports)
        for ecg, patient in zip(row["ecgs"], row["patient_ids"])
    }
    return QuestionSet(
        name="+".join(sets) + ("" if of_ptbxl else f" ({source})"),
        source=recordings,
        source_key=recordings.key,
        train=train,
        test=test,
        reports=report_rows,
        patient_of=patient_of,
        notes=notes,
        traits=_traits(recordings, patient_of),
        test_reports=test_reports,
        fold_of={record: str(fold_of[record]) for record in patient_of if record in fold_of},
    )


def _check_settings(of_ptbxl: bool, version: str, split: str, held_out: str, rate: int | None) -> None:
    for name, value, known in (
        ("version", version, ("template", "paraphrased", "both")),
        ("split", split, SPLITS),
        ("held_out", held_out, ("test", "valid")),
    ):
        if value not in known:
            raise ValueError(f"{name} must be one of {', '.join(known)}, got {value!r}")
    if held_out == "valid" and split != "own":
        raise ValueError(f"held_out='valid' needs split='own': with split={split!r} test_folds says what is asked")
    if not of_ptbxl and split != "own":
        raise ValueError(f"MIMIC-IV-ECG has no folds: split={split!r} is for PTB-XL, use split='own'")
    if not of_ptbxl and rate not in (None, 500):
        raise ValueError(f"MIMIC-IV-ECG is published at 500 Hz, not at {rate}: resample after reading")


def _traits(recordings: PtbXl | MimicIvEcg, records: Iterable[str]) -> dict[str, dict[str, Any]]:
    """What donors are matched on, as far as it is known."""
    if isinstance(recordings, MimicIvEcg):
        return dict.fromkeys(records, {"corpus": "mimic-iv-ecg"})
    traits = {}
    for record in records:
        known = {"corpus": "ptb-xl", "sex": recordings.sex[record], "age": recordings.age[record]}
        traits[record] = {name: value for name, value in known.items() if value not in ("", None)}
    return traits


def _records(rows: Sequence[Row]) -> list[str]:
    return sorted({record for row in rows for record in row["ecgs"]}, key=int)


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


def _row(prefix: str, question: dict[str, Any], where: str, recordings: PtbXl | MimicIvEcg) -> Row:
    ecgs = [str(ecg) for ecg in question["ecg_id"]]
    attributes = tuple(str(attribute) for attribute in question.get("attribute") or ())
    asked = _asked(
        question["question_type"],
        question["template_id"],
        question["attribute_type"],
        attributes,
        question["question"],
        tuple(question["answer"]),
    )
    return Row(
        **{
            **asked,
            "id": f"{prefix}/{question['sample_id']}",
            "ecgs": ecgs,
            "patient_ids": [recordings.patient_of.get(ecg, "") for ecg in ecgs],
        }
    )


@lru_cache(maxsize=1 << 16)
def _asked(
    kind: str, template: int, group: str, attributes: tuple[str, ...], question: str, answer: tuple[str, ...]
) -> Row:
    """All of a row but its ECGs. A question is asked of hundreds: a million rows share some thousands of these."""
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
        # Comparisons come without attributes. Those of a query are what its answer names: as a key they would tell it.
        attribute="" if kind.endswith("query") else ", ".join(attributes),
        group=group,
        control="noise" if group == "noise" else "voltage" if voltage else "",
    )


def _check_unique(rows: list[Row]) -> None:
    repeated = [id for id, count in Counter(row["id"] for row in rows).items() if count > 1]
    if repeated:
        raise ValueError(f"sample_id is not unique: {len(repeated)} rows are named twice, such as {repeated[0]}")


def _reports(
    recordings: PtbXl | MimicIvEcg,
    records: Sequence[str],
    kinds: Sequence[str],
    voltage: bool,
    translated: Callable[[Iterable[str]], dict[str, str]],
) -> tuple[list[Row], list[str]]:
    """Rows that ask for the report of each record, and notes on where the reports came from."""
    texts, notes = find_reports(recordings, records, kinds, translated=translated, voltage=voltage)
    return [
        question_row(
            id=f"report/{record}",
            ecgs=[record],
            patient_ids=[recordings.patient_of[record]],
            question_type="report",
            question=_ASK_REPORT[int(record) % len(_ASK_REPORT)],
            answer=[texts[record]],
        )
        for record in records
        if record in texts
    ], notes
