import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.conversations.rows import answer_text, question_row
from eval.score import answer_set, is_correct, is_empty, majority_by_question, normalise, parse, vocabulary

# What answers of ECG-QA are made of, brackets with commas in them included.
WORDS = ["st", "qrs", "v1", "st/t", "q-wave", "nst", "1st"]
TERM = st.builds(
    lambda words, inside: " ".join(words) + (f" ({', '.join(inside)})" if inside else ""),
    st.lists(st.sampled_from(WORDS), min_size=1, max_size=2),
    st.lists(st.sampled_from(WORDS), max_size=2),
)
ANSWER = st.lists(TERM, min_size=1, max_size=3, unique=True)
TEXT = st.text("aA1 .,()\t\n\u00a0ΣİßĿ-", max_size=12)
quick = settings(max_examples=60, deadline=None)


@quick
@given(TEXT)
def test_normalisation_is_done_once(text):
    assert normalise(normalise(text)) == normalise(text)


@quick
@given(ANSWER, st.randoms())
def test_order_case_space_period_and_repetition_do_not_count(answer, random):
    said = [random.choice([str.upper, str.title, str])(term) for term in answer] + [answer[0]]
    random.shuffle(said)
    assert is_correct(f"  {' ,  '.join(said)} .\n", answer)
    assert is_correct(answer_text(answer), answer)
    assert parse(answer_text(answer), vocabulary=answer_set(answer)) == answer_set(answer) == set(answer)


@quick
@given(ANSWER, ANSWER)
def test_only_the_whole_set_is_right(answer, other):
    assert is_correct(answer_text(other), answer) == (set(other) == set(answer))
    if len(answer) > 1:
        assert not is_correct(answer_text(answer[1:]), answer)


@quick
@given(TEXT)
def test_a_text_is_a_set_of_terms_or_no_answer(text):
    terms = parse(text)
    assert terms is None or (terms and "" not in terms)
    assert is_empty(text) <= (terms is None)
    assert parse(text, vocabulary=frozenset()) is None


@pytest.mark.parametrize("text", ["", " ", "\n", ".", " , ", "...", ",."])
def test_nothing_said_is_never_right(text):
    assert parse(text) is None
    assert not is_correct(text, ["yes"]) and not is_correct(text, []) and not is_correct(text, [""])


def test_commas_in_brackets_belong_to_a_term():
    terms = ["bigeminal pattern (unknown origin, sv or ventricular)", "premature complex(es)"]
    assert parse(answer_text(terms)) == set(terms)
    assert parse("bigeminal pattern (unknown origin, sv", vocabulary=answer_set(terms)) is None  # cut off


def test_one_unknown_term_makes_it_no_answer():
    known = frozenset({"yes", "no"})
    assert parse("Yes.", known) == {"yes"}
    assert parse("yes, probably", known) is None
    assert parse("yes, probably") == {"yes", "probably"}


def row(question, answer, kind="single-verify", attribute="a", id="r"):
    return question_row(
        id=id, ecgs=["e"], patient_ids=["p"], question_type=kind, question=question, answer=answer, attribute=attribute
    )


def test_majority_falls_back_from_question_to_attribute_to_type_to_all():
    train = [
        *[row("Is it A?", ["yes"])] * 3, *[row("is it  a?", ["no"])] * 2,
        *[row("A, perhaps?", ["no"])] * 4,
        *[row("Is it B?", ["yes"], attribute="b")] * 8,
        *[row("Which?", ["x", "y"], "single-query", "c")] * 12,
    ]  # fmt: skip
    majority = majority_by_question(train)
    assert majority(row("IS IT A?", ["no"])) == {"yes"}  # its question, however it is written
    assert majority(row("Does it look like A?", ["no"])) == {"no"}  # its attribute: 6 of 9
    assert majority(row("Is it C?", ["no"], attribute="c")) == {"yes"}  # its type: 11 of 17
    assert majority(row("Which?!", ["x"], "comparison-query")) == {"x", "y"}  # all: 12 of 29
    assert vocabulary(train) == {"yes", "no", "x", "y"}


@quick
@given(st.permutations([["no"], ["yes"], ["b", "a"], ["yes"], ["no"], ["a", "b"]]))
def test_equally_common_answers_are_chosen_between_alike(answers):
    majority = majority_by_question([row("Q?", answer) for answer in answers])
    assert majority(row("Q?", ["?"])) == {"a", "b"}


def test_majority_needs_training_rows():
    with pytest.raises(ValueError, match="there are none"):
        majority_by_question([])
