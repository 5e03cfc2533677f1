"""CSN: PhysioNet's folders, and tables of which one begins with an empty line."""

from __future__ import annotations

import csv
import gzip
import shutil
from pathlib import Path

import numpy as np
import pytest

from data.corpora.csn import Csn
from data.ecg import LEADS, Ecg
from data.readers import write_wfdb

REAL = Path(__file__).resolve().parents[2].parent / "shared" / "data"


def test_records_and_labels(tmp_path):
    lines = []
    for number in (1, 2, 3):
        path = tmp_path / f"WFDBRecords/01/010/JS0000{number}"
        write_wfdb(Ecg(np.full((12, 5000), number / 10), 500, LEADS, record_id=path.name), path.parent)
        flags = ",".join("1" if name in ("AFIB", "AF")[: number - 1] else "0" for name in Csn.classes)
        lines.append(f'/chapman/WFDBRecords/01/010/{path.name}.mat,12,"SB,AFIB",{flags}')
    head = f"ecg_path,age,diagnose,{','.join(Csn.classes)}"
    for split, line, before in zip(("train", "val", "test"), lines, ("", "", "\n")):
        (tmp_path / f"chapman_{split}.csv").write_text(f"{before}{head}\n{line}\n")
    corpus = Csn(tmp_path)
    assert corpus.records == ("JS00001", "JS00002", "JS00003") and corpus.key.startswith("csn ")
    assert corpus["JS00002"].signal[3, 7] == pytest.approx(0.2, abs=1e-3)
    assert Csn.split_labels(tmp_path) == {
        "train": {"JS00001": frozenset()},
        "valid": {"JS00002": {"AFIB"}},
        "test": {"JS00003": {"AFIB", "AF"}},
    }
    assert Csn.stated(tmp_path) == {
        "train": {"JS00001": {"AFIB"}},
        "valid": {"JS00002": {"AFIB"}},
        "test": {"JS00003": {"AFIB"}},
    }
    with pytest.raises(ValueError, match="pass the folder that holds WFDBRecords"):
        Csn(tmp_path / "chapman_val.csv")


def test_real_tables_and_records(tmp_path):
    """The columns against the diagnoses beside them; the recordings in the layout they are published in."""
    if not REAL.is_dir():
        pytest.skip(f"no real recordings: {REAL} is absent")
    found = Csn.split_labels(REAL / "metadata")
    assert {split: len(records) for split, records in found.items()} == {"train": 16546, "valid": 1860, "test": 4620}
    stated = Csn.stated(REAL / "metadata")
    more = {}
    for split, part in found.items():
        for record, names in part.items():
            assert stated[split][record] <= names
            if names != stated[split][record]:
                more[record] = names - stated[split][record]
    assert len(more) == 2717 + 328 + 772
    # How the columns were made: CR of CCR, AVB of 1AVB, AF of AFIB.
    with gzip.open(REAL / "metadata/csn/chapman_test.csv.gz", "rt", newline="") as file:
        for row in csv.DictReader(line for line in file if line.strip()):
            anywhere = {name for name in Csn.classes if name in row["diagnose"]}
            assert found["test"][Path(row["ecg_path"]).stem] == anywhere
    folder = tmp_path / "WFDBRecords/01/010"
    folder.mkdir(parents=True)
    for path in sorted((REAL / "wfdb/chapman_ningbo").iterdir())[:8]:
        shutil.copy(path, folder)
    corpus = Csn(tmp_path)
    assert corpus.records == ("JS00001", "JS00002", "JS00004", "JS00005")
    snomed = {"164889003": "AFIB", "59118001": "RBBB", "164934002": "TWC", "426177001": "SB"}
    for record in ("JS00001", "JS00002"):
        header = (REAL / f"wfdb/chapman_ningbo/{record}.hea").read_text()
        codes = header.partition("#Dx: ")[2].split("\n")[0].split(",")
        said = next(part[record] for part in stated.values() if record in part)
        assert said == {snomed[code] for code in codes} & set(Csn.classes)
    ecg = corpus["JS00001"]
    assert (ecg.fs, ecg.duration, ecg.leads) == (500, 10, LEADS)
    assert ecg.signal[:, 0] == pytest.approx(
        np.array([-254, 264, 517, -5, -386, 390, -98, -312, -98, 810, 810, 527]) / 1000
    )
