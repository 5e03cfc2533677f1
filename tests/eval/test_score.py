import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.conversations.rows import answer_text, question_row
from eval.scoring.answers import (
    ABSTENTIONS,
    OUTCOMES,
    answer_set,
    is_abstention,
    is_correct,
    is_empty,
    majority,
    majority_by_question,
    normalise,
    options_by_question,
    outcome,
    parse,
    upstream_accuracy,
    vocabulary,
)
from eval.scoring.likelihood import brier, choice, probabilities, selective_accuracy, yes_margin

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


def row(question, answer, kind="single-verify", attribute="a", id="r", template=0):
    return question_row(
        id=id, ecgs=["e"], patient_ids=["p"], question_type=kind, question=question, answer=answer,
        attribute=attribute, template_id=template,
    )  # fmt: skip


def test_majority_falls_back_from_question_to_attribute_to_type_to_all():
    train = [
        *[row("Is it A?", ["yes"])] * 3, *[row("is it  a?", ["no"])] * 2,
        *[row("A, perhaps?", ["no"])] * 4,
        *[row("Is it B?", ["yes"], attribute="b")] * 8,
        *[row("Which?", ["x", "y"], "single-query", "c")] * 12,
    ]  # fmt: skip
    guess = majority_by_question(train)
    assert guess(row("IS IT A?", ["no"])) == {"yes"}  # its question, however it is written
    assert guess(row("Does it look like A?", ["no"])) == {"no"}  # its attribute: 6 of 9
    assert guess(row("Is it C?", ["no"], attribute="c")) == {"yes"}  # its type: 11 of 17
    assert guess(row("Which?!", ["x"], "comparison-query")) == {"x", "y"}  # all: 12 of 29
    assert vocabulary(train) == {"yes", "no", "x", "y"}


@quick
@given(st.permutations([["no"], ["yes"], ["b", "a"], ["yes"], ["no"], ["a", "b"]]))
def test_equally_common_answers_are_chosen_between_alike(answers):
    guess = majority_by_question([row("Q?", answer) for answer in answers])
    assert guess(row("Q?", ["?"])) == {"a", "b"}


def test_majority_needs_training_rows():
    with pytest.raises(ValueError, match="there are none"):
        majority_by_question([])
    with pytest.raises(ValueError, match="there are none"):
        majority([])


def test_the_plain_majority_sees_the_type_only():
    train = [
        *[row("Is it A?", ["yes"])] * 3,
        *[row("Is it B?", ["no"])] * 4,
        *[row("Which?", ["x"], "single-query")] * 5,
    ]
    assert majority_by_question(train)(row("Is it A?", ["?"])) == {"yes"}
    assert majority(train)(row("Is it A?", ["?"])) == {"no"}
    assert majority(train)(row("Is it A?", ["?"], "single-query")) == {"x"}
    assert majority(train)(row("Is it A?", ["?"], "comparison-verify")) == {"x"}


def test_options_are_what_a_question_was_answered_with():
    options = options_by_question(
        [
            *(row("Is it A?", [said]) for said in ("yes", "no", "no", "not sure", "Yes.")),
            *(row("A or B?", said, "single-choose", "a, b") for said in (["b", "a"], ["none"], ["a"], ["a", "b"])),
            *(row("Which?", [said], "single-query", "") for said in "hgfedcba"),
            *(row("Which then?", [said], "single-query", "") for said in "ihgfedcba"),
            row("What else?", ["x"], "single-query", ""),
        ]
    )
    assert options(row("IS IT A?", ["?"])) == ["Yes.", "no", "not sure"]
    assert options(row("A or B?", ["b"], "single-choose", "a, b")) == ["a", "a, b", "none"]  # "b" alone was never right
    assert options(row("Which?", ["?"], "single-query", "")) == list("abcdefgh")
    assert options(row("Which then?", ["?"], "single-query", "")) is None  # nine
    assert options(row("What else?", ["?"], "single-query", "")) is None  # one


def test_options_fall_back_from_question_to_attribute_to_type():
    train = [
        *(row("Is it A?", [said]) for said in ("yes", "no", "not sure")),
        *(row("A at all?", ["no"]) for _ in range(2)),
        *(row("Is it B?", [said], attribute="b") for said in ("yes", "no")),
        *(row("A or B?", [said], "single-choose", "a, b", template=3) for said in ("a", "b")),
        *(row("A or B, really?", [said], "single-choose", "a, b", template=4) for said in ("a", "none")),
        *(row("Which?", [said], "single-query", "a") for said in ("a", "b")),
    ]
    options = options_by_question(train)
    everything = ["no", "not sure", "yes"]
    assert options(row("Could it be B?", ["?"], attribute="b")) == ["no", "yes"]
    assert options(row("A at all?", ["?"])) == everything  # its own training rows all say no: its attribute's
    assert options(row("Is it C?", ["?"], attribute="c")) == everything  # its type's
    assert options(row("Is it?", ["?"], attribute="")) == everything
    assert options(row("Is it new?", ["?"], "comparison_consecutive-verify")) is None
    choose = row("B or A?", ["?"], "single-choose", "a, b", template=3)
    assert options(choose) == ["a", "b"]  # its template's, not those of template 4
    assert options(row("A or C?", ["?"], "single-choose", "a, c", template=3)) is None
    assert options(row("Which one?", ["?"], "single-query", "a")) is None  # an attribute may name the answer
    assert options_by_question(train, most=2)(row("Is it A?", ["?"])) is None


@quick
@given(st.permutations([["yes"], ["no"], ["Yes"], ["b", "a"], ["a", "B"]]))
def test_options_do_not_depend_on_the_order_of_the_rows(answers):
    found = options_by_question([row("Q?", answer) for answer in answers])(row("Q?", ["?"]))
    assert found == ["B, a", "Yes", "no"]


def test_options_need_training_rows_and_room_for_two():
    with pytest.raises(ValueError, match="options of a question are learned from training rows, and there are none"):
        options_by_question([])
    with pytest.raises(ValueError, match="at least two options, got most=1"):
        options_by_question([row("Q?", ["yes"])], most=1)


def test_options_of_the_cohort(cohort):
    options = options_by_question(cohort.questions.train)
    for asked in cohort.questions.test:
        found = options(asked)
        if asked["question_type"] == "single-verify":
            assert found == ["no", "yes"]
        else:
            assert answer_text(asked["answer"]) in found
            assert found == sorted(found)


@pytest.mark.parametrize(
    "text",
    [
        *ABSTENTIONS,
        "I can't tell from this.", "I\u2019m unable to reliably determine it", "It cannot be definitively assessed",
        "It is impossible to say.", "I couldn't interpret the tracing", "I don't have access to an ECG",
        "There is not enough information.", "NO ECG.", "No electrocardiogram was provided", "I am not able to assist.",
        "As an AI language model, I", "I do not know", "Not sure.",
    ],
)  # fmt: skip
def test_abstentions_are_recognised(text):
    assert is_abstention(text)


@pytest.mark.parametrize(
    "text",
    [
        "", "yes", "no", "none", "unknown stage of myocardial infarction", "infarction cannot be excluded",
        "no ECG changes of ischaemia", "cannot see any P waves", "I do not see any ECG changes", "no abnormality",
        "uncertain symptoms", "measure 12",
    ],
)  # fmt: skip
def test_findings_are_no_abstentions(text):
    assert not is_abstention(text)


def test_an_answer_of_the_questions_is_no_abstention():
    terms = frozenset({"yes", "no", "not sure"})
    assert is_abstention("Not sure.") and not is_abstention("Not sure.", terms)
    assert outcome("Not sure.", ["not sure"], terms) == "right"
    assert outcome("Not sure.", ["yes"], terms) == "wrong"
    assert outcome("Not sure.", ["yes"], frozenset({"yes", "no"})) == "abstained"


SAID = st.one_of(
    TEXT, ANSWER.map(answer_text), st.sampled_from(["yes", "No.", "maybe", "", " . ", "not sure", *ABSTENTIONS[:3]])
)


@quick
@given(SAID, ANSWER, st.lists(st.sampled_from(["yes", "no", "not sure"]), unique=True))
def test_an_outcome_agrees_with_each_of_its_parts(said, answer, words):
    terms = frozenset(words) | answer_set(answer)
    what = outcome(said, answer, terms)
    assert what in OUTCOMES
    assert (what == "right") == is_correct(said, answer)
    assert (what == "empty") == is_empty(said)
    assert (what in ("right", "wrong")) == (parse(said, terms) is not None)
    assert (what == "abstained") == is_abstention(said, terms)


def test_upstream_accuracy_takes_the_text_as_it_is_and_drops_the_empty():
    answers = [["yes"], ["yes"], ["b", "a"], ["a", "b"], ["a", "b"], ["none"], [""], ["x"]]
    said = [" yes\n", "Yes", "b a", "b a", "a, b", "", "y", "  "]
    assert upstream_accuracy(said, answers) == (2 / 5, 5)
    assert upstream_accuracy([""], [["yes"]]) == (None, 0)
    with pytest.raises(ValueError, match="1 predictions but 0 answers"):
        upstream_accuracy(["yes"], [])


LOGP = st.lists(st.one_of(st.floats(-1000, 0), st.just(-np.inf)), min_size=1, max_size=6)


@quick
@given(LOGP, st.floats(-50, 50))
def test_the_choice_has_the_highest_probability(logp, shift):
    options = [f"option {i}" for i in range(len(logp))]
    assert choice(options, logp) == options[logp.index(max(logp))]
    if max(logp) > -np.inf:
        shares = probabilities(logp)
        assert shares.sum() == pytest.approx(1)
        # The difference of two logs is that of their probabilities, whatever both are shifted by.
        np.testing.assert_allclose(probabilities(np.add(logp, shift)), shares, atol=1e-9)
        assert shares[options.index(choice(options, logp))] == shares.max()
    np.testing.assert_allclose(probabilities(np.log([0.2, 0.6])), [0.25, 0.75])


def test_equally_probable_options_go_to_the_first():
    assert choice(["b", "a"], [-1.0, -1.0]) == "b"


def test_the_margin_is_between_yes_and_no():
    assert yes_margin(["no", "not sure", "yes"], [-3.0, -0.1, -1.0]) == 2.0
    assert yes_margin(["No", "Yes."], [-1.0, -np.inf]) == -np.inf
    assert yes_margin(["no", "not sure"], [-1.0, -2.0]) is None
    two = ["no", "yes"]
    p_no, p_yes = probabilities([-1.2, -0.4])
    assert yes_margin(two, [-1.2, -0.4]) == pytest.approx(np.log(p_yes / p_no))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: choice(["a", "b"], [0.0]), r"one number per option, got shape \(1,\) for 2 options"),
        (lambda: choice([], []), r"one number per option, got shape \(0,\)"),
        (lambda: choice(["a", "b"], [0.0, np.nan]), "the log probability of option 'b' is nan"),
        (lambda: probabilities([np.inf, 0.0]), "the log probability of option 0 is inf"),
        (lambda: probabilities([-np.inf, -np.inf]), "all 2 options have probability zero"),
        (lambda: yes_margin(["no", "yes"], [-np.inf, -np.inf]), "yes and no both have probability zero"),
        (lambda: brier([0.1, 1.2], [0, 1]), "p_yes must lie between 0 and 1, got 1.2"),
        (lambda: brier([np.nan], [0]), "p_yes must lie between 0 and 1, got nan"),
        (lambda: brier([0.1], [0, 1]), r"p_yes and is_yes must be one number per answer, got shapes \(1,\) and \(2,\)"),
        (lambda: brier([], []), "p_yes and is_yes must be one number per answer"),
        (lambda: selective_accuracy([], [], [1]), "confidence and right must be one number per answer"),
        (lambda: selective_accuracy([0.5, np.nan], [1, 1], [1]), "the confidence of answer 1 is not a number"),
        (lambda: selective_accuracy([0.5], [1], [0.5, 0.0]), "a share above 0 and up to 1, got 0.0"),
    ],
)
def test_refuses_numbers_that_do_not_fit(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_brier_by_hand():
    assert brier([1.0, 0.0, 0.5, 0.8], [True, False, True, False]) == pytest.approx((0.25 + 0.64) / 4)


ANSWERS = st.lists(st.tuples(st.sampled_from([0.2, 0.5, 0.9]), st.booleans()), min_size=1, max_size=12)


@quick
@given(ANSWERS, st.randoms())
def test_selective_accuracy_is_that_of_random_choices_among_ties(answers, random):
    n = len(answers)
    shares = [k / n for k in range(1, n + 1)]
    found = selective_accuracy(*zip(*answers), shares)
    assert found[-1] == pytest.approx(np.mean([right for _, right in answers]))
    for k, accuracy in zip(range(1, n + 1), found):
        threshold = sorted((sure for sure, _ in answers), reverse=True)[k - 1]
        above = [right for sure, right in answers if sure > threshold]
        tied = [right for sure, right in answers if sure == threshold]
        assert accuracy == pytest.approx((sum(above) + (k - len(above)) * np.mean(tied)) / k)
    shuffled = random.sample(answers, n)
    np.testing.assert_allclose(selective_accuracy(*zip(*shuffled), shares), found)


def test_selective_accuracy_by_hand():
    confidence, right = [0.9, 0.8, 0.8, 0.1], [True, True, False, False]
    expected = [1, 1, 1.5 / 2, 2 / 3, 0.5]
    assert selective_accuracy(confidence, right, [0.1, 0.25, 0.5, 0.75, 1]) == pytest.approx(expected)
    assert selective_accuracy(confidence, right, [0.375]) == pytest.approx([(1 + 0.5 * 0.5) / 1.5])  # half an answer
