"""A run on a corpus one of whose files is cut off: refused before anything is made, or left out."""

import json

import pytest

from helpers.ecg_qa import cut, sample_file, write_ecg_qa
from recipes import sft_llava

FOLDS = {1: 1, 2: 2, 3: 8, 4: 3, 9: 9, 10: 9, 11: 9}
FLAGS = "--dev --text_only false --model_name_or_path meta-llama/Llama-3.2-1B-Instruct --encoder ecg_patch"


def run(root, *more):
    settings = json.dumps({"root": str(root), "sets": ["ecgqa"]})
    words = [*FLAGS.split(), "--encoder_args", "{}", "--dataset", "ecg_qa", "--dataset_args", settings, *more]
    sft_llava.main(*sft_llava.parse(words))


@pytest.fixture
def root(tmp_path):
    root = write_ecg_qa(tmp_path / "qa", FOLDS, {"train": [1, 2, 3, 4], "valid": [9, 10], "test": [11]})
    cut(sample_file(root, 2), 5000)
    cut(sample_file(root, 11), 5000)
    return root


def test_a_cut_off_file_is_refused_before_anything_is_made(root, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sft_llava.Run, "build", lambda *_: pytest.fail("built"))
    with pytest.raises(
        ValueError, match=r"(?s)2 recordings of 7 cannot be read:\n  2: .*\n  11: .*--unreadable leave_out"
    ):
        run(root)


@pytest.mark.slow
def test_what_is_left_out_is_in_the_card_and_in_the_report(root, folder_of_dev):
    folder = folder_of_dev(lambda: run(root, "--unreadable", "leave_out", "--ablation", "true"))
    note = "2 recordings that cannot be read were left out, and with them 1 training questions, 1 test questions"
    assert note in (folder / "README.md").read_text()
    assert any(line.startswith(note) for line in json.loads((folder / "ablation/report.json").read_text())["notes"])
