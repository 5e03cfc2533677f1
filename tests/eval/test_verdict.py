"""The rule of docs/audit.md, case by case, on made-up answers and on numbers."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from eval.scoring import verdict as rule
from eval.scoring.verdict import Answers, Evidence, judge, verdict, weigh
from eval.statistics import Interval

READS = Evidence(
    questions=400, pairs=300, patients=60, answered=1.0,
    gap=0.5, gap_interval=Interval(0.4, 0.6), paired_flip=0.6, exchanged=0.1, p=0.0001,
    over_majority=0.2, over_majority_interval=Interval(0.1, 0.3), breaks=None,
)  # fmt: skip


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({}, "reads"),
        ({"gap_interval": Interval(0.10, 0.2)}, "reads"),
        ({"gap_interval": Interval(0.099, 0.2)}, "partly"),
        ({"over_majority_interval": Interval(-0.01, 0.3)}, "partly"),
        ({"p": 0.05}, "inconclusive"),
        ({"p": 0.05, "gap_interval": Interval(0.01, 0.09)}, "ignores"),
        ({"gap_interval": Interval(-0.01, 0.2)}, "inconclusive"),
        ({"gap_interval": Interval(-0.01, 0.09)}, "ignores"),
        ({"gap_interval": Interval(0.0, 0.0)}, "ignores"),
        ({"gap_interval": Interval(-0.01, 0.09), "breaks": 0.10}, "brittle"),
        ({"gap_interval": Interval(-0.01, 0.09), "breaks": 0.09}, "ignores"),
        ({"breaks": 0.9}, "reads"),  # that a reader breaks on zeros is nothing against him
        ({"patients": 19}, "inconclusive"),
        ({"pairs": 49}, "inconclusive"),
        ({"answered": 0.49}, "inconclusive"),
        ({"gap": None, "gap_interval": Interval(np.nan, np.nan), "p": np.nan}, "inconclusive"),
    ],
)
def test_the_rule_in_its_order(change, expected):
    assert judge(replace(READS, **change)) == expected


def test_a_corrected_p_takes_the_place_of_its_own():
    assert judge(READS, p=0.2) == "inconclusive"
    assert judge(replace(READS, p=0.2), p=0.01) == "reads"


def test_the_page_states_the_numbers_of_the_code():
    page = (Path(__file__).parents[2] / "docs" / "audit.md").read_text(encoding="utf-8")
    assert f"lower limit of G ≥ {rule.LEAST_GAP:.2f}" in page and f"upper limit of G < {rule.LEAST_GAP:.2f}" in page
    assert f"p < {rule.LEVEL:.2f}" in page and f"{rule.FLIPS:,} sign flips" in page
    assert f"fewer than {rule.LEAST_PAIRS} flip pairs or {rule.LEAST_PATIENTS} patients" in page
    assert rule.LEAST_ANSWERED == 0.5 and "fewer than half of the answers" in page
    table = page[page.index("| verdict | when |") :].partition("\n\n")[0]
    assert set(re.findall(r"^\| `(\w+)` \|", table, re.M)) == set(rule.SENTENCES)


def made(reads: np.ndarray, *, without: bool = True) -> Answers:
    """Answers to yes/no questions, paired two by two: the right one where `reads`, "no" elsewhere. Half are "no"."""
    n = len(reads)
    yes = np.arange(n) % 2 == 0  # each item's pair is its neighbour, whose answer is the other one
    said_yes = yes & reads
    flip_says_yes = said_yes.reshape(-1, 2)[:, ::-1].ravel()
    patients = [f"p{i}" for i in np.random.default_rng(1).permutation(np.arange(n) % (n // 8))]
    return Answers(
        clusters=patients,
        pair_clusters=[(patients[i], patients[i ^ 1]) for i in range(n)],
        real=said_yes == yes,
        answered=np.ones(n, bool),
        majority=~yes,
        paired=np.ones(n, bool),
        flip_still=flip_says_yes == yes,
        flip_follows=flip_says_yes != yes,
        real_as_flip=said_yes != yes,
        without={"none": ~yes} if without else {},
    )


def test_the_numbers_of_a_perfect_reader_and_of_a_guesser():
    reader, guesser = weigh(made(np.ones(800, bool))), weigh(made(np.zeros(800, bool)))
    assert (reader.gap, reader.paired_flip, reader.exchanged) == (1.0, 1.0, 0.0)
    assert reader.gap_interval == (1.0, 1.0) and reader.p < 0.001 and reader.over_majority == 0.5
    assert (guesser.gap, guesser.paired_flip, guesser.exchanged, guesser.p) == (0.0, 0.0, 0.0, 1.0)
    assert guesser.over_majority == 0.0
    assert (reader.pairs, reader.patients, reader.questions) == (800, 100, 800)
    assert weigh(made(np.ones(800, bool), without=False)).breaks is None


@pytest.mark.slow
def test_intervals_know_that_every_ecg_is_in_two_pairs():
    """A yes/no question whose answers change with the ECG but not with the finding: the gap is 2 * accuracy - 1."""
    rng, gaps, widths, rejected = np.random.default_rng(0), [], [], []
    for seed in range(150):
        answers = made(np.zeros(400, bool))
        yes, said = np.arange(400) % 2 == 0, rng.random(400) < 0.5
        other = said.reshape(-1, 2)[:, ::-1].ravel()
        answers = replace(
            answers, real=said == yes, flip_still=other == yes, flip_follows=other != yes, real_as_flip=said != yes
        )
        evidence = weigh(answers, draws=300, seed=seed)
        gaps.append(evidence.gap)
        widths.append(evidence.gap_interval.high - evidence.gap_interval.low)
        rejected.append(evidence.p < 0.05)
    needed = 2 * 1.96 * np.std(gaps)
    assert 0.85 * needed < np.mean(widths) < 1.2 * needed
    assert np.mean(rejected) < 0.12


def test_questions_without_a_pair_count_for_accuracy_alone():
    answers = made(np.ones(800, bool))
    half = np.arange(800) < 400
    evidence = weigh(replace(answers, paired=half))
    assert (evidence.questions, evidence.pairs) == (800, 400)
    assert weigh(replace(answers, paired=np.zeros(800, bool))).gap is None


def test_noise_cannot_carry_the_verdict():
    reads = np.arange(1600) < 800
    groups = ["noise"] * 800 + ["rhythm"] * 800
    found = verdict(made(reads), groups)
    assert found.groups["noise"].verdict == "reads" and not found.groups["noise"].counts
    assert found.verdict == "ignores"
    assert verdict(made(reads), ["axis"] * 800 + ["rhythm"] * 800).verdict == "reads"


def test_one_loud_group_does_not_speak_for_the_rest():
    reads = np.arange(2400) < 800
    groups = ["rate"] * 800 + ["rhythm"] * 800 + ["axis"] * 800
    found = verdict(made(reads), groups)
    assert [found.groups[name].verdict for name in ("rate", "rhythm", "axis")] == ["reads", "ignores", "ignores"]
    assert judge(found.evidence) == "reads" and found.verdict == "partly"
    assert found.sentence == "The model reads the ECG in part. It reads: rate."


def test_one_reading_group_lifts_a_blind_whole():
    reads = np.arange(8000) < 400
    found = verdict(made(reads), ["rate"] * 400 + ["rhythm"] * 7600)
    assert found.evidence.gap_interval.high < rule.LEAST_GAP and found.verdict == "partly"


def test_right_answers_that_do_not_follow_the_ecg_are_called_a_leak():
    answers = made(np.zeros(800, bool))
    ones = np.ones(800, bool)
    leaking = replace(
        answers, real=ones, flip_still=ones, flip_follows=~ones, real_as_flip=~ones, without={"none": ones}
    )
    found = verdict(leaking, ["axis"] * 800)
    assert found.verdict == "ignores" and "leak" in found.sentence


def test_too_few_valid_answers_are_named():
    found = verdict(replace(made(np.zeros(800, bool)), answered=np.arange(800) < 200), ["axis"] * 800)
    assert found.verdict == "inconclusive" and "Only 25 % of its answers are valid" in found.sentence


def test_wrong_arguments_are_named():
    with pytest.raises(ValueError, match="8 answers but 1 groups"):
        verdict(made(np.ones(8, bool)), ["axis"])
    with pytest.raises(ValueError, match="no question counts: all belong to noise"):
        verdict(made(np.ones(8, bool)), ["noise"] * 8)
    with pytest.raises(ValueError, match="no questions to weigh"):
        weigh(made(np.ones(0, bool).reshape(0)))
