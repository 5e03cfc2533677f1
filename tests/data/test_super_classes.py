"""PTB-XL's super-classes as questions: everything is asked of every record that something is known of."""

from __future__ import annotations

import csv
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from data.conversations import load_questions
from data.conversations.rows import same_question
from data.conversations.super_classes import SUPER_CLASSES, super_class_rows
from data.corpora.ptbxl import PtbXl
from data.ecg import LEADS, Ecg
from data.readers import write_wfdb

CODES = ["{'NORM': 100.0}", "{'IMI': 50.0, 'LVH': 0.0}", "{}", "{'SR': 0.0}", "{'LVH': 100.0}"]
STATEMENTS = """,description,diagnostic,form,rhythm,diagnostic_class,diagnostic_subclass
NORM,normal ECG,1.0,,,NORM,NORM
IMI,inferior myocardial infarction,1.0,,,MI,IMI
LVH,left ventricular hypertrophy,1.0,,,HYP,LVH
SR,sinus rhythm,,,1.0,,
"""


@pytest.fixture
def root(tmp_path) -> Path:
    """Records 1 to 5 in folds 1, 1, 1, 1 and 9, and an ECG-QA question about the first and the last."""
    folder = tmp_path / "ptbxl"
    folder.mkdir()
    (folder / "scp_statements.csv").write_text(STATEMENTS)
    with (folder / "ptbxl_database.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(
            ["ecg_id", "patient_id", "strat_fold", "filename_lr", "filename_hr", "age", "sex", "scp_codes", "report"]
        )
        for i, codes in enumerate(CODES, start=1):
            name = f"records100/00000/{i:05d}_lr"
            write_wfdb(Ecg(np.zeros((12, 10)), 100, LEADS, record_id=f"{i:05d}_lr"), (folder / name).parent)
            table.writerow([i, f"{i}.0", 9 if i == 5 else 1, name, "", 50, 0, codes, ""])
    for split, record in (("train", 1), ("valid", 5)):
        asked = {
            "template_id": 2, "sample_id": 0, "question_type": "single-verify", "attribute_type": "scp_code",
            "question": "Is this a normal ECG?", "answer": ["no"], "ecg_id": [record], "attribute": ["NORM"],
        }  # fmt: skip
        where = tmp_path / "ecgqa" / "ptbxl" / "template" / split
        where.mkdir(parents=True)
        (where / "00000.json").write_text(json.dumps([asked]))
    return tmp_path


def test_all_is_asked_of_all_that_are_known(root):
    rows = super_class_rows(PtbXl(root / "ptbxl"), (1,))
    told = {tuple(row["id"].split("/")[1:]): row["answer"] for row in rows}
    assert {record for record, _ in told} == {"1", "2", "4"}, "of record 3 nothing is known: it is no negative"
    assert [name for (_, name), answer in told.items() if answer == ["yes"]] == ["NORM", "MI", "HYP"]
    assert len(told) == 15 and {row["patient_ids"][0] for row in rows} == {"1", "2", "4"}
    assert all(row["question"] == SUPER_CLASSES[row["attribute"]] for row in rows)


def test_they_ask_what_ecg_qa_asks(root):
    questions = load_questions("ecg_qa", root=str(root), sets=["ecgqa"], super_classes=True)
    published, *made = questions.train
    assert same_question(published) in {same_question(row) for row in made}
    assert len(made) == 15 and {questions.source.fold_of[row["ecgs"][0]] for row in made} == {1}
    assert [row["id"] for row in questions.test] == ["ecgqa/template/valid/0"], "the audit asks ECG-QA's questions"
    assert "15 training questions about super-classes were made from PTB-XL's labels: NOT ECG-QA." in questions.notes


def test_a_split_without_folds_is_refused(root):
    with pytest.raises(ValueError, match="super_classes are those of PTB-XL's folds: not for source 'ptbxl' split"):
        load_questions("ecg_qa", root=str(root), sets=["ecgqa"], super_classes=True, split="own")


def test_those_of_the_public_records(real_ptbxl):
    rows = super_class_rows(real_ptbxl, (9,))
    positives = Counter(row["attribute"] for row in rows if row["answer"] == ["yes"])
    assert len(rows) == 915
    assert positives == {"NORM": 101, "STTC": 50, "CD": 39, "MI": 22, "HYP": 14}


@pytest.fixture
def real_ptbxl():
    """Labels of the public records alone; their signals take long to unpack."""
    import gzip

    data = Path(__file__).resolve().parents[2].parent / "shared" / "data"
    if not (data / "ptbxl_z100" / "ecg_ids.json").is_file():
        pytest.skip(f"no real data at {data}")
    present = {str(ecg) for ecg in json.loads((data / "ptbxl_z100" / "ecg_ids.json").read_text())}
    with gzip.open(data / "metadata/ptbxl/ptbxl_labels_all.csv.gz", "rt", newline="") as file:
        rows = {row["ecg_id"]: row for row in csv.DictReader(file) if row["ecg_id"] in present}

    class Labels:
        records = tuple(rows)
        fold_of = {ecg: int(float(row["strat_fold"])) for ecg, row in rows.items()}
        patient_of = {ecg: row["patient_id"] for ecg, row in rows.items()}

        def labels(self, column):
            import ast

            return {ecg: tuple(ast.literal_eval(row[column])) if row[column] else () for ecg, row in rows.items()}

    return Labels()
