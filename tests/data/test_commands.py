"""One dataclass of settings is the parser, the call and the command that repeats it."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.support.commands import command_of, option, parse


@dataclass(frozen=True, kw_only=True)
class Settings:
    record: Path = option("a recording", positional=True)
    model: Path = option("folder, 95 % of the time", metavar="DIR")
    seed: int = option("of the resamples", default=0, repeated="always")
    names: Sequence[str] | None = option("some names", default=None, choices=("real", "swap"))
    folds: tuple[int, ...] = option("which folds", default=())
    prompt: tuple[str, ...] = option("a text", default=(), append=True)
    rate: float | None = option("in Hz", default=None)
    full: bool = option("everything", default=False)
    gate: Literal["reads", "partly"] | None = option("or exit", default=None, repeated="never")
    draws: int = 2000

    def __post_init__(self) -> None:
        if self.rate == 0:
            raise ValueError("rate must be positive")


@given(
    st.builds(
        Settings,
        record=st.just(Path("out/a record")),
        model=st.builds(Path, st.text("ab c'%", min_size=1)),
        seed=st.integers(-3, 3),
        names=st.none() | st.lists(st.sampled_from(["real", "swap"]), min_size=1, max_size=3).map(tuple),
        folds=st.lists(st.integers(0, 9), max_size=3).map(tuple),
        prompt=st.lists(st.sampled_from(["sinus rhythm", "it's"]), max_size=3).map(tuple),
        rate=st.none() | st.floats(0.5, 500),
        full=st.booleans(),
    )
)
def test_the_command_gives_the_same_settings(settings):
    words = shlex.split(command_of("eval.something", settings))
    assert words[:3] == ["python", "-m", "eval.something"] and "--seed" in words
    assert parse(Settings, "eval.something", "Does it.", words[3:]) == settings


def test_what_is_wrong_is_named(capsys):
    for argv, message in (
        (["r"], "--model"),
        (["r", "--model", "m", "--names", "flip"], "invalid choice: 'flip'"),
        (["r", "--model", "m", "--gate", "no"], "invalid choice: 'no'"),
        (["r", "--model", "m", "--draws", "3"], "unrecognized arguments"),
    ):
        with pytest.raises(SystemExit) as stop:
            parse(Settings, "eval.something", "Does it.", argv)
        assert stop.value.code == 2 and message in capsys.readouterr().err
    with pytest.raises(ValueError, match="^rate must be positive$"):
        parse(Settings, "eval.something", "Does it.", ["r", "--model", "m", "--rate", "0"])


def test_the_home_folder_is_written_as_a_tilde(monkeypatch):
    monkeypatch.setenv("HOME", "/home/ada")
    settings = parse(Settings, "eval.something", "Does it.", ["~/r.hea", "--model=~/out/x"])
    assert (settings.record, settings.model) == (Path("/home/ada/r.hea"), Path("/home/ada/out/x"))
    settings = parse(Settings, "eval.something", "Does it.", ["a~b", "--model", "~nobody-here/x"])
    assert (settings.record, settings.model) == (Path("a~b"), Path("~nobody-here/x"))


def test_help_is_the_docstring_and_the_fields(capsys):
    with pytest.raises(SystemExit):
        parse(Settings, "eval.something", "Does it.\n\nAt length.", ["--help"])
    shown = capsys.readouterr().out
    for words in ("python -m eval.something", "Does it.", "At length.", "folder, 95 % of the time", "(default: 0)"):
        assert words in shown
    assert "draws" not in shown
