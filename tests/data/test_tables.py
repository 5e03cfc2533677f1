"""Tables as other programs write them: delimiters, decimal marks, encodings, numbered columns, row numbers, times."""

import re

import numpy as np
import pytest

from data.ecg import LEADS
from data.readers import READERS, read_ecg
from data.readers.tables import looks_like_table, parse_table
from helpers.written import FS, SAMPLES, WORDS, waves

STATED = {"fs": FS, "units": "mV"}


def text(mark=",", names=LEADS, number="{:.3f}".format, array=None, first=()) -> str:
    """A table with these names, if any; `first` are cells before each row, the header's to begin with."""
    rows = [] if names is None else [[str(name) for name in names]]
    rows += [[number(value) for value in row] for row in (waves() if array is None else array).T]
    rows = [[str(first[place]), *row] if len(first) else row for place, row in enumerate(rows)]
    return "\n".join(mark.join(row) for row in rows) + "\n"


def with_comma(value: float) -> str:
    return f"{value:.3f}".replace(".", ",")


def written(folder, content, name="t.csv"):
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


MARKS = {
    "commas": text(),
    "commas and blanks": text(", "),
    "semicolons": text(";"),
    "tabs": text("\t"),
    "bars": text("|"),
    "blanks": text(" "),
    "columns": text("   ", number="{:>8.3f}".format),
    "decimal commas, semicolons": text(";", number=with_comma),
    "decimal commas, tabs": text("\t", number=with_comma),
    "decimal commas, blanks": text("  ", number=with_comma),
    "decimal commas in quotes": text(",", number=lambda value: f'"{with_comma(value)}"'),
    "exponents": text(";", number="{:.6e}".format),
    "sep": "sep=;\n" + text(";", number=with_comma),
    "quoted names": text(";", names=[f'"{lead}"' for lead in LEADS]),
    "np.savetxt": "# " + text(" ", number="{:.18e}".format),
    "np.savetxt, commas": "# " + text(","),
    "comments": "# made by somebody\n# " + text(","),
    "mark at the end of each line": text(";").replace("\n", ";\n"),
    "mark at the end of rows": text(";").replace("\n", ";\n").replace("V6;\n", "V6\n"),
    "mark at the end of the header": text(";").replace("V6\n", "V6;\n"),
    "Windows' line ends": text().replace("\n", "\r\n"),
    "old Mac's line ends": text(";").replace("\n", "\r"),
    "empty lines": text().replace("\n", "\n\n"),
    "rows without cells at the end": text() + ",,,,,,,,,,,\n" * 3,
    "fewer cells in rows without any": text(";") + ";;\n",
    "no line end": text().rstrip("\n"),
    "minus signs of typesetters": text(";").replace("-", "\u2212"),
    "UTF-8 with a mark": text().encode("utf-8-sig"),
    "UTF-16": text("\t").encode("utf-16"),
    "UTF-16, big end first": b"\xfe\xff" + text().encode("utf-16-be"),
    "cp1252": text(";", names=[f"{lead} (µV)" for lead in LEADS], array=waves() * 1000).encode("cp1252"),
    "names by row": "\n".join([f"{lead},{','.join(map(str, row))}" for lead, row in zip(LEADS, waves())]),
    "names by row, numbered": "\n".join(
        ["," + ",".join(map(str, range(SAMPLES)))]
        + [f"{x},{','.join(map(str, row))}" for x, row in zip(LEADS, waves())]
    ),
    "row numbers of R": text(" ", names=None, first=[f'"{n}"' for n in range(1, 502)]).join(
        [" ".join(LEADS) + "\n", ""]
    ),
}


# A suffix is needed where the first line is longer than what tells the format of a file.
NAMED = [
    (kind, name) for kind in MARKS for name in ("t.csv", "t.tsv", "t.txt", "t") if name != "t" or "by row" not in kind
]


@pytest.mark.parametrize(("kind", "name"), NAMED)
def test_a_table_is_a_table_whatever_wrote_it(kind, name, tmp_path):
    ecg = read_ecg(written(tmp_path, MARKS[kind], name), fs=FS, units="uV" if kind == "cp1252" else "mV")
    assert ecg.leads == LEADS and ecg.fs == FS
    np.testing.assert_allclose(ecg.signal, waves(), atol=1e-6)


NUMBERED = {
    "from 0": text(names=range(12)),
    "from 1": text(";", names=range(1, 13), number=with_comma),
    "with row numbers": text(names=range(12), first=["", *range(SAMPLES)]),
    "with row numbers, from 1": text("\t", names=range(12), first=["", *range(1, SAMPLES + 1)]),
    "with a named index": text(names=range(12), first=["index", *range(SAMPLES)]),
    "with times": text(names=range(12), first=["time", *(n / FS for n in range(SAMPLES))]),
    "by row": text(names=range(SAMPLES), array=waves().T),
    "by row, with row numbers": text(names=range(SAMPLES), array=waves().T, first=["", *range(12)]),
    "none, with row numbers": text(" ", names=None, first=range(SAMPLES)),
    "none, with times": text(names=None, first=[f"{n / FS:.3f}" for n in range(SAMPLES)]),
    "whole microvolts": text(names=range(12), number=lambda value: f"{value * 1000:.0f}"),
}


@pytest.mark.parametrize("kind", NUMBERED)
def test_numbers_of_columns_and_rows_are_no_samples(kind, tmp_path):
    path = written(tmp_path, NUMBERED[kind])
    units = "uV" if kind == "whole microvolts" else "mV"
    ecg = read_ecg(path, fs=FS, units=units, leads=LEADS)
    assert ecg.leads == LEADS
    np.testing.assert_allclose(ecg.signal, waves(), atol=1e-6)
    assert ("other_signals" in ecg.meta) == ("row numbers" in kind or "index" in kind or "times" in kind)
    with pytest.raises(ValueError, match=r"a bare array does not say .*: pass leads=\.\.\. \(commands: --leads\)"):
        read_ecg(path, fs=FS, units=units)


def test_names_stated_for_every_column_may_name_the_index_too(tmp_path):
    path = written(tmp_path, NUMBERED["with row numbers"])
    np.testing.assert_allclose(read_ecg(path, **STATED, leads=["-", *LEADS]).signal, waves(), atol=1e-6)
    with pytest.raises(
        ValueError, match=r"shape \(501, 12\) does not fit 13 leads .*separated by commas, index left out"
    ):
        read_ecg(path, **STATED, leads=["VX", *LEADS])


def test_a_lead_that_is_called_one_is_kept_though_it_counts(tmp_path):
    path = written(tmp_path, text(names=["V1", "V2"], array=np.array([range(50), range(50)], float)))
    assert read_ecg(path, **STATED).leads == ("V1", "V2")


def test_one_or_two_numbers_may_be_a_header(tmp_path):
    pair = waves()[:2]
    ecg = read_ecg(written(tmp_path, text(names=["0", "1"], array=pair)), **STATED, leads=["V1", "V2"])
    np.testing.assert_allclose(ecg.signal, pair, atol=1e-6)
    ecg = read_ecg(written(tmp_path, text(names=["0"], array=pair[:1])), **STATED, leads=["V1"])
    np.testing.assert_allclose(ecg.signal, pair[:1], atol=1e-6)
    path = written(tmp_path, "0,1\n" + "5,7\n" * 20)
    with pytest.raises(
        ValueError, match="row 1 is 0 and 1: column numbers or samples. write the leads' names above it"
    ):
        read_ecg(path, **STATED, leads=["V1", "V2"])
    assert read_ecg(written(tmp_path, "1,2\n3,4\n5,7\n"[4:] * 9), **STATED, leads=["V1", "V2"]).signal.shape == (2, 18)


# Times


def times(column: str, unit: float = 1.0, fs: float = FS, digits: int = 6, **more) -> str:
    count = SAMPLES if "array" not in more else more["array"].shape[1]
    return text(first=[column, *(f"{n / fs / unit:.{digits}f}" for n in range(count))], **more)


@pytest.mark.parametrize(
    ("column", "unit"),
    [("time", 1.0), ("t", 1.0), ("Time (s)", 1.0), ("time_ms", 1e-3), ("time [ms]", 1e-3), ("Time", 1e-3), 
     ("seconds", 1.0), ("Elapsed time", 1.0), ("ms", 1e-3), ("timestamp", 1e-6), ("Zeit in ms", 1e-3), ("'time'", 1.0)],
)  # fmt: skip
def test_times_give_the_rate(column, unit, tmp_path):
    path = written(tmp_path, times(column, unit))
    ecg = read_ecg(path, units="mV")
    assert ecg.fs == FS and ecg.leads == LEADS and ecg.meta["other_signals"] == (column.strip("'"),)
    np.testing.assert_allclose(ecg.signal, waves(), atol=1e-6)
    assert read_ecg(path, **STATED).fs == FS
    with pytest.raises(ValueError, match=r"sampling rate: the file says 250.0, the caller says 500: one is wrong"):
        read_ecg(path, fs=500, units="mV")


@pytest.mark.parametrize(("fs", "digits"), [(360, 3), (128, 4), (1000, 3), (257, 3)])
def test_rounded_times_mean_the_rate_that_was_rounded(fs, digits, tmp_path):
    path = written(tmp_path, times("time", fs=fs, digits=digits))
    assert read_ecg(path, units="mV").fs == fs and read_ecg(path, units="mV", fs=fs).fs == fs


def test_a_measured_rate_is_kept(tmp_path):
    assert read_ecg(written(tmp_path, times("time", fs=62.4725)), units="mV").fs == pytest.approx(62.4725, rel=1e-4)


def test_times_that_are_none_are_refused(tmp_path):
    rows = times("time").splitlines()
    with pytest.raises(ValueError, match=r"column 'time': samples are missing between 0.396 and 0.8: fill in rows"):
        read_ecg(written(tmp_path, "\n".join(rows[:101] + rows[201:])), units="mV")
    with pytest.raises(ValueError, match="column 'time': time does not rise from 0.396 to 0.396: correct or remove it"):
        read_ecg(written(tmp_path, "\n".join(rows[:101] + rows[100:])), units="mV")
    with pytest.raises(ValueError, match=r"t\.csv: row 2, column 1: '10:00:00' is not a number"):
        read_ecg(
            written(tmp_path, text(names=["I"], array=waves()[:1], first=["time"] + ["10:00:00"] * SAMPLES)), **STATED
        )
    with pytest.raises(ValueError, match="the file says 100.0, the caller says 250"):
        read_ecg(written(tmp_path, times("time (ms)", 1e-3, 100)), **STATED)


def test_a_row_of_units_below_the_names_counts(tmp_path):
    rows = times("'Elapsed time'", names=[f"'{lead}'" for lead in LEADS], array=waves() * 1000).splitlines()
    rows.insert(1, ",".join(["'seconds'", *["'uV'"] * 12]))
    ecg = read_ecg(written(tmp_path, "\n".join(rows)))
    assert ecg.fs == FS and ecg.meta["other_signals"] == ("Elapsed time (seconds)",)
    np.testing.assert_allclose(ecg.signal, waves(), atol=1e-6)


# Refusals


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("I;II\n1;2\n3\n", r"row 3 has 1 cells, the first row has 2 \(they are separated by semicolons\)"),
        ("I\tII\n1\t2\n3\tx\n", r"row 3, column 2: 'x' is not a number \(cells are separated by tabs\)"),
        (
            "# I II\n1 2\n\n3 1.2.3\n",
            r"row 4, column 2: '1.2.3' is not a number \(cells are separated by white space\)",
        ),
        (
            "I,II\n0,12,0,34\n0,5,0,6\n",
            "row 2: commas stand between the cells and in the numbers: save the table with semi",
        ),
        ("I;II\n1,5;2.5\n1;2\n", "2.5 and 1,5: points and commas in numbers: save the table with decimal points alone"),
        ("I;II\n1,234;2,345\n7;8\n", "2,345: a decimal comma or one of thousands. save the table with decimal points"),
        ("I;II\n", "the table has no samples"),
        ("# I;II\n", "the table has no samples"),
        ("I;I\n1;2\n", "leads: I is named twice"),
        ("I,II,I.1\n1,2,3\n", "leads: not known, though they may be leads: I.1"),
        ("0 1 2\n1.5 2.5 3.5\n", r"pass leads=\.\.\."),
        (",Lead 1\n0,5\n3,6\n", r"none of \['', 'Lead 1'\]"),
        ("I,II\n1,1_000\n", "'1_000' is not a number"),
        ("I,II\n1,2 mV\n", "'2 mV' is not a number"),
        (b"I,II\n\x00\x01\x02", "this is no text: save the table as CSV"),
        ("I,II\n1,2\n".encode("utf-16-le"), "this is no text"),
    ],
)
def test_doubtful_tables_are_refused(content, message, tmp_path):
    with pytest.raises(ValueError, match=message) as caught:
        read_ecg(written(tmp_path, content), fs=100, units="mV")
    assert "t.csv" in str(caught.value)


def test_missing_cells_are_gaps_in_every_spelling(tmp_path):
    rows = ["V1;V2"] + ["1,5;2,5"] * 40
    for place, cell in enumerate(["", "NaN", "nan", "NA", "N/A", "null", "None", "#N/A"], start=3):
        rows[place] = f"1,5;{cell}"
    ecg = read_ecg(written(tmp_path, "\n".join(rows)), fs=100, units="mV", nan="interpolate")
    assert ecg.meta["repaired_samples"] == {"V2": 8} and (ecg.signal[1] == 2.5).all()


def test_a_lead_without_a_cell_is_not_a_mark_at_the_end(tmp_path):
    rows = [row.rpartition(",")[0] + "," for row in text(names=None).splitlines()]
    path = written(tmp_path, "\n".join(rows))
    assert read_ecg(path, **WORDS, nan="interpolate").meta["absent_leads"] == ("V6",)
    assert read_ecg(path, **STATED, leads=LEADS[:11]).leads == LEADS[:11]


@pytest.mark.parametrize(
    "head",
    [b"", b"r 12 250 501\nr.dat 16 1000/mV 16 0 0 0 0 I\n", b"hello\nworld\n", b"one, two\nthree, four\n", b"1\n2\n3\n",
     bytes(range(256)), b"\xff\xfe\x00", b"{\"a\": [1, 2]}", b"I,II\n"],
)  # fmt: skip
def test_what_is_no_table_is_not_taken_for_one(head, tmp_path):
    assert not looks_like_table(head)
    if head:
        path = written(tmp_path, head, "x.bin")
        assert not any(reader.accepts(path, head) for reader in READERS if reader.name.startswith("table"))


def test_each_mark_is_named():
    kinds = {"commas": ",", "semicolons": ";", "tabs": "\t", "bars": "|", "white space": " "}
    assert {parse_table(text(mark).encode()).delimiter for mark in kinds.values()} == set(kinds)
    for name, mark in kinds.items():
        with pytest.raises(ValueError, match=re.escape(f"'x' is not a number (cells are separated by {name})")):
            parse_table(f"I{mark}II\n1{mark}2\n3{mark}x\n".encode())
