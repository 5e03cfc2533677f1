"""The default job in two processes: the bytes of one, a few lines of output, and an end with the process that began."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from data.support.parallel import beside
from data.support.sentences import Refused

REPO = Path(__file__).resolve().parents[2]
COHORT = {"patients": 12, "held_out_patients": 6, "questions": 4, "held_out_questions": 2, "pairs": 9}
JOB = {
    "text_only": True, "ablation": True, "align_steps": 0, "questions_per_row": 4, "reports_in_sft": True,
    "dataset_args": json.dumps(COHORT),
}  # fmt: skip


def written(out):
    """All that is made of the data. How many processes made it stands in training.json, whose hash is in the report."""
    names = ("model.safetensors", "text-only/model.safetensors", "adapter/adapter_model.safetensors",
             "ablation/predictions.jsonl", "ablation/report.md")  # fmt: skip
    report = json.loads((out / "ablation" / "report.json").read_text())
    return {name: (out / name).read_bytes() for name in names} | {"report": report | {"training": None}}


def start(flags, folder, **changes):
    """The recipe as people run it, in a folder of its own so that it writes to the same path each time."""
    folder.mkdir(exist_ok=True)
    command = [sys.executable, str(REPO / "recipes" / "sft_llava.py"), *flags("out", **JOB | changes)]
    environment = os.environ | {"PYTHONPATH": str(REPO), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def finish(process):
    output, _ = process.communicate(timeout=500)
    assert process.returncode == 0, output
    return output


@pytest.fixture(scope="module")
def alone(flags, tmp_path_factory):
    folder = tmp_path_factory.mktemp("alone")
    output = finish(start(flags, folder, processes=1))
    return written(folder / "out"), output


@pytest.mark.slow
def test_two_processes_write_the_bytes_of_one(alone, flags, tmp_path):
    one, output = alone
    lines = finish(start(flags, tmp_path, processes=2, dataloader_num_workers=1)).splitlines()
    assert written(tmp_path / "out") == one
    assert len(lines) <= 40 and not any("it/s" in line or "{'loss'" in line for line in lines), lines
    assert len(output.splitlines()) <= 40
    assert any("a model trained without ECGs" in line for line in lines)


@pytest.mark.slow
def test_killed_both_end_and_go_on_to_the_same_bytes(alone, flags, tmp_path):
    one, _ = alone
    process = start(flags, tmp_path, processes=2, save_steps=1, save_total_limit=6)  # of which none is removed
    checkpoints = [tmp_path / "out" / place / "checkpoints" / "sft" / "checkpoint-2" for place in (".", "text-only")]
    deadline = time.monotonic() + 400
    while not all(path.exists() for path in checkpoints) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    assert all(path.exists() for path in checkpoints) and process.poll() is None
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)  # the pipe closes when the last process that writes to it has ended
    assert not (tmp_path / "out" / "ablation" / "report.json").exists()
    finish(start(flags, tmp_path, processes=2))
    assert written(tmp_path / "out") == one


def _write(path):
    time.sleep(0.2)
    Path(path).write_text(str(os.getpid()))


def _fail(error):
    raise error


def test_leaving_the_block_waits_and_passes_a_failure_on(tmp_path, capfd):
    with beside(_write, tmp_path / "pid"):
        assert not (tmp_path / "pid").exists()
    assert int((tmp_path / "pid").read_text()) != os.getpid()
    with pytest.raises(Refused, match="^no such ECG$"), beside(_fail, ValueError("no such ECG")):
        pass
    assert capfd.readouterr().err == ""
    failed = pytest.raises(RuntimeError, match="_fail failed in another process, with exit status 1")
    with failed, beside(_fail, KeyError("a mistake")):
        pass
    assert "KeyError: 'a mistake'" in capfd.readouterr().err


def test_an_error_in_the_block_ends_the_other_process(tmp_path):
    since = time.monotonic()
    with pytest.raises(KeyError), beside(time.sleep, 300):
        raise KeyError
    assert time.monotonic() - since < 60
