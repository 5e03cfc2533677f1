"""The leak check in a training run: before anything is trained, and into training.json and the card."""

from __future__ import annotations

import dataclasses
import json

import pytest

from elm.saved.run import questions_for as load
from recipes import sft_llava


@pytest.fixture
def leaky(monkeypatch):
    """The questions of a run, with a held-out patient's question among those that are trained on."""

    def questions_for(arguments):
        questions = load(arguments)
        moved = {**questions.test[0], "id": "moved"}
        return dataclasses.replace(questions, train=[*questions.train, moved])

    monkeypatch.setattr(sft_llava, "questions_for", questions_for)


def test_what_is_found_reaches_the_card(trained):
    leaks = json.loads((trained / "training.json").read_text())["leaks"]
    assert leaks[:3] == [
        "Training: 24 ECGs of 12 patients. Test: 12 ECGs of 6 patients.",
        "No patient is in both.",
        "The recordings are simulated one by one: none is a copy of another.",
    ]
    card = (trained / "README.md").read_text()
    assert all(sentence in card for sentence in leaks)


def test_a_leak_is_refused_before_training(train, leaky, tmp_path):
    with pytest.raises(ValueError, match=r"1 patient is in training and in the test: s\d+.* allow_leaks: true"):
        train(tmp_path)
    assert not list(tmp_path.glob("checkpoints/*/checkpoint-*"))


def test_a_leak_may_be_allowed_and_is_told(train, no_steps, leaky, tmp_path, caplog):
    train(tmp_path, max_steps=1, align_steps=0, allow_leaks=True)
    leaks = json.loads((tmp_path / "training.json").read_text())["leaks"]
    assert leaks[1].startswith("1 patient is in training and in the test: s") and leaks[1] in caplog.text
    assert leaks[1] in (tmp_path / "README.md").read_text()
