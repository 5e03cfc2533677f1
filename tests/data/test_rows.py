"""Rows and dialogues: what is joined is all there, in the form the processor expects."""

import copy
import itertools
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.conversations.rows import (
    QuestionSet,
    answer_text,
    assistant,
    balanced,
    dialogues,
    named_leads,
    question_row,
    same_question,
    user,
)

RECORDS = st.lists(st.sampled_from("abc"), min_size=1, max_size=2, unique=True)
ANSWERS = st.lists(st.sampled_from(["yes", "no", "none", "left axis deviation"]), min_size=1, max_size=3, unique=True)
ROWS = st.lists(st.tuples(RECORDS, ANSWERS), max_size=25).map(
    lambda rows: [
        question_row(
            id=str(i), ecgs=ecgs, patient_ids=[f"p-{e}" for e in ecgs], question_type="single-verify",
            question=f"Question {i}?", answer=answer, template_id=i % 3, attribute="x",
        )
        for i, (ecgs, answer) in enumerate(rows)
    ]
)  # fmt: skip
quick = settings(deadline=None, max_examples=60)


def text_of(message):
    (text,) = [part["text"] for part in message["content"] if part["type"] == "text"]
    return text


@quick
@given(ROWS, st.integers(1, 6), st.integers(0, 3))
def test_dialogues_keep_every_question_once(rows, turns, seed):
    before = copy.deepcopy(rows)
    talks = dialogues(rows, turns, seed)
    assert rows == before
    by_question = {row["question"]: row for row in rows}
    asked = []
    for talk in talks:
        assert [message["role"] for message in talk["messages"]] == ["user", "assistant"] * (len(talk["messages"]) // 2)
        for question, answer in zip(talk["messages"][::2], talk["messages"][1::2]):
            row = by_question[text_of(question)]
            asked.append(row["id"])
            assert row["ecgs"] == talk["ecgs"] and row["patient_ids"] == talk["patient_ids"]
            assert text_of(answer) == answer_text(row["answer"])
    assert Counter(asked) == Counter(row["id"] for row in rows)
    assert sorted("+".join(talk["id"] for talk in talks).split("+")) == sorted(asked) or not rows


@quick
@given(ROWS, st.integers(1, 6))
def test_dialogues_show_the_recordings_in_the_first_turn_only(rows, turns):
    for talk in dialogues(rows, turns):
        parts = [[part["type"] for part in message["content"]] for message in talk["messages"]]
        assert parts[0] == ["ecg"] * len(talk["ecgs"]) + ["text"]
        assert all(kinds == ["text"] for kinds in parts[1:])
        assert {frozenset(part) for message in talk["messages"] for part in message["content"]} == {
            frozenset(("type", "text"))
        }  # one shape of parts, for Arrow


@quick
@given(ROWS, st.integers(1, 6))
def test_dialogues_are_as_few_as_can_be(rows, turns):
    sizes = Counter(tuple(row["ecgs"]) for row in rows)
    talks = dialogues(rows, turns)
    assert all(len(talk["messages"]) <= 2 * turns for talk in talks)
    assert Counter(tuple(talk["ecgs"]) for talk in talks) == Counter(
        {ecgs: -(-n // turns) for ecgs, n in sizes.items()}
    )


def test_dialogues_are_shuffled_by_seed():
    rows = [
        question_row(id=str(i), ecgs=[e], patient_ids=[e], question_type="t", question=f"{i}?", answer=["yes"])
        for i, e in enumerate("aabbccddeeffgg" * 3)
    ]
    first, again, other = (dialogues(rows, 4, seed) for seed in (0, 0, 1))
    assert first == again != other
    assert sorted(row["id"] for row in dialogues(rows, 1)) == sorted(row["id"] for row in rows)
    assert [talk["ecgs"] for talk in first] != sorted(talk["ecgs"] for talk in first)


@pytest.mark.parametrize("turns", [0, -1])
def test_a_dialogue_has_at_least_one_turn(turns):
    with pytest.raises(ValueError, match=f"at least one turn, got {turns}"):
        dialogues([], turns)


@given(ANSWERS)
def test_a_set_of_answers_has_one_text(answer):
    texts = {answer_text(order) for order in itertools.permutations(answer)}
    assert len(texts) == 1
    assert texts.pop().split(", ") == sorted(answer)


def test_a_question_row_is_canonical():
    row = question_row(
        id="1", ecgs=("r1", "r2"), patient_ids=("p", "q"), question_type="k", question="Which?", answer=("z", "a")
    )
    assert row["answer"] == ["a", "z"] and row["ecgs"] == ["r1", "r2"] and row["patient_ids"] == ["p", "q"]
    assert row["messages"] == [user(2, "Which?"), assistant("a, z")]
    assert (row["template_id"], row["attribute"], row["group"], row["control"]) == (0, "", "", "")
    assert QuestionSet("", {}, "", [], [], [], {}).traits == {}
    assert user(0, "More?") == {"role": "user", "content": [{"type": "text", "text": "More?"}]}


@pytest.mark.parametrize(
    ("text", "leads"),
    [
        ("Does this ECG show static noise in lead V6?", "V6"),
        ("Does lead avl on this ECG have any noises?", "aVL"),
        ("ST elevation in leads II, III, aVF?", "II III aVF"),
        ("ST elevation in V2, II, and aVR or lead V1?", "II aVR V1 V2"),
        ("From V1-V6?", "V1 V2 V3 V4 V5 V6"),
        ("V2 to V4 or v5\u20136?", "V2 V3 V4 V5 V6"),
        ("leads V1 through V3, aVL", "aVL V1 V2 V3"),
        ("leads I-III", "I II III"),
        ("In lead I?", "I"),
        ("What do I see: AV block of type II or III?", ""),
        ("Is V4R, V7 or VX shown?", ""),
    ],
)
def test_leads_named_in_a_text(text, leads):
    assert named_leads(text) == tuple(leads.split())


ASKED = {
    "id": "1", "ecgs": ["a"], "patient_ids": ["p"], "question_type": "single-verify", "template_id": 26,
    "attribute": "static noise", "question": "Is there static noise in lead V1?", "answer": ["yes"],
}  # fmt: skip
OTHER_ECG = {"id": "2", "ecgs": ["b"], "patient_ids": ["q"], "answer": ["no"], "group": "noise"}


@pytest.mark.parametrize(
    ("changed", "same"),
    [
        (OTHER_ECG, True),
        ({"question": "Does lead V1 show any static noise?"}, True),  # a paraphrase
        ({"question": "Is there static noise in lead V2?"}, False),
        ({"question_type": "single-query"}, False),
        ({"template_id": 27}, False),
        ({"attribute": "burst noise"}, False),
        ({"control": "noise"}, False),
    ],
)
def test_what_asks_the_same(changed, same):
    assert (same_question(question_row(**ASKED)) == same_question(question_row(**{**ASKED, **changed}))) == same


def test_without_an_attribute_the_wording_says_what_is_asked():
    first, same, other = (
        question_row(**{**ASKED, "attribute": "", "question": text})
        for text in ("What is  the Rhythm?", "what is the rhythm?", "What is the form?")
    )
    assert same_question(first) == same_question(same) != same_question(other)
    assert len({same_question(row) for row in (first, same, other)}) == 2


def verify(id, answer, question="Is it normal?"):
    return question_row(
        id=id, ecgs=[f"e{id}"], patient_ids=["p"], question_type="single-verify", question=question, answer=[answer]
    )


@pytest.mark.parametrize(("most", "yes", "no"), [(1, 2, 7), (2, 4, 7), (3, 6, 7), (4, 7, 7), (9, 7, 7)])
def test_rarer_answers_are_repeated_until_all_are_as_frequent(most, yes, no):
    rows = [verify(str(i), "yes" if i < 2 else "no") for i in range(9)]
    rounds = balanced(rows, most)
    assert rounds[0] == rows, "nothing is lost"
    said = Counter(row["answer"][0] for some in rounds for row in some)
    assert said == {"yes": yes, "no": no}
    for some in rounds:
        assert len({row["id"] for row in some}) == len(some), "a dialogue of a round would ask what it has answered"


def test_only_yes_no_questions_are_balanced_and_each_for_itself():
    choose = [{**verify(f"c{i}", "a" if i else "b"), "question_type": "single-choose"} for i in range(5)]
    other = [verify("o0", "yes", "Is it fast?"), verify("o1", "no", "Is it fast?")]
    first, *rest = balanced([*choose, *other, verify("x", "no"), verify("y", "no"), verify("z", "yes")], 5)
    assert len(first) == 10 and [[row["id"] for row in some] for some in rest] == [["z"]]
    with pytest.raises(ValueError, match="a row is used at least once, got balance 0"):
        balanced(first, 0)
