"""A saved run: read once, each part when it is first asked for."""

import dataclasses
from collections import Counter
from hashlib import sha256
from pathlib import Path

import pytest

from data.conversations.rows import QuestionSet
from data.experiment import conditions
from elm.saved.arguments import ElmArguments
from elm.saved.folder import save
from elm.saved.run import SavedRun

DATASET = {"patients": 12, "held_out_patients": 6, "questions": 4, "held_out_questions": 2}


@pytest.fixture
def folder(make_pair, tmp_path):
    arguments = ElmArguments(dataset_args=DATASET, cache_dir=str(tmp_path / "cache"), question_types=["single-verify"])
    training = {
        "dataset_name": "x", "notes": [], "language_model": "tiny", "train_condition": "real",
        "arguments": dataclasses.asdict(arguments),
    }  # fmt: skip
    return save(*make_pair("beats", pool=2), tmp_path / "model", training=training)


def test_the_record_is_read_once_and_gives_all_else(folder, monkeypatch):
    reads, read = Counter(), Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda path: reads.update([path.name]) or read(path))
    saved = SavedRun(str(folder))
    assert not reads and saved.folder == folder
    assert saved.digest == sha256(read(folder / "training.json")).hexdigest()[:16]
    assert saved.training["language_model"] == "tiny" and saved.training["parameters"] > 0
    assert saved.arguments.question_types == ["single-verify"]
    assert {row["question_type"] for row in saved.questions.train} == {"single-verify"}
    assert saved.model is saved.model and saved.processor is saved.processor and saved.measured(saved.questions) is None
    assert reads == {"training.json": 1}


def test_caches_are_those_of_the_recordings_and_what_is_done_to_them(folder, make_ecg, monkeypatch):
    saved = SavedRun(folder)
    questions = QuestionSet("x", {"r": make_ecg(1)}, "x", [], [], [], {"r": "p"}, [])
    stores = saved.stores(questions)
    folders = [store.folder for store in (stores.features, stores.zeros, stores.altered)]
    assert len(set(folders)) == 3 and {path.parent for path in folders} == {Path(saved.arguments.cache_dir)}
    assert stores.zeros.zero and not stores.features.zero
    monkeypatch.setattr(conditions, "VERSION", conditions.VERSION + 1)
    again = saved.stores(questions)
    assert again.features.folder == folders[0] and again.altered.folder != folders[2]


def test_a_folder_without_a_record_has_no_digest_and_says_so(folder, tmp_path):
    (folder / "training.json").unlink()
    saved = SavedRun(folder)
    assert saved.digest == "" and saved.model is not None
    with pytest.raises(FileNotFoundError, match="has no training.json: it does not say on which questions to ask"):
        _ = saved.questions
    with pytest.raises(FileNotFoundError, match="no saved model at .*nowhere"):
        _ = SavedRun(tmp_path / "nowhere").folder
