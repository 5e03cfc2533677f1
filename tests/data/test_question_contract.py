"""What `check_questions` refuses: each fault is put into a sound set, and named."""

import pytest

from data.conversations import check_questions, synthetic
from data.conversations.contract import check_rows
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
