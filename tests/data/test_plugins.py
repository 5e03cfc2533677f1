"""Question sets of other packages: found by name, imported late, refused by the name of their package."""

import subprocess
import sys

import pytest

from data.conversations import load_questions
from data.support import plugins

SET = """
from data.conversations.rows import QuestionSet, question_row

def load(answer="yes"):
    row = question_row(
        id="1", ecgs=["r"], patient_ids=["p"], question_type="single-verify", question="Is it?", answer=[answer]
    )
    return QuestionSet("mine", {}, "mine", [row], [], [], {"r": "p"})

def nothing():
    return []
"""


@pytest.fixture
def provide(tmp_path, monkeypatch):
    """Install a package of one module, as pip would leave it."""
    monkeypatch.syspath_prepend(str(tmp_path))
    packages = []

    def install(package, code, entries, group="ecg_elm.questions"):
        packages.append(package)
        (tmp_path / f"{package}.py").write_text(code)
        info = tmp_path / f"{package}-1.2.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.2\n")
        (info / "entry_points.txt").write_text(f"[{group}]\n{entries}\n")

    yield install
    for package in packages:
        sys.modules.pop(package, None)


def test_an_installed_set_is_found_by_its_name(provide):
    provide("mine_pkg", SET, "mine = mine_pkg:load")
    assert "mine_pkg" not in sys.modules
    assert load_questions("mine", answer="no").train[0]["answer"] == ["no"]
    with pytest.raises(ValueError, match="dataset 'mine' has no setting answers: it has answer"):
        load_questions("mine", answers=3)
    with pytest.raises(ValueError, match="unknown dataset 'other': one of synthetic, ecg_qa, mine; is the package"):
        load_questions("other")


def test_only_the_set_that_is_asked_for_is_imported(provide):
    provide("mine_pkg", SET, "mine = mine_pkg:load")
    provide("broken_pkg", "raise RuntimeError('half installed')", "broken = broken_pkg:load")
    assert load_questions("mine").name == "mine"
    assert "broken_pkg" not in sys.modules
    message = (
        r"dataset 'broken' cannot be imported: broken_pkg 1\.2 \(broken_pkg:load\) fails with RuntimeError: half inst"
    )
    with pytest.raises(ImportError, match=message):
        load_questions("broken")


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("mine = mine_pkg:laod", "mine_pkg 1.2 .* fails with AttributeError: .*laod"),
        ("mine = mine_pgk:load", r"mine_pkg 1.2 \(mine_pgk:load\) fails with ModuleNotFoundError: .*mine_pgk"),
    ],
)
def test_a_wrong_entry_point_names_its_package(provide, entry, message):
    provide("mine_pkg", SET, entry)
    with pytest.raises(ImportError, match=message):
        load_questions("mine")


def test_what_is_no_question_set_is_refused(provide):
    provide("mine_pkg", SET, "mine = mine_pkg:nothing")
    with pytest.raises(ValueError, match="dataset 'mine' gives a list, not a data.conversations.rows.QuestionSet"):
        load_questions("mine")


def test_a_set_that_breaks_the_contract_is_refused(provide):
    provide("mine_pkg", SET, "mine = mine_pkg:load")
    with pytest.raises(ValueError, match="mine: question '1' has the answer"):
        load_questions("mine", answer="")


def test_a_name_that_two_packages_provide_is_refused(provide):
    provide("first_pkg", SET, "mine = first_pkg:load\nsynthetic = first_pkg:load\nfirst = first_pkg:load")
    provide("second_pkg", SET, "mine = second_pkg:load")
    both = r"dataset 'mine' is provided by (first|second)_pkg 1\.2 .* and by (first|second)_pkg 1\.2 .*: .*uninstall"
    with pytest.raises(ValueError, match=both):
        load_questions("mine")
    with pytest.raises(
        ValueError, match=r"dataset 'synthetic' is provided by ecg-elm and by first_pkg 1\.2 \(first_pkg:l"
    ):
        load_questions("synthetic", patients=2)
    assert load_questions("first").name == "mine"


def test_a_path_to_code_is_not_a_name(provide, tmp_path):
    provide("mine_pkg", SET, "mine = mine_pkg:load")
    for name in ("mine_pkg:load", "mine_pkg", "mine_pkg.load", str(tmp_path / "mine_pkg.py")):
        with pytest.raises(ValueError, match="unknown dataset"):
            load_questions(name)
    assert "mine_pkg" not in sys.modules


@pytest.mark.slow
def test_help_imports_no_package_of_others(provide, tmp_path):
    code = f"from pathlib import Path\nPath({str(tmp_path / 'imported')!r}).touch()"
    provide("mine_pkg", code, "mine = mine_pkg:load")
    assert plugins.providers("ecg_elm.questions").keys() == {"mine"}
    command = [sys.executable, "-m", "eval.ablation", "--help"]
    done = subprocess.run(command, env={"PYTHONPATH": str(tmp_path)}, capture_output=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "imported").exists()
