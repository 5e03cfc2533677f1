"""Every command refuses nonsense with status 2 and one line, and shows its code when it is asked to or at fault."""

import ast
import importlib
import io
import runpy
import shutil
import sys
from contextlib import redirect_stdout
from pathlib import Path

import pytest

from data.readers import write_wfdb
from data.synthetic import SyntheticCohort
from helpers.golden import SMALL

ROOT = Path(__file__).resolve().parents[1]
# Words that a command's parser takes and the command cannot do anything with.
NONSENSE = {
    "data.check": ["nowhere"],
    "data.measure.__main__": ["nowhere.hea", "--names", "nowhere.csv"],
    "elm.ask": ["nowhere", "nowhere.hea", "Is this a normal ECG?"],
    "elm.hub": ["push", "nowhere", "my-lab/model"],
    "eval.ablation": ["--model", "nowhere"],
    "eval.calibrate": ["--audits", "0"],
    "eval.probe": ["--task", "ptbxl-super", "--encoder", "nowhere"],
    "eval.speed.__main__": ["ecg_byte", "--table", "nowhere.json"],
    "eval.super_classes": ["--model", "nowhere"],
    "eval.vocabulary": ["--tokenizer", "nowhere.json"],
    "eval.zero_shot": ["--model", "nowhere", "--task", "synthetic"],
    "serve.app": ["--model", "nowhere"],
    "serve.server": ["--model", "nowhere", "--max_tokens", "0"],
    "recipes/ablation_grid.py": ["--train_condition", "odd"],
    "recipes/pretrain_heartlang.py": ["--stage", "vqhbr", "--corpus", "nowhere"],
    "recipes/pretrain_melp.py": ["--corpus", "nowhere"],
    "recipes/sft_ecg_byte.py": ["--train_condition", "odd"],
    "recipes/sft_encoder_free.py": ["--quantization", "int3"],
    "recipes/sft_llava.py": ["--encoder_args", "{"],
}
RECIPES = [name for name in NONSENSE if name.startswith("recipes/")]
DOORS = [name for name in NONSENSE if name not in RECIPES]


def is_door(path):
    """Whether a file is run from a command line: at the top of a package or of a room."""
    if path.name != "__main__.py" and len(path.relative_to(ROOT).parts) != 2:
        return False
    return any(
        isinstance(node, ast.If) and ast.unparse(node.test) == "__name__ == '__main__'"
        for node in ast.parse(path.read_text(encoding="utf-8")).body
    )


def test_all_commands_are_tested():
    files = [path for package in ("data", "elm", "eval", "serve", "recipes") for path in (ROOT / package).rglob("*.py")]
    doors = {path.relative_to(ROOT).as_posix() for path in files if is_door(path)}
    assert doors == {name if "/" in name else name.replace(".", "/") + ".py" for name in NONSENSE}


def end_of(capsys, monkeypatch, name, words):
    """Status and standard error of a command in this process."""
    capsys.readouterr()
    monkeypatch.setattr(sys, "argv", [name, *words])
    with pytest.raises(SystemExit) as end:
        if name in RECIPES:
            runpy.run_path(str(ROOT / name), run_name="__main__")
        else:
            importlib.import_module(name).main(None)
    return end.value.code, capsys.readouterr().err


@pytest.mark.parametrize("name", NONSENSE)
def test_nonsense_is_refused_in_a_line(capsys, monkeypatch, tmp_path, name):
    monkeypatch.chdir(tmp_path)
    words = NONSENSE[name]
    status, said = end_of(capsys, monkeypatch, name, words)
    *before, last = said.splitlines()
    assert status == 2 and last.startswith("error: ") and len(last) > 20
    assert not any("Traceback" in line or "error" in line.lower() for line in before)
    status, said = end_of(capsys, monkeypatch, name, [words[0], *words[1:], "--traceback"])
    assert status == 2 and "Traceback (most recent call last)" in said and said.splitlines()[-1] == last


@pytest.mark.parametrize("name", DOORS)
def test_a_mistake_of_the_program_is_no_answer(capsys, monkeypatch, tmp_path, name):
    def mistaken(*args, **words):
        raise KeyError("lead")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("argparse.ArgumentParser.parse_known_args", mistaken)
    status, said = end_of(capsys, monkeypatch, name, NONSENSE[name])
    assert status == 2 and "Traceback" in said and "this is a mistake of the program" in said.splitlines()[-1]


@pytest.mark.parametrize("name", NONSENSE)
def test_help_says_how_to_see_the_code(capsys, monkeypatch, name):
    monkeypatch.setattr(sys, "argv", [name, "--help"])
    with pytest.raises(SystemExit) as end:
        if name in RECIPES:
            runpy.run_path(str(ROOT / name), run_name="__main__")
        else:
            importlib.import_module(name).main(["--help"])
    assert not end.value.code and "--traceback" in capsys.readouterr().out


@pytest.mark.parametrize("name", RECIPES)
def test_trainings_try_their_folders_first(capsys, monkeypatch, tmp_path, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    words = ["--stage", "vqhbr"] if "heartlang" in name else []
    for flag, other in (("--output_dir", "--cache_dir"), ("--cache_dir", "--output_dir")):
        flags = [*words, flag, str(tmp_path / "file"), other, str(tmp_path / "out"), "--use_cpu", "true"]
        status, said = end_of(capsys, monkeypatch, name, flags)
        assert status == 2 and said.splitlines()[-1] == (
            f"error: {tmp_path / 'file'}: a file is there where a folder must be: give {flag} a folder that can be "
            "written"
        )


@pytest.fixture
def record(tmp_path):
    cohort = SyntheticCohort(3, seed=5)
    return write_wfdb(cohort[cohort.records[0]], tmp_path / "records")


@pytest.mark.slow
@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_results_are_printed_on_any_terminal(monkeypatch, tmp_path, record, encoding):
    saved = shutil.copytree(SMALL / "saved_run", tmp_path / "saved")
    for name, words in (
        ("eval.ablation", ["--model", str(saved), "--rescore"]),
        ("data.measure.__main__", [str(record)]),
        ("elm.ask", [str(saved), str(record), "Gibt es eine ST-Hebung – ≥ 0,1 mV?"]),
    ):
        written = io.BytesIO()
        with redirect_stdout(io.TextIOWrapper(written, encoding=encoding)):
            importlib.import_module(name).main(words)
            assert written.getvalue().decode(encoding).strip()


def text_files_without_encoding(tree):
    """Lines of a module that read or write text in the encoding of whatever machine it runs on."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call) or any(word.arg in ("encoding", None) for word in node.keywords):
            continue
        called = ast.unparse(node.func)
        method = called.rpartition(".")[2]
        values = [ast.unparse(value) for value in node.args]
        mode = next((value for value in values if value.strip("'") in {"r", "w", "a", "x", "rt", "wt", "r+"}), None)
        least = {"read_text": 1, "write_text": 2}.get(method, 0)  # arguments that name the encoding
        if len(values) < least or (method == "open" and (mode or (called == "open" and len(values) == 1))):
            yield node.lineno


@pytest.mark.slow
def test_text_is_utf8_on_every_machine():
    wrong = [
        f"{path.relative_to(ROOT)}:{line}"
        for package in ("data", "elm", "encoders", "eval", "serve", "recipes")
        for path in (ROOT / package).rglob("*.py")
        for line in text_files_without_encoding(ast.parse(path.read_text(encoding="utf-8")))
    ]
    assert wrong == []
