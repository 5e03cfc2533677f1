"""The numbers of a grid on answers that are known, and what is written about them."""

import json
from dataclasses import replace

import numpy as np
import pytest

from data.conversations.rows import QuestionSet, question_row
from eval.grids import conditions as grid
from eval.grids.numbers import DEV, INFER_CONDITIONS
from eval.statistics import paired_interval

TRAINED = ("real", "zero", "none", "shuffled")


def row(name, patient, control="", answer="yes"):
    return question_row(
        id=name, ecgs=[name], patient_ids=[patient], question_type="single-verify", question="Is it?",
        answer=[answer], template_id=1, attribute="it", control=control,
    )  # fmt: skip


@pytest.fixture(scope="module")
def questions():
    """Forty questions about ten patients, the answer to three of four is yes; and a control."""
    test = [row(f"q{i}", f"p{i % 10}", answer="no" if i % 4 == 0 else "yes") for i in range(40)]
    train = [row("t1", "t"), row("t2", "t"), row("t3", "t", answer="no")]
    return QuestionSet("known", {}, "known", train, [*test, row("c", "p0", "voltage")], [], {}, ["A note."])


@pytest.fixture(scope="module")
def answers(questions, line_of):
    """Trained on real ECGs, all are right with the real ECG; else, and for all other models, "yes" is the answer.

    With seed 1, the model trained on real ECGs says nothing to q4 and q8.
    """

    def said(train, seed, infer, row):
        if train == "real" and infer == "real":
            return "" if seed == 1 and row["id"] in ("q4", "q8") else row["answer"][0]
        return "Yes" if (train, infer) == ("zero", "zero") else "yes"

    return {
        (train, seed): [
            line_of(row, infer, said(train, seed, infer, row)) for infer in INFER_CONDITIONS for row in questions.test
        ]
        for train in TRAINED
        for seed in (0, 1)
    }


@pytest.fixture(scope="module")
def numbers(answers, questions):
    return grid.summarise(answers, questions, draws=200)


def test_known_numbers(numbers):
    assert (numbers["questions"], numbers["patients"], numbers["majority_by_question"]) == (40, 10, 0.75)
    real = numbers["accuracy"]["real"]["real"]
    assert real["by_seed"] == {"0": 1.0, "1": 0.95} and real["n"] == {"0": 40, "1": 40}
    assert (real["mean"], real["lowest"], real["highest"]) == (0.975, 0.95, 1.0)
    others = [
        cell for train, row in numbers["accuracy"].items() for i, cell in row.items() if (train, i) != ("real",) * 2
    ]
    assert len(others) == 15 and all(cell["by_seed"] == {"0": 0.75, "1": 0.75} for cell in others)


def test_upstreams_rule_is_case_sensitive_and_drops_what_is_empty(numbers):
    upstream = numbers["upstream_accuracy"]
    assert upstream["real"]["real"]["by_seed"] == {"0": 1.0, "1": 1.0}
    assert upstream["real"]["real"]["n"] == {"0": 40, "1": 38}
    assert upstream["zero"]["zero"]["mean"] == 0.0 and upstream["zero"]["none"]["mean"] == 0.75


def test_the_gap_of_each_seed_has_an_interval_over_patients_of_its_own(numbers, answers):
    gaps = numbers["real_minus_swap"]
    for seed in (0, 1):
        lines = [line for line in answers["real", seed] if not line.control]
        real, swap = ([float(x.correct) for x in lines if x.condition == name] for name in ("real", "swap"))
        patients = [line.patient_ids for line in lines if line.condition == "real"]
        expected = paired_interval(real, swap, patients, draws=200, seed=0)
        assert gaps["real"][str(seed)]["difference"] == pytest.approx(np.mean(real) - np.mean(swap))
        assert gaps["real"][str(seed)]["interval"] == pytest.approx(list(expected), abs=1e-6)
        assert gaps["none"][str(seed)] == {"difference": 0.0, "interval": [0.0, 0.0], "n": 40}


def test_every_cell_off_the_diagonal_comes_with_the_warning(numbers):
    for kind in ("accuracy", "upstream_accuracy"):
        warned = {(t, i) for t, row in numbers[kind].items() for i, cell in row.items() if "warning" in cell}
        matched = {("real", "real"), ("zero", "zero"), ("none", "none"), ("shuffled", "swap")}
        assert warned == {(t, i) for t in TRAINED for i in INFER_CONDITIONS} - matched
        assert grid.table(numbers, kind).count("\u2020") == 12
    assert "distribution shift" in grid.markdown(numbers)


def test_questions_without_a_donor_are_left_out_of_the_gap_alone(answers, questions):
    fewer = {
        key: [line for line in lines if (line.condition, line.id) != ("swap", "q0")] for key, lines in answers.items()
    }
    found = grid.summarise(fewer, questions, draws=50)
    assert found["questions"] == 40 and found["real_minus_swap"]["real"]["0"]["n"] == 39
    assert found["accuracy"]["real"]["swap"]["n"] == {"0": 39, "1": 39}


def test_a_model_that_never_says_anything_has_no_accuracy_by_upstreams_rule(answers, questions):
    silent = [replace(line, prediction="", correct=False) for line in answers["none", 0]]
    found = grid.summarise({("none", 0): silent}, questions, draws=50)
    assert found["upstream_accuracy"]["none"]["none"]["mean"] is None
    assert found["accuracy"]["none"]["none"]["mean"] == 0
    assert "says nothing" in grid.table(found, "upstream_accuracy")


def test_incomplete_grids_are_refused(answers, questions):
    def without(key, keep):
        return {**answers, key: [line for line in answers[key] if keep(line)]}

    for wrong, message in (
        ({}, "at least one model"),
        ({k: v for k, v in answers.items() if k != ("zero", 1)}, "no answers of the model trained on zero, seed 1"),
        (
            without(("none", 0), lambda x: x.condition != "swap"),
            "trained on none, seed 0 was not asked under 'swap'",
        ),
        (without(("none", 1), lambda x: x.id != "q3"), "none, seed 1 was asked other questions than real, seed 0"),
    ):
        with pytest.raises(ValueError, match=message):
            grid.summarise(wrong, questions)
    others = QuestionSet("others", {}, "others", questions.train, questions.test[:3], [], {})
    with pytest.raises(ValueError, match="question 'q10' was asked, but others has no such held-out question"):
        grid.summarise(answers, others)


def test_the_published_grid_is_shown_only_where_it_belongs(numbers, tmp_path):
    assert "37.09" not in grid.markdown(numbers) and "Published" not in grid.markdown(numbers)
    told = grid.markdown({**numbers, "published": "ecg_bench"})
    assert "| no ECGs                 |      37.09 † | 28.75 † |   30.05 |" in told
    assert all(word in told for word in ("acc_heatmap.png", "not stated", "sampled"))
    printed = grid.summary({**numbers, "published": "ecg_bench", "dev": True})
    assert "37.09 †" in printed and "distribution shift" in printed and printed.startswith(DEV)
    assert grid.table(numbers, "upstream_accuracy") in printed and grid.gaps(numbers) in printed
    assert "37.09" not in grid.summary(numbers) and grid.table(numbers) in grid.summary(numbers)


def test_what_is_written_is_the_same_every_time(numbers, tmp_path):
    told = {**numbers, "published": "ecg_bench", "dev": True}
    first = [path.read_bytes() for path in grid.write(tmp_path, told)]
    assert first == [path.read_bytes() for path in grid.write(tmp_path, told)]
    assert first[0].startswith(b"\x89PNG") and b"97.5 (95.0 to 100.0)" in first[1] and b"--dev" in first[1]
    assert json.loads(first[2]) == told
