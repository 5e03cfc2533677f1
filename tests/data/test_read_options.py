"""`--fs`, `--units`, `--leads` and `--nan` of every command that reads files."""

import argparse
import shlex
from dataclasses import dataclass

import numpy as np
import pytest

from data.ecg import LEADS
from data.readers import read_ecg, write_wfdb
from data.readers.options import ReadOptions, join_lead_names, lead_names
from data.support.commands import add_options, command_of, option, parse, settings_from
from encoders.contract import simulated

CABRERA = ("aVL", "I", "-aVR", "II", "aVF", "III", "V1", "V2", "V3", "V4", "V5", "V6")


def parsed(words):
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("record", nargs="+")
    parser.add_argument("question")
    add_options(parser, ReadOptions)
    args = parser.parse_intermixed_args(join_lead_names(words))
    return settings_from(ReadOptions, args).leads, (args.model, args.record, args.question)


@pytest.mark.parametrize("leads", [LEADS, CABRERA, CABRERA[2:5], ("-V1",), ("avr", "v1", "II")], ids=" ".join)
@pytest.mark.parametrize(
    "form",
    [
        lambda names: ["--leads", ",".join(names)],
        lambda names: [f"--leads={','.join(names)}"],
        lambda names: ["--leads", ";".join(names)],
        lambda names: ["--leads", ", ".join(names)],
        lambda names: ["--leads", " ".join(names)],
        lambda names: ["--leads", *names],
        lambda names: [f"--leads={names[0]}", *names[1:]],
        lambda names: ["--leads", *(f"{name}," for name in names[:-1]), names[-1]],
        lambda names: ["--leads", *(word for name in names for word in (name, ","))],
    ],
)
def test_leads_are_read_in_every_form_wherever_they_stand(form, leads):
    asked, words = ["model", "ecg.npy", "Is lead I normal?"], form(leads)
    fs = ["--fs", "500"]
    for argv in (
        [*asked, *words], [*words, *asked], [asked[0], *words, *asked[1:]], [*asked[:2], *words, *fs, asked[2]],
        [*fs, *words, *asked], [asked[0], *words, *fs, *asked[1:]],
    ):  # fmt: skip
        assert parsed(argv) == (leads, ("model", ["ecg.npy"], "Is lead I normal?")), argv


def test_a_record_called_like_a_lead_is_no_lead_behind_a_list():
    assert parsed(["model", "--leads", "I,II", "V1", "V2", "Which?"]) == (
        ("I", "II"),
        ("model", ["V1", "V2"], "Which?"),
    )
    assert parsed(["--leads", "I,", "II", "m", "V1", "Which?"]) == (("I", "II"), ("m", ["V1"], "Which?"))
    assert parsed(["--leads", "I", "II", "--", "m", "V1", "V2"]) == (("I", "II"), ("m", ["V1"], "V2"))


def test_a_file_called_like_a_lead_is_no_lead(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_wfdb(simulated(2, 100, record_id="V1"), tmp_path)
    assert parsed(["m", "--leads", "I", "II", "V1", "Which?"]) == (("I", "II"), ("m", ["V1"], "Which?"))
    assert parsed(["m", "--leads", "V1", "II", "x", "Which?"]) == (("V1", "II"), ("m", ["x"], "Which?"))


def test_signals_that_are_no_leads_keep_their_place():
    assert lead_names("I,-,V1") == ("I", "-", "V1") and lead_names("I,,V1") == ("I", "", "V1")
    assert lead_names("Lead I, lead aVR (mV)") == ("Lead I", "lead aVR (mV)")
    assert parsed(["m", "r", "?", "--leads", "I", "-", "V1"])[0] == ("I", "-", "V1")


@pytest.mark.parametrize("words", [["--leads"], ["--leads", "--fs", "500"], ["--leads", ","], ["--leads="]])
def test_no_name_is_a_wrong_flag(words, capsys):
    with pytest.raises(SystemExit) as stopped:
        parsed(["m", "r", "?", *words])
    assert stopped.value.code == 2 and "argument --leads" in capsys.readouterr().err


def test_settings_derive_from_them_and_the_command_repeats_them():
    @dataclass(frozen=True, kw_only=True)
    class Settings(ReadOptions):
        ecg: tuple[str, ...] = option("recordings", default=())

    settings = Settings(fs=250.0, leads=lead_names("I,-aVR"), ecg=("a.npy",))
    words = shlex.split(command_of("x", settings))[3:]
    assert parse(Settings, "x", "", join_lead_names(words)) == settings


def test_refusals_name_flags(tmp_path):
    np.save(tmp_path / "fs=500.npy", simulated(2, 100).signal)
    for options, flags in (
        (ReadOptions(), ("--fs", "--units", "--leads")),
        (ReadOptions(fs=100, units="mV"), ("--leads",)),
        (ReadOptions(fs=100, units="furlongs", leads=lead_names(",".join(LEADS))), ("--units",)),
    ):
        with pytest.raises(ValueError) as refused:
            options.read(tmp_path / "fs=500.npy")
        path, _, words = str(refused.value).partition("fs=500.npy: ")
        assert "commands" not in words and all(words.count(flag) == 1 for flag in flags)
        assert path == f"{tmp_path}/" and all(flag in words for flag in flags) and "=" not in words


def test_a_signal_that_is_no_lead_is_left_out_of_an_array(tmp_path):
    ecg = simulated(2, 100)
    np.save(tmp_path / "r.npy", ecg.signal[:7])
    for leads in ("I,II,III,aVR,aVL,aVF,-", "I, II, III, aVR, aVL, -, V1", "I II III aVR aVL aVF -"):
        read = ReadOptions(fs=100, units="mV", leads=lead_names(leads)).read(tmp_path / "r.npy")
        rows = [row for row, name in enumerate(lead_names(leads)) if name != "-"]
        kept = read.select([lead_names(leads)[row] for row in rows])
        np.testing.assert_array_equal(kept.signal, ecg.signal[rows])
        assert len(read.meta["other_signals"]) == 1
    with pytest.raises(ValueError, match="r.npy: leads: unknown lead 'foo'"):
        ReadOptions(fs=100, units="mV", leads=lead_names("I,II,III,aVR,aVL,aVF,foo")).read(tmp_path / "r.npy")


def test_missing_samples_are_bridged_unless_told_otherwise(tmp_path):
    signal = simulated(2, 100).signal.copy()
    signal[6, 50:53] = np.nan
    np.save(tmp_path / "gap.npy", signal)
    stated = {"fs": 100.0, "units": "mV", "leads": lead_names(" ".join(LEADS))}
    ecg = ReadOptions(**stated).read(tmp_path / "gap.npy")
    assert ecg.meta["repaired_samples"] == {"V1": 3} and np.isfinite(ecg.signal).all()
    with pytest.raises(ValueError, match=r"V1 3, .*--nan interpolate") as refused:
        ReadOptions(**stated, nan="raise").read(tmp_path / "gap.npy")
    assert "nan=" not in str(refused.value)


def test_a_recording_is_called_as_its_reader_called_it(tmp_path):
    write_wfdb(simulated(2, 100, record_id="r1"), tmp_path)
    ecg = ReadOptions().read(tmp_path / "r1")
    assert ecg.record_id == str(tmp_path / "r1")
    np.testing.assert_array_equal(ecg.signal, read_ecg(tmp_path / "r1.hea").signal)
