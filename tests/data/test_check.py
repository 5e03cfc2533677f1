"""`python -m data.check`: what it says before a training, and the status it ends with."""

import json

import numpy as np
import pytest

from data.check import main
from data.ecg import LEADS, Ecg
from data.readers import write_wfdb
from data.synthetic import SyntheticCohort
from helpers.ecg_qa import ask, cut, sample_file, write_ecg_qa

FOLDS = {1: 1, 2: 2, 3: 8, 9: 9}


@pytest.fixture
def root(tmp_path):
    asked = {"train": [1, 2, 3, 9], "valid": [9, ask(1, 9, answer=["no"])], "test": [9, 77]}
    return write_ecg_qa(tmp_path / "qa", FOLDS, asked)


@pytest.fixture
def check(capsys, tmp_path):
    def run(*words):
        status = 0
        try:
            main([*map(str, words), "--cache_dir", str(tmp_path / "cache")])
        except SystemExit as end:
            status = end.code
        printed = capsys.readouterr()
        return status, printed.out, printed.err

    return run


def of(root, **more):
    return ("ecg_qa", "--dataset_args", json.dumps({"root": str(root), "sets": ["ecgqa"], **more}))


def test_all_of_it_is_said(check, root, tmp_path):
    (root / "ecgqa/ptbxl/template/train/._00000.json").touch()
    cut(sample_file(root, 2), 5000)
    status, out, err = check(*of(root), "--out", tmp_path / "check.json")
    assert status == 2 and "error: a training would be refused: 1 recording cannot be read" in err
    for line in (
        "ecgqa: 4 recordings of 4 patients",
        "  3 training questions",
        "Recordings that cannot be read: 1\n  2: /",
        "2 test questions contradict each other (ecgqa/template/valid/0, ecgqa/template/valid/1): same question",
        "1 test question is repeated (ecgqa/template/test/0): kept once.",
        "1 training questions dropped: their ECGs are in a test fold.",
        "1 test questions dropped: their ECGs are not on disk.",
        "  No patient is in both.",
        "Hidden files, passed over: 1\n",
        "A training would be refused\n  1 recording cannot be read: repair them, or give --unreadable leave_out.",
    ):
        assert line in out
    told = json.loads((tmp_path / "check.json").read_text())
    assert list(told["unreadable"]) == ["2"] and told["rows"]["train"] == {"single-verify": 3} and told["refusals"]


def test_what_is_left_out_would_be_trained_without(check, root):
    cut(sample_file(root, 2), 5000)
    status, out, _ = check(*of(root), "--unreadable", "leave_out")
    assert status == 0 and "Recordings that cannot be read: 1" in out and out.endswith("A training would start.\n")


def test_no_training_question_left_is_a_refusal(check, root):
    for record in (1, 2, 3):
        cut(sample_file(root, record), 100)
    status, out, _ = check(*of(root), "--unreadable", "leave_out")
    assert status == 2 and "No training question is left." in out


def test_a_patient_on_both_sides_is_a_refusal(check, root):
    table = root / "ptbxl/ptbxl_database.csv"
    table.write_text(table.read_text().replace("\n9,509.0,", "\n9,501.0,"))
    status, out, _ = check(*of(root))
    assert status == 2 and "1 patient is in training and in the test: 501." in out


def test_a_corpus_or_a_folder_will_do(check, root, tmp_path):
    status, out, _ = check("ptbxl", "--dataset_args", json.dumps({"root": str(root / "ptbxl")}))
    assert status == 0 and "PTB-XL: 4 recordings of 4 patients\n  1 in fold 1\n" in out
    flat = np.array(SyntheticCohort(1)["s00000-1"].signal)
    flat[7] = 0.1
    write_wfdb(Ecg(flat, 100, LEADS, record_id="flat"), tmp_path / "records")
    status, out, _ = check(tmp_path / "records")
    assert status == 0 and "records: 1 recording\n" in out and "Flat: 1 recording (flat)" in out
    write_wfdb(Ecg(np.zeros((12, 1000)), 100, LEADS, record_id="dead"), tmp_path / "records/below")
    status, out, _ = check(tmp_path / "records")
    assert status == 2 and "  below/dead: no model can read this recording: Flat" in out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["no_such_set"], "'no_such_set' is no question set or corpus (synthetic, ecg_qa, "),
        (["ecg_qa", "--dataset_args", "{root}"], '--dataset_args must be JSON such as \'{"root": "data-root"}\''),
        (["ecg_qa", "--dataset_args", "[]"], "--dataset_args must be JSON such as"),
        (["synthetic", "--dataset_args", '{"patient": 3}'], "dataset 'synthetic' has no setting patient"),
        (["ptbxl", "--dataset_args", '{"root": "nowhere"}'], "ptbxl_database.csv: missing: download PTB-XL"),
        (["."], "no WFDB record (.hea) in it or below"),
    ],
)
def test_what_cannot_be_looked_at_ends_in_a_sentence(check, words, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    status, out, err = check(*words)
    assert (status, out) == (2, "") and err.startswith("error: ") and message in err


def test_simulated_questions_are_counted_without_reading(check):
    status, out, _ = check("synthetic", "--dataset_args", '{"patients": 4, "held_out_patients": 2, "questions": 2}')
    assert status == 0 and "simulated cohort: 12 recordings of 6 patients" in out
