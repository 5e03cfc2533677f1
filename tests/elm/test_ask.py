"""`python -m elm.ask`: one question, one answer, and errors that say what to do."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from data.conversations.rows import user
from data.ecg import LEADS
from data.readers import read_ecg, write_wfdb
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
    assert "V1" in refused(capsys, model, short, question)
    message = refused(capsys, tmp_path / "no-model", records[0], question)
    assert message.startswith("error: no saved model at") and "no-model" in message
    (tmp_path / "empty").mkdir()
    assert "it has no config.json" in refused(capsys, tmp_path / "empty", records[0], question)
