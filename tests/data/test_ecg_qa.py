"""ECG-QA: who may be trained on, what is dropped, and what a row says."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from data.conversations.ecg_qa import QUESTION_TYPES, load
from data.conversations.rows import QuestionSet, same_question
from data.corpora.ptbxl import PtbXl
from data.ecg import LEADS, Ecg
from data.readers import write_wfdb

SHARED = Path(__file__).resolve().parents[2].parent / "shared"
COLUMNS = ("ecg_id", "patient_id", "strat_fold", "filename_lr", "filename_hr", "age", "sex", "scp_codes", "report")
FOLDS = {"1": 1, "2": 8, "3": 9, "4": 9, "5": 10}  # record to fold; patient is 100 + record


def question(sample_id=0, ecg_id=(1,), **changed) -> dict:
    return {
        "template_id": 1, "question_id": 5, "sample_id": sample_id, "question_type": "single-verify",
        "attribute_type": "scp_code", "question": "Does this ECG show sinus rhythm?", "answer": ["yes"],
        "ecg_id": list(ecg_id), "attribute": ["sinus rhythm"],
    } | changed  # fmt: skip


PAIR = {"question_type": "comparison_irrelevant-query", "attribute": None}
QUESTIONS = {
    "train": [
        question(0),
        question(1, attribute_type="noise", attribute=["static noise"]),
        question(2, [3]),  # test fold
        question(3, [1, 3], **PAIR),  # both
        question(4, [99]),  # not on disk
        question(5, [5]),  # fold of neither
        question(6, [2, 1], answer=["b, c", "a"], **PAIR),
        question(7, attribute=["low qrs voltages in the frontal and horizontal leads"]),
    ],
    "valid": [question(0, [3]), question(1, [4, 3], **PAIR)],
    "test": [question(0, [4]), question(1, [2]), question(2, [1, 4], **PAIR)],
}


def write_questions(root: Path, name: str = "ecgqa", version: str = "template", questions=QUESTIONS) -> None:
    for split, rows in questions.items():
        folder = root / name / "ptbxl" / version / split
        folder.mkdir(parents=True, exist_ok=True)
        half = len(rows) // 2
        (folder / "00000.json").write_text(json.dumps(rows[:half]))
        (folder / "00001.json").write_text(json.dumps(rows[half:]))


@pytest.fixture
def ptbxl(tmp_path) -> PtbXl:
    return write_ptbxl(tmp_path / "ptbxl")


def write_ptbxl(root: Path, patients: dict[str, str] | None = None) -> PtbXl:
    root.mkdir()
    with (root / "ptbxl_database.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(COLUMNS)
        for record, fold in FOLDS.items():
            name = f"records100/00000/0000{record}_lr"
            write_wfdb(Ecg(np.zeros((12, 10)), 100, LEADS, record_id=f"0000{record}_lr"), (root / name).parent)
            patient = (patients or {}).get(record, f"10{record}.0")
            report = "sinus rhythm. low voltage." if record == "1" else "sinusrhythmus"
            table.writerow([record, patient, fold, name, "", 50, 0, "{'SR': 0.0, 'LVOLT': 0.0}", report])
    (root / "scp_statements.csv").write_text(
        ",description,diagnostic,form,rhythm,diagnostic_class,diagnostic_subclass\n"
        "SR,sinus rhythm,,,1.0,,\nLVOLT,low QRS voltages,,1.0,,,\n"
    )
    return PtbXl(root)


@pytest.fixture
def loaded(tmp_path, ptbxl) -> QuestionSet:
    write_questions(tmp_path)
    return load(tmp_path, ptbxl, sets=["ecgqa"])


def test_rows_lie_wholly_in_their_folds(loaded, ptbxl):
    assert [row["id"] for row in loaded.train] == [f"ecgqa/template/train/{i}" for i in (0, 1, 6, 7)]
    assert [row["id"] for row in loaded.test] == [
        "ecgqa/template/valid/0",
        "ecgqa/template/valid/1",
        "ecgqa/template/test/0",
    ]
    assert {ptbxl.fold_of[ecg] for row in loaded.test for ecg in row["ecgs"]} == {9}
    assert {ptbxl.fold_of[ecg] for row in loaded.train + loaded.reports for ecg in row["ecgs"]} == {1, 8}
    assert loaded.patient_of == {ecg: f"10{ecg}" for ecg in "1234"}
    assert loaded.source is ptbxl


def test_notes_count_what_was_dropped(loaded):
    both = "they compare an ECG of a training fold with one of a test fold"
    assert loaded.notes == [
        "ecgqa (template): 4 training and 3 test questions.",
        "ecgqa (template): 1 test questions dropped: their ECGs are in a training fold.",
        f"ecgqa (template): 1 test questions dropped: {both}.",
        "ecgqa (template): 1 training questions dropped: their ECGs are in a fold that is used for neither split.",
        "ecgqa (template): 1 training questions dropped: their ECGs are in a test fold.",
        "ecgqa (template): 1 training questions dropped: their ECGs are not on disk.",
        f"ecgqa (template): 1 training questions dropped: {both}.",
        "Reports: 1 training records have an English report; for 1 others sentences were made from their labels.",
        "Statements about voltage were left out of the reports.",
    ]


def test_a_row_says_all_of_its_question(loaded):
    row = loaded.train[2]
    assert row["ecgs"] == ["2", "1"] and row["patient_ids"] == ["102", "101"]
    assert row["answer"] == ["a", "b, c"] and row["attribute"] == "" and row["template_id"] == 1
    asked, answered = row["messages"]
    assert [part["type"] for part in asked["content"]] == ["ecg", "ecg", "text"]
    assert asked["content"][-1]["text"] == row["question"] and answered["content"][0]["text"] == "a, b, c"


def test_groups_are_the_types_of_attributes(loaded):
    assert [row["group"] for row in loaded.train] == ["scp_code", "noise", "scp_code", "scp_code"]


def test_the_attribute_of_a_query_does_not_tell_its_answer(tmp_path, ptbxl):
    asked = {"question_type": "single-query", "question": "What rhythm is it?", "template_id": 10}
    queries = [question(i, attribute=[code], answer=[code], **asked) for i, code in enumerate(("SR", "AFIB", "LVOLT"))]
    write_questions(tmp_path, questions={"train": queries})
    rows = load(tmp_path, ptbxl, sets=["ecgqa"]).train
    assert [row["attribute"] for row in rows] == ["", "", ""] and [row["control"] for row in rows] == [
        "",
        "",
        "voltage",
    ]
    assert same_question(rows[0]) == same_question(rows[1])


def test_noise_in_another_lead_is_another_question(tmp_path, ptbxl):
    texts = (
        "Does this ECG show static noise in lead I?",
        "Is there static noise in lead I?",
        "Static noise in lead II?",
    )
    noisy = [question(i, attribute=["static noise"], question=text) for i, text in enumerate(texts)]
    write_questions(tmp_path, questions={"train": noisy})
    one, paraphrase, other = map(same_question, load(tmp_path, ptbxl, sets=["ecgqa"]).train)
    assert one == paraphrase != other


def test_traits_are_what_is_known_of_a_record(tmp_path):
    write_questions(tmp_path)
    table = tmp_path / "ptbxl" / "ptbxl_database.csv"
    write_ptbxl(tmp_path / "ptbxl")
    lines = table.read_text().splitlines()
    lines[1], lines[2] = lines[1].replace(",50,0,", ",,1,"), lines[2].replace(",50,0,", ",300,,")
    table.write_text("\n".join(lines))
    assert load(tmp_path, sets=["ecgqa"]).traits == {
        "1": {"corpus": "ptb-xl", "sex": "female"},
        "2": {"corpus": "ptb-xl", "age": 90.0},
        "3": {"corpus": "ptb-xl", "sex": "male", "age": 50.0},
        "4": {"corpus": "ptb-xl", "sex": "male", "age": 50.0},
    }


def test_controls_are_marked(loaded):
    assert [row["control"] for row in loaded.train] == ["", "noise", "", "voltage"]


def test_reports_are_english_and_leave_voltage_out_unless_asked(loaded, tmp_path, ptbxl):
    assert [(row["ecgs"], row["answer"]) for row in loaded.reports] == [
        (["1"], ["sinus rhythm."]),
        (["2"], ["Sinus rhythm."]),
    ]
    assert all(row["question_type"] == "report" and row["control"] == "" for row in loaded.reports)
    whole = load(tmp_path, ptbxl, sets=["ecgqa"], voltage=True).reports
    assert [row["answer"][0] for row in whole] == ["sinus rhythm. low voltage.", "Sinus rhythm. Low QRS voltages."]


def test_several_sets_have_ids_of_their_own_and_derived_ones_are_called_so(tmp_path, ptbxl):
    write_questions(tmp_path)
    write_questions(tmp_path, "ecgqa-derived", questions={"train": [question(0)], "valid": [question(0, [3])]})
    both = load(tmp_path, ptbxl)
    ids = [row["id"] for row in both.train + both.test + both.reports]
    assert both.name == "ecgqa+ecgqa-derived" and len(set(ids)) == len(ids) == 4 + 3 + 2 + 2
    assert any(note.startswith("ecgqa-derived is NOT ECG-QA") for note in both.notes)
    again = load(tmp_path, ptbxl)
    assert (again.train, again.test, again.reports) == (both.train, both.test, both.reports)


def test_recordings_may_be_given_by_their_folder(loaded, tmp_path):
    for folder in (tmp_path / "ptbxl", str(tmp_path / "ptbxl"), None):
        again = load(tmp_path, folder, sets=["ecgqa"])
        assert again.train == loaded.train and again.source["1"].record_id == "1"


def test_folds_and_versions_are_the_callers(tmp_path, ptbxl):
    write_questions(tmp_path, version="paraphrased")
    other = load(tmp_path, ptbxl, sets=["ecgqa"], version="paraphrased", train_folds=[9], test_folds=[8])
    assert [row["ecgs"] for row in other.train] == [["3"]] and [row["ecgs"] for row in other.test] == [["2"]]
    with pytest.raises(ValueError, match=r"folds \[9\] are both"):
        load(tmp_path, ptbxl, sets=["ecgqa"], train_folds=[8, 9], test_folds=[9])
    with pytest.raises(
        ValueError, match=r"ecgqa/ptbxl/template/train: no \.json files of questions: see https://github"
    ):
        load(tmp_path, ptbxl, sets=["ecgqa"])


@pytest.mark.parametrize("kind", QUESTION_TYPES)
def test_all_question_types_are_known(kind, tmp_path, ptbxl):
    ecgs = [1, 2][: QUESTION_TYPES[kind]]
    write_questions(tmp_path, questions={"train": [question(0, ecgs, question_type=kind)]})
    assert [row["question_type"] for row in load(tmp_path, ptbxl, sets=["ecgqa"]).train] == [kind]


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        ({"question_type": "single-guess"}, "question_type 'single-guess' is unknown: expected one of single-verify"),
        ({"question_type": "comparison_consecutive-query"}, r"ecg_id: .* is about 2 ECGs, got \[1\]"),
        ({"answer": []}, "answer: expected texts"),
        ({"answer": "yes"}, "answer: expected list, got 'yes'"),
        ({"template_id": None}, "template_id: expected int"),
        ({"answer": None, "drop": True}, "no field 'answer'"),
        ({"ecg_id": None, "drop": True}, "no field 'ecg_id'"),
    ],
)
def test_a_broken_question_is_named_by_file_and_index(broken, message, tmp_path, ptbxl):
    bad = question(9) | broken
    if bad.pop("drop", False):
        del bad[next(iter(broken))]
    write_questions(tmp_path, questions={"train": [question(0), question(1), question(2), bad]})
    with pytest.raises(ValueError, match=rf"train/00001\.json: question 1: {message}"):
        load(tmp_path, ptbxl, sets=["ecgqa"])


@pytest.mark.parametrize(
    ("text", "message"), [("[{", "not valid JSON"), ("{}", "expected a list"), ("[3]", "expected an object")]
)
def test_a_broken_file_is_named(text, message, tmp_path, ptbxl):
    write_questions(tmp_path)
    (tmp_path / "ecgqa/ptbxl/template/train/00000.json").write_text(text)
    with pytest.raises(ValueError, match=rf"00000\.json.*{message}"):
        load(tmp_path, ptbxl, sets=["ecgqa"])


def test_a_repeated_sample_is_refused(tmp_path, ptbxl):
    write_questions(tmp_path, questions={"train": [question(0), question(0)]})
    with pytest.raises(ValueError, match="sample_id is not unique: 1 rows .* ecgqa/template/train/0"):
        load(tmp_path, ptbxl, sets=["ecgqa"])


def test_a_patient_on_both_sides_is_refused(tmp_path):
    write_questions(tmp_path)
    mixed = write_ptbxl(tmp_path / "mixed", patients={"1": "7", "3": "7"})
    with pytest.raises(ValueError, match="1 patients are in training and in test folds, such as 7"):
        load(tmp_path, mixed, sets=["ecgqa"])


@pytest.mark.slow
def test_real_questions(tmp_path):
    tool = SHARED / "tools" / "unpack_ptbxl.py"
    if not tool.is_file():
        pytest.skip(f"no real data: {tool} is absent")
    subprocess.run([sys.executable, str(tool), str(tmp_path)], check=True, capture_output=True)
    ptbxl = PtbXl(tmp_path / "ptbxl")
    loaded = load(tmp_path, ptbxl)
    assert (len(loaded.train), len(loaded.test), len(loaded.reports)) == (11881, 1431, 1442)
    assert sum(row["control"] == "noise" for row in loaded.train) == 572
    assert len(loaded.patient_of) == len(ptbxl) == 1625
    assert ptbxl[loaded.test[0]["ecgs"][0]].signal.shape == (12, 1000)
    assert len(load(tmp_path, ptbxl, sets=["ecgqa"], version="paraphrased").train) == 589
