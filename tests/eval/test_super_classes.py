"""PTB-XL's super-classes as a classifier's scores: answerers whose reading is known, and the CNN beside them."""

from __future__ import annotations

import csv
import dataclasses
import html
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from data.conversations.rows import QuestionSet
from data.conversations.super_classes import SUPER_CLASSES, super_class_rows
from data.corpora.ptbxl import PtbXl
from data.corpora.verdicts import Verdict
from data.ecg import LEADS, Ecg
from data.readers import write_wfdb
from elm.saved.run import SavedRun
from eval import super_classes as door
from eval.answerers.scripted import ScriptedResponder
from eval.audit import cnn as reference
from eval.audit import run as ablation
from eval.audit import super_classes
from eval.audit.cnn import CnnClassifier
from eval.audit.settings import AuditSettings
from eval.report.sections import sections

PATIENTS = 180
NAMES = list(SUPER_CLASSES)
COLUMNS = ["ecg_id", "patient_id", "strat_fold", "filename_lr", "filename_hr", "age", "sex", "scp_codes", "super_class"]


@pytest.fixture(scope="module")
def ptbxl(tmp_path_factory):
    """Recordings of noise in which each class is a slow wave in leads of its own; the last two are of unknown class."""
    root, rng = tmp_path_factory.mktemp("ptbxl"), np.random.default_rng(0)
    (root / "scp_statements.csv").write_text(
        ",description,diagnostic,form,rhythm,diagnostic_class,diagnostic_subclass\n"
    )
    time = np.arange(1000) / 100
    with open(root / "ptbxl_database.csv", "w", newline="") as file:
        table = csv.DictWriter(file, COLUMNS)
        table.writeheader()
        for i in range(PATIENTS):
            labels = [name for k, name in enumerate(NAMES) if rng.random() < (0.5, 0.2, 0.3, 0.2, 0.15)[k]]
            signal = 0.3 * rng.standard_normal((12, 1000))
            for k, name in enumerate(NAMES):
                signal[2 * k : 2 * k + 2] += (name in labels) * np.sin(2 * np.pi * (1 + k) * time)
            names = [f"records{rate}/00000/{i + 1:05d}_{end}" for rate, end in ((100, "lr"), (500, "hr"))]
            write_wfdb(Ecg(signal, 100, LEADS, record_id=names[0][-8:]), (root / names[0]).parent)
            fold = 9 if i % 3 == 0 else 1 + i % 2
            known = repr(labels)
            table.writerow(dict(zip(COLUMNS, (i + 1, i + 1, fold, *names, 60, i % 2, "{}", known))))
    return PtbXl(root)


@pytest.fixture(scope="module")
def questions(ptbxl):
    train, test = super_class_rows(ptbxl, (1, 2)), super_class_rows(ptbxl, (9,))
    return QuestionSet("classes", ptbxl, "key", train, test, [], dict(ptbxl.patient_of))


def oracle(labels):
    """Goes by the ECG it is shown."""
    return lambda row, condition, options: [2.0, -2.0] if row["attribute"] in labels[row["ecgs"][0]] else [-2.0, 2.0]


def blind(row, condition, options):
    """Goes by the question."""
    return [-1.0, 0.5] if row["attribute"] != "NORM" else [0.0, -0.2]


def leak(row, condition, options):
    """Goes by the row, whatever ECG it is shown: what a label hidden in a question would do."""
    return [2.0, -2.0] if row["answer"] == ["yes"] else [-2.0, 2.0]


FIT = CnnClassifier.fit


@pytest.fixture(scope="module", autouse=True)
def one_cnn():
    """Trained once: it does not depend on who answers."""
    kept = {}

    def once(self, source, records, labels):
        if len(records) not in kept:
            kept[len(records)] = FIT(self, source, records, labels)
        return kept[len(records)]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CnnClassifier, "fit", once)
        yield


@pytest.fixture(scope="module")
def measured(ptbxl):
    scores = {"oracle": oracle(ptbxl.labels("super_class")), "blind": blind, "leak": leak}
    return {
        name: super_classes.measure(
            ScriptedResponder(lambda row, condition: "", score), ptbxl, (9,), (ptbxl, (1, 2)), draws=300
        ).to_json()
        for name, score in scores.items()
    }


def macro(numbers, who, what="auroc"):
    return numbers["macro"][who][what]["value"]


@pytest.mark.slow
def test_who_reads_is_told_from_who_guesses(measured):
    read, guessed = measured["oracle"], measured["blind"]
    assert macro(read, "model") == macro(read, "model", "balanced_accuracy") == 1.0
    assert 0.4 < macro(read, "swap") < 0.6, "another patient's ECG says nothing of this one's labels"
    assert read["flips"]["gap"] == 1.0 and read["flips"]["pairs"] > 100
    assert macro(guessed, "model") == macro(guessed, "model", "balanced_accuracy") == macro(guessed, "swap") == 0.5
    assert guessed["flips"]["gap"] == 0.0 and guessed["flips"]["interval"][0] <= 0


def test_a_label_that_is_not_in_the_ecg_shows_under_swap(measured):
    assert macro(measured["leak"], "model") == 1.0, "by the real ECG alone it looks like a reader"
    assert macro(measured["leak"], "swap") == 1.0
    assert measured["leak"]["flips"]["gap"] == 0.0


def test_the_cnn_learns_what_is_in_the_recordings(measured):
    numbers = measured["blind"]
    assert macro(numbers, "cnn") > 0.95
    assert all(0 < told["positives"] < numbers["records"] for told in numbers["classes"].values())
    difference = numbers["macro"]["auroc_difference"]
    assert difference["value"] == pytest.approx(0.5 - macro(numbers, "cnn"), abs=1e-5)
    assert difference["interval"][1] < -0.4
    assert numbers["items"] == 5 * numbers["records"] == 5 * PATIENTS // 3


def test_differences_are_paired(measured):
    """Model and CNN see the same resampled patients: the interval of the difference is of the difference."""
    for name in NAMES:
        told = measured["oracle"]["classes"][name]
        low, high = told["auroc_difference"]["interval"]
        areas = told["cnn"]["auroc"]["interval"]
        assert low == pytest.approx(1 - areas[1], abs=1e-6) and high == pytest.approx(1 - areas[0], abs=1e-6)


@pytest.mark.slow
def test_the_cnn_is_the_same_each_time_and_leaves_the_generator_alone(ptbxl, monkeypatch):
    monkeypatch.setattr(reference, "EPOCHS", 2)
    records = ptbxl.records[:40]
    labels = np.array([[name in ptbxl.labels("super_class")[r] for name in NAMES] for r in records])
    before = torch.get_rng_state()
    first, second = (FIT(CnnClassifier(5), ptbxl, records, labels).scores(ptbxl, records[:7]) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), before)
    assert first.shape == (7, 5) and np.array_equal(first, second)
    with pytest.raises(ValueError, match="class 2: 0 of 40 recordings have it"):
        FIT(CnnClassifier(5), ptbxl, records, labels & (np.arange(5) != 2))


def test_folds_and_patients_that_overlap_are_refused(ptbxl, questions):
    responder = ScriptedResponder(lambda row, condition: "", blind)
    with pytest.raises(ValueError, match="patients, such as .* are among those asked about and among those the CNN"):
        super_classes.measure(responder, ptbxl, (2, 9), (ptbxl, (1, 2)))
    with pytest.raises(ValueError, match="of no record asked about the super-classes are known"):
        super_classes.measure(responder, ptbxl, (4,), (ptbxl, (1, 2)))
    assert super_classes.folds_of(questions) == (ptbxl, [1, 2], [9])
    across = QuestionSet("own split", ptbxl, "key", questions.train + questions.test[:5], questions.test, [], {})
    assert super_classes.folds_of(across) is None, "a split across the folds has no held-out fold"


@pytest.mark.slow
def test_the_audit_holds_it(ptbxl, questions, tmp_path):
    read = oracle(ptbxl.labels("super_class"))

    def say(row, condition):
        return "yes" if row["ecgs"] and np.diff(read(row, condition, []))[0] < 0 else "no"

    responder = ScriptedResponder(say, lambda row, c, o: read(row, c, o) if row["ecgs"] else [-1.0, -0.5])
    settings = AuditSettings(model=Path("m"), out=tmp_path, draws=100)
    report = ablation.run(settings, responder=responder, questions=questions)
    assert macro(report.super_classes.to_json(), "model") == 1.0
    section = next(s for s in sections(report) if s.key == "super-classes")
    assert section.title in html.unescape((tmp_path / "report.html").read_text())
    assert "| mean" in (tmp_path / "report.md").read_text()
    assert ablation.rescore(tmp_path).super_classes == report.super_classes
    few = dataclasses.replace(settings, out=tmp_path / "few", limit=50, draws=50)
    few = ablation.run(few, responder=responder, questions=questions).to_json()
    assert "super_classes" not in few, "of a sample it would be another number under the same name"


@pytest.mark.slow
def test_the_command_asks_about_other_recordings(ptbxl, questions, tmp_path, monkeypatch, capsys):
    asked = []

    def load_responder(folder, given, batch_size):
        asked.append((given.source.root, given.source_key))
        return ScriptedResponder(lambda row, condition: "", oracle(ptbxl.labels("super_class")))

    monkeypatch.setattr(SavedRun, "questions", questions)
    monkeypatch.setattr(super_classes, "load_responder", load_responder)
    out = tmp_path / "found.json"
    argv = ["--model", str(tmp_path), "--ptbxl", str(ptbxl.root), "--folds", "9", "--out", str(out)]
    door.main(argv)
    assert asked == [(ptbxl.root, f"ptbxl {ptbxl.root.resolve()} 100 Hz")]
    assert json.loads(out.read_text())["macro"]["model"]["auroc"]["value"] == 1.0
    assert "| mean" in capsys.readouterr().out
    monkeypatch.setattr(SavedRun, "questions", QuestionSet("waves", {}, "", [], [], [], {}))
    with pytest.raises(SystemExit, match="2"):
        door.main(argv)
    assert "was trained on waves, which is not split along PTB-XL's folds" in capsys.readouterr().err


def test_recordings_that_cannot_be_read_are_left_out_and_told(ptbxl, questions, monkeypatch):
    split, bad, judged = super_classes.folds_of(questions), ptbxl.records[3], []

    def read(source, key, records, cache):
        judged.extend(records)
        return {record: Verdict("torn" if record == bad else "") for record in records}

    monkeypatch.setattr(super_classes, "read_recordings", read)
    (part, *folds), notes = super_classes.readable_part(split, None)
    assert sorted(judged) == sorted(ptbxl.records) and folds == [[1, 2], [9]]
    assert bad in ptbxl.records and bad not in part.records and len(part) == len(ptbxl) - 1
    assert notes == [f"Left out of the super-classes: 1 recording of PTB-XL that cannot be read ({bad})."]
    bad = ""
    assert super_classes.readable_part(split, None) == (split, [])
