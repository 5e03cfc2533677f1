import copy
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from data.conditions import CONDITIONS, apply, choose_donors, condition_named, derangement, zero_features
from data.conversations.rows import dialogues, question_row


def row(id, *ecgs, patients=None, answer=("yes",), patient_of=None):
    patients = patients or [(patient_of or {}).get(e, f"p-{e}") for e in ecgs]
    return question_row(
        id=id, ecgs=ecgs, patient_ids=patients, question_type="single-verify", question="Is it?", answer=answer
    )


def parts(rows):
    return [part["type"] for r in rows for message in r["messages"] for part in message["content"]]


ROWS = [row("1", "a"), row("2", "b", "c")]


@pytest.mark.parametrize("condition", ["real", "zero"])
def test_rows_stay_as_they_are(condition):
    assert apply(condition, ROWS) == ROWS


def test_none_takes_the_ecgs_out_of_every_turn():
    talk = dialogues([row("1", "a", "b"), row("3", "a", "b")], turns=2)[0]
    talk["messages"].insert(0, {"role": "system", "content": "Be <ecg> brief."})
    before = copy.deepcopy(talk)
    (bare,) = apply("none", [talk])
    assert talk == before
    assert bare["ecgs"] == [] and parts([{"messages": bare["messages"][1:]}]) == ["text"] * 4
    assert bare["messages"][0] == talk["messages"][0]
    changed = {"messages", "ecgs"}
    assert {k: v for k, v in bare.items() if k not in changed} == {k: v for k, v in talk.items() if k not in changed}


def test_swap_changes_recordings_and_nothing_else():
    before = copy.deepcopy(ROWS)
    swapped = apply("swap", ROWS, [["x"], ["y", "z"]])
    assert before == ROWS
    assert [r["ecgs"] for r in swapped] == [["x"], ["y", "z"]]
    assert [{**r, "ecgs": 0} for r in swapped] == [
        {**r, "ecgs": 0} for r in ROWS
    ]  # patients too: the unit of statistics


def test_wrong_use_is_named():
    with pytest.raises(ValueError, match="unknown condition 'flip'.*real, swap, zero, none"):
        apply("flip", ROWS)
    with pytest.raises(ValueError, match="2 rows was given no donors"):
        apply("swap", ROWS)
    with pytest.raises(ValueError, match="2 rows was given 1 lists of donors"):
        apply("swap", ROWS, [["x"]])
    with pytest.raises(ValueError, match="row '2' has 2 ECGs but was given 1 donors"):
        apply("swap", ROWS, [["x"], ["y"]])
    assert all(condition_named(name).name == name for name in CONDITIONS)


@pytest.mark.parametrize("make", [np.ones, torch.ones])
def test_zeros_keep_shape_type_and_everything_that_is_not_signal(make):
    def as_(kind, *shape):
        return make(shape).astype(kind) if make is np.ones else make(shape).to(getattr(torch, kind))

    features = {
        "ecg_values": as_("float16", 2, 3), "ecg_times": as_("int64", 2, 3), "token_mask": as_("bool", 2, 3),
        "float_mask": as_("float32", 2, 3), "other": as_("float32", 2),
    }  # fmt: skip
    before = dict(features)
    zeroed = zero_features(features, ["ecg_values", "ecg_times", "token_mask", "float_mask"])
    assert features == before and bool(features["ecg_values"].all())
    assert type(zeroed["ecg_values"]) is type(features["ecg_values"])
    assert zeroed["ecg_values"].dtype == features["ecg_values"].dtype
    assert zeroed["ecg_values"].shape == (2, 3) and not zeroed["ecg_values"].any()
    assert all(zeroed[name] is features[name] for name in features if name != "ecg_values")


def test_zeroing_nothing_is_an_error():
    with pytest.raises(ValueError, match="cannot zero.*'signal'.*'ecg_values'"):
        zero_features({"ecg_values": np.ones(2)}, ["signal"])
    with pytest.raises(ValueError, match="nothing to zero"):
        zero_features({"ecg_times": np.ones(2, int)}, ["ecg_times"])


@st.composite
def split(draw):
    """Patients with a few recordings each, and questions about one recording or two."""
    sizes = draw(st.lists(st.integers(1, 3), min_size=2, max_size=12))
    patient_of = {f"r{p}-{k}": f"p{p}" for p, size in enumerate(sizes) for k in range(size)}
    ecgs = st.lists(st.sampled_from(sorted(patient_of)), min_size=1, max_size=2, unique=True)
    asked = draw(st.lists(ecgs, min_size=1, max_size=30))
    answers = st.sampled_from(["yes", "no"])
    rows = [row(f"q{i}", *of, answer=[draw(answers)], patient_of=patient_of) for i, of in enumerate(asked)]
    return rows, patient_of


def possible(rows, patient_of):
    present = {patient_of[e] for r in rows for e in r["ecgs"]}
    return all(len(present - set(r["patient_ids"])) >= len(r["ecgs"]) for r in rows)


@settings(max_examples=50, deadline=None)
@given(split(), st.integers(0, 5), st.randoms())
def test_donors_are_other_patients_of_the_same_split(made, seed, random):
    rows, patient_of = made
    if not possible(rows, patient_of):
        with pytest.raises(ValueError, match=r"row 'q\d+' has no donors"):
            choose_donors(rows, patient_of, seed)
        return
    donors = choose_donors(rows, patient_of, seed)
    pool = {e for r in rows for e in r["ecgs"]}
    for r, given_ in zip(rows, donors):
        patients = [patient_of[e] for e in given_]
        assert len(given_) == len(r["ecgs"]) == len(set(patients)) and set(given_) <= pool
        assert not set(patients) & set(r["patient_ids"])
    # Neither the order of the rows nor their answers matter.
    order = list(range(len(rows)))
    random.shuffle(order)
    again = choose_donors([{**rows[i], "answer": ["?"]} for i in order], patient_of, seed)
    assert again == [donors[i] for i in order]


@settings(max_examples=50, deadline=None)
@given(split(), st.integers(0, 5))
def test_every_recording_is_given_equally_often(made, seed):
    rows, patient_of = made
    rows = [r for r in rows if len(r["ecgs"]) == 1]
    owned = Counter(r["patient_ids"][0] for r in rows)
    per_recording = -(-len(rows) // max(1, len({r["ecgs"][0] for r in rows})))
    records = Counter(patient_of[e] for e in {r["ecgs"][0] for r in rows})
    # Even dealing is possible where no patient's questions and recordings, taken together, outnumber the questions.
    assume(rows and all(owned[p] + per_recording * records[p] <= len(rows) for p in owned))
    uses = Counter(e for given_ in choose_donors(rows, patient_of, seed) for e in given_)
    counts = [uses[e] for e in {r["ecgs"][0] for r in rows}]
    assert max(counts) - min(counts) <= 1


def test_donors_hardly_tell_the_answer():
    """A donor has the finding as often for questions answered yes as for those answered no."""
    rng = np.random.default_rng(0)
    patient_of = {f"r{i}": f"p{i // 2}" for i in range(400)}
    sick = {e: bool(rng.random() < 0.3) for e in patient_of}
    rows = [row(f"q{i}", e, answer=["yes" if sick[e] else "no"]) for i, e in enumerate(sorted(patient_of) * 10)]
    rows = [{**r, "patient_ids": [patient_of[r["ecgs"][0]]]} for r in rows]
    donors = choose_donors(rows, patient_of, 0)
    share = {a: np.mean([sick[d[0]] for r, d in zip(rows, donors) if r["answer"] == [a]]) for a in ("yes", "no")}
    assert share["yes"] == pytest.approx(share["no"], abs=0.05)  # 4 standard errors
    assert donors != choose_donors(rows, patient_of, 1)


def test_a_recording_without_a_patient_is_named():
    with pytest.raises(ValueError, match="row 'q': the patient of recording 'x' is not known"):
        choose_donors([row("q", "x")], {}, 0)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(1, 4), min_size=1, max_size=12), st.integers(0, 5))
def test_derangement_is_a_map_to_other_patients(sizes, seed):
    patient_of = {f"r{p}-{k}": f"p{p}" for p, size in enumerate(sizes) for k in range(size)}
    if 2 * max(sizes) > sum(sizes):
        with pytest.raises(ValueError, match="more than half"):
            derangement(patient_of, seed)
        return
    other = derangement(patient_of, seed)
    assert sorted(other) == sorted(other.values()) == sorted(patient_of)
    assert all(patient_of[a] != patient_of[b] for a, b in other.items())
    assert other == derangement(dict(reversed(patient_of.items())), seed)
