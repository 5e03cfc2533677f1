"""ECG-QA: who may be trained on, what is dropped, and what a row says."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from data.conversations import ecg_qa
from data.conversations.ecg_qa import load
from data.conversations.ecg_qa_files import QUESTION_TYPES
from data.conversations.rows import QuestionSet, same_question
from data.corpora.ptbxl import PtbXl
from data.ecg import LEADS, Ecg
from data.experiment.leaks import check_leaks
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


def write_questions(
    root: Path, name: str = "ecgqa", version: str = "template", questions=QUESTIONS, source: str = "ptbxl"
) -> None:
    for split, rows in questions.items():
        folder = root / name / source / version / split
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
        "Reports of 2 of 2 training records: 1 in English as written, 1 sentences made from labels.",
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


def test_the_folder_may_be_below_the_home_folder(loaded, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert load("~", sets=["ecgqa"]).train == loaded.train


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


def placed(loaded: QuestionSet) -> tuple[list[str], list[str]]:
    """Names of the rows of training and of the test, without the set's."""
    return tuple(["/".join(row["id"].split("/")[2:]) for row in rows] for rows in (loaded.train, loaded.test))


def test_the_split_may_be_ecg_qas_own(tmp_path, ptbxl):
    write_questions(tmp_path)
    own = load(tmp_path, ptbxl, sets=["ecgqa"], split="own")
    assert placed(own) == ([f"train/{i}" for i in (0, 1, 2, 3, 5, 6, 7)], ["test/0", "test/1", "test/2"])
    assert "ecgqa (template): 2 questions of ECG-QA's own valid split left out." in own.notes
    # Reports are those of the records that are asked about.
    assert [row["ecgs"] for row in own.reports] == [["1"], ["2"], ["3"], ["5"]]
    valid = load(tmp_path, ptbxl, sets=["ecgqa"], split="own", held_out="valid")
    assert placed(valid) == (placed(own)[0], ["valid/0", "valid/1"])
    assert own.fold_of == {record: str(FOLDS[record]) for record in "12345"}


def test_the_split_may_be_the_folds_alone(tmp_path, ptbxl):
    write_questions(tmp_path)
    folds = load(tmp_path, ptbxl, sets=["ecgqa"], split="folds")
    assert placed(folds) == (
        ["train/0", "train/1", "train/6", "train/7", "test/1"],
        ["train/2", "valid/0", "valid/1", "test/0"],
    )
    both = "they compare an ECG of a training fold with one of a test fold"
    assert folds.notes[1:4] == [
        "ecgqa (template): 1 questions dropped: their ECGs are in a fold that is used for neither split.",
        f"ecgqa (template): 2 questions dropped: {both}.",
        "ecgqa (template): 1 training questions dropped: their ECGs are not on disk.",
    ]


def test_both_wordings_go_to_the_same_side(tmp_path, ptbxl):
    write_questions(tmp_path)
    other = {split: [q | {"question": "In other words?"} for q in asked] for split, asked in QUESTIONS.items()}
    write_questions(tmp_path, version="paraphrased", questions=other)
    both = load(tmp_path, ptbxl, sets=["ecgqa"], version="both")
    once = load(tmp_path, ptbxl, sets=["ecgqa"])
    assert both.train[: len(once.train)] == once.train and len(both.train) == 2 * len(once.train)
    assert placed(both) == tuple(2 * names for names in placed(once))
    assert {row["question"] for row in both.train[len(once.train) :]} == {"In other words?"}


def test_reports_come_from_the_first_source_that_has_one(tmp_path, ptbxl):
    write_questions(tmp_path)
    german = load(tmp_path, ptbxl, sets=["ecgqa"], reports=["german"])
    assert [(row["ecgs"], row["answer"]) for row in german.reports] == [(["2"], ["sinusrhythmus"])]
    assert [row["ecgs"] for row in german.test_reports] == [["3"], ["4"]]
    assert "Reports of 1 of 2 training records: 1 in German as written." in german.notes
    labels = load(tmp_path, ptbxl, sets=["ecgqa"], reports=["labels", "english"])
    assert [row["answer"] for row in labels.reports] == [["Sinus rhythm."], ["Sinus rhythm."]]
    assert labels.test_reports == [] and "2 sentences made from labels, 0 in English as written." in labels.notes[-2]


def test_german_reports_are_translated_once_and_leave_no_german(tmp_path, ptbxl, monkeypatch):
    write_questions(tmp_path)
    asked: list[tuple[list[str], object, object]] = []

    def translate(texts, model, cache):
        asked.append((sorted(set(texts)), model, cache))
        return dict.fromkeys(texts, "sinus rhythm")

    monkeypatch.setattr(ecg_qa, "translate", translate)
    settings = {"sets": ["ecgqa"], "reports": ["english", "translated", "labels"], "translator": "some/model"}
    loaded = load(tmp_path, ptbxl, **settings)
    assert [row["answer"] for row in loaded.reports] == [["sinus rhythm."], ["sinus rhythm"]]
    assert [row["answer"] for row in loaded.test_reports] == [["sinus rhythm"], ["sinus rhythm"]]
    assert asked == [(["sinusrhythmus"], "some/model", tmp_path / "cache")] * 2
    made = "1 in English as written, 1 translated from German, 0 sentences made from labels"
    assert f"Reports of 2 of 2 training records: {made}." in loaded.notes
    monkeypatch.setattr(ecg_qa, "translate", lambda *_: {})  # what cannot be translated
    loaded = load(tmp_path, ptbxl, **settings)
    assert [row["answer"] for row in loaded.reports] == [["sinus rhythm."], ["Sinus rhythm."]]
    assert loaded.test_reports == []
    assert any(note.startswith("1 German reports were left out: their translation was empty") for note in loaded.notes)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"source": "mimic"}, "source must be one of ptbxl, mimic-iv-ecg, got 'mimic'"),
        ({"version": "simple"}, "version must be one of template, paraphrased, both, got 'simple'"),
        ({"split": "fold"}, r"split must be one of folds\+own, folds, own, got 'fold'"),
        ({"split": "own", "held_out": "train"}, "held_out must be one of test, valid, got 'train'"),
        ({"held_out": "valid"}, r"held_out='valid' needs split='own': with split='folds\+own' test_folds says"),
        ({"source": "mimic-iv-ecg", "split": "folds"}, "MIMIC-IV-ECG has no folds: split='folds' is for PTB-XL"),
        ({"source": "mimic-iv-ecg", "rate": 100}, "MIMIC-IV-ECG is published at 500 Hz, not at 100"),
        ({"source": "mimic-iv-ecg", "reports": ["german"]}, "those of MIMIC-IV-ECG are English: ask for 'english'"),
        ({"reports": ["english", "german"]}, "'german' together with 'english', which are English, would mix two"),
        ({"reports": ["german", "labels"]}, "'german' together with 'labels'.* ask for 'german' alone, or for 'transl"),
        ({"reports": ["german", "translated"], "translator": "x"}, "'german' together with 'translated'"),
        ({"reports": ["translated"]}, "'translated' needs a translator: .* such as Helsinki-NLP/opus-mt-de-en"),
        ({"translator": "x"}, "translator x has nothing to translate: name 'translated' in reports"),
        ({"reports": ["danish"]}, r"reports must be a list of some of english, .*, got \['danish'\]"),
        ({"reports": []}, r"reports must be a list of some of english, .*, got \[\]"),
        ({"reports": "english"}, "reports must be a list of some of english, .*, got 'english'"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(settings, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        load(tmp_path, **settings)


def test_recordings_must_be_of_the_source(tmp_path, ptbxl):
    with pytest.raises(ValueError, match="source is 'mimic-iv-ecg', but the recordings are of .*ptbxl"):
        load(tmp_path, ptbxl, source="mimic-iv-ecg")


def write_mimic(root: Path) -> None:
    """Three records of two patients, with reports, in MIMIC-IV-ECG's layout."""
    records = {40000001: 10000001, 40000002: 10000001, 40000003: 10000002}
    paths = {study: f"files/p1000/p{subject}/s{study}/{study}" for study, subject in records.items()}
    root.mkdir()
    listed = "".join(f"{subject},{study},{study},t,{paths[study]}\n" for study, subject in records.items())
    (root / "record_list.csv").write_text("subject_id,study_id,file_name,ecg_time,path\n" + listed)
    header = ",".join(["subject_id", "study_id", *(f"report_{i}" for i in range(18))])
    said = "".join(
        f"{sub},{study},Sinus rhythm,Normal ECG,High QRS voltages{',' * 15}\n" for study, sub in records.items()
    )
    (root / "machine_measurements.csv").write_text(f"{header}\n{said}")
    for i, study in enumerate(records):
        signal = np.random.default_rng(i).standard_normal((12, 5000))
        write_wfdb(Ecg(signal, 500, LEADS, record_id=str(study)), (root / paths[study]).parent)


def test_mimic_iv_ecg_is_asked_about_by_its_own_split(tmp_path):
    write_mimic(tmp_path / "mimic-iv-ecg")
    asked = {
        "train": [
            question(0, [40000001]),
            question(1, [40000001, 40000002], **PAIR),
            question(2, [40000009]),
            question(3, [40000002], answer=["Voltage criteria (QRS) for left ventricular hypertrophy"]),
        ],
        "valid": [question(0, [40000002])],
        "test": [question(0, [40000003])],
    }
    write_questions(tmp_path, source="mimic-iv-ecg", questions=asked)
    loaded = load(tmp_path, source="mimic-iv-ecg")
    assert placed(loaded) == (["train/0", "train/1", "train/3"], ["test/0"])
    assert [row["control"] for row in loaded.train] == ["", "", "voltage"]
    assert loaded.train[1]["patient_ids"] == ["10000001", "10000001"]
    assert loaded.name == "ecgqa (mimic-iv-ecg)" and loaded.source_key.startswith("mimic-iv-ecg ")
    assert loaded.source["40000003"].fs == 500 and loaded.fold_of == {}
    assert loaded.traits == dict.fromkeys(loaded.patient_of, {"corpus": "mimic-iv-ecg"})
    assert [(row["ecgs"], row["answer"]) for row in loaded.reports] == [
        (["40000001"], ["sinus rhythm. normal ecg."]),
        (["40000002"], ["sinus rhythm. normal ecg."]),
    ]
    assert [row["ecgs"] for row in loaded.test_reports] == [["40000003"]]
    assert loaded.notes == [
        "ecgqa (template): 3 training and 1 test questions.",
        "ecgqa (template): 1 questions of ECG-QA's own valid split left out.",
        "ecgqa (template): 1 training questions dropped: their ECGs are not on disk.",
        "Reports of 2 of 2 training records: 2 in English as written, 0 sentences made from labels.",
        "Statements about voltage were left out of the reports.",
    ]


def test_rows_share_what_they_ask(tmp_path, ptbxl):
    """A million rows must not hold a million copies of a thousand questions."""
    write_questions(tmp_path, questions={"train": [question(0, [1]), question(1, [2])]})
    first, second = load(tmp_path, ptbxl, sets=["ecgqa"]).train
    assert first["messages"] is second["messages"] and first["ecgs"] != second["ecgs"]


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


def test_a_patient_on_both_sides_is_found(tmp_path):
    write_questions(tmp_path)
    mixed = write_ptbxl(tmp_path / "mixed", patients={"1": "7", "3": "7"})
    leaks = check_leaks(load(tmp_path, mixed, sets=["ecgqa"]))
    assert leaks.patients == ("7",) and "1 patient is in training and in the test: 7." in leaks.refusal()


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
