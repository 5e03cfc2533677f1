"""`python -m elm.ask`: one question, one answer, and errors that say what to do."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from data.conversations.rows import user
from data.ecg import LEADS, Ecg
from data.quality import signal_quality
from data.readers import read_ecg, write_wfdb
from data.synthetic import SyntheticCohort
from elm import ask
from elm.saved.folder import save

TRAINING = {"language_model": "tiny", "dataset_name": "none", "notes": [], "train_condition": "real"}
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def model(make_pair, tmp_path_factory):
    return save(*make_pair(pool=2), tmp_path_factory.mktemp("ask") / "model", training=TRAINING)


@pytest.fixture(scope="module")
def records(model, make_ecg):
    return [write_wfdb(make_ecg(seed), model / "examples").with_suffix("") for seed in (1, 2)]


def run(*arguments, python=()):
    return subprocess.run(
        [sys.executable, *python, "-m", "elm.ask", *map(str, arguments)],
        capture_output=True, text=True, cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}, timeout=120,
    )  # fmt: skip


def said(capsys, *arguments):
    ask.main([*map(str, arguments)])
    return capsys.readouterr().out


def refused(capsys, *arguments):
    with pytest.raises(SystemExit) as stopped:
        ask.main([*map(str, arguments)])
    captured = capsys.readouterr()
    assert stopped.value.code == 2 and captured.out == ""
    return captured.err


@pytest.mark.slow
def test_help_does_not_wait_for_torch():
    done = run("--help", python=("-X", "importtime"))
    assert done.returncode == 0 and "Research use only" in done.stdout and "--fs" in done.stdout
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if line.startswith("import time")}
    assert "elm" in imported and not imported & {"torch", "transformers", "scipy", "pandas"}


@pytest.mark.slow
def test_the_command_answers(model, records, capsys):
    """In a process of its own, where the package was imported on the way to the command."""
    done = run(model, records[0], "Is this a normal ECG?", "--max_new_tokens", 6)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("\n") and done.stdout.count("Traceback") == 0
    assert done.stdout == said(capsys, model, records[0], "Is this a normal ECG?", "--max_new_tokens", 6)


@torch.no_grad()
def test_the_answer_is_the_models_about_the_recordings_in_order(make_pair, model, records, capsys):
    pair, question = make_pair(pool=2), "Compare the two ECGs."  # what was saved
    outputs = []
    for order in (records, records[::-1]):
        ecgs = [read_ecg(path) for path in order]
        batch = pair.processor([user(2, question)], ecgs, add_generation_prompt=True)
        tokens = pair.model.generate(**batch, do_sample=False, max_new_tokens=9)[0, batch["input_ids"].shape[1] :]
        want = pair.processor.tokenizer.decode(tokens, skip_special_tokens=True).strip()
        assert ask.ask(pair.model, pair.processor, ecgs, question, max_new_tokens=9) == want
        outputs.append(said(capsys, model, *order, question, "--max_new_tokens", 9))
        assert outputs[-1] == want + "\n"
    assert outputs[0] != outputs[1]


def test_no_recording_is_a_question_alone(make_pair):
    answer = ask.ask(*make_pair(pool=2), [], "What is the rhythm?", max_new_tokens=4)
    assert answer == ask.ask(*make_pair(pool=2), [], "What is the rhythm?", max_new_tokens=4)


def test_files_that_do_not_speak_for_themselves(model, records, tmp_path, capsys):
    ecg = read_ecg(records[0])
    np.save(tmp_path / "ecg.npy", ecg.signal.T * 1000)
    told = [tmp_path / "ecg.npy", "Is it?", "--fs", 100, "--units", "uV", "--leads", *LEADS]
    assert said(capsys, model, *told) == said(capsys, model, records[0], "Is it?")
    assert "ecg.npy" in refused(capsys, model, tmp_path / "ecg.npy", "Is it?")


STATED = ["--fs", 100, "--units", "mV"]
FEW = ["--max_new_tokens", 6]  # an untrained model ends no answer


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """A recording of 30 s whose limb leads agree, as an array `[leads, samples]`; its thirds differ."""
    cohort = SyntheticCohort(60, records_per_patient=1, seed=11, fs=100)
    good = [ecg for ecg in map(cohort.__getitem__, cohort.records) if signal_quality(ecg).grade == "good"]
    return np.concatenate([ecg.signal for ecg in good[:3]], axis=1)


def asked(capsys, *arguments):
    """Standard output, and lines of standard error without those of loading the model."""
    ask.main([*map(str, [*arguments, *FEW])])
    captured = capsys.readouterr()
    lines = captured.err.replace("\r", "\n").splitlines()
    return captured.out, [line for line in lines if line and not line.startswith("Loading weights")]


def stored(folder, name, signal, leads=LEADS):
    write_wfdb(Ecg(signal, 100, leads, record_id=name), folder)
    return folder / name


def test_nothing_is_said_of_a_good_recording(model, sound, tmp_path, capsys):
    answer, remarks = asked(capsys, model, stored(tmp_path, "good", sound[:, :1000]), "Is it?")
    assert answer.strip() and remarks == []


@pytest.mark.parametrize(
    ("change", "remark"),
    [
        (lambda s: np.where(np.arange(12)[:, None] == 7, 0.3, s), "Flat: V2."),
        (lambda s: s[[0, 2, 1, *range(3, 12)]], "II and III look interchanged."),
        (lambda s: np.clip(s, None, 0.3 * s.max()), "Cut off at the top or the bottom: "),
        (lambda s: s[:, :700], "Only 7 s long."),
    ],
)
def test_what_is_wrong_is_said_in_one_line_beside_the_answer(model, sound, tmp_path, capsys, change, remark):
    path = stored(tmp_path, "r", change(sound[:, :1000]))
    answer, (line,) = asked(capsys, model, path, "Is it?")
    assert line.startswith(f"{path}: ") and remark in line and remark not in answer


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda s: 0 * s, "no model can read this recording: Flat: I, II, III"),
        (lambda s: 0 * s + 2, "no model can read this recording: Flat: I, II, III"),
        (lambda s: np.random.default_rng(0).normal(size=s.shape), "Noise alone: I, II, III"),
        (lambda s: 1000 * s, "microvolts called millivolts"),
        (lambda s: 0.001 * s, "Flat: I, II, III"),
        (lambda s: s[:, :20], "Only 0.2 s long: it takes 1 s to read one."),
    ],
)
def test_what_no_model_can_read_is_refused(model, sound, tmp_path, capsys, change, reason):
    np.save(tmp_path / "r.npy", change(sound[:, :1000]))
    message = refused(capsys, model, tmp_path / "r.npy", "Is it?", *STATED, "--leads", ",".join(LEADS))
    assert f"error: record '{tmp_path / 'r.npy'}': " in message and reason in message


def test_the_seconds_that_are_read_are_chosen_and_said(make_pair, model, sound, tmp_path, capsys):
    path, pair = stored(tmp_path, "long", sound), make_pair(pool=2)
    for start in (0, 10, 17.5):
        answer, (line,) = asked(capsys, model, path, "Is it?", "--start", start)
        span = f"The model reads 10 s of these 30 s: {start:g} to {start + 10:g} s (--start chooses others)."
        assert line == f"{path}: {span}"
        assert answer.strip() == ask.ask(*pair, [read_ecg(path).crop(start, 10)], "Is it?", max_new_tokens=6)
    short = stored(tmp_path, "short", sound[:, :1000])
    answer, lines = asked(capsys, model, short, path, "Compare.", "--start", "0,12")
    assert lines == [f"{path}: The model reads 10 s of these 30 s: 12 to 22 s (--start chooses others)."]
    for start, message in {
        "20.5": f"'{path}' lasts 30 s, which do not hold 10 s from 20.5 s on: choose a start from 0 to 20 s",
        "-3": "choose a start from 0 to 20 s",
        "0,1": "2 starts for 1 recordings: give one for all, or one for each",
        "soon": "--start: invalid numbers value: 'soon'",
    }.items():
        assert message in refused(capsys, model, path, "Is it?", "--start", start)


def test_a_recording_that_is_named_twice_is_said(model, sound, tmp_path, capsys):
    first, other = stored(tmp_path, "a", sound[:, :1000]), stored(tmp_path, "b", sound[:, 1000:2000])
    copy = stored(tmp_path, "c", sound[:, :1000])
    question = "Is there anything new in the second ECG?"
    assert asked(capsys, model, first, other, question)[1] == []
    for second, what in ((first, "file"), (f"{first}.hea", "file"), (copy, "signal")):
        (line,) = asked(capsys, model, first, second, question)[1]
        assert line == f"The first and the second recording are the same {what}."


def test_a_gap_is_bridged_and_said_or_refused(model, sound, tmp_path, capsys):
    signal = sound[:, :1000].copy()
    signal[6, 300:310] = np.nan
    np.save(tmp_path / "gap.npy", signal)
    words = [model, tmp_path / "gap.npy", "Is it?", *STATED, "--leads", *LEADS]
    assert asked(capsys, *words)[1] == [
        f"{tmp_path / 'gap.npy'}: Missing samples, bridged by a straight line: V1 (0.1 s)."
    ]
    message = refused(capsys, *words, "--nan", "raise")
    assert "V1 10, of 1000 each" in message and "--nan interpolate" in message and "nan=" not in message


def test_leads_may_be_named_before_the_record_and_inverted(model, sound, tmp_path, capsys):
    ecg = Ecg(sound[:, :1000], 100, LEADS)
    cabrera = ["aVL", "I", "-aVR", "II", "aVF", "III", *LEADS[6:]]
    want = said(capsys, model, stored(tmp_path, "r", ecg.signal), "Is it?", *FEW)
    np.save(tmp_path / "cabrera.npy", ecg.select(cabrera).signal)
    for words in (
        ["--leads", *cabrera, tmp_path / "cabrera.npy", "Is it?"],
        [tmp_path / "cabrera.npy", "--leads", ", ".join(cabrera), "Is it?"],
        [tmp_path / "cabrera.npy", "Is it?", f"--leads={';'.join(cabrera)}"],
    ):
        assert said(capsys, model, *STATED, *FEW, *words) == want


def test_what_no_model_can_read_is_refused_in_python_too(make_pair, make_ecg):
    flat = replace(make_ecg(1, record_id="off"), signal=np.zeros((12, 1000)))
    with pytest.raises(ValueError, match="record 'off': no model can read this recording: Flat: I, II"):
        ask.ask(*make_pair(pool=2), [make_ecg(2), flat], "Is it?")


def test_an_empty_question_is_refused(model, records, capsys):
    assert "the question is empty" in refused(capsys, model, records[0], " ")


def test_errors_name_what_is_wrong(model, records, tmp_path, make_ecg, capsys):
    question = "Is it?"
    assert "nothing-here" in refused(capsys, model, tmp_path / "nothing-here", question)
    signal = make_ecg(1).signal.T.copy()
    signal[7, 3] = np.nan
    np.save(tmp_path / "gaps.npy", signal)
    told = ["--fs", 100, "--units", "mV", "--leads", *LEADS, "--nan", "raise"]
    message = refused(capsys, model, tmp_path / "gaps.npy", question, *told)
    assert "gaps.npy" in message and "aVR" in message
    short = write_wfdb(make_ecg(3, record_id="limb").select(LEADS[:6]), tmp_path)
    wanted = f"record '{short}' has no lead V1, V2, V3, V4, V5, V6; it has I, II, III, aVR, aVL, aVF"
    assert wanted in refused(capsys, model, short, question)
    message = refused(capsys, tmp_path / "no-model", records[0], question)
    assert message.startswith("error: no saved model at") and "no-model" in message
    (tmp_path / "empty").mkdir()
    assert "it has no config.json" in refused(capsys, tmp_path / "empty", records[0], question)
