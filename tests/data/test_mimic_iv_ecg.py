"""MIMIC-IV-ECG: its tables, its records with their missing samples, and the reports a machine wrote."""

from __future__ import annotations

import csv
import time
from pathlib import Path

import numpy as np
import pytest

from data.corpora.mimic_iv_ecg import MimicIvEcg
from data.ecg import LEADS

# The corpus stores aVF before aVL.
STORED = ("I", "II", "III", "aVR", "aVF", "aVL", "V1", "V2", "V3", "V4", "V5", "V6")
RECORDS = {"40689238": "10000032", "44458630": "10000032", "49036311": "10000117", "45090959": "10001725"}
REPORTS = {
    "40689238": ["Sinus rhythm", "*** Possible inferior infarct - age undetermined ***", "", "Low QRS voltages."],
    "44458630": ["Sinus bradycardia", "Normal ECG except for rate"],
    "49036311": ["Atrial fibrillation"],
    "45090959": ["--- Warning: Data quality may affect interpretation ---", "Left atrial abnormality"],
}
COLUMNS = ["subject_id", "study_id", "cart_id", "ecg_time", *(f"report_{i}" for i in range(18)), "bandwidth"]


def path_of(study: str) -> str:
    subject = RECORDS[study]
    return f"files/p{subject[:4]}/p{subject}/s{study}/{study}"


def write_record(root: Path, study: str, signal: np.ndarray, leads: tuple[str, ...] = STORED) -> None:
    """A record as the corpus stores it: format 16, 200 units per mV, the lowest number where a sample is missing."""
    stored = np.where(np.isnan(signal), -(1 << 15), np.rint(np.nan_to_num(signal) * 200)).astype("<i2")
    header = root / f"{path_of(study)}.hea"
    header.parent.mkdir(parents=True, exist_ok=True)
    header.with_suffix(".dat").write_bytes(stored.T.tobytes())
    lines = [f"{study} {len(leads)} 500 {stored.shape[1]} 10:36:00 05/03/2180"]
    lines += [
        f"{study}.dat 16 200.0(0)/mV 16 0 {row[0]} {int(row.sum(dtype=np.int64)) % 65536} 0 {lead}"
        for row, lead in zip(stored, leads)
    ]
    header.write_text("\n".join([*lines, f"# {RECORDS[study]}"]) + "\n")


def write_mimic(root: Path) -> Path:
    """Four records of three patients, in no order."""
    root.mkdir(parents=True, exist_ok=True)
    with (root / "record_list.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["subject_id", "study_id", "file_name", "ecg_time", "path"])
        for study, subject in RECORDS.items():
            table.writerow([subject, study, study, "2180-03-05 10:36:00", path_of(study)])
    with (root / "machine_measurements.csv").open("w", newline="") as file:
        measured = csv.DictWriter(file, COLUMNS, restval="")
        measured.writeheader()
        for study, lines in REPORTS.items():
            told = {f"report_{i}": line for i, line in enumerate(lines)}
            measured.writerow({"subject_id": RECORDS[study], "study_id": study, "ecg_time": "2180", **told})
    for i, study in enumerate(RECORDS):
        write_record(root, study, np.random.default_rng(i).standard_normal((12, 5000)))
    return root


@pytest.fixture
def root(tmp_path) -> Path:
    return write_mimic(tmp_path / "mimic")


def test_records_are_named_by_their_study(root):
    mimic = MimicIvEcg(root)
    assert len(mimic) == 4 and dict(mimic.patient_of) == {**RECORDS}
    assert list(mimic.patient_of) == sorted(RECORDS)
    ecg = mimic["44458630"]
    assert (ecg.record_id, ecg.patient_id, ecg.fs, ecg.duration) == ("44458630", "10000032", 500, 10)
    for absent in ("44458631", "044458630", " 44458630", "4445863x", "", "-1", "40000000", "99999999"):
        assert absent not in mimic.patient_of
        with pytest.raises(KeyError, match="no record"):
            mimic[absent]


def test_leads_are_found_by_name(root):
    signal = np.zeros((12, 5000))
    signal[STORED.index("aVF")] = 1.5
    write_record(root, "40689238", signal)
    ecg = MimicIvEcg(root)["40689238"]
    assert ecg.leads == STORED and ecg.select(LEADS).signal[LEADS.index("aVF")].min() == pytest.approx(1.5)


def test_missing_samples_are_mended_and_counted(root):
    signal = np.tile(np.linspace(0, 1, 5000), (12, 1))
    signal[2, 100:150] = np.nan
    signal[7, -3:] = np.nan
    write_record(root, "40689238", signal)
    ecg = MimicIvEcg(root)["40689238"]
    assert ecg.meta["repaired_samples"] == {"III": 50, "V2": 3}
    assert np.allclose(ecg.signal, np.linspace(0, 1, 5000), atol=0.004)


def test_what_cannot_be_read_names_its_record(root):
    signal = np.zeros((12, 5000))
    signal[4] = np.nan
    write_record(root, "40689238", signal)
    mimic = MimicIvEcg(root)
    assert "aVF" not in mimic["40689238"].leads and mimic["40689238"].meta["absent_leads"] == ("aVF",)
    write_record(root, "40689238", np.full((12, 5000), np.nan))
    with pytest.raises(ValueError, match=r"record 40689238: .*40689238\.hea: most samples of every lead are missing"):
        mimic["40689238"]
    (root / f"{path_of('49036311')}.dat").write_bytes(b"cut")
    with pytest.raises(ValueError, match=r"record 49036311: .*49036311\.dat: 3 bytes, but .* promises 120000"):
        mimic["49036311"]
    (root / f"{path_of('45090959')}.hea").unlink()
    with pytest.raises(ValueError, match=r"record 45090959: .*45090959\.hea: missing"):
        mimic["45090959"]


def test_paths_are_taken_from_the_table(root):
    table = root / "record_list.csv"
    (root / "elsewhere").mkdir()
    for end in (".hea", ".dat"):
        (root / f"{path_of('49036311')}{end}").rename(root / "elsewhere" / f"49036311{end}")
    table.write_text(table.read_text().replace(path_of("49036311"), "elsewhere/49036311"))
    assert MimicIvEcg(root)["49036311"].patient_id == "10000117"
    for bad in ("../49036311", "/tmp/49036311"):
        table.write_text(table.read_text().replace("elsewhere/49036311", bad))
        with pytest.raises(ValueError, match=r"study_id 49036311: path .* leads out of the corpus"):
            MimicIvEcg(root)
        table.write_text(table.read_text().replace(bad, "elsewhere/49036311"))


def test_reports_are_joined_cleaned_and_not_too_short(root):
    mimic = MimicIvEcg(root)
    assert mimic.reports(RECORDS) == {
        "40689238": "sinus rhythm. possible inferior infarct - age undetermined. low qrs voltages.",
        "44458630": "sinus bradycardia. normal ecg except for rate.",
        "45090959": "warning: data quality may affect interpretation. left atrial abnormality.",
    }  # "atrial fibrillation" is two words
    assert mimic.reports(["40689238", "no such"], voltage=False) == {
        "40689238": "sinus rhythm. possible inferior infarct - age undetermined."
    }
    (root / "machine_measurements.csv").unlink()
    assert mimic.reports([]) == {}
    with pytest.raises(ValueError, match=r"machine_measurements\.csv: missing: download MIMIC-IV-ECG"):
        mimic.reports(RECORDS)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, r"record_list\.csv: missing: download MIMIC-IV-ECG from https://physionet.org"),
        ("subject_id,study_id\n1,2\n", "no column 'path': not the table of MIMIC-IV-ECG"),
        ("subject_id,study_id,path\n", "lists no record"),
        ("subject_id,study_id,path\n1,2,a\n3,2,b\n", "study_id 2 is there twice"),
        ("subject_id,study_id,path\n1,2,a\n1,x,b\n", "line 3: '1,x,b' is no row with a subject_id and a study_id"),
        ("subject_id,study_id,path\n1,2\n", "line 2: '1,2' is no row"),
    ],
)
def test_a_broken_table_is_named(text, message, tmp_path):
    if text is not None:
        (tmp_path / "record_list.csv").write_text(text)
    with pytest.raises(ValueError, match=message):
        MimicIvEcg(tmp_path)


def test_a_hundred_thousand_records_are_listed_without_looking_for_their_files(tmp_path):
    studies = np.random.default_rng(0).permutation(100_000) + 40_000_000
    lines = [f"{10_000_000 + s % 999},{s},{s},t,files/p1000/p{10_000_000 + s % 999}/s{s}/{s}" for s in studies.tolist()]
    (tmp_path / "record_list.csv").write_text("subject_id,study_id,file_name,ecg_time,path\n" + "\n".join(lines))
    started = time.monotonic()
    mimic = MimicIvEcg(tmp_path)
    assert time.monotonic() - started < 5
    assert len(mimic) == 100_000 and not mimic._paths
    assert all(mimic.patient_of[str(s)] == str(10_000_000 + s % 999) for s in studies[:1000].tolist())
