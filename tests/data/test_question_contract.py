"""What `check_questions` refuses: each fault is put into a sound set, and named."""

import pytest

from data.conversations import check_questions, synthetic
from data.conversations.contract import check_rows, consistent
from data.conversations.rows import QuestionSet, assistant, question_row, user


def row(id, *records, answer=("no", "yes")):
    return question_row(
        id=id, ecgs=records, patient_ids=[record[0] for record in records], question_type="single-verify",
        question="Is it?", answer=answer,
    )  # fmt: skip


@pytest.fixture
def sound():
    return QuestionSet(
        name="mine",
        source={},
        source_key="mine",
        train=[row("1", "a1"), row("2", "b1", "b2")],
        test=[row("3", "c1")],
        reports=[row("1", "a1", answer=["A report."])],  # an id of another list
        test_reports=[row("r", "d1", answer=["Another."])],
        patient_of={"a1": "a", "b1": "b", "b2": "b", "c1": "c", "d1": "d"},
    )


def test_sound_sets_pass(sound):
    check_questions(sound)
    check_questions(synthetic.load(patients=12, held_out_patients=6, questions=4, held_out_questions=2))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"id": "2"}, "mine: two questions have the id '2'"),
        ({"patient_ids": []}, "question '1' names no patient, so it cannot be resampled"),
        ({"patient_ids": ["a", "a"]}, "question '1' is about 1 ECGs and names 2 patients: one for each ECG"),
        ({"patient_ids": ["b"]}, "question '1' says record 'a1' is of patient 'b', patient_of says 'a'"),
        ({"ecgs": ["a9"]}, "question '1' says record 'a9' is of patient 'a', patient_of says None"),
        ({"answer": []}, r"question '1' has the answer \[\]: a list of one or more strings"),
        ({"answer": ["yes", " "]}, "question '1' has the answer .*that are not empty"),
        ({"answer": [1]}, r"question '1' has the answer \[1\]"),
        ({"messages": [user(2, "Is it?"), assistant("no, yes")]}, "'1' has 2 ecg parts in its messages and 1 ECGs"),
        ({"messages": [user(0, "Is it?"), assistant("no, yes")]}, "'1' has 0 ecg parts in its messages and 1 ECGs"),
        (
            {"messages": [user(1, "Is it?"), assistant("It is.")]},
            "ends with assistant 'It is.', but what is scored is 'no",
        ),
        ({"messages": [user(1, "no, yes")]}, "ends with user 'no, yes', but"),
        (
            {"messages": [user(1, "?"), {"role": "assistant", "content": "yes"}]},
            "has the message part 'yes', which is not",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "ecg"}]}, assistant("no, yes")]},
            r"the message part \{'type': 'ecg'\}, which is not \{'type': ..., 'text': ...\}: build rows",
        ),
    ],
)
def test_a_fault_in_a_row_is_named(sound, changes, message):
    sound.train[0] |= changes
    with pytest.raises(ValueError, match=message):
        check_questions(sound)


@pytest.mark.parametrize("part", ["train", "test", "reports", "test_reports"])
def test_all_rows_are_looked_at(sound, part):
    getattr(sound, part)[0]["answer"] = []
    with pytest.raises(ValueError, match=r"has the answer \[\]"):
        check_questions(sound)


def test_a_missing_field_is_named(sound):
    broken = dict(sound.train[1])
    del broken["attribute"]
    with pytest.raises(ValueError, match="mine: question number 1 has no field 'attribute': build rows with"):
        check_rows("mine", [sound.train[0], broken])


def told(train=(), test=()):
    """What `consistent` leaves of rows, and what it says."""
    patient_of = {record: record[0] for row in (*train, *test) for record in row["ecgs"]}
    left = consistent(QuestionSet("mine", {}, "mine", list(train), list(test), [], patient_of, notes=["as made"]))
    return [row["id"] for row in left.train], [row["id"] for row in left.test], left.notes[1:]


def test_nothing_changes_where_nothing_repeats(sound):
    assert consistent(sound) is sound
    simulated = synthetic.load(patients=12, held_out_patients=6, questions=4, held_out_questions=2)
    assert consistent(simulated) is simulated


def test_a_repetition_is_kept_once_and_counted():
    again = [row("1", "a1"), row("2", "a2"), row("3", "a1"), row("4", "a1")]
    assert told(again) == (["1", "2"], [], ["2 training questions are repeated (3, 4): kept once."])
    assert told((), again[1:3] + again[3:]) == ([], ["2", "3"], ["1 test question is repeated (4): kept once."])


def test_two_answers_to_one_test_question_are_left_out_and_in_training_kept():
    rows = [row("1", "a1", answer=["yes"]), row("2", "b1", answer=["yes"]), row("3", "a1", answer=["no"])]
    many = "contradict each other (1, 3): same question, same ECG, different answers"
    assert told(rows) == (["1", "2", "3"], [], [f"2 training questions {many}: kept."])
    why = "left out, since nobody can be right about both"
    assert told((), rows) == ([], ["2"], [f"2 test questions {many}: {why}."])


def test_a_repeated_contradiction_is_both():
    rows = [row("1", "a1", answer=["yes"]), row("2", "a1", answer=["no"]), row("3", "a1", answer=["yes"])]
    left = told((), rows)
    assert left[1] == [] and left[2][0] == "1 test question is repeated (3): kept once."
    assert left[2][1].startswith("2 test questions contradict each other (1, 2)")


def test_only_the_same_words_about_the_same_ecgs_in_the_same_order_are_one_question():
    other = {"question_type": "single-verify", "patient_ids": ["a"], "answer": ["no"]}
    rows = [
        row("1", "a1", answer=["yes"]), row("2", "a2", answer=["no"]), row("3", "a1", "a2", answer=["yes"]),
        row("4", "a2", "a1", answer=["no"]), question_row(id="5", ecgs=["a1"], question="Is it so?", **other),
    ]  # fmt: skip
    assert told((), rows) == ([], ["1", "2", "3", "4", "5"], [])
    spaced = question_row(id="6", ecgs=["a1"], question="is  IT? ", **other)
    assert "contradict each other (1, 6)" in told((), [*rows, spaced])[2][0]


def test_what_is_shown_counts_and_not_the_short_name_of_a_question():
    rows = [row("1", "a1", answer=["yes"]), row("2", "a1", answer=["no"])]
    rows[1]["messages"] = [user(1, "Is it? Options: no, yes."), assistant("no")]
    assert told((), rows)[1:] == (["1", "2"], [])


def test_an_ecg_compared_with_itself_is_told():
    assert told([row("1", "a1", "a1"), row("2", "a1", "b1")]) == (
        ["1", "2"], [], ["1 training question compares an ECG with itself (1): kept."],
    )  # fmt: skip


def test_many_are_counted_and_a_few_named():
    rows = [row(f"{k}", "a1", answer=["yes"]) for k in range(8)]
    assert told(rows)[2] == ["7 training questions are repeated (1, 2, 3, 4, 5, ...): kept once."]
