"""Numbers from scored lines, against what can be counted by hand."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest

from eval.scoring import numbers as measures
from eval.scoring.lines import Line, Planted, by_condition, scored
from eval.scoring.numbers import measure
from eval.scoring.results import TEXT_ONLY, About
from eval.statistics import cluster_interval

WORDS = frozenset({"yes", "no", "sinus rhythm", "atrial fibrillation"})
DRAWS = 200


def line(id, condition, prediction, answer, shown=None, *, p=None, group="rhythm", **fields):
    """A scored line; `p` maps options to probabilities."""
    among = None if p is None else sorted(p)
    return scored(Line.from_json(
        {
            "condition": condition, "id": id, "question": "Is it?", "question_type": "single-verify", "template_id": 1,
            "attribute": "atrial fibrillation", "group": group, "control": "",
            "patient_ids": [f"p{id}"], "ecgs": [f"r{id}"],
            "donors": [], "donor_patients": [], "answer": [answer], "shown_answer": [shown or answer],
            "prediction": prediction,
            "options": among, "logp": None if p is None else [math.log(p[o]) for o in among],
            "gold_logp": None if p is None else math.log(p[answer]),
            "majority_right": answer == "no", "majority_by_question_right": answer == "no", **fields,
        }),
        WORDS,
    )  # fmt: skip


ABOUT = About(
    model="m", dataset="d", command="c", seed=0, draws=DRAWS, limit=None, available=1, text_only=None, notes=[],
    vocabulary=sorted(WORDS),
)  # fmt: skip


def numbers(lines):
    """What report.json holds."""
    return measure(lines, ABOUT).to_json()


def told(*lines):
    return numbers(by_condition(lines))


def reader(n=40, sure=0.9):
    """Says what is there; every second recording has it. Flip pairs are neighbours."""
    for i in range(n):
        has, other = ("yes", "no") if i % 2 else ("no", "yes")
        p, q = {has: sure, other: 1 - sure}, {other: sure, has: 1 - sure}
        yield line(i, "real", has, has, p=p)
        yield line(i, "swap", has if i % 4 < 2 else other, has, has if i % 4 < 2 else other, p=p if i % 4 < 2 else q)
        yield line(i, "swap-flip", other, has, other, p=q)
        yield line(i, "none", "I cannot tell.", has, p={has: 0.5, other: 0.5})


def test_accuracy_gap_and_what_answers_fall_into():
    found = told(*reader())
    assert found["n"] == found["patients"] == 40
    real, swap, none = (found["conditions"][name] for name in ("real", "swap", "none"))
    assert (real["accuracy"], real["valid"], swap["accuracy"]) == (1, 1, 0.5)
    assert (none["accuracy"], none["valid"], none["abstained"], none["empty"], none["unparsed"]) == (0, 0, 40, 0, 0)
    gap = found["real_minus"]["swap"]
    by_hand = cluster_interval([float(i % 4 >= 2) for i in range(40)], [f"p{i}" for i in range(40)], DRAWS)
    assert gap["difference"] == 0.5 and gap["interval"] == pytest.approx(by_hand, abs=1e-6)
    assert found["majority_by_question"] == found["majority"] == 0.5
    assert found["swap_mcnemar_p"] == pytest.approx(2 * 0.5**20)  # of 20 answers that differ, all for the real ECG
    assert found["real_minus"]["majority_by_question"]["difference"] == 0.5
    assert list(found["by_group"]) == ["rhythm"] and found["by_type"]["single-verify"]["n"] == 40


def test_empty_and_unreadable_answers_are_counted_apart_and_are_wrong():
    said = ["yes", "", "perhaps an arrhythmia", "I am unable to determine this."]
    found = told(*(line(i, "real", text, "yes") for i, text in enumerate(said)))["conditions"]["real"]
    assert (found["accuracy"], found["valid"]) == (0.25, 0.25)
    assert (found["empty"], found["unparsed"], found["abstained"]) == (1, 1, 1)


def test_flip_pairs():
    found = told(*reader())["flips"]
    assert (found["n"], found["gap"], found["paired_flip"], found["exchanged"], found["follows"]) == (40, 1, 1, 0, 1)
    assert found["p"] < 0.01
    guesser = [line(i, c, "no", "no" if i % 2 else "yes", "yes" if (i % 2) ^ (c == "real") else "no")
               for i in range(40) for c in ("real", "swap-flip")]  # fmt: skip
    found = told(*guesser)["flips"]
    assert (found["gap"], found["paired_flip"], found["exchanged"], found["p"]) == (0, 0, 0, 1)


def test_a_condition_of_some_questions_is_compared_on_these_alone():
    lines = [x for x in reader() if x.condition != "swap-flip" or x.id < 10]
    found = told(*lines)
    assert found["conditions"]["swap-flip"]["n"] == found["real_minus"]["swap-flip"]["n"] == found["flips"]["n"] == 10
    assert found["real_minus"]["swap-flip"]["difference"] == 1 and found["conditions"]["real"]["n"] == 40


def test_answers_that_change_whether_right_or_wrong():
    found = told(*reader())["changed"]
    assert found == {"swap": {"rate": 0.5, "n": 40}, "swap-flip": {"rate": 1, "n": 40}, "none": {"rate": 1, "n": 40}}


def test_lift_is_a_mean_of_differences_of_log_probabilities():
    found = told(*reader())["lift"]
    assert found["swap-flip"]["mean"] == pytest.approx(math.log(0.9 / 0.1), abs=1e-6)
    assert found["swap"]["mean"] == pytest.approx(math.log(0.9 / 0.1) / 2, abs=1e-6)
    assert found["none"]["mean"] == pytest.approx(math.log(0.9 / 0.5), abs=1e-6)


def test_brier_and_selective_accuracy_of_yes_and_no():
    lines = [line(i, "real", "yes", "yes" if right else "no", p={"yes": p, "no": 1 - p})
             for i, (p, right) in enumerate([(0.9, True), (0.8, True), (0.7, False), (0.6, False)])]  # fmt: skip
    found = told(*lines)["verify"]
    assert found["brier"] == pytest.approx((0.01 + 0.04 + 0.49 + 0.36) / 4)
    assert found["selective"] == {"0.25": 1, "0.5": 1, "0.75": pytest.approx(2 / 3, abs=1e-6), "1": 0.5}
    assert found["n"] == 4


def test_findings_are_ranked_by_margin_and_compared_with_another_patients_ecg():
    found = told(*reader())["findings"]["atrial fibrillation"]
    assert (found["n"], found["positives"], found["auroc"], found["balanced_accuracy"]) == (40, 20, 1, 1)
    assert found["auroc_swap"] == 0.5 and found["interval"] == [1, 1]
    assert told(*reader(8))["findings"] == {}  # four of each answer


def test_every_option_of_a_question_is_a_finding():
    lines = [
        line(i, "real", "sinus rhythm", a, p={a: 0.6, b: 0.4}, question_type="single-query", attribute="rhythm")
        for i in range(20)
        for a, b in [("sinus rhythm", "atrial fibrillation")[:: 1 if i % 2 else -1]]
    ]
    found = told(*lines)["findings"]
    assert set(found) == {"rhythm: sinus rhythm", "rhythm: atrial fibrillation"}
    assert found["rhythm: sinus rhythm"]["auroc"] == found["rhythm: sinus rhythm"]["balanced_accuracy"] == 1


def test_shapley_values_are_exact_and_add_up():
    def coalition(condition, right):
        return [line(i, condition, "no", "yes", p={"yes": 0.9, "no": 0.1} if i < right else {"yes": 0.1, "no": 0.9})
                for i in range(10)]  # fmt: skip

    lines = [*coalition("real", 9), *coalition("swap", 5), *coalition("question-swap", 4), *coalition("both-swap", 2)]
    found = told(*lines)
    assert found["shapley"]["accuracy"] == {"both": 0.9, "question": 0.5, "ecg": 0.4, "neither": 0.2}
    assert (found["shapley"]["ecg"], found["shapley"]["question"]) == (0.3, 0.4)
    assert found["shapley"]["ecg"] + found["shapley"]["question"] == pytest.approx(0.9 - 0.2)
    assert list(found["conditions"]) == ["real", "swap"]
    assert told(*coalition("real", 9))["shapley"] is None


def test_dose_response():
    def planted(patient, dose, p):
        return line(
            f"{patient}-{dose}", "planted", "yes", "yes" if dose > 100 else "no", p={"yes": p, "no": 1 - p},
            patient_ids=[f"p{patient}"], control="planted", parameter="heart_rate", dose=dose, sign=1,
        )  # fmt: skip

    doses = (60, 80, 110, 140)
    follows = [planted(i, d, p) for i in range(5) for d, p in zip(doses, (0.1, 0.2, 0.7, 0.9))]
    deaf = [planted(i, d, 0.3) for i in range(5, 10) for d in doses]
    real = line(0, "real", "yes", "yes")
    found = told(real, *follows, *deaf)["dose_response"]["heart_rate: atrial fibrillation"]
    assert found["correlation"] == 0.5 and found["patients"] == 10  # five follow, five do not move
    assert [point["dose"] for point in found["curve"]] == list(doses)
    assert found["curve"][0]["p_yes"] == pytest.approx(0.2) and found["curve"][-1]["right_answer"] == "yes"
    assert told(real, *follows)["dose_response"]["heart_rate: atrial fibrillation"]["correlation"] == 1
    inverse = [replace(x, planted=Planted("heart_rate", x.planted.dose, -1)) for x in follows]
    assert told(real, *inverse)["dose_response"]["heart_rate: atrial fibrillation"]["correlation"] == -1


def test_the_text_only_model_is_a_row_of_reference():
    found = told(*reader(), *(line(i, TEXT_ONLY, "no", "yes" if i % 2 else "no") for i in range(40)))
    assert found["conditions"][TEXT_ONLY]["accuracy"] == 0.5 and found["real_minus"][TEXT_ONLY]["difference"] == 0.5
    assert TEXT_ONLY not in found["changed"]


def test_controls_stand_apart_and_take_no_part_in_the_verdict():
    voltage = [replace(x, id=f"v{x.id}", control="voltage", group="voltage") for x in reader(60)]
    blind = [line(i, c, "no", "no" if i % 2 else "yes", "yes" if (i % 2) ^ (c == "real") else "no", group="axis")
             for i in range(60) for c in ("real", "swap-flip")]  # fmt: skip
    found = told(*blind, *voltage)
    assert (
        found["excluded_controls"] == ["voltage"]
        and found["controls"]["voltage"]["conditions"]["real"]["accuracy"] == 1
    )
    assert (
        found["n"] == 60 and found["verdict"]["verdict"] == "ignores" and list(found["verdict"]["groups"]) == ["axis"]
    )


def test_the_verdict_on_a_reader():
    found = told(*reader(200))["verdict"]
    assert found["verdict"] == "reads" and found["groups"]["rhythm"]["verdict"] == "reads"
    assert found["gap_interval"] == [1, 1] and found["pairs"] == 200
    assert told(*(line(i, "swap", "no", "no") for i in range(60)))["verdict"] is None  # never asked about the real ECG
    assert told(*(line(i, "real", "no", "no", group="noise") for i in range(60)))["verdict"] is None


def test_p_values_are_corrected_over_kinds_of_question():
    lines = [replace(x, id=f"{kind}{x.id}", question_type=kind) for kind in ("single-verify", "single-query")
             for x in reader()]  # fmt: skip
    found = told(*lines)["by_type"]
    for block in found.values():
        assert block["swap_p_corrected"] == pytest.approx(min(1, 2 * block["swap_p"]), abs=1e-5)


def test_numbers_are_json_and_do_not_depend_on_order():
    lines = list(reader())
    mixed = [lines[i] for i in np.random.default_rng(0).permutation(len(lines))]
    order = ["real", "swap", "swap-flip", "none"]
    first = numbers(by_condition(lines))
    second = numbers({c: by_condition(mixed)[c] for c in order})
    assert json.loads(json.dumps(first, allow_nan=False)) == json.loads(json.dumps(second, allow_nan=False))


def test_only_controls_is_an_error():
    with pytest.raises(ValueError, match="of 1 questions none is other than a control"):
        told(line(0, "real", "yes", "yes", control="voltage"))


def test_every_condition_kept_apart_is_known():
    from data.experiment.conditions import CONDITIONS

    assert set(measures.APART) <= set(CONDITIONS)
