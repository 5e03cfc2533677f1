"""Measured features: how near they come to what is planted, what stays unknown, and that nothing can hang."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from data.ecg import LEADS, Ecg
from data.experiment.conditions import Altered
from data.measure import NOT_MEASURABLE, Measurements, Worker, as_text, command, delineate, main, measure, measure_many
from data.measure import worker as worker_module
from data.quality import signal_quality
from data.readers import write_wfdb
from data.synthetic import SyntheticCohort

pytest.importorskip("neurokit2", reason='measuring needs pip install "ecg-elm[measure]"')
WFDB = Path(__file__).resolve().parents[3] / "shared" / "data" / "wfdb"


@pytest.fixture(scope="module")
def cohort():
    return SyntheticCohort(250, records_per_patient=1, seed=11)


@pytest.fixture(scope="module")
def measured(cohort):
    return [delineate(cohort[record]) for record in cohort.records]


def feature(measured, name):
    return np.array([np.nan if getattr(m, name) is None else getattr(m, name) for m in measured])


def share(error, within):
    """Of those that are known."""
    return (np.abs(error[np.isfinite(error)]) <= within).mean()


def test_rate_is_what_is_planted(cohort, measured):
    """In fibrillation and with ectopic beats, 10 s have another mean than the one they are drawn around."""
    p, rate = cohort.parameters, feature(measured, "rate")
    assert np.isfinite(rate).all()
    regular = ~p.atrial_fibrillation & ~p.pvc
    error = rate - p.heart_rate
    assert share(error[regular], 3) >= 0.95 and share(error, 15) >= 0.9
    assert abs(np.median(error)) < 1


def test_pr_is_what_is_planted_and_unknown_in_fibrillation(cohort, measured):
    p, pr = cohort.parameters, feature(measured, "pr")
    fit = ~p.atrial_fibrillation & (p.noise != 2) & (p.heart_rate < 100)
    error = (pr - p.pr_ms)[fit]
    assert np.isfinite(error).mean() > 0.9 and abs(np.median(error)) < 10
    assert share(error, 15) >= 0.85 and share(error, 40) >= 0.93
    assert np.isnan(pr[p.atrial_fibrillation]).mean() > 0.85
    # First degree AV block (240 ms and more) is told from normal (up to 175) by the number alone.
    known = fit & np.isfinite(pr)
    assert ((pr > 207) == (p.pr_ms > 200))[known].mean() > 0.93


def test_qrs_and_qtc_are_what_is_planted(cohort, measured):
    """A raised cosine begins slowly: a narrow complex of them is a few ms shorter or longer than its support."""
    p, qrs, qtc = cohort.parameters, feature(measured, "qrs"), feature(measured, "qtc")
    error, block = qrs - p.qrs_ms, p.conduction > 0
    assert abs(np.median(error[~block])) < 16 and abs(np.median(error[block])) < 6
    assert share(error, 30) >= 0.95
    assert ((qrs > 126) == block).mean() > 0.93
    # Bazett's constant is 385 to 415 ms; the tangent ends a wave a little before its support does.
    normal = qtc[~block & np.isfinite(qtc)]
    assert len(normal) > 0.95 * (~block).sum() and (np.abs(normal - 385) < 45).mean() > 0.95


def test_axis_is_what_is_planted(cohort, measured):
    error = (feature(measured, "axis") - cohort.parameters.axis_deg + 180) % 360 - 180
    assert np.isfinite(error).mean() > 0.97 and share(error, 15) >= 0.93 and abs(np.nanmedian(error)) < 2


def test_amplitudes_follow_the_voltage_and_nothing_else_does(cohort):
    for record in cohort.records[:12]:
        one, other = (delineate(cohort.render(record, gain=gain)) for gain in (1.0, 2.5))
        for lead in LEADS:
            assert other.r[lead] == pytest.approx(2.5 * one.r[lead], rel=1e-3, abs=1e-3)
            assert other.s[lead] == pytest.approx(2.5 * one.s[lead], rel=1e-3, abs=1e-3)
        for name in ("rate", "pr", "qrs", "qt", "axis"):
            assert getattr(other, name) == pytest.approx(getattr(one, name), abs=1e-3)


def test_leads_are_found_by_name_and_in_any_rate(cohort):
    for record in cohort.records[:6]:
        ecg = cohort.render(record, fs=500)
        cabrera = ecg.select(["V6", "V5", "V4", "V3", "V2", "V1", "III", "aVF", "II", "-aVR", "I", "aVL"])
        assert as_text(delineate(cabrera)) == as_text(delineate(ecg))
        other = delineate(ecg.resample(250))
        assert other.rate == pytest.approx(delineate(ecg).rate, abs=0.5)


def test_a_millivolt_is_a_millivolt(cohort):
    """Where noise is least, and nothing is larger than the QRS complex, its amplitudes are those of the samples."""
    p = cohort.parameters
    quiet = (p.noise == 0) & ~p.pvc & ~p.atrial_fibrillation & (p.conduction == 0) & (p.st_site == 0)
    for i in np.flatnonzero(quiet)[:10]:
        ecg = cohort.render(cohort.records[i], fs=500)
        m = delineate(ecg)
        for lead in ("I", "II", "V2", "V5"):
            size = float(np.ptp(ecg.select([lead]).signal))
            assert 0.8 * size - 0.1 <= m.r[lead] - m.s[lead] <= size + 0.03


@pytest.mark.slow
def test_the_same_recording_gives_the_same_numbers(cohort, good):
    ecgs = {record: cohort[record] for record in cohort.records[:4]}
    here = [delineate(ecg) for ecg in ecgs.values()]
    assert [delineate(ecg) for ecg in ecgs.values()] == here
    wrong = {what: change(good) for what, (change, _, _) in WRONG.items()}
    many = list(measure_many(ecgs | wrong, [*ecgs, *wrong], jobs=2))
    assert many == [*here, *map(measure, wrong.values())]
    assert measure(ecgs[cohort.records[2]]) == here[2]


def test_what_is_no_ecg_is_not_measurable(cohort):
    record = cohort.records[0]
    source = Altered(cohort)
    flat, noise = (delineate(source[f"{record}~{change}"]) for change in ("flat", "noise"))
    assert flat == Measurements("failed", "all leads are flat")
    assert noise.quality == "failed" and noise.reason == "no shape of beat prevails"
    short = delineate(cohort[record].crop(0, 2))
    assert short == Measurements("failed", "it lasts 2.0 s")
    assert {as_text(m) for m in (flat, noise, short)} == {NOT_MEASURABLE} == {"Measured: not measurable."}
    broken = replace(cohort[record], signal=np.where(np.arange(1000) == 7, np.nan, cohort[record].signal))
    missing = measure(broken)
    assert missing.quality == "failed" and "not finite" in missing.reason and record in missing.reason


def test_missing_leads_leave_the_rest(cohort):
    record = cohort.records[1]
    ecg = cohort[record]
    chest = measure(ecg.select(["V1", "V2", "V3", "V4", "V5", "V6"]))
    assert chest.axis is None and list(chest.r) == ["V1", "V2", "V3", "V4", "V5", "V6"]
    assert chest.quality == "poor" and chest.reason == "Not recorded: I, II, III, aVR, aVL, aVF"
    assert chest.rate == pytest.approx(delineate(ecg).rate, abs=0.5)
    assert "axis unknown, QRS amplitude" in as_text(chest) and "mV (V1 " in as_text(chest)
    dropped = delineate(Altered(cohort)[f"{record}~drop:I,II,III"])
    assert dropped.r["II"] == dropped.s["II"] == 0 and dropped.axis is None
    frank = Ecg(ecg.signal[:3], ecg.fs, ("VX", "VY", "VZ"))
    assert delineate(frank) == Measurements("failed", "none of its leads (VX, VY, VZ) is one of the twelve")


def changed(ecg, rows, values, meta=()):
    signal = ecg.signal.copy()
    signal[rows] = values
    return replace(ecg, signal=signal, meta={**ecg.meta, **dict(meta)})


WRONG = {  # what is done to a good recording, the quality of its measurement at best, and what the reason says
    "a flat lead": (lambda e: changed(e, 7, 0.3), "poor", "Flat: V2"),
    "interchanged limb leads": (lambda e: changed(e, [1, 2], e.signal[[2, 1]]), "poor", "II and III look interchanged"),
    "an inverted lead": (lambda e: changed(e, 4, -e.signal[4]), "poor", "aVL looks upside down"),
    "noise in a lead": (
        lambda e: changed(e, 9, np.random.default_rng(0).normal(0, 0.3, e.signal.shape[1])), "poor", "Noise alone: V4",
    ),
    "a long gap, bridged": (
        lambda e: changed(e, 6, e.signal[6], {"repaired_samples": {"V1": 150}}), "poor", "a straight line: V1 (0.3 s)",
    ),
    "a lead left out": (lambda e: e.select(LEADS[:-1]), "poor", "Not recorded: V6"),
    "all leads flat": (lambda e: changed(e, slice(None), 0.0), "failed", "Flat: I, II, III"),
    "microvolts": (lambda e: changed(e, slice(None), 1000 * e.signal), "failed", "microvolts called millivolts"),
    "too short": (lambda e: e.crop(2, 0.5), "failed", "Only 0.5 s long"),
}  # fmt: skip


@pytest.fixture(scope="module")
def good(cohort):
    """A recording that is good as a signal and as a measurement."""
    ecgs = (cohort.render(record, fs=500) for record in cohort.records)
    return next(e for e in ecgs if signal_quality(e).grade == "good" and delineate(e).quality == "good")


@pytest.mark.parametrize("what", WRONG)
def test_the_quality_is_never_better_than_the_signals(good, what):
    change, quality, words = WRONG[what]
    ecg = change(good)
    signal, numbers = signal_quality(ecg), delineate(ecg)
    one = measure(ecg)
    assert one.quality == quality and words in one.reason
    assert all(note.rstrip(".") in one.reason for note in signal.notes)
    assert (one.quality == "failed") == (signal.grade == "unreadable")
    if quality == "poor":
        assert replace(one, quality="good", reason="") == replace(numbers, quality="good", reason="")
        assert "missing or flat" not in one.reason


def test_what_is_harmless_leaves_the_quality_good(good):
    assert measure(good) == delineate(good)
    short = measure(changed(good.crop(0, 8), 6, good.crop(0, 8).signal[6], {"repaired_samples": {"V1": 20}}))
    assert (short.quality, short.reason) == ("good", "")


def test_both_have_their_say(good):
    flat = measure(changed(good.crop(0, 4), 7, 0.0))
    assert flat.quality == "poor" and flat.reason.startswith("few beats; Flat: V2")


def test_the_line_has_always_the_same_features_in_the_same_order():
    m = Measurements(
        "good", "", 71.6, 160.4, 92.0, 371.0, 404.6, 44.5, {"II": 0.96, "I": 0.84}, {"II": -0.15, "I": 0.0}
    )
    line = "Measured: rate 72/min, PR 160 ms, QRS 92 ms, QTc 405 ms, axis 44 degrees"
    assert as_text(m) == f"{line}, QRS amplitude 1.0 mV (I 0.8, II 1.1)."
    assert as_text(m, amplitudes="mean") == f"{line}, QRS amplitude 1.0 mV."
    bare = replace(m, pr=None, qtc=None, axis=None)
    assert as_text(bare, amplitudes="none") == (
        "Measured: rate 72/min, PR unknown, QRS 92 ms, QTc unknown, axis unknown."
    )


def test_no_line_says_nan(measured):
    assert not any("nan" in as_text(m) or "inf" in as_text(m) for m in measured)
    assert not any("NaN" in json.dumps(m.__dict__) for m in measured)


# --- processes --------------------------------------------------------------------------------------------------------

# Stuck where no signal handler of Python's runs: a regular expression that backtracks without end.
LIGHT = "import re, sys, data.measure.worker as m; sys.modules['neurokit2'] = re\n"  # whose import takes seconds
STUCK = LIGHT + (
    "stuck = lambda: re.match('(a+)+$', 'a' * 64 + 'b')\n"
    "m.delineate = lambda ecg: stuck() if ecg.duration < 8 else m.Measurements('good', rate=ecg.duration)\n"
    "m.serve()"
)


@pytest.mark.slow
def test_what_hangs_is_ended_and_the_next_recording_is_measured(cohort):
    worker = Worker(STUCK)
    ecg = cohort[cohort.records[0]]
    try:
        assert worker.measure(ecg, timeout=30) == Measurements(
            "good", rate=10.0
        )  # the process is up: what follows is timed without it
        assert worker._process is not None
        stuck, start = worker._process, time.monotonic()
        answer = worker.measure(ecg.crop(0, 5), timeout=0.5)
        assert answer == Measurements("failed", "it took longer than 0.5 s")
        assert 0.4 < time.monotonic() - start < 5 and stuck.poll() is not None
        assert worker.measure(ecg, timeout=30) == Measurements("good", rate=10.0)
    finally:
        worker.close()


@pytest.mark.slow
def test_a_worker_that_is_stuck_does_not_outlive_its_parent(tmp_path):
    code = (
        "import numpy as np, sys\nfrom data.ecg import LEADS, Ecg\nfrom data.measure import Worker\n"
        f"worker = Worker({STUCK!r})\nworker._running()\nprint(worker._process.pid, flush=True)\n"
        "worker.measure(Ecg(np.ones((12, 500)), 100, LEADS), 3)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, cwd=Path(__file__).parents[2])
    worker = int(parent.stdout.readline())
    time.sleep(0.3)
    parent.kill()
    parent.communicate()
    for _ in range(100):
        state = Path(f"/proc/{worker}/stat")
        if not state.exists() or state.read_text().rpartition(")")[2].split()[0] == "Z":
            return
        time.sleep(0.1)
    os.kill(worker, signal.SIGKILL)
    pytest.fail("the worker was still there 10 s after its parent")


@pytest.mark.slow
def test_a_worker_that_is_killed_is_replaced():
    ecg = Ecg(np.ones((12, 1000)), 100, LEADS)
    worker = Worker(LIGHT + "import os; m.delineate = lambda ecg: os.kill(os.getpid(), 9) if ecg.duration < 8 else "
                    "m.Measurements('good', rate=1.0); m.serve()")  # fmt: skip
    try:
        died = Measurements("failed", "the process that measured it ended with status -9")
        assert worker.measure(ecg.crop(0, 5), 5) == died
        assert worker.measure(ecg, 5) == Measurements("good", rate=1.0)
        worker._process.kill()
        worker._process.wait()
        assert worker.measure(ecg, 5) == Measurements("good", rate=1.0)
    finally:
        worker.close()


def test_an_error_inside_is_an_answer():
    worker = Worker(LIGHT + "m.delineate = lambda ecg: 1 / 0; m.serve()")
    try:
        answer = worker.measure(Ecg(np.ones((12, 500)), 100, LEADS), 5)
        assert answer == Measurements("failed", "ZeroDivisionError: division by zero")
    finally:
        worker.close()


def test_a_worker_that_cannot_start_says_so():
    with pytest.raises(RuntimeError, match="did not start"):
        Worker("raise SystemExit").measure(Ecg(np.ones((12, 500)), 100, LEADS), 5)


def test_without_neurokit_it_says_what_to_install(monkeypatch):
    monkeypatch.setattr(worker_module, "find_spec", lambda name: None)
    ecg = Ecg(np.ones((12, 500)), 100, LEADS)
    for call in (lambda: measure(ecg), lambda: list(measure_many({"r": ecg}, ["r"], 1))):
        with pytest.raises(ModuleNotFoundError, match=r'pip install "ecg-elm\[measure\]"'):
            call()
    monkeypatch.undo()
    with pytest.raises(ValueError, match="jobs must be at least 1, got 0"):
        list(measure_many({"r": ecg}, ["r"], 0))


# --- the command ------------------------------------------------------------------------------------------------------


@pytest.fixture
def one_worker(monkeypatch):
    """The process of `measure`, which is up, in place of new ones, which take seconds to start."""
    monkeypatch.setattr(command, "measure_many", lambda source, records: map(measure, map(source.get, records)))


@pytest.fixture
def folder(good, tmp_path):
    for name in ("one", "two", "cut"):
        write_wfdb(replace(good, record_id=name), tmp_path)
    (tmp_path / "cut.dat").write_bytes(b"\0" * 100)
    np.save(tmp_path / "bare.npy", good.signal)
    return tmp_path


def printed(capsys, *argv):
    """Exit status, and lines of standard output and standard error."""
    status = 0
    try:
        main([str(word) for word in argv])
    except SystemExit as end:
        status = end.code
    captured = capsys.readouterr()
    return status, captured.out.splitlines(), captured.err.splitlines()


@pytest.mark.usefixtures("one_worker")
def test_one_record_that_cannot_be_read_hides_no_other(folder, capsys):
    status, out, err = printed(capsys, folder / "one", folder / "cut", folder / "gone.hea", folder / "two.dat")
    assert status == 2 and out[::3] == [str(folder / "one"), str(folder / "two.dat")]
    assert all(line.startswith("  Measured: rate ") for line in out[1::3])
    assert [str(folder / name) in line for name, line in zip(("cut.dat: 100 bytes", "gone.hea"), err)] == [True, True]
    assert err[2:] == ["error: 2 of 4 recordings cannot be read"]
    status, out, err = printed(capsys, folder / "cut", folder / "cut")
    assert status == 2 and not out and err[-1] == "error: 2 of 2 recordings cannot be read"


@pytest.mark.usefixtures("one_worker")
def test_the_same_file_is_measured_once_and_that_is_said(folder, capsys, monkeypatch):
    monkeypatch.chdir(folder)
    status, out, err = printed(capsys, "one", "one.hea", "two", folder / "one.dat")
    assert status == 0 and out[::3] == ["one", "two"]
    assert err == [f"{path}: the same file as one: measured once" for path in ("one.hea", folder / "one.dat")]


@pytest.mark.usefixtures("one_worker")
def test_bare_numbers_are_measured_with_flags(folder, good, capsys):
    status, out, err = printed(capsys, folder / "bare.npy")
    assert (
        status == 2 and not out and all(flag in err[0] for flag in ("--fs", "--units", "--leads")) and "=" not in err[0]
    )
    told = [folder / "bare.npy", "--fs", 500, "--units", "mV", "--leads"]
    for leads in ([",".join(LEADS)], LEADS):
        status, out, err = printed(capsys, *told, *leads)
        assert status == 0 and not err and out[1] == f"  {as_text(delineate(good))}"
    status, out, _ = printed(capsys, *told, ",".join(LEADS[::-1]))
    assert "look" in out[2] or "contradict" in out[2]
    gap = np.where(np.arange(good.signal.shape[1]) == 7, np.nan, good.signal)
    np.save(folder / "bare.npy", gap)
    assert printed(capsys, *told, ",".join(LEADS))[0] == 0
    status, out, err = printed(capsys, *told, ",".join(LEADS), "--nan", "raise")
    assert status == 2 and not out and "--nan interpolate" in err[0]


def test_a_table_of_names_without_its_columns_is_refused(folder, capsys):
    (folder / "names.csv").write_text("Code,Dx\n1,AF\n")
    status, out, err = printed(capsys, folder / "one", "--names", folder / "names.csv")
    assert (status, out) == (2, []) and err == [
        f"error: {folder / 'names.csv'} has no column SNOMEDCTCode: --names wants SNOMEDCTCode and Dx"
    ]


# --- real recordings --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def real():
    if not WFDB.is_dir():
        pytest.skip("needs the recordings in ../shared/data/wfdb")
    from data.readers import read_ecg

    folders = ("chapman_ningbo", "cpsc2018", "cpsc2018_extra", "georgia", "ptb", "ptbxl")
    paths = sorted(path for folder in folders for path in (WFDB / folder).rglob("*.hea"))
    ecgs = {str(path): read_ecg(path, nan="interpolate") for path in paths}
    return [(ecg.meta["dx"], delineate(ecg)) for ecg in ecgs.values()]


def with_code(real, code):
    return [m for codes, m in real if code in codes]


@pytest.mark.slow
def test_real_recordings_are_as_they_are_labelled(real):
    """Labels are of a recording, made by others: most must agree, not all."""
    assert len(real) >= 70 and sum(m.quality == "good" for _, m in real) > 0.85 * len(real)
    slow, fast, sinus, fibrillating = (
        with_code(real, code) for code in ("426177001", "427084000", "426783006", "164889003")
    )
    assert np.mean([m.rate < 63 for m in slow]) > 0.8 and np.mean([m.rate > 98 for m in fast]) > 0.9
    assert np.mean([55 <= m.rate <= 100 for m in sinus]) > 0.9
    assert np.mean([m.pr is not None and 110 < m.pr < 230 for m in sinus]) > 0.85
    assert np.mean([m.qrs < 115 for m in sinus]) > 0.9
    assert np.mean([m.qtc is not None and 320 < m.qtc < 470 for m in sinus]) > 0.85
    assert np.mean([m.pr is None for m in fibrillating]) > 0.6


@pytest.mark.slow
def test_the_command_prints_what_is_measured_beside_the_labels():
    if not WFDB.is_dir():
        pytest.skip("needs the recordings in ../shared/data/wfdb")
    record = sorted((WFDB / "georgia").rglob("*.hea"))[0].with_suffix("")
    command = [sys.executable, "-m", "data.measure", record, "--names", WFDB / "snomed_scored_diagnoses_2021.csv"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2])
    first, second, third = done.stdout.splitlines()
    assert first == str(record) and second.startswith("  Measured: rate ") and "; labels: " in third
    gone = subprocess.run([*command[:3], record.with_name("gone")], capture_output=True, text=True, cwd="/")
    assert gone.returncode == 2 and "gone" in gone.stderr
