"""CPSC2018: recordings wherever they lie, labels by the names of their columns."""

from __future__ import annotations

import csv
import gzip
import shutil
from pathlib import Path

import numpy as np
import pytest

from data.corpora.cpsc2018 import Cpsc2018
from data.ecg import LEADS, Ecg
from data.readers import write_wfdb

REAL = Path(__file__).resolve().parents[2].parent / "shared" / "data"
COLUMNS = ["patient_id", "ecg_id", "filename", "validation", "age", "sex", "scp_codes"]
RECORDS = {"train": ["A0001", "A0002"], "val": ["A0003"], "test": ["A0004"]}


def write_tables(folder: Path, records=RECORDS, labels=None, order=lambda names: names) -> Path:
    """Split tables whose class columns stand in another order in each."""
    folder.mkdir(parents=True, exist_ok=True)
    for split, names in records.items():
        classes = list(Cpsc2018.classes)
        columns = COLUMNS + (classes if split == "train" else order(classes))
        with (folder / f"icbeb_{split}.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, columns)
            writer.writeheader()
            for number, name in enumerate(names):
                row = dict.fromkeys(COLUMNS, number) | dict.fromkeys(Cpsc2018.classes, 0) | {"filename": name}
                writer.writerow(row | dict.fromkeys((labels or {}).get(name, ()), 1))
    return folder


def write_records(root: Path, names=("A0001", "A0002", "A0003", "A0004"), seconds=10) -> Path:
    for number, name in enumerate(names):
        signal = np.random.default_rng(number).standard_normal((12, 500 * seconds))
        write_wfdb(Ecg(signal, 500, LEADS, record_id=name), root / f"g{1 + number % 2}")
    return root


def test_records_are_found_in_groups_and_beside_each_other(tmp_path):
    corpus = Cpsc2018(write_records(tmp_path, ["A0003", "A0001", "Q0001"]))
    assert corpus.records == ("A0001", "A0003") and len(corpus) == 2  # Q0001 is of the challenge's extra set
    assert corpus.patient_of == {"A0001": "A0001", "A0003": "A0003"}
    ecg = corpus["A0003"]
    assert (ecg.record_id, ecg.patient_id, ecg.fs, ecg.leads, ecg.duration) == ("A0003", "A0003", 500, LEADS, 10)
    with pytest.raises(KeyError, match="no record 'A0002'"):
        corpus["A0002"]


def test_labels_go_by_the_names_of_their_columns(tmp_path):
    labels = {"A0001": ["CLBBB"], "A0003": ["CLBBB", "PAC"], "A0004": ["AFIB"]}
    found = Cpsc2018.split_labels(write_tables(tmp_path / "a/b", labels=labels, order=lambda names: names[::-1]))
    assert found == {
        "train": {"A0001": {"CLBBB"}, "A0002": frozenset()},
        "valid": {"A0003": {"CLBBB", "PAC"}},
        "test": {"A0004": {"AFIB"}},
    }


def test_what_is_wrong_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"no record A\[0-9\].*\.hea in it or below: download training/cpsc_2018"):
        Cpsc2018(tmp_path)
    write_records(tmp_path / "one", ["A0001"])
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    with pytest.raises(ValueError, match=r"two/g1/A0001\.hea: A0001 is also .*one/g1/A0001\.hea: pass one"):
        Cpsc2018(tmp_path)
    (tmp_path / "one/g1/A0001.hea").write_text("nonsense")
    with pytest.raises(ValueError, match=r"record A0001: .*A0001"):
        Cpsc2018(tmp_path / "one")["A0001"]


def test_tables_that_cannot_be_used_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"icbeb_train\.csv \(or icbeb_train\.csv\.gz\) is not in it or below"):
        Cpsc2018.split_labels(tmp_path)
    table = write_tables(tmp_path / "a") / "icbeb_val.csv"
    write_tables(tmp_path / "b")
    with pytest.raises(ValueError, match=r"is there 2 times, as .*a/icbeb_train\.csv and .*b/icbeb_train"):
        Cpsc2018.split_labels(tmp_path)
    shutil.rmtree(tmp_path / "b")
    good = table.read_text()
    for changed, message in (
        (good.replace("CLBBB", "LBBB"), "no column 'CLBBB': not the split table"),
        (good.replace("A0003", "A0001"), r"icbeb_val\.csv: A0001 is also in .*icbeb_train\.csv"),
        (good.replace(",0,0\n", ",2,0\n"), "A0003: CLBBB is '2', not 0 or 1"),
    ):
        assert changed != good
        table.write_text(changed)
        with pytest.raises(ValueError, match=message):
            Cpsc2018.split_labels(tmp_path)


def test_real_tables_hold_the_makers_labels():
    """Every label of the benchmark's tables, against the table that came with the recordings."""
    if not REAL.is_dir():
        pytest.skip(f"no real tables: {REAL} is absent")
    found = Cpsc2018.split_labels(REAL / "metadata")
    assert {split: len(records) for split, records in found.items()} == {"train": 4950, "valid": 551, "test": 1376}
    by_number = dict(
        zip("123456789", ("NORM", "AFIB", "1AVB", "CLBBB", "CRBBB", "PAC", "VPC", "STD", "STE"), strict=True)
    )
    with gzip.open(REAL / "metadata/cpsc2018/REFERENCE_train.csv.gz", "rt", newline="") as file:
        made = {
            row["Recording"]: {
                by_number[row[f"{which}_label"][0]] for which in ("First", "Second", "Third") if row[f"{which}_label"]
            }
            for row in csv.DictReader(file)
        }
    assert {record: set(names) for part in found.values() for record, names in part.items()} == made


def test_real_records(tmp_path):
    if not REAL.is_dir():
        pytest.skip(f"no real recordings: {REAL} is absent")
    corpus = Cpsc2018(REAL / "wfdb/cpsc2018")
    assert corpus.records == ("A0001", "A0002", "A0003", "A0004", "A0005")
    assert [corpus[record].duration for record in corpus.records] == [15, 10, 10, 11.948, 25]
    labels = Cpsc2018.split_labels(REAL / "metadata")["train"]
    snomed = {"59118001": "CRBBB", "426783006": "NORM", "164889003": "AFIB", "164884008": "VPC"}
    for record in corpus.records:
        header = (REAL / f"wfdb/cpsc2018/{record}.hea").read_text()
        assert labels[record] == {snomed[code] for code in header.partition("#Dx: ")[2].split("\n")[0].split(",")}
