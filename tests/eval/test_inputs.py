"""The numbers of a grid of inputs on answers and costs that are known, and what is written about them."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from data.conversations.rows import QuestionSet, question_row
from eval.grids import inputs
from eval.grids.numbers import DEV, INFER_CONDITIONS

SEEDS = (0, 1)


def row(name, patient, answer):
    return question_row(
        id=name, ecgs=[name], patient_ids=[patient], question_type="single-verify", question="Is it?",
        answer=[answer], template_id=1, attribute="it",
    )  # fmt: skip


@pytest.fixture(scope="module")
def questions():
    """Forty questions about ten patients; the answer to three of four is yes, the most common one in training."""
    test = [row(f"q{i}", f"p{i % 10}", "no" if i % 4 == 0 else "yes") for i in range(40)]
    return QuestionSet("known", {}, "known", [row("t1", "t", "yes")], test, [], {}, ["A note."])


@pytest.fixture(scope="module")
def answers(questions, line_of):
    """With the real ECG `reads` is right, with seed 1 but for q4; everything else is answered with yes."""

    def said(name, seed, infer, row):
        right = name == "reads" and infer == "real" and (seed, row["id"]) != (1, "q4")
        return row["answer"][0] if right else "yes"

    return {
        (name, seed): [
            line_of(row, infer, said(name, seed, infer, row))
            for infer in INFER_CONDITIONS for row in questions.test
        ]
        for name in ("reads", "guesses") for seed in SEEDS
    }  # fmt: skip


COSTS = {
    "reads": inputs.Cost(211.25, 88, 364, 12345, {"0": 0.25, "1": 0.75}, ["a CPU, 1 thread"]),
    "guesses": inputs.Cost(12.0, 12, 12, 99, {"0": None, "1": None}, []),
}


@pytest.fixture(scope="module")
def numbers(answers, questions):
    settings = {"max_steps": 7, "batch_size": 4, "questions_per_row": 3, "lora_r": 16}
    settings["inputs"] = {"reads": {"encoder": "ecg_byte"}, "guesses": {"encoder": "tiny"}}
    found = inputs.summarise(answers, COSTS, questions, draws=200)
    return found | {"dev": False, "settings": settings, "records": 40, "jobs": 2}


def test_known_numbers(numbers):
    assert (numbers["questions"], numbers["patients"], numbers["majority_by_question"]) == (40, 10, 0.75)
    assert list(numbers["inputs"]) == ["reads", "guesses"], "in the order of the costs"
    real = numbers["inputs"]["reads"]["accuracy"]["real"]
    assert real["by_seed"] == {"0": 1.0, "1": 0.975} and "warning" not in real
    others = [
        cell
        for name, found in numbers["inputs"].items()
        for infer, cell in found["accuracy"].items()
        if (name, infer) != ("reads", "real")
    ]
    assert len(others) == 7 and all(cell["mean"] == 0.75 for cell in others)
    gaps = numbers["inputs"]["reads"]["real_minus_swap"]
    assert gaps["0"]["difference"] == 0.25 and gaps["1"]["difference"] == 0.225
    assert numbers["inputs"]["guesses"]["real_minus_swap"]["0"] == {"difference": 0, "interval": [0, 0], "n": 40}


def test_the_table_has_all_columns(numbers):
    head, _, reads, guesses = ([cell.strip() for cell in line.split("|")[1:-1]] for line in
                               inputs.table(numbers).splitlines())  # fmt: skip
    assert head == ["input", "the real ECG", "zeros", "no ECG", "another patient's ECG", "most common answer",
                    "tokens per ECG", "seconds per step", "trained parameters"]  # fmt: skip
    assert reads == ["reads", "98.8 (97.5 to 100.0)", *["75.0 † (75.0 to 75.0)"] * 3, "75.0", "211.2 (88 to 364)",
                     "0.500 (0.250 to 0.750)", "12,345"]  # fmt: skip
    assert guesses[1:] == ["75.0 (75.0 to 75.0)", *["75.0 † (75.0 to 75.0)"] * 3, "75.0", "12", "not timed", "99"]


def test_what_is_written_is_the_same_every_time(numbers, tmp_path):
    first = [path.read_bytes() for path in inputs.write(tmp_path, numbers)]
    assert first == [path.read_bytes() for path in inputs.write(tmp_path, numbers)]
    assert first[0].startswith(b"\x89PNG") and json.loads(first[2]) == numbers
    told = first[1].decode()
    assert inputs.table(numbers) in told and inputs.gaps(numbers) in told and "A note." in told
    assert "7 steps of 4 rows with at most 3 questions" in told and '`{"encoder": "ecg_byte"}`' in told
    assert "on a CPU, 1 thread, 2 trainings at a time" in told and DEV not in told
    assert DEV in inputs.markdown({**numbers, "dev": True})


def test_incomplete_grids_are_refused(answers, questions):
    fewer = {key: lines for key, lines in answers.items() if key != ("guesses", 1)}
    with pytest.raises(ValueError, match="no answers of the model trained on guesses, seed 1"):
        inputs.summarise(fewer, COSTS, questions)
    other = {**answers, ("guesses", 0): [line for line in answers["guesses", 0] if line.id != "q3"]}
    with pytest.raises(ValueError, match="guesses, seed 0 was asked other questions than reads, seed 0"):
        inputs.summarise(other, COSTS, questions)


def test_parameters_of_an_adapter_are_counted(tmp_path):
    (tmp_path / "adapter").mkdir()
    save_file({"a": torch.zeros(3, 5), "b": torch.zeros(7)}, tmp_path / "adapter" / "adapter_model.safetensors")
    assert inputs.trained_in(tmp_path) == 22


def test_times_are_those_of_the_newest_whole_checkpoint(tmp_path, monkeypatch):
    """The log of a run that was interrupted holds the times of all its parts; without any, nothing is claimed."""
    monkeypatch.setattr(inputs, "tokens_of", lambda *_: [3, 4])
    monkeypatch.setattr(inputs, "trained_in", lambda _: 1)
    timed = [{"loss": 1, "seconds_per_step": s, "measured_on": on} for s, on in ((0.1, "a"), (0.5, "b"), (0.2, "b"))]
    for steps, history in ((2, timed[:1]), (4, [*timed, {"train_runtime": 9}])):
        folder = tmp_path / "checkpoints" / "sft" / f"checkpoint-{steps}"
        folder.mkdir(parents=True)
        state = {"global_step": steps, "max_steps": steps, "log_history": history}
        (folder / "trainer_state.json").write_text(json.dumps(state))
        save_file({"a": torch.zeros(1)}, folder / "adapter_model.safetensors")
    (tmp_path / "checkpoints" / "sft" / "checkpoint-6").mkdir()
    cost = inputs.cost_of({5: tmp_path, 6: tmp_path / "untimed"}, {}, ["r"])
    assert cost.seconds == {"5": 0.2, "6": None} and cost.measured_on == ["a", "b"]
    assert (cost.tokens, cost.fewest, cost.most) == (np.mean([3, 4]), 3, 4)
