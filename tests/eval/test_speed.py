import subprocess
import sys

import pytest

from eval.speed import __main__ as speed


def run(*argv):
    return subprocess.run([sys.executable, "-m", "eval.speed", *argv], capture_output=True, text=True)


def test_help_lists_every_part_and_what_it_times():
    shown = run("--help")
    assert shown.returncode == 0
    for name, line in speed.parts().items():
        assert line.endswith(".") and f"  {name:<12}{line}" in shown.stdout.splitlines()
    assert "statistics" in speed.parts() and not any(name.startswith("_") for name in speed.parts())


def test_an_unknown_part_is_named_beside_the_known_ones():
    shown = run("patience")
    assert shown.returncode == 2
    assert "invalid choice: 'patience'" in shown.stderr and "statistics" in shown.stderr


def test_options_after_the_part_are_its_own(capsys):
    with pytest.raises(SystemExit):
        speed.main(["statistics", "--help"])
    assert "--flips" in capsys.readouterr().out


def test_times_of_statistics_stand_beside_those_of_loops(capsys):
    speed.main(["statistics", "--items", "200", "--patients", "50", "--draws", "100", "--flips", "300"])
    about, _, *rows = capsys.readouterr().out.splitlines()
    assert about == "200 answers about 50 patients; loops timed over 50 draws and scaled"
    assert len(rows) == 3
    for row, draws in zip(rows, (100, 100, 300)):
        *_, count, here, _, loop, _, ratio = row.split()
        assert int(count) == draws and ratio.endswith("x")
        assert float(ratio[:-1]) == pytest.approx(float(loop) / float(here), rel=0.02)
