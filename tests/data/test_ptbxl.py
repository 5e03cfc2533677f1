"""PTB-XL: what is listed, whose it is, what is known of it and what is not."""

from __future__ import annotations

import csv
import gzip
import json
from pathlib import Path

import numpy as np
import pytest

from data.corpora.ptbxl import LABEL_COLUMNS, PtbXl
from data.ecg import LEADS, Ecg
from data.readers import write_wfdb

REAL = Path(__file__).resolve().parents[2].parent / "shared" / "data"

STATEMENTS = """,description,diagnostic,form,rhythm,diagnostic_class,diagnostic_subclass
NORM,normal ECG,1.0,,,NORM,NORM
IMI,inferior myocardial infarction,1.0,,,MI,IMI
ISCIN,ischemic in inferior leads,1.0,,,STTC,ISCI
1AVB,first degree AV block,1.0,,,CD,_AVB
NST_,non-specific ST changes,1.0,1.0,,STTC,NST_
LVOLT,low QRS voltages in the frontal and horizontal leads,,1.0,,,
SR,sinus rhythm,,,1.0,,
"""
FIELDS = ("ecg_id", "patient_id", "strat_fold", "filename_lr", "filename_hr", "age", "sex", "scp_codes", "report")
CODES = "{'NST_': 0.0, '1AVB': 35.0, 'SR': 0.0, 'IMI': 100.0}"
ROWS = [
    ("21", "9.0", "1", "300.0", "1", CODES, "sinus rhythm. t waves are flat."),
    ("3", "7.0", "9", "56.0", "0", "{'NORM': 100.0, 'LVOLT': 0.0, 'SR': 0.0}", "sinusrhythmus lagetyp normal"),
    ("4", "7.0", "9", "", "", "{}", ""),
    ("5", "8.0", "2", "40.0", "1", "", "trace only requested."),
    ("6", "8.0", "2", "40.0", "1", "{'SR': 0.0}", "absent from disk"),
]  # fmt: skip
LABELS = [  # the benchmarks' columns
    {
        "super_class": "['CD', 'MI', 'STTC']",
        "sub_class": "['AVB', 'IMI', 'NST']",
        "form": "['NST']",
        "rhythm": "['SR']",
    },
    {"super_class": "['NORM']", "sub_class": "['NORM']", "form": "['LVOLT']", "rhythm": "['SR']"},
    {"super_class": "['STTC']", "sub_class": "['ISCI']", "form": "", "rhythm": ""},
    {"super_class": "", "sub_class": "", "form": "['LVOLT']", "rhythm": ""},
    {"super_class": "", "sub_class": "", "form": "", "rhythm": "['SR']"},
]


def write_tree(root: Path, extra: list[dict[str, str]] | None = None) -> Path:
    table = []
    for i, (ecg_id, patient, fold, age, sex, codes, report) in enumerate(ROWS):
        names = [f"records{rate}/00000/{int(ecg_id):05d}_{end}" for rate, end in ((100, "lr"), (500, "hr"))]
        table.append(
            dict(zip(FIELDS, (ecg_id, patient, fold, *names, age, sex, codes, report))) | (extra or [{}] * 5)[i]
        )
        if ecg_id != "6":
            signal = np.random.default_rng(i).standard_normal((12, 1000))
            write_wfdb(Ecg(signal, 100, LEADS, record_id=Path(names[0]).name), (root / names[0]).parent)
    with (root / "ptbxl_database.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(table[0]))
        writer.writeheader()
        writer.writerows(table)
    (root / "scp_statements.csv").write_text(STATEMENTS)
    return root


@pytest.fixture
def published(tmp_path) -> PtbXl:
    """The table as its makers publish it."""
    return PtbXl(write_tree(tmp_path))


@pytest.fixture
def labelled(tmp_path) -> PtbXl:
    """With the label columns that benchmarks add, and an English report."""
    return PtbXl(
        write_tree(
            tmp_path, [row | {"report_en": "Low voltage. Normal  axis." * (i == 1)} for i, row in enumerate(LABELS)]
        )
    )


def test_lists_only_what_is_on_disk(published):
    assert published.records == ("3", "4", "5", "21") and len(published) == 4
    assert published.patient_of == {"3": "7", "4": "7", "5": "8", "21": "9"}
    assert published.fold_of == {"3": 9, "4": 9, "5": 2, "21": 1}
    assert published.age == {"3": 56.0, "4": None, "5": 40.0, "21": 90.0}
    assert published.sex == {"3": "male", "4": "", "5": "female", "21": "female"}


def test_gives_recordings_with_their_patient(published):
    ecg = published["21"]
    assert (ecg.record_id, ecg.patient_id, ecg.fs, ecg.leads) == ("21", "9", 100.0, LEADS)
    assert ecg.signal.shape == (12, 1000) and (ecg.meta["age"], ecg.meta["sex"]) == (90.0, "female")
    for absent in ("6", "00021", "no"):
        with pytest.raises(KeyError, match="no record"):
            published[absent]


def test_empty_codes_are_unknown_not_negative(published):
    for column in LABEL_COLUMNS:
        assert published.labels(column)["4"] is None and published.labels(column)["5"] is None
    assert published.statements("4") is None and published.reports(["4"]) == {}


@pytest.mark.parametrize("made_by", ["published", "labelled"])
def test_labels_are_the_same_from_codes_and_from_columns(made_by, request):
    ptbxl = request.getfixturevalue(made_by)
    assert ptbxl.labels("super_class")["21"] == ("CD", "MI", "STTC")
    assert ptbxl.labels("sub_class")["21"] == ("AVB", "IMI", "NST")
    assert ptbxl.labels("form")["21"] == ("NST",) and ptbxl.labels("form")["3"] == ("LVOLT",)
    assert ptbxl.labels("rhythm")["3"] == ("SR",)


def test_label_columns_know_of_records_without_codes(labelled):
    assert labelled.labels("super_class")["4"] == ("STTC",)
    assert labelled.labels("form")["4"] == () and labelled.labels("super_class")["5"] == ()
    with pytest.raises(ValueError, match="no labels 'class': expected one of super_class"):
        labelled.labels("class")


def test_statements_are_sentences_rhythm_first(published, labelled):
    text = "Sinus rhythm. Inferior myocardial infarction. Possible first degree AV block. Non-specific ST changes."
    assert published.statements("21") == labelled.statements("21") == text
    assert published.statements("3").endswith("Normal ECG. Low QRS voltages in the frontal and horizontal leads.")
    assert published.statements("3", voltage=False) == "Sinus rhythm. Normal ECG."
    assert labelled.statements("4") == "Ischemic ST-T changes in inferior leads."
    assert labelled.statements("5", voltage=False) is None


def test_reports_say_their_language(published, labelled):
    # "trace only requested", of record 5, is no report.
    assert published.reports(published.records) == {"21": "sinus rhythm. t waves are flat."}
    assert published.reports(published.records, "de") == {"3": "sinusrhythmus lagetyp normal"}
    assert published.reports(published.records, "sv") == published.reports(published.records, "unknown") == {}
    assert labelled.reports(["3"]) == {"3": "Low voltage. Normal axis."}
    assert labelled.reports(["3"], voltage=False) == {"3": "Normal axis."}
    assert labelled.reports(["3"], "de") == {
        "3": "sinusrhythmus lagetyp normal"
    }  # the translation beside it is English


def test_editors_codes_are_cut_from_reports(tmp_path):
    row = "sinus rhythm. normal ecg.   Edit: NORM 100, sinusrhythmus"
    ptbxl = PtbXl(write_tree(tmp_path, [{"report": row}] * 5))
    assert ptbxl.reports(["3"]) == {"3": "sinus rhythm. normal ecg."}


@pytest.mark.parametrize(
    ("written", "text", "without_voltage"),
    [
        (
            "sinusrhythmus lagetyp normal mÄssige amplitudenkriterien fÜr linkshypertrophie st & t abnorm 4.46   "
            "unbestÄtigter bericht",
            "sinusrhythmus lagetyp normal mässige amplitudenkriterien für linkshypertrophie st & t abnorm",
            "sinusrhythmus lagetyp normal st & t abnorm",
        ),
        ("linkstyp periphere niederspannung 4.46 unbestÄti", "linkstyp periphere niederspannung", "linkstyp"),
        (
            "sinusrhythmus amplitudenkriterien f#r linkshypertrophie inferiorer infarkt alter unbest.",
            "sinusrhythmus amplitudenkriterien für linkshypertrophie inferiorer infarkt alter unbest.",
            "sinusrhythmus inferiorer infarkt alter unbest.",
        ),
        ("sinusrhythmus kammerhypertrophie sokolow 3,6", "sinusrhythmus kammerhypertrophie sokolow 3,6", None),
    ],
)  # fmt: skip
def test_german_reports_are_mended_and_lose_what_is_said_of_voltage(written, text, without_voltage, tmp_path):
    ptbxl = PtbXl(write_tree(tmp_path, [{"report": written}] * 5))
    assert ptbxl.reports(["3"], "de") == {"3": text} and ptbxl.reports(["3"]) == {}
    kept = {} if without_voltage is None else {"3": without_voltage}
    assert ptbxl.reports(["3"], "de", voltage=False) == kept


def test_what_is_missing_is_said(tmp_path):
    with pytest.raises(ValueError, match=r"ptbxl_database\.csv: missing: download PTB-XL from https://physionet.org"):
        PtbXl(tmp_path)
    write_tree(tmp_path)
    with pytest.raises(ValueError, match="published at 100 and 500 Hz, not at 250"):
        PtbXl(tmp_path, rate=250)
    with pytest.raises(ValueError, match=r"none of the records of ptbxl_database\.csv is in records500/"):
        PtbXl(tmp_path, rate=500)
    (tmp_path / "scp_statements.csv").unlink()
    with pytest.raises(ValueError, match=r"scp_statements\.csv: missing"):
        PtbXl(tmp_path)
    (tmp_path / "ptbxl_database.csv").write_text("ecg_id,age\n1,2\n")
    with pytest.raises(ValueError, match="no column 'patient_id', 'strat_fold'"):
        PtbXl(tmp_path)


def test_the_faster_records_are_read_at_their_rate(tmp_path):
    write_tree(tmp_path)
    header = tmp_path / "records500/00000/00003_hr.hea"
    leads = ("I", "II", "III", "AVR", "AVL", "AVF", "V1", "V2", "V3", "V4", "V5", "V6")  # as PTB-XL spells them
    write_wfdb(Ecg(np.arange(60000).reshape(12, 5000) / 4000, 500, LEADS, record_id="00003_hr"), header.parent)
    header.write_text("\n".join(_respelt(header.read_text().splitlines(), leads)) + "\n")
    ptbxl = PtbXl(tmp_path, rate=500)
    assert ptbxl.records == ("3",)  # the others are there at 100 Hz only
    ecg = ptbxl["3"]
    assert (ecg.fs, ecg.duration, ecg.leads, ecg.patient_id) == (500, 10, LEADS, "7")
    assert ecg.signal[3, 7] == pytest.approx(15007 / 4000, abs=1e-3)


def _respelt(lines: list[str], leads: tuple[str, ...]) -> list[str]:
    return [lines[0], *(f"{line.rpartition(' ')[0]} {lead}" for line, lead in zip(lines[1:], leads))]


@pytest.mark.parametrize("column", ["patient_id", "strat_fold", "age", "ecg_id"])
def test_what_is_no_number_is_named(column, tmp_path):
    write_tree(tmp_path, [{column: "x"} if i == 1 else {} for i in range(5)])
    name = "x" if column == "ecg_id" else "3"
    with pytest.raises(ValueError, match=rf"ptbxl_database\.csv: ecg_id {name}, {column}: 'x' is not a number"):
        PtbXl(tmp_path)


def test_a_record_twice_is_refused(tmp_path):
    write_tree(tmp_path, [{"ecg_id": "3"} if i == 2 else {} for i in range(5)])
    with pytest.raises(ValueError, match=r"ptbxl_database\.csv: an ecg_id is there twice"):
        PtbXl(tmp_path)


@pytest.mark.parametrize(
    ("codes", "message"),
    [("{'SR': ", r"ecg_id 3, scp_codes: .* not a Python literal"), ("{'XYZ': 1}", r"ecg_id 3, scp_codes: XYZ not in")],
)
def test_a_broken_row_is_named(codes, message, tmp_path):
    ptbxl = PtbXl(write_tree(tmp_path, [{"scp_codes": codes}] * 5))
    with pytest.raises(ValueError, match=message):
        ptbxl.statements("3")


def test_real_table(tmp_path):
    """The real table, over empty headers: nothing here reads a signal."""
    if not REAL.is_dir():
        pytest.skip(f"no real tables: {REAL} is absent")
    present = set(map(str, json.loads((REAL / "ptbxl_z100/ecg_ids.json").read_text())))
    with gzip.open(REAL / "metadata/ptbxl/ptbxl_labels_all.csv.gz", "rt", newline="") as file:
        text = file.read()
    (tmp_path / "ptbxl_database.csv").write_text(text)
    (tmp_path / "scp_statements.csv").write_bytes((REAL / "metadata/ptbxl/scp_statements.csv").read_bytes())
    for row in csv.DictReader(text.splitlines()):
        if row["ecg_id"] in present:
            path = tmp_path / f"{row['filename_lr']}.hea"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
    ptbxl = PtbXl(tmp_path)
    assert len(ptbxl) == 1625 and max(age for age in ptbxl.age.values() if age is not None) == 90
    folds: dict[str, set[int]] = {}
    for record in ptbxl.records:
        folds.setdefault(ptbxl.patient_of[record], set()).add(ptbxl.fold_of[record])
    assert all(len(fold) == 1 for fold in folds.values())
    assert all(labels is not None for column in LABEL_COLUMNS for labels in ptbxl.labels(column).values())
    assert sum("NORM" in labels for labels in ptbxl.labels("super_class").values() if labels) == 877
    assert {name: len(ptbxl.reports(ptbxl.records, name)) for name in ("en", "de", "sv")} == {
        "en": 240,
        "de": 308,
        "sv": 4,
    }
    german = ptbxl.reports(ptbxl.records, "de", voltage=False).values()
    assert not any(word in text for text in german for word in ("spannung", "volt", "Ä", "unbestätigter bericht"))
    texts = {record: ptbxl.statements(record, voltage=False) for record in ptbxl.records}
    assert all(texts.values()) and not any("voltage" in text for text in texts.values())
