"""A command ends with a status and one sentence; only a mistake of the program shows its code unasked."""

import errno
import io
import json
import os
import pickle
import subprocess
import sys
import zipfile
import zlib
from pathlib import Path

import httpx
import pytest
import torch
from safetensors import safe_open

from data.support.sentences import Refused, sentence_of
from data.support.status import command
from data.wire.http import ServerError


def ended(capsys, main, argv=(), **words):
    """Status and standard error of a command."""
    with pytest.raises(SystemExit) as end:
        command(**words)(main)(list(argv))
    return end.value.code, capsys.readouterr().err


def raising(error):
    def main(argv):
        raise error

    return main


def caught(work, *args, **words):
    with pytest.raises(Exception) as info:
        work(*args, **words)
    return info.value


REFUSALS = [
    (ValueError("row 3 of a.csv\n  has no age"), "row 3 of a.csv has no age"),
    (ServerError("GET http://x: no answer"), "GET http://x: no answer"),
    (Refused("the server did not start"), "the server did not start"),
    (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/out/a.npy"), "/out/a.npy: No space left on device: free some"),
    (OSError(errno.EROFS, os.strerror(errno.EROFS), "/m/x"), "/m/x: Read-only file system: write elsewhere"),
    (PermissionError(errno.EACCES, os.strerror(errno.EACCES), "/root/x"), "/root/x: Permission denied: change who may"),
    (OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE)), "Address already in use: another program listens there"),
    (OSError("Can't load tokenizer for 'x'.\nMake sure ..."), "Can't load tokenizer for 'x'. Make sure ..."),
    (
        ModuleNotFoundError("No module named 'gradio'", name="gradio"),
        "the package gradio is not installed: pip install",
    ),
    (ModuleNotFoundError("No module named 'sklearn.x'", name="sklearn.x"), "pip install scikit-learn"),
    (ImportError("METEOR needs nltk: pip install nltk"), "METEOR needs nltk: pip install nltk"),
    (torch.OutOfMemoryError("CUDA out of memory. Tried"), "not enough memory (CUDA out of memory. Tried): lower --it"),
    (MemoryError(), "not enough memory (MemoryError): lower --it"),
    (RuntimeError("DefaultCPUAllocator: can't allocate memory: 8 bytes"), "not enough memory"),
    (RuntimeError("[enforce fail] PytorchStreamWriter failed writing file data/0"), "is the disk full?"),
    (httpx.ConnectError("refused", request=httpx.Request("GET", "http://127.0.0.1:9/v1")), "http://127.0.0.1:9/v1: no"),
    (pickle.UnpicklingError("bad opcode"), "a file is damaged, cut off, or not what its name says (bad opcode)"),
    (EOFError("Ran out of input"), "a file is damaged"),
    (zlib.error("Error -3"), "a file is damaged"),
    ("µ".encode("latin-1").decode, "a file is not text in utf-8 (byte 0xb5 at 0): save it as UTF-8"),
    ("µ".encode, "cannot be written in ascii"),
]


@pytest.mark.parametrize(("error", "sentence"), REFUSALS, ids=[text[:30] for _, text in REFUSALS])
def test_what_a_user_can_do_something_about_is_one_line(capsys, error, sentence):
    error = error if isinstance(error, Exception) else caught(error, "utf-8" if "utf" in sentence else "ascii")
    status, said = ended(capsys, raising(error), smaller="lower --it")
    assert status == 2 and said.startswith("error: ") and said.count("\n") == 1
    assert sentence in said and "Traceback" not in said and "Errno" not in said
    status, said = ended(capsys, raising(error), ["--traceback"], smaller="lower --it")
    assert status == 2 and said.startswith("Traceback") and sentence in said.splitlines()[-1]


@pytest.mark.parametrize("error", [KeyError("age"), TypeError("an int"), AssertionError(), IndexError(3)])
def test_a_mistake_of_the_program_is_shown_and_is_no_verdict(capsys, error):
    status, said = ended(capsys, raising(error))
    assert status == 2 and said.startswith("Traceback") and "in main" in said
    assert said.splitlines()[-1].startswith(f"error: {type(error).__name__}")
    assert said.splitlines()[-1].endswith("please report it, with the lines above")


@pytest.mark.parametrize("error", [RuntimeError("mat1 and mat2"), NotImplementedError("x"), AttributeError("y")])
def test_other_errors_are_taken_for_mistakes(error):
    assert sentence_of(error) is None


def test_one_of_our_own_modules_that_is_missing_is_a_mistake():
    error = caught(__import__, "data.no_such_module")
    assert isinstance(error, ModuleNotFoundError) and sentence_of(error) is None


def test_places_are_named(tmp_path):
    (tmp_path / "file").write_text("")
    for work, problem in (
        ((tmp_path / "file" / "below").mkdir, "file/below: a file is there where a folder must be"),
        ((tmp_path / "file").mkdir, "file: a file is there where a folder must be"),
        (tmp_path.read_bytes, ": a folder is there where a file must be"),
        ((tmp_path / "none").read_bytes, "none: no such file or folder"),
        ((tmp_path / ("long" * 100)).write_bytes, ": the name is too long"),
    ):
        error = caught(work, b"") if "long" in problem else caught(work)
        said = sentence_of(error)
        assert said is not None and said.startswith(str(tmp_path)) and problem in said


def test_a_damaged_file_is_named(tmp_path):
    for name in ("model.safetensors", "upload.zip", "report.json"):
        (tmp_path / name).write_bytes(b"\xff\x00 cut off")

    def read_json(path):
        with open(path, encoding="latin-1") as file:
            return json.load(file)

    for work, name in (
        (lambda file: safe_open(file, framework="pt"), "model.safetensors"),
        (zipfile.ZipFile, "upload.zip"),
        (read_json, "report.json"),
        (lambda path: path.read_text(encoding="utf-8"), "report.json"),
    ):
        said = sentence_of(caught(work, tmp_path / name))
        assert said is not None and said.startswith(str(tmp_path / name))


def test_interrupted(capsys):
    assert ended(capsys, raising(KeyboardInterrupt())) == (130, "interrupted\n")
    status, said = ended(capsys, raising(KeyboardInterrupt()), resumes=True)
    assert status == 130 and said == "interrupted: started again with the same words, it goes on where it stopped\n"


def test_a_status_of_the_command_itself_stays(capsys):
    assert ended(capsys, raising(SystemExit(1)))[0] == 1
    assert ended(capsys, raising(SystemExit("error: the engine died"))) == (2, "error: the engine died\n")


def test_other_processes_say_who_they_are(capsys, monkeypatch):
    monkeypatch.setenv("RANK", "3")
    assert ended(capsys, raising(ValueError("no row")))[1] == "error: process 3: no row\n"


def test_words_reach_the_command_but_for_the_flag():
    words = []
    command()(words.extend)(["--traceback", "a", "--", "--traceback"])
    assert words == ["a", "--", "--traceback"]


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "utf-8"])
def test_what_a_terminal_cannot_show_is_escaped(monkeypatch, encoding):
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding=encoding))
    command()(lambda argv: print("Größe – 5 % ≥ µV", *argv))(["ż"])
    shown = written.getvalue().decode(encoding)
    assert shown.startswith("Gr") and "5 %" in shown and ("ż" in shown or "\\u017c" in shown)


def test_a_closed_output_is_nothing_to_fail_at(monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    command()(lambda argv: sys.stdout.write("an answer"))([])


PROGRAM = """
import sys
from data.support.status import command
command()(lambda argv: print("a line of an answer\\n" * int(argv[0])))()
"""


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        ("1 | head -c 0", 141, ""),
        ("100000 | head -n 1", 141, ""),
        ("1 > /dev/full", 2, "No space left on device: free some, or write elsewhere\n"),
        ("100000 > /dev/full", 2, "No space left on device"),
        ("1 >&-", 0, ""),
    ],
)
def test_output_that_goes_nowhere(words, status, said, unbuffered):
    if "/dev/full" in words and not Path("/dev/full").exists():
        pytest.skip("there is no /dev/full")
    line = f'"{sys.executable}" -c "$PROGRAM" {words}; exit ${{PIPESTATUS[0]}}'
    env = {**os.environ, "PROGRAM": PROGRAM, "PYTHONUNBUFFERED": unbuffered}
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, env=env, timeout=60)
    assert done.returncode == status and said in done.stderr and len(done.stderr.splitlines()) <= 1
