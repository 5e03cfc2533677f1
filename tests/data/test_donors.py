"""Donors: another patient's ECGs for the same question, matched one to one, whatever the order of the rows."""

from collections import Counter, defaultdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.conversations.rows import question_row, same_question
from data.experiment import donors
from data.experiment.donors import choose_donors, choose_questions, derangement

quick = settings(max_examples=60, deadline=None)


def row(id, *ecgs, patient_of, attribute="x", answer=("yes",), **more):
    kind = "single-verify" if len(ecgs) == 1 else "comparison_irrelevant-verify"
    known = {"question_type": kind, "question": f"Is there {attribute}?", **more}
    patients = [patient_of[e] for e in ecgs]
    return question_row(id=id, ecgs=ecgs, patient_ids=patients, attribute=attribute, answer=answer, **known)


@st.composite
def split(draw):
    """Patients with a few recordings each, and questions about one recording or two."""
    sizes = draw(st.lists(st.integers(1, 3), min_size=1, max_size=12))
    patient_of = {f"r{p}-{k}": f"p{p}" for p, size in enumerate(sizes) for k in range(size)}
    ecgs = st.lists(st.sampled_from(sorted(patient_of)), min_size=1, max_size=2, unique=True)
    asked = draw(st.lists(st.tuples(ecgs, st.sampled_from("xy"), st.sampled_from(["yes", "no"])), max_size=30))
    rows = [
        row(f"q{i:02d}", *of, patient_of=patient_of, attribute=attribute, answer=[answer])
        for i, (of, attribute, answer) in enumerate(asked)
    ]
    return rows, patient_of


def owners(row, patient_of):
    return {patient_of[e] for e in row["ecgs"]}


@quick
@given(split(), st.sampled_from(["any", "flip", "same"]), st.integers(0, 5), st.randoms())
def test_a_donor_is_of_another_patient_and_asked_the_same(made, rule, seed, random):
    rows, patient_of = made
    chosen = choose_donors(rows, patient_of, rule, seed)
    used = Counter()
    for asked, donor in zip(rows, chosen):
        if donor is None:
            continue
        giver = rows[donor.row]
        assert donor.ecgs == giver["ecgs"] and len(donor.ecgs) == len(asked["ecgs"])
        assert not owners(asked, patient_of) & owners(giver, patient_of)
        assert (same_question(asked) == same_question(giver)) == bool(donor.answer)
        if donor.answer:
            used[donor.row] += 1
            assert donor.answer == giver["answer"]
            assert rule == "any" or (donor.answer == asked["answer"]) == (rule == "same")
        else:
            assert rule == "any"
    assert not used or max(used.values()) == 1
    order = list(range(len(rows)))
    random.shuffle(order)
    again = choose_donors([rows[i] for i in order], patient_of, rule, seed)
    assert [d and d._replace(row=order[d.row]) for d in again] == [chosen[i] for i in order]


@quick
@given(split(), st.sampled_from(["any", "flip", "same"]))
def test_as_many_rows_as_possible_have_a_donor(made, rule):
    """Nobody without a donor could still be given one, not even by passing donors on along a chain."""
    rows, patient_of = made
    chosen = choose_donors(rows, patient_of, rule, 0)
    fits = {
        i: [
            j for j, b in enumerate(rows)
            if same_question(a) == same_question(b) and not owners(a, patient_of) & owners(b, patient_of)
            and (rule == "any" or (a["answer"] == b["answer"]) == (rule == "same"))
        ] for i, a in enumerate(rows)
    }  # fmt: skip
    taker = {d.row: i for i, d in enumerate(chosen) if d is not None and d.answer}

    def reaches_a_free_donor(i, seen):
        for j in fits[i]:
            if j not in seen:
                seen.add(j)
                if j not in taker or reaches_a_free_donor(taker[j], seen):
                    return True
        return False

    for i, donor in enumerate(chosen):
        if donor is None or not donor.answer:
            assert not reaches_a_free_donor(i, set())


@quick
@given(st.integers(0, 40), st.integers(0, 40), st.integers(0, 3))
def test_flip_pairs_all_of_the_rarer_answer(yes, no, seed):
    patient_of = {f"r{i}": f"p{i}" for i in range(yes + no)}
    answers = ["yes"] * yes + ["no"] * no
    rows = [row(f"q{i}", f"r{i}", patient_of=patient_of, answer=[answer]) for i, answer in enumerate(answers)]
    chosen = choose_donors(rows, patient_of, "flip", seed)
    assert sum(donor is not None for donor in chosen) == 2 * min(yes, no)
    same = choose_donors(rows, patient_of, "same", seed)
    assert sum(donor is None for donor in same) == (yes == 1) + (no == 1)


def test_large_questions_are_matched_in_parts(monkeypatch):
    monkeypatch.setattr(donors, "_PART", 20)
    rng = np.random.default_rng(0)
    patient_of = {f"r{i}": f"p{i}" for i in range(300)}
    rows = [row(f"q{i}", f"r{i}", patient_of=patient_of, answer=["yes" if i < 50 else "no"]) for i in range(300)]
    parts = donors._parts(rows, range(300), rng)
    assert sorted(i for part in parts for i in part) == list(range(300)) and {len(part) for part in parts} == {20}
    assert {sum(i < 50 for i in part) for part in parts} <= {3, 4}
    assert sum(donor is not None for donor in choose_donors(rows, patient_of, "flip", 0)) == 100


def test_donors_hardly_tell_the_answer():
    """A donor has the finding as often for questions answered yes as for those answered no."""
    rng = np.random.default_rng(0)
    patient_of = {f"r{i}": f"p{i // 2}" for i in range(400)}
    rows = [
        row(f"q{e}{a}", e, patient_of=patient_of, attribute=a, answer=["yes" if rng.random() < 0.3 else "no"])
        for e in patient_of for a in "vwxyz"
    ]  # fmt: skip
    chosen = choose_donors(rows, patient_of, "any", 0)
    given = {
        a: np.mean([d.answer == ["yes"] for r, d in zip(rows, chosen) if r["answer"] == [a]]) for a in ("yes", "no")
    }
    assert given["yes"] == pytest.approx(given["no"], abs=0.085)  # 4 standard errors
    assert chosen != choose_donors(rows, patient_of, "any", 1)


def test_a_pair_of_ecgs_is_given_a_pair_of_the_same_relation():
    patient_of = {f"r{p}-{k}": f"p{p}" for p in range(30) for k in range(2)}
    both = [[f"r{p}-0", f"r{p}-1"] for p in range(10)] + [[f"r{p}-0", f"r{p + 1}-1"] for p in range(10, 29)]
    kinds = ["comparison_consecutive-verify"] * 10 + ["comparison_irrelevant-verify"] * 19
    rows = [row(f"q{i}", *of, patient_of=patient_of, question_type=k) for i, (of, k) in enumerate(zip(both, kinds))]
    for asked, donor in zip(rows, choose_donors(rows, patient_of, "any", 0)):
        assert donor.ecgs == rows[donor.row]["ecgs"] != asked["ecgs"]
        assert len({patient_of[e] for e in donor.ecgs}) == len(owners(asked, patient_of))


def test_who_is_alone_with_his_question_gets_the_ecg_of_another_one():
    patient_of = {"a": "p", "b": "p", "c": "q", "d": "r", "e": "s"}
    rows = [
        row("1", "a", patient_of=patient_of, attribute="x"),
        row("2", "b", patient_of=patient_of, attribute="x"),  # of the only patient who is asked this
        row("3", "c", patient_of=patient_of, attribute="y", question_type="single-query"),
        row("4", "d", "e", patient_of=patient_of, attribute="z"),  # the only one about two ECGs
        row("5", "d", patient_of=patient_of, attribute="y"),
    ]
    chosen = choose_donors(rows, patient_of, "any", 0)
    assert [d and d.answer for d in chosen] == [[], [], [], None, []]
    assert [d.ecgs for d in chosen[:2]] == [["d"], ["d"]]  # of the same type, though it serves twice
    assert chosen[2].ecgs in (["a"], ["b"], ["d"])
    for rule in ("flip", "same"):
        assert choose_donors(rows, patient_of, rule, 0) == [None] * 5
    assert choose_donors([], {}, "any", 0) == []


def test_a_question_has_the_same_donors_whatever_else_is_asked():
    patient_of = {f"r{i}": f"p{i}" for i in range(30)}
    rows = [row(f"{a}{i}", f"r{i}", patient_of=patient_of, attribute=a) for a in "xy" for i in range(30)]
    both, one = (choose_donors(some, patient_of, "any", 0) for some in (rows, rows[:30]))
    assert both[:30] == one
    assert [d.row for d in both[:30]] != [d.row - 30 for d in both[30:]]


def traits_of(records, rng, known=1.0):
    return {
        r: {
            name: value
            for name, value in (
                ("corpus", "a"), ("sex", ("male", "female")[rng.integers(2)]), ("age", rng.uniform(18, 90))
            )
            if rng.random() < known
        }
        for r in records
    }  # fmt: skip


@pytest.mark.parametrize("rule", ["any", "flip", "same"])
def test_donors_are_of_like_sex_and_age(rule):
    rng = np.random.default_rng(0)
    patient_of = {f"r{i}": f"p{i}" for i in range(200)}
    traits = traits_of(patient_of, rng)
    rows = [row(f"q{r}", r, patient_of=patient_of, answer=[("yes", "no")[rng.integers(2)]]) for r in patient_of]

    def differences(chosen):
        pairs = [(traits[r["ecgs"][0]], traits[d.ecgs[0]]) for r, d in zip(rows, chosen) if d]
        return np.mean([a["sex"] != b["sex"] for a, b in pairs]), np.mean([abs(a["age"] - b["age"]) for a, b in pairs])

    other_sex, years = differences(choose_donors(rows, patient_of, rule, 0, traits))
    by_chance = differences(choose_donors(rows, patient_of, rule, 0))
    assert by_chance[0] > 0.4 and by_chance[1] > 20
    assert years < 6
    sexes = Counter((r["answer"][0], traits[r["ecgs"][0]]["sex"]) for r in rows)
    spare = sum(abs(sexes["yes", sex] - sexes["no", sex]) for sex in ("male", "female")) if rule == "flip" else 0
    assert other_sex * len(rows) <= spare  # for all but those for whom nobody of their sex is left


def test_corpus_goes_before_sex_before_age():
    patient_of = {name: name for name in "abcd"}
    rows = [row(name, name, patient_of=patient_of) for name in "abcd"]

    def pairs(**traits):
        told = {name: {key: values[i] for key, values in traits.items()} for i, name in enumerate("abcd")}
        return "".join(donor.ecgs[0] for donor in choose_donors(rows, patient_of, "any", 0, told))

    ages, sexes, corpora = [20, 30, 80, 90], ["m", "f", "f", "m"], ["ptb-xl", "mimic", "ptb-xl", "mimic"]
    assert pairs(age=ages) == "badc"
    assert pairs(age=ages, sex=sexes) == "dcba"
    assert pairs(age=ages, sex=sexes, corpus=corpora) == "cdab"


def test_what_is_not_known_of_both_does_not_count():
    rng = np.random.default_rng(1)
    patient_of = {f"r{i}": f"p{i}" for i in range(60)}
    traits = traits_of(sorted(patient_of)[:50], rng, known=0.6)
    rows = [row(f"q{r}", r, patient_of=patient_of) for r in patient_of]
    chosen = choose_donors(rows, patient_of, "any", 0, traits)
    for r, donor in zip(rows, chosen):
        a, b = (traits.get(e, {}) for e in (r["ecgs"][0], donor.ecgs[0]))
        assert a.get("sex", b.get("sex")) == b.get("sex", a.get("sex"))


@quick
@given(split(), st.integers(0, 5), st.randoms())
def test_another_question_is_of_the_same_type_and_asks_something_else(made, seed, random):
    rows, _ = made
    chosen = choose_questions(rows, seed)
    for asked, other in zip(rows, chosen):
        others = [r for r in rows if r["question_type"] == asked["question_type"]]
        assert (other is None) == (len({same_question(r) for r in others}) == 1)
        if other is not None:
            theirs = rows[other.row]
            assert other.text == theirs["question"] != asked["question"]
            assert theirs["question_type"] == asked["question_type"] and len(theirs["ecgs"]) == len(asked["ecgs"])
    order = list(range(len(rows)))
    random.shuffle(order)
    again = choose_questions([rows[i] for i in order], seed)
    assert [q and q._replace(row=order[q.row]) for q in again] == [chosen[i] for i in order]


def test_other_questions_are_drawn_evenly_and_keep_controls_apart():
    patient_of = {f"r{i}": f"p{i}" for i in range(300)}
    rows = [row(f"q{i}", f"r{i}", patient_of=patient_of, attribute="vwxyz"[i % 5]) for i in range(300)]
    names = ("high QRS voltage", "low QRS voltage") * 5
    rows += [row(f"c{i}", f"r{i}", patient_of=patient_of, attribute=n, control="voltage") for i, n in enumerate(names)]
    chosen = choose_questions(rows, 0)
    assert all(rows[other.row]["control"] == r["control"] for r, other in zip(rows, chosen))
    asked = defaultdict(Counter)
    for r, other in zip(rows[:300], chosen):
        asked[r["attribute"]][rows[other.row]["attribute"]] += 1
    assert all(len(counts) == 4 and min(counts.values()) > 5 for counts in asked.values())
    assert chosen != choose_questions(rows, 1)


def test_wrong_use_is_named():
    with pytest.raises(ValueError, match="row 'q': the patient of recording 'x' is not known"):
        choose_donors(
            [question_row(id="q", ecgs=["x"], patient_ids=["p"], question_type="t", question="?", answer=["a"])],
            {},
            "any",
            0,
        )
    with pytest.raises(ValueError, match="unknown rule 'other' for donors: expected one of any, flip, same"):
        choose_donors([], {}, "other", 0)


@quick
@given(st.lists(st.integers(1, 4), max_size=12), st.integers(0, 5))
def test_derangement_is_a_map_to_other_patients(sizes, seed):
    patient_of = {f"r{p}-{k}": f"p{p}" for p, size in enumerate(sizes) for k in range(size)}
    if sizes and 2 * max(sizes) > sum(sizes):
        with pytest.raises(ValueError, match=f"has {max(sizes)} of {sum(sizes)} recordings, more than half"):
            derangement(patient_of, seed)
        return
    other = derangement(patient_of, seed)
    assert sorted(other) == sorted(other.values()) == sorted(patient_of)
    assert all(patient_of[a] != patient_of[b] for a, b in other.items())
    assert other == derangement(dict(reversed(patient_of.items())), seed)


def test_derangements_differ_by_seed():
    patient_of = {f"r{i}": f"p{i // 2}" for i in range(40)}
    assert derangement(patient_of, 0) != derangement(patient_of, 1)
