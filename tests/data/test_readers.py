"""The readers: one contract for all formats, every refusal by its message, and all real records when they are there."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import wfdb
from hypothesis import given, settings
from hypothesis import strategies as st

from data.ecg import LEADS, Ecg
from data.readers import READERS, WfdbFolder, read_ecg, write_wfdb
from helpers.written import FS, SAMPLES, WORDS, header, npy, signal_line, table, waves

REAL = Path(__file__).resolve().parents[2].parent / "shared" / "data"


def challenge(folder: Path) -> Path:
    """As the PhysioNet challenges publish: 24 bytes of MATLAB v4 header, then the samples."""
    path = header(
        folder, line="r.mat 16+24 1000/mv 16 0 0 {sum} 0 {lead}", more="#Age: 56\n#Sex: Female\n# Dx: 2,1,2\n"
    )
    (folder / "r.mat").write_bytes(b"\0" * 24 + (folder / "r.dat").read_bytes())
    return path.with_suffix(".mat")


def packaged(code: str):
    """The record as the wfdb package writes it in another format."""

    def write(folder: Path) -> Path:
        wfdb.wrsamp(
            "r", fs=FS, units=["mV"] * 12, sig_name=[lead.lower() for lead in LEADS], p_signal=waves().T,
            fmt=[code] * 12, adc_gain=[1000.0] * 12, baseline=[0] * 12, write_dir=str(folder),
        )  # fmt: skip
        return folder / "r.hea"

    return write


def two_files(folder: Path) -> Path:
    """Three signals in a second file; their names and spelling as PTB's."""
    path = header(folder)
    stored = np.rint(waves() * 1000).astype("<i2")
    (folder / "r.dat").write_bytes(stored[:9].T.tobytes())
    (folder / "r.xyz").write_bytes(stored[9:].T.tobytes())
    lines = path.read_text().splitlines()
    path.write_text("\n".join(lines[:10] + [line.replace("r.dat", "r.xyz") for line in lines[10:]]).replace("aV", "av"))
    return folder / "r.xyz"


FORMATS = {
    "wfdb header": (header, {}),
    "wfdb without suffix": (lambda folder: header(folder).with_suffix(""), {}),
    "wfdb samples": (lambda folder: header(folder).with_suffix(".dat"), {}),
    "wfdb microvolts": (lambda folder: header(folder, line="r.dat 16 1/uV 16 0 0 {sum} 0 {lead}"), {}),
    "wfdb nanovolts": (lambda folder: header(folder, line="r.dat 16 0.001(0)/nV 16 0 0 {sum} 0 {lead}"), {}),
    "wfdb default units": (lambda folder: header(folder, line="r.dat 16 1000 16 0 0 {sum} 0 {lead}"), {}),
    "wfdb default rate": (lambda folder: header(folder, record="r {n}  250/360(0) 501 10:00:00 1/1/2000"), {}),
    "wfdb ours": (lambda folder: write_wfdb(Ecg(waves(), FS, LEADS, "r"), folder), {}),
    "wfdb two files": (two_files, {}),
    "wfdb format 24": (packaged("24"), {}),
    "wfdb format 32": (packaged("32"), {}),
    "wfdb format 212": (packaged("212"), {}),
    "challenge .mat": (challenge, {}),
    "npy": (npy, WORDS),
    "npy transposed": (lambda folder: npy(folder, waves().T), WORDS),
    "npy microvolts": (lambda folder: npy(folder, np.rint(waves() * 1000).astype(np.int16)), {**WORDS, "units": "µV"}),
    "npy volts": (lambda folder: npy(folder, waves() / 1000), {**WORDS, "units": "v"}),
    "csv with header": (table, {"fs": FS, "units": "MV"}),
    "csv without header": (lambda folder: table(folder, header_row=False), WORDS),
    "csv by row": (lambda folder: table(folder, header_row=False, array=waves().T), WORDS),
    "csv under another name": (lambda folder: table(folder).rename(folder / "r.txt"), {"fs": FS, "units": "mV"}),
    "npy under another name": (lambda folder: npy(folder).rename(folder / "r.dat"), WORDS),
}


@pytest.fixture(params=FORMATS)
def written(request, tmp_path):
    """Path and keywords of the same recording in each format."""
    make, words = FORMATS[request.param]
    return make(tmp_path), words


def test_contract(written):
    path, words = written
    ecg = read_ecg(path, **words)
    assert ecg.signal.shape == (12, SAMPLES) and ecg.signal.dtype == np.float32
    assert ecg.leads == LEADS and ecg.fs == FS and ecg.record_id == "r"
    assert not ecg.signal.flags.writeable
    np.testing.assert_allclose(ecg.signal, waves(), atol=1e-6)  # millivolts, whatever the file's units
    assert ecg.meta["file"].startswith(str(path.parent))
    np.testing.assert_array_equal(read_ecg(str(path), **words).signal, ecg.signal)


def test_contract_contradictions(written):
    path, words = written
    if "fs" not in words:
        assert read_ecg(path, fs=FS).fs == FS
        with pytest.raises(ValueError, match=r"sampling rate: the file says 250.0, the caller says 500"):
            read_ecg(path, fs=500)
    if "units" not in words:
        with pytest.raises(ValueError, match=r"units: the file says .*, the caller says V"):
            read_ecg(path, units="V")
    with pytest.raises(ValueError, match=re.escape(str(path.parent))):
        read_ecg(path, **{**words, "leads": ("I", "II")})
    with pytest.raises(ValueError, match="nan must be 'raise' or 'interpolate'"):
        read_ecg(path, **words, nan="zero")


def test_every_reader_is_under_contract(tmp_path):
    used = set()
    for number, (make, _) in enumerate(FORMATS.values()):
        folder = tmp_path / str(number)
        folder.mkdir()
        path = make(folder)
        head = path.read_bytes()[:4096] if path.is_file() else b""
        used.add(next(reader.name for reader in READERS if reader.accepts(path, head)))
    assert used == {reader.name for reader in READERS}


# Missing samples


@pytest.mark.parametrize("make", ["wfdb", "npy", "csv"])
def test_missing_samples_are_refused_or_interpolated(make, tmp_path):
    signal = waves()
    signal[1, :3] = signal[1, 100:110] = signal[4, -1] = np.nan
    if make == "wfdb":
        path, words = header(tmp_path, line="r.dat 16 1000/mV 16 0 0 0 0 {lead}"), {}
        stored = np.where(np.isnan(signal), -32768, np.rint(signal * 1000)).astype("<i2")
        path.with_suffix(".dat").write_bytes(stored.T.tobytes())
    else:
        path, words = (npy if make == "npy" else table)(tmp_path, array=signal), WORDS
        if make == "csv":
            path.write_text(path.read_text().replace("nan", ""))
    with pytest.raises(ValueError, match=r"\(NaN\) in leads II 13, aVL 1, of 501 each: pass nan='interpolate'"):
        read_ecg(path, **words)
    ecg = read_ecg(path, **words, nan="interpolate")
    assert ecg.meta["repaired_samples"] == {"II": 13, "aVL": 1}
    expected = waves()
    expected[1, :3], expected[4, -1] = expected[1, 3], expected[4, -2]
    expected[1, 99:111] = np.linspace(expected[1, 99], expected[1, 110], 12)
    np.testing.assert_allclose(ecg.signal, expected, atol=1e-5)


@pytest.mark.parametrize("make", ["wfdb", "npy", "csv"])
@pytest.mark.parametrize("gone", [251, 501])
def test_a_lead_that_is_mostly_missing_becomes_absent(make, gone, tmp_path):
    signal = waves()
    signal[6, :gone] = signal[9, 250:] = np.nan  # V4 is short of half by one sample, and is bridged
    if make == "wfdb":
        path, words = header(tmp_path, line="r.dat 16 1000/mV 16 0 0 0 0 {lead}"), {}
        path.with_suffix(".dat").write_bytes(
            np.where(np.isnan(signal), -32768, np.rint(signal * 1000)).astype("<i2").T.tobytes()
        )
    else:
        path, words = (npy if make == "npy" else table)(tmp_path, array=signal), WORDS
    ecg = read_ecg(path, **words, nan="interpolate")
    left = [lead for lead in LEADS if lead not in ("V1", "V4")]
    assert ecg.leads == tuple(left) and ecg.meta["absent_leads"] == ("V1", "V4")
    assert "repaired_samples" not in ecg.meta
    assert "Mostly missing, and left out: V1, V4." in ecg.meta["quality"].notes
    np.testing.assert_allclose(ecg.signal, waves()[[LEADS.index(lead) for lead in left]], atol=1e-6)


def test_half_of_a_lead_is_bridged_and_said(tmp_path):
    signal = waves()
    signal[0, 1:251] = np.nan
    ecg = read_ecg(npy(tmp_path, signal), **WORDS, nan="interpolate")
    assert ecg.leads == LEADS and ecg.meta["repaired_samples"] == {"I": 250} and "absent_leads" not in ecg.meta
    assert "Missing samples, bridged by a straight line: I (1 s)." in ecg.meta["quality"].notes


def test_a_recording_of_which_most_is_missing_is_refused(tmp_path):
    signal = np.full((12, SAMPLES), np.nan)
    signal[:, :100] = 0.5
    with pytest.raises(
        ValueError, match=r"r\.npy: most samples of every lead are missing \(NaN\): there is nothing to"
    ):
        read_ecg(npy(tmp_path, signal), **WORDS, nan="interpolate")


@pytest.mark.parametrize(("code", "missing"), [("16", -32768), ("24", -(1 << 23)), ("32", -(1 << 31)), ("212", -2048)])
def test_gaps_of_every_wfdb_format(code, missing, tmp_path):
    path, signal = header(tmp_path), waves()
    signal[2, 5:9] = np.nan
    wfdb.wrsamp(
        "g", fs=FS, units=["mV"] * 12, sig_name=list(LEADS), p_signal=signal.T, fmt=[code] * 12,
        adc_gain=[1000.0] * 12, baseline=[0] * 12, write_dir=str(tmp_path),
    )  # fmt: skip
    path = tmp_path / "g.hea"
    assert (wfdb.rdrecord(str(tmp_path / "g"), physical=False).d_signal[5:9, 2] == missing).all()
    with pytest.raises(
        ValueError, match=r"in leads III 4, of 501 each: pass nan='interpolate' \(commands: --nan interp"
    ):
        read_ecg(path)
    assert read_ecg(path, nan="interpolate").meta["repaired_samples"] == {"III": 4}


def test_infinite_samples_are_always_refused(tmp_path):
    signal = waves()
    signal[5, 7] = np.inf
    with pytest.raises(ValueError, match="lead aVF: 1 infinite"):
        read_ecg(npy(tmp_path, signal), **WORDS, nan="interpolate")


# WFDB: what the header may not say


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"record": "r {n} 0 501"}, r"r\.hea: sampling rate 0 Hz"),
        ({"record": "r {n} -500 501"}, "sampling rate -500 Hz"),
        ({"record": "r {n} 1e308 501"}, r"sampling rate 1e\+308 Hz"),
        ({"record": "r {n} nan 501"}, "sampling rate nan Hz"),
        ({"record": "r {n} fast 501"}, "sampling rate: 'fast' is not a number"),
        ({"record": "r {n}"}, "number of samples"),
        ({"record": "r {n} 250"}, "number of samples: '' is not a whole number"),
        ({"record": "r {n} 250 0"}, "number of samples: 0"),
        ({"record": "r {n} 250 9000000000000"}, r"r\.dat: 12024 bytes, but r\.hea promises 216000000000000"),
        ({"record": "r {n} 250 500"}, "12024 bytes, but r.hea promises 12000"),
        ({"record": "r {n} 250 502"}, "the file is cut off"),
        ({"record": "r 11 250 501"}, "number of signals: the record line says 11, there are 12"),
        ({"record": "r 90000000 250 501"}, "number of signals"),
        ({"record": "r/3 {n} 250 501"}, "several segments"),
        ({"record": "<html>"}, "record line: expected 'name signals rate samples'"),
        ({"line": signal_line(gain="0/mV")}, r"r\.hea: lead I: gain 0/mV is absent or absurd"),
        ({"line": signal_line(gain="-200/mV")}, "lead I: gain -200/mV"),
        ({"line": signal_line(gain="1e-300/mV")}, "gain 1e-300/mV is absent or absurd"),
        ({"line": signal_line(gain="1e300/mV")}, "absurd"),
        ({"line": signal_line(gain="nan/mV")}, "absurd"),
        ({"line": signal_line(gain="much/mV")}, "line 2: gain: 'much' is not a number"),
        ({"line": signal_line(gain="/mV")}, "line 2: gain '/mV'"),
        ({"line": signal_line(gain="1000/furlong")}, "lead I: unknown units 'furlong': expected V, mV, uV or nV"),
        ({"line": "r.dat 16"}, "leads: none of"),
        ({"line": signal_line(file="../r.dat")}, r"file name '\.\./r\.dat'"),
        ({"line": signal_line(file="/etc/passwd")}, "file name '/etc/passwd'"),
        ({"line": signal_line(file="s3://a/b.dat")}, "file name"),
        ({"line": signal_line(file="gone.dat")}, r"gone\.dat: missing: the header r\.hea names it"),
        ({"line": signal_line(format="516")}, "format '516': expected one of 8, 16"),
        ({"line": signal_line(format="16x4")}, "several samples per frame"),
        ({"line": signal_line(format="16:900000000")}, "skew"),
        ({"line": signal_line(format="16+24")}, "12024 bytes, but r.hea promises 12048"),
        ({"line": signal_line(sum="1")}, r"r\.dat: checksum of signal I: r\.hea promises 1, the samples give \d+"),
        ({"line": signal_line(sum="x")}, "checksum: 'x' is not a whole number"),
        ({"line": signal_line(zero="?")}, "ADC zero"),
        ({"leads": ("I", "II", "i")}, "leads: I is named twice"),
        ({"leads": ("RESP", "ABP")}, r"leads: none of \['RESP', 'ABP'\] is an ECG lead"),
    ],
)
def test_header_refusals(change, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        read_ecg(header(tmp_path, **change))


def test_absent_gain_is_refused_though_the_format_has_a_default(tmp_path):
    path = header(tmp_path, line="r.dat 16")
    with pytest.raises(ValueError, match="lead I: gain 0/mV is absent"):
        read_ecg(path, leads=LEADS)


def test_rate_and_names_may_come_from_the_caller_where_the_header_is_silent(tmp_path):
    path = header(tmp_path, line="r.dat 16 1000")
    assert read_ecg(path, leads=LEADS).leads == LEADS
    with pytest.raises(ValueError, match="leads: none of"):
        read_ecg(path, leads=LEADS[:3])


def test_baseline_and_adc_zero_are_taken_off(tmp_path):
    for gain in ("1000(-50)/mV", "1000/mV"):
        path = header(tmp_path, line=signal_line(gain=gain, zero="-50"))
        np.testing.assert_allclose(read_ecg(path).signal, waves() + 0.05, atol=1e-6)


def test_a_checksum_of_zero_was_never_summed(tmp_path):
    assert read_ecg(header(tmp_path, line=signal_line(sum="0"))).leads == LEADS


def test_damaged_samples_of_the_right_size_are_noticed(tmp_path):
    path = header(tmp_path)
    samples = bytearray(path.with_suffix(".dat").read_bytes())
    samples[2 * 12 * 100 + 2 * 7] ^= 64
    path.with_suffix(".dat").write_bytes(samples)
    with pytest.raises(ValueError, match=r"checksum of signal V2"):
        read_ecg(path)


def test_comments_become_age_sex_and_codes(tmp_path):
    ecg = read_ecg(challenge(tmp_path))
    assert (ecg.meta["age"], ecg.meta["sex"], ecg.meta["dx"]) == (56.0, "female", ("2", "1"))
    assert ecg.meta["comments"] == ("Age: 56", "Sex: Female", "Dx: 2,1,2")
    unknown = read_ecg(header(tmp_path, more="#Age: NaN\n#Sex: Unknown\n#Dx:\n"))
    assert unknown.meta["dx"] == () and "age" not in unknown.meta and "sex" not in unknown.meta
    odd = read_ecg(header(tmp_path, more="#one\x85line\u2028all the same\n"))
    assert odd.meta["comments"] == ("one\x85line\u2028all the same",)


def test_signals_that_are_no_leads_are_left_out_aloud(tmp_path, caplog):
    ecg = read_ecg(header(tmp_path, leads=("II", "RESP", "vx")))
    assert ecg.leads == ("II", "VX") and ecg.meta["other_signals"] == ("RESP",)
    np.testing.assert_allclose(ecg.signal, waves()[[0, 2]], atol=1e-6)
    assert "RESP" in caplog.text


def test_the_header_beside_a_file_must_be_its_own(tmp_path):
    header(tmp_path)
    (tmp_path / "r.mat").write_bytes(b"MATLAB 5.0")
    with pytest.raises(ValueError, match=r"r\.mat: the header r\.hea beside it does not name this file"):
        read_ecg(tmp_path / "r.mat")


def test_a_name_with_a_dot_is_not_cut_to_another_record(tmp_path):
    header(tmp_path)
    with pytest.raises(ValueError, match="missing"):
        read_ecg(tmp_path / "r.1")


# Arrays


@pytest.mark.parametrize("absent", ["fs", "units", "leads"])
@pytest.mark.parametrize("make", [npy, lambda folder: table(folder, header_row=False)])
def test_arrays_are_never_guessed_at(absent, make, tmp_path):
    words = {key: value for key, value in WORDS.items() if key != absent}
    with pytest.raises(ValueError, match=rf"does not say what its numbers mean: pass {absent}=\.\.\."):
        read_ecg(make(tmp_path), **words)


@pytest.mark.parametrize(
    ("array", "words", "message"),
    [
        (np.zeros((12, 50)), {"fs": 0}, "sampling rate 0 Hz"),
        (np.zeros((12, 50)), {"units": "adu"}, "units=: unknown units 'adu'"),
        (np.zeros((12, 50)), {"leads": ("I", "I")}, "I is named twice"),
        (np.zeros((12, 50)), {"leads": LEADS[:8]}, r"shape \(12, 50\) does not fit 8 leads"),
        (np.zeros((2, 12, 50)), {}, r"shape \(2, 12, 50\) does not fit"),
        (np.zeros((12, 12)), {}, "cannot be told apart"),
        (np.zeros((12, 0)), {}, "at least one sample"),
        (np.zeros((12, 50), complex), {}, "values are of type complex128"),
        (np.full((12, 50), "a"), {}, "values are of type <U1"),
        (np.array([[{}]]), {}, "not a readable .npy array"),
    ],
)
def test_array_refusals(array, words, message, tmp_path):
    path = npy(tmp_path, array, allow_pickle=True)
    with pytest.raises(ValueError, match=message) as caught:
        read_ecg(path, **{**WORDS, **words})
    assert str(path) in str(caught.value)


def test_an_array_cut_off_is_refused_before_memory_is_claimed(tmp_path):
    path = npy(tmp_path)
    path.write_bytes(path.read_bytes().replace(b"(12, 501)", b"(12, 9999999999)")[:4000])
    with pytest.raises(ValueError, match="not a readable .npy"):
        read_ecg(path, **WORDS)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("I,II\n1,2\n3\n", "row 3 has 1 cells, the first row has 2"),
        ("I,II\n1,2\n3,x\n", "row 3, column 2: 'x' is not a number"),
        ("I,II\n", "no samples"),
        ("I,I\n1,2\n", "I is named twice"),
        ("a,b\n1,2\n", "none of"),
        ("", "empty"),
    ],
)
def test_table_refusals(text, message, tmp_path):
    path = tmp_path / "t.csv"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        read_ecg(path, fs=100, units="mV")


def test_a_table_keeps_the_name_of_its_other_columns(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("time,i,II\n0,1,2\n0.1,3,4\n")
    ecg = read_ecg(path, fs=10, units="mV", leads=["I", "II"])
    assert ecg.select(["I", "II"]).signal.tolist() == [[1, 3], [2, 4]] and ecg.meta["other_signals"] == ("time",)
    with pytest.raises(ValueError, match="leads: the file says .* the caller says"):
        read_ecg(path, fs=10, units="mV", leads=["II", "I"])


@pytest.mark.parametrize("name", ["none.hea", "none.dat", "none.npy", "none.csv", "none", ""])
def test_missing_files_are_named(name, tmp_path):
    with pytest.raises(ValueError, match=f"{re.escape(str(tmp_path / name.split('.')[0]))}.*missing"):
        read_ecg(tmp_path / name, **WORDS)


def test_an_unknown_format_lists_the_known_ones(tmp_path):
    (tmp_path / "x.bin").write_bytes(bytes(range(256)))
    with pytest.raises(ValueError, match=r"x\.bin: not a known format: expected a NumPy array .*WFDB record .*table"):
        read_ecg(tmp_path / "x.bin")


# Writing


@settings(deadline=None, max_examples=25)
@given(
    peak=st.floats(1e-4, 32.7),
    fs=st.one_of(st.sampled_from([100.0, 500.0]), st.floats(10, 2000).map(lambda x: round(x, 4))),
    leads=st.permutations((*LEADS, "-aVR", "VX")).map(lambda names: tuple(names[:5])),
)
def test_written_records_come_back_to_a_microvolt(tmp_path_factory, peak, fs, leads):
    folder = tmp_path_factory.mktemp("written")
    signal = np.random.default_rng(1).uniform(-peak, peak, (5, 97))
    ecg = Ecg(
        signal, fs, leads, record_id="a-1", patient_id="secret", meta={"dx": ("1", "2"), "age": 61, "comments": ("x",)}
    )
    path = write_wfdb(ecg, folder, comments=["nominal\namplitude"])
    back = read_ecg(path)
    np.testing.assert_allclose(back.select(leads).signal, ecg.signal, atol=0.51e-3)
    assert {lead for lead in back.leads if lead not in back.meta.get("derived_leads", ())} == set(leads)
    assert (back.fs, back.record_id, back.meta["dx"]) == (fs, "a-1", ("1", "2"))
    np.testing.assert_allclose(
        wfdb.rdrecord(str(path.with_suffix(""))).p_signal.T, back.select(leads).signal, atol=1e-5
    )
    assert back.meta["comments"] == ("Dx: 1,2", "nominal amplitude")
    assert "secret" not in path.read_text() and "61" not in path.read_text().split("#", 1)[1]
    assert sorted(file.name for file in folder.iterdir()) == ["a-1.dat", "a-1.hea"]


def test_corpus_samples_survive_writing_exactly(tmp_path):
    ecg = Ecg(waves(), FS, LEADS, record_id="r")
    np.testing.assert_array_equal(read_ecg(write_wfdb(ecg, tmp_path)).signal, ecg.signal)


@pytest.mark.parametrize(
    ("signal", "name", "message"),
    [
        (np.full((1, 5), 33.0), "r", "peak of 33 mV does not fit"),
        (np.full((1, 5), np.nan), "r", "peak of nan mV does not fit"),
        (np.zeros((1, 5)), "", "cannot name a WFDB record"),
        (np.zeros((1, 5)), "../r", "cannot name a WFDB record"),
    ],
)
def test_what_cannot_be_written(signal, name, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        write_wfdb(Ecg(signal, 100, ("I",), record_id=name), tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_folder_is_a_source(tmp_path):
    (tmp_path / "sub").mkdir()
    write_wfdb(Ecg(waves(), FS, LEADS, record_id="r"), tmp_path / "sub")
    ecg = WfdbFolder(tmp_path)["sub/r"]
    assert ecg.record_id == "sub/r" and ecg.signal.shape == (12, SAMPLES)
    for name in ("sub/x", "../" + tmp_path.name + "/sub/r", str(tmp_path / "sub" / "r"), ""):
        with pytest.raises(KeyError, match="no record"):
            WfdbFolder(tmp_path / "sub")[name]


# Real records


def real(pattern: str) -> list[Path]:
    found = sorted(path for path in REAL.glob(pattern) if path.parent.name != "formats")  # those are not of 12 leads
    if not found:
        pytest.skip(f"no real records: {REAL / pattern} is absent")
    return found


def test_all_real_records_read_as_the_wfdb_package_reads_them():
    for path in real("wfdb/*/*.hea") + real("ptbxl_native/*.hea") + real("ptb_diag/*.hea"):
        ecg = read_ecg(path)
        assert ecg.leads[:12] == LEADS and np.isfinite(ecg.signal).all() and 7 < ecg.duration < 60
        if path.stem != "E00015":  # its record line reads `E00015.mat`, which the package refuses
            theirs = wfdb.rdrecord(str(path.with_suffix("")))
            assert ecg.fs == theirs.fs
            np.testing.assert_allclose(ecg.signal, theirs.p_signal.T, atol=1e-5)


def test_the_record_that_the_package_refuses():
    ecg = read_ecg(real("wfdb/georgia/E00015.hea")[0])
    assert (ecg.signal.shape, ecg.fs, ecg.record_id, ecg.meta["age"]) == ((12, 5000), 500.0, "E00015", 67.0)
    assert ecg.meta["dx"] == ("251146004", "284470004")
    einthoven = ecg.signal[0] + ecg.signal[2] - ecg.signal[1]
    assert np.abs(einthoven).max() < 0.002


def test_real_irregularities():
    wrong, right = real("wfdb/header_variants_2020_beta/HR00001.hea")[0], real("wfdb/ptbxl/HR00001.hea")[0]
    np.testing.assert_allclose(read_ecg(wrong).signal, 5 * read_ecg(right).signal, rtol=1e-5)  # by its header's gain
    assert read_ecg(wrong).meta["dx"] == ()
    frank = read_ecg(real("ptb_diag/s0010_re.hea")[0])
    assert frank.leads == (*LEADS, "VX", "VY", "VZ") and frank.fs == 1000 and frank.meta["sex"] == "female"
    flat = read_ecg(real("wfdb/chapman_ningbo/JS20008.hea")[0])
    assert 3 <= (np.ptp(flat.signal, axis=1) == 0).sum() <= 6


def test_bare_matlab_files_are_refused_clearly():
    with pytest.raises(ValueError, match=r"A1980\.hea: missing: .* a bare \.mat is not read"):
        read_ecg(real("cpsc2018_native/A1980.mat")[0])
