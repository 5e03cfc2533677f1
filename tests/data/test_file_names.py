"""WFDB records by any name, in any capitals, below the home folder, and with headers of other systems."""

import re
from pathlib import Path

import numpy as np
import pytest

from data.ecg import LEADS
from data.readers import WfdbFolder, read_ecg
from helpers.written import header, signal_line, waves


def rename(path: Path, old: str, new: str) -> None:
    path.write_text(path.read_text().replace(old, new))


@pytest.mark.parametrize("name", ["A.1", "REC#1", "a+b", "two words", "Ünïcode", "A.1.b", "r(1)", "x,y", "100"])
@pytest.mark.parametrize("suffix", ["", ".hea", ".dat"])
def test_records_may_be_called_anything(name, suffix, tmp_path):
    path = header(tmp_path, record=f"{name} {{n}} 250 501", line=signal_line(file=f"{name}.dat"))
    path.rename(tmp_path / f"{name}.hea")
    (tmp_path / "r.dat").rename(tmp_path / f"{name}.dat")
    ecg = read_ecg(tmp_path / f"{name}{suffix}")
    assert ecg.record_id == name
    np.testing.assert_allclose(ecg.signal, waves(), atol=1e-6)


@pytest.mark.parametrize("named", ["R.HEA", "R.DAT", "R", "r.hea", "r"])
@pytest.mark.parametrize("files", [("R.HEA", "R.DAT"), ("R.hea", "r.dat"), ("r.hea", "R.DAT"), ("r.HEA", "r.dat")])
def test_other_capitals_are_the_same_file(named, files, tmp_path):
    path = header(tmp_path, line=signal_line(file="r.dat"))
    path.rename(tmp_path / "moved").rename(tmp_path / files[0])
    (tmp_path / "r.dat").rename(tmp_path / "moved").rename(tmp_path / files[1])
    np.testing.assert_allclose(read_ecg(tmp_path / named).signal, waves(), atol=1e-6)


def test_what_was_looked_for_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"a\.1: missing, .* there is no record a\.1\.hea: check the path"):
        read_ecg(tmp_path / "a.1")
    path = header(tmp_path, line=signal_line(file="s.DAT"))
    with pytest.raises(
        ValueError, match=r"s\.DAT: missing: the header r\.hea names it, and the two belong in one folder"
    ):
        read_ecg(path)
    for name in ("R.DAT", "r.Dat"):
        (tmp_path / name).write_bytes((tmp_path / "r.dat").read_bytes())
    (tmp_path / "r.dat").unlink()
    rename(path, "s.DAT", "r.dat")
    with pytest.raises(ValueError, match=r"r\.dat: missing"):  # which of the two is meant, nobody knows
        read_ecg(path)


def test_home_is_known(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    header(tmp_path)
    assert read_ecg("~/r").leads == LEADS and read_ecg(Path("~/r.dat")).leads == LEADS
    assert WfdbFolder("~")["r"].leads == LEADS
    with pytest.raises(ValueError, match=re.escape(str(tmp_path))):
        read_ecg("~/none.csv")


def test_headers_of_other_systems_are_read(tmp_path):
    path = header(tmp_path, line="r.dat 16 1/µV 16 0 0 {sum} 0 {lead}", more="# Größe\n")
    text = path.read_text()
    for content in (text.encode("cp1252"), b"\xef\xbb\xbf" + text.encode(), text.replace("\n", "\r\n").encode()):
        path.write_bytes(content)
        ecg = read_ecg(path)
        assert ecg.meta["comments"] == ("Größe",)
        np.testing.assert_allclose(ecg.signal, waves(), atol=1e-6)


@pytest.mark.parametrize("name", ["x" * 300, "~nobody-of-that-name/r", "a\0b"])
def test_what_cannot_be_a_file_is_a_refusal(name, tmp_path):
    with pytest.raises(ValueError, match="cannot be opened|missing|null byte"):
        read_ecg(name)
