"""The tasks: the benchmarks' classes, records and splits; draws by patient; findings matched between corpora."""

from __future__ import annotations

import csv
import gzip
import shutil
from pathlib import Path

import numpy as np
import pytest

from data.corpora.cpsc2018 import Cpsc2018
from data.corpora.csn import Csn
from data.ecg import LEADS, Ecg
from data.readers import write_wfdb
from eval.probing.tasks import (
    TASKS,
    Task,
    drawn,
    lacking,
    load_task,
    parse_folds,
)
from eval.probing.transfer import FINDINGS, seen_corpora, transferred

REAL = Path(__file__).resolve().parents[2].parent / "shared" / "data"

STATEMENTS = """,description,diagnostic,form,rhythm,diagnostic_class,diagnostic_subclass
NORM,normal ECG,1.0,,,NORM,NORM
IMI,inferior myocardial infarction,1.0,,,MI,IMI
1AVB,first degree AV block,1.0,,,CD,_AVB
STD_,ST depression,,1.0,,,
AFIB,atrial fibrillation,,,1.0,,
SR,sinus rhythm,,,1.0,,
"""
CODES = ["{'NORM': 80.0, 'SR': 0.0}", "{'IMI': 0.0, 'STD_': 0.0}", "{'1AVB': 100.0, 'AFIB': 0.0}", "", "{'SR': 0.0}"]


def write_ptbxl(root: Path, folds=(1, 9, 10)) -> Path:
    """Five recordings in each of these folds, of two patients: one for every element of `CODES`."""
    fields = ["ecg_id", "patient_id", "strat_fold", "filename_lr", "filename_hr", "age", "sex", "scp_codes"]
    root.mkdir(parents=True, exist_ok=True)
    (root / "scp_statements.csv").write_text(STATEMENTS)
    with (root / "ptbxl_database.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(fields)
        for fold in range(1, 11):
            for number, codes in enumerate(CODES):
                ecg_id = 10 * fold + number
                names = [f"records{rate}/{ecg_id:05d}_{end}" for rate, end in ((100, "lr"), (500, "hr"))]
                writer.writerow([ecg_id, 10 * fold + number % 2, fold, *names, 60, 0, codes])
                if fold in folds:
                    (root / "records100").mkdir(exist_ok=True)
                    (root / f"{names[0]}.hea").touch()  # nothing here reads a signal
    return root


@pytest.fixture
def ptbxl(tmp_path):
    return write_ptbxl(tmp_path / "ptbxl")


def make(name="ptbxl-all", corpus="ptbxl", classes=("A", "B"), labels=None, patients=None):
    labels = labels or {f"{split}{i}": {classes[i % len(classes)]} for split in ("r", "v", "t") for i in range(6)}
    of = {"train": "r", "valid": "v", "test": "t"}
    return Task(
        name, corpus, {}, corpus, tuple(classes), {record: frozenset(names) for record, names in labels.items()},
        patients or {record: record for record in labels},
        {split: tuple(r for r in labels if r[0] == letter) for split, letter in of.items()},
    )  # fmt: skip


def test_ptbxl_comes_from_the_data_set_itself(ptbxl):
    task = load_task("ptbxl-super", ptbxl, rate=100)
    assert task.splits == {"train": ("10", "11", "12"), "valid": ("90", "91", "92"), "test": ("100", "101", "102")}
    assert task.labels["11"] == {"MI"} and task.labels["12"] == {"CD"}  # likelihood 0 counts
    assert task.matrix(["11", "10"], ["NORM", "MI"]).tolist() == [[False, True], [True, False]]
    assert task.notes == (
        "15 of the 50 records of PTB-XL's table are on disk.",
        "3 records of which no label is known were left out.",
        "3 records without a label of this kind were left out, as in the benchmark.",
    )
    assert load_task("ptbxl-sub", ptbxl, rate=100).labels["12"] == {"AVB"}
    assert load_task("ptbxl-form", ptbxl, rate=100).splits["train"] == ("11",)
    assert load_task("ptbxl-rhythm", ptbxl, rate=100).splits["test"] == ("100", "102", "104")
    everything = load_task("ptbxl-all", ptbxl, rate=100)
    assert everything.classes == ("1AVB", "AFIB", "IMI", "NORM", "SR", "STD")
    assert everything.labels["12"] == {"1AVB", "AFIB"} and "13" not in everything.labels


def test_folds_that_are_not_there_say_how_to_choose(tmp_path):
    root = write_ptbxl(tmp_path, folds=(1, 2, 9))
    message = r"no record of ptbxl-super in fold 10, which is to be test; there are records in fold 1, 2, 9: choose"
    with pytest.raises(ValueError, match=rf"{message} folds with --folds TRAIN/VALID/TEST, such as --folds 1-7/8/9"):
        load_task("ptbxl-super", root, rate=100)
    task = load_task("ptbxl-super", root, rate=100, folds="1/2/9")
    assert task.splits["test"] == ("90", "91", "92")
    assert "Folds 1/2/9, not 1-8/9/10: numbers are not those of the published split." in task.notes


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("1-8/9", "expected training, validation and test such as 1-8/9/10"),
        ("1-8/9/x", "expected training"),
        ("1-8/9/11", "from 1 to 10"),
        ("8-1/9/10", "from 1 to 10"),
        ("1-8/8/9", "a fold is there twice, and its patients would be on both sides"),
    ],
)
def test_folds_that_cannot_be_are_refused(text, match):
    with pytest.raises(ValueError, match=match):
        parse_folds(text)


def test_folds_are_lists_and_ranges():
    assert parse_folds("1,3,5-8/2/9,10") == [(1, 3, 5, 6, 7, 8), (2,), (9, 10)]


def test_what_is_unknown_is_refused(ptbxl):
    with pytest.raises(ValueError, match="no task 'ptbxl': expected one of ptbxl-super, ptbxl-sub"):
        load_task("ptbxl", ptbxl)
    with pytest.raises(ValueError, match=r"cpsc2018: pass the folder of its split tables \(--splits\)"):
        load_task("cpsc2018", ptbxl)
    text = (ptbxl / "scp_statements.csv").read_text()
    (ptbxl / "scp_statements.csv").write_text(text.replace("MI,IMI", "INFARCT,IMI"))
    with pytest.raises(ValueError, match="labels INFARCT are none of the classes of ptbxl-super"):
        load_task("ptbxl-super", ptbxl, rate=100)


def write_cpsc(root: Path, on_disk=("A0001", "A0003", "A0004")) -> Path:
    for number, name in enumerate(on_disk):
        write_wfdb(Ecg(np.full((12, 500), number), 500, LEADS, record_id=name), root)
    for split, names in (("train", ("A0001", "A0002")), ("val", ("A0003",)), ("test", ("A0004", "A0005"))):
        lines = [",".join(["filename", *Cpsc2018.classes])]
        lines += [",".join([name, *("1" if i == int(name[-1]) else "0" for i in range(9))]) for name in names]
        (root / f"icbeb_{split}.csv").write_text("\n".join(lines) + "\n")
    return root


def test_a_missing_record_is_named_and_counted(tmp_path):
    root = write_cpsc(tmp_path)
    message = r"A0002 is in the split tables and not on disk, 2 of 5 records are missing: .* \(--leave_out_missing\)"
    with pytest.raises(ValueError, match=message):
        load_task("cpsc2018", root, tables=root)
    task = load_task("cpsc2018", root, tables=root, leave_out=True)
    assert task.splits == {"train": ("A0001",), "valid": ("A0003",), "test": ("A0004",)}
    assert task.labels == {"A0001": {"VPC"}, "A0003": {"1AVB"}, "A0004": {"CRBBB"}}
    assert task.notes == (
        "Records of the split tables that are not on disk were left out: train 1 of 2, valid 0 of 1, test 1 of 2.",
    )
    (root / "A0003.hea").unlink()
    with pytest.raises(ValueError, match="none of the 1 valid records is on disk"):
        load_task("cpsc2018", root, tables=root, leave_out=True)


def test_a_patient_in_two_splits_is_refused():
    labels = {"r0": {"A"}, "v0": {"A"}, "t0": {"A"}}
    with pytest.raises(ValueError, match="ptbxl-all: patient p is in 'train' and in 'test'"):
        make(labels=labels, patients={"r0": "p", "v0": "q", "t0": "p"})
    with pytest.raises(ValueError, match="ptbxl-all: no record in the split 'valid'"):
        make(labels={"r0": {"A"}, "t0": {"A"}})


def test_draws_are_of_patients_and_grow():
    labels = {f"{split}{i}": {"A"} for split, count in (("r", 400), ("v", 1), ("t", 1)) for i in range(count)}
    patients = {record: f"{record[0]}{int(record[1:]) // 4}" for record in labels}
    task = make(labels=labels, patients=patients)
    one, ten, all_of_them = (drawn(task, percent, seed=3) for percent in (1, 10, 100))
    assert (len(one), len(ten), len(all_of_them)) == (4, 40, 400)  # of 100 patients with four recordings each
    assert set(one) < set(ten) < set(all_of_them) == set(task.splits["train"])
    assert len({patients[record] for record in ten}) == 10
    assert drawn(task, 10, seed=3) == ten != drawn(task, 10, seed=4)
    assert len(drawn(task, 0.001, seed=3)) == 4
    for percent in (0, 101):
        with pytest.raises(ValueError, match="must be above 0 and at most 100"):
            drawn(task, percent, seed=0)


def test_classes_that_cannot_be_judged_are_named():
    labels = {"r0": {"A", "B"}, "r1": {"A"}, "v0": {"A"}, "t0": {"A", "C"}, "t1": {"B"}}
    task = make(classes=("A", "B", "C"), labels=labels)
    assert lacking(task, task.splits["train"], task) == {
        "A": "every training record has it",
        "C": "no training record has it",
    }
    assert lacking(task, ["r1"], task)["B"] == "no training record has it"
    none = make(classes=("A", "B"), labels=labels | {"t1": set()})
    assert lacking(none, none.splits["train"], none)["B"] == "no test record has it"


def test_findings_are_matched_by_what_corpora_call_them():
    statements = ("1AVB", "2AVB", "AFIB", "AFLT", "NORM", "PVC", "STD", "IMI")
    first = {"r0": {"NORM", "STD"}, "v0": {"2AVB"}, "t0": {"1AVB"}}
    ptbxl = make(classes=statements, labels=first)
    labels = {"r1": {"2AVB1"}, "v1": {"AF"}, "t1": {"STDD", "SR"}, "t2": {"2AVB", "2AVB1"}}
    csn = make("csn-stated", "csn", Csn.classes, labels)
    train, test, said = transferred(ptbxl, csn)
    assert train.classes == test.classes == (
        "atrial fibrillation", "atrial flutter", "first degree AV block", "second degree AV block",
        "premature ventricular beats", "ST depression",
    )  # fmt: skip
    assert train.labels == {
        "r0": {"ST depression"},
        "v0": {"second degree AV block"},
        "t0": {"first degree AV block"},
    }
    assert test.labels["v1"] == {"atrial flutter"} and test.labels["t2"] == {"second degree AV block"}
    assert "second degree AV block: 2AVB of ptbxl-all is 2AVB/2AVB1 of csn-stated." in said
    assert "Labels of ptbxl-all that csn-stated lacks: NORM, IMI." in said
    assert train.splits == ptbxl.splits and test.splits == csn.splits
    back, _, _ = transferred(csn, ptbxl)
    assert back.labels["r1"] == {"second degree AV block"}
    with pytest.raises(ValueError, match="are of one corpus"):
        transferred(ptbxl, make("ptbxl-super"))
    with pytest.raises(ValueError, match="no finding in common; ptbxl-all has the statements of all kinds"):
        transferred(make("ptbxl-super", classes=("MI", "CD")), csn)


def test_every_label_of_a_finding_is_one_of_its_corpus():
    for called in FINDINGS.values():
        assert len(called) > 1
        assert set(called.get("cpsc2018", ())) <= set(Cpsc2018.classes)
        assert set(called.get("csn", ())) <= set(Csn.classes)
    for corpus in ("ptbxl", "cpsc2018", "csn"):
        names = [name for called in FINDINGS.values() for name in called.get(corpus, ())]
        assert len(names) == len(set(names))
    assert {name for called in FINDINGS.values() for name in called.get("cpsc2018", ())} == set(Cpsc2018.classes)


def test_what_an_encoder_has_seen_is_noticed():
    tasks = [make(), make("csn", "csn")]
    assert seen_corpora("PTB-XL folds 1-8", tasks) == ["ptbxl"]
    assert seen_corpora("MIMIC-IV-ECG; Chapman-Shaoxing", tasks) == ["csn"]
    assert seen_corpora("MIMIC-IV-ECG with its reports", tasks) == seen_corpora("", tasks) == []


# --- real tables ------------------------------------------------------------------------------------------------------

# The public copy of the statements and the benchmarks' splits are of different releases: of 8,982 records whose
# statements are known, five differ, of which these are in the folds below. (The others are 3797 and 13803.)
OTHER_RELEASE = {"3799", "7783", "9822"}


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    """PTB-XL's table of three folds, over empty headers: nothing here reads a signal."""
    if not REAL.is_dir():
        pytest.skip(f"no real tables: {REAL} is absent")
    root = tmp_path_factory.mktemp("real")
    with gzip.open(REAL / "metadata/ptbxl/ptbxl_labels_all.csv.gz", "rt", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["strat_fold"] in ("2", "9", "10")]
    write_table(root, rows, list(rows[0]))
    for folder in {Path(row["filename_lr"]).parent for row in rows}:
        (root / folder).mkdir(parents=True)
    for row in rows:
        (root / f"{row['filename_lr']}.hea").touch()
    return root


def write_table(root, rows, columns):
    with (root / "ptbxl_database.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, columns, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
    shutil.copy(REAL / "metadata/ptbxl/scp_statements.csv", root)


@pytest.mark.parametrize(
    ("task", "column"),
    [("ptbxl-super", "super_class"), ("ptbxl-sub", "sub_class"), ("ptbxl-form", "form"), ("ptbxl-rhythm", "rhythm")],
)
def test_real_labels_are_those_of_the_published_splits_record_by_record(real, task, column):
    made = load_task(task, real, rate=100, folds="2/9/10")
    for split, name, fold in (("train", "train", "2"), ("valid", "val", "9"), ("test", "test", "10")):
        with gzip.open(REAL / f"metadata/ptbxl/ptbxl_{column}_{name}.csv.gz", "rt", newline="") as file:
            rows = {row["ecg_id"]: row for row in csv.DictReader(file) if row["strat_fold"] == fold}
        assert set(list(next(iter(rows.values())))[6:]) == set(made.classes)
        assert set(made.splits[split]) ^ set(rows) <= OTHER_RELEASE
        for record in set(rows) & set(made.splits[split]):
            assert made.labels[record] == {label for label in made.classes if rows[record][label] == "1"}, record


@pytest.mark.slow
def test_real_labels_are_the_same_from_the_statements_alone(real, tmp_path):
    """The table as its makers publish it has no label columns: what `scp_codes` says, where it is known."""
    with (real / "ptbxl_database.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["scp_codes"]]
    kept = ["ecg_id", "patient_id", "strat_fold", "filename_lr", "filename_hr", "age", "sex", "scp_codes"]
    write_table(tmp_path, rows, kept)
    (tmp_path / "records100").symlink_to(real / "records100")
    differ = set()
    for name in TASKS[:4]:
        whole, alone = (load_task(name, root, rate=100, folds="2/9/10").labels for root in (real, tmp_path))
        assert len(alone) > 1000
        differ |= {record for record, labels in alone.items() if labels != whole[record]}
    assert differ <= OTHER_RELEASE
    everything = load_task("ptbxl-all", tmp_path, rate=100, folds="2/9/10")
    assert len(everything.classes) == 71 and set(everything.labels) == {row["ecg_id"] for row in rows} - {
        row["ecg_id"] for row in rows if row["scp_codes"] == "{}"
    }
