"""Trainings that are killed, and trainings of several processes."""

import multiprocessing
import os
import signal
import subprocess
import sys
from pathlib import Path

import transformers

REPO = Path(__file__).resolve().parents[2]


def killed_while_saving(train, checkpoint="checkpoint-4", run=""):
    """Call `train` in a child that dies by SIGKILL while it writes `checkpoint`, in a folder with `run` in its name.

    Weights and optimizer are there, the state is not.
    """

    def run_until_killed():
        save = transformers.Trainer._save_rng_state

        def kill(self, output_dir):
            if run in output_dir and output_dir.endswith(checkpoint):
                os.kill(os.getpid(), signal.SIGKILL)
            save(self, output_dir)

        transformers.Trainer._save_rng_state = kill
        train()

    child = multiprocessing.get_context("fork").Process(target=run_until_killed, daemon=True)
    child.start()
    child.join(240)
    assert child.exitcode == -signal.SIGKILL


def python(*words, timeout=300, **settings):
    """Run Python with `words` in the repository, and return what it printed."""
    command = [sys.executable, *map(str, words)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=timeout, **{"cwd": REPO, **settings})
    assert ended.returncode == 0, ended.stderr[-3000:]
    return ended.stdout


def in_two_processes(*words):
    """Run a script and its flags in two processes of torch.distributed."""
    return python("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", *words)
