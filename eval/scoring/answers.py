"""Right and wrong answers, the best answer of who sees only the question, and the options of closed questions.

An answer is a set of terms, written as a list with commas. Order, repetition, case, white space and a final period do
not count; every other difference does. A comma in brackets is part of a term: "bigeminal pattern (unknown origin, sv or
ventricular)" is one answer of ECG-QA.
"""

import re
from collections import Counter
from collections.abc import Callable, Collection, Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from data.conversations.rows import Row, answer_text

AnswerSet = frozenset[str]
Outcome = Literal["right", "wrong", "abstained", "empty", "unparsed"]
OUTCOMES: tuple[Outcome, ...] = ("right", "wrong", "abstained", "empty", "unparsed")

MAX_OPTIONS = 8  # a question with more answer sets than this is open

_COMMA = re.compile(r",(?![^()]*\))")  # not between brackets

# What a model says instead of an answer, once `_PLAIN` has made "I'm unable to reliably tell" of it "I'm cannot tell".
ABSTENTIONS = (
    "cannot tell", "cannot say", "cannot know", "cannot judge", "cannot decide", "cannot answer", "cannot be answered",
    "cannot determine", "cannot be determined", "cannot assess", "cannot be assessed", "cannot evaluate",
    "cannot be evaluated", "cannot interpret", "cannot be interpreted", "cannot analyze", "cannot analyse",
    "cannot provide", "cannot give", "cannot help", "cannot assist",
    "cannot see the ecg", "cannot see an ecg", "do not see an ecg", "cannot view", "cannot access",
    "do not have access", "do not have an ecg", "do not have the ecg", "do not have enough",
    "not enough information", "insufficient information", "no information", "not enough data", "insufficient data",
    "no ecg was", "no ecg is", "no ecg has been", "no ecg provided", "no ecg given", "no ecg attached",
    "no ecg available", "no ecg image", "no ecg signal", "no ecg recording", "no ecg data", "without an ecg",
    "please provide", "please upload", "please attach", "please share", "please send",
    "not sure", "unsure", "do not know", "as an ai", "an ai language model", "an ai assistant",
)  # fmt: skip
_ABSTENTION = re.compile(rf"\b(?:{'|'.join(ABSTENTIONS)})\b|\bno ecg$")  # not "no ECG changes"
_PLAIN = (
    (re.compile("\u2019"), "'"),
    (re.compile(r"\b(?:electrocardiogram|ekg)\b"), "ecg"),
    (re.compile(r"\b(?:can't|can not|could(?: not|n't)|(?:un|not )able to|(?:im|not )possible to)\b"), "cannot"),
    (re.compile(r"n't\b"), " not"),
    (re.compile(r"\b\w+ly "), ""),  # reliably, definitively, ...
)


def normalise(text: str) -> str:
    """The text in lower case, with single spaces, without final periods. The one normalisation there is."""
    return " ".join(text.lower().split()).rstrip(". ")


def parse(text: str, vocabulary: Collection[str] | None = None) -> AnswerSet | None:
    """The set of normalised terms in a model's words, split at commas.

    None where there is no answer: an empty text, or one with a term that is not in the vocabulary (`vocabulary(rows)`).
    """
    terms = frozenset(term for part in _COMMA.split(text) if (term := normalise(part)))
    return terms if terms and (vocabulary is None or terms.issubset(vocabulary)) else None


def answer_set(answer: Iterable[str]) -> AnswerSet:
    """The normalised terms of a row's `answer`, split as `parse` would split them when a model says them."""
    return frozenset[str]().union(*(parse(term) or () for term in answer))


def is_correct(prediction: str, answer: Iterable[str]) -> bool:
    """Whether the prediction is exactly this set of terms. Saying nothing is never right."""
    return parse(prediction) is not None and parse(prediction) == answer_set(answer)


def is_empty(prediction: str) -> bool:
    """Whether nothing was said at all. Such answers are wrong; leaving them out would flatter a model that abstains."""
    return not normalise(prediction)


def is_abstention(prediction: str, vocabulary: Collection[str] | None = None) -> bool:
    """Whether the prediction declines to answer: it has one of the phrases of `ABSTENTIONS`, or ends in "no ECG".

    Contractions, adverbs and other ways to say "cannot" do not matter. Meant for short answers: a sentence of a report
    may say that one finding cannot be assessed. What consists of terms of the vocabulary is an answer and no
    abstention, however it sounds: "not sure" is one of the answers of ECG-QA.
    """
    if vocabulary is not None and parse(prediction, vocabulary) is not None:
        return False
    text = normalise(prediction)
    for pattern, plain in _PLAIN:
        text = pattern.sub(plain, text)
    return _ABSTENTION.search(text) is not None


def outcome(prediction: str, answer: Iterable[str], vocabulary: Collection[str]) -> Outcome:
    """Outcome of one question; exactly one of `OUTCOMES`.

    `"wrong"` is another answer, `"unparsed"` any other text, with terms that are no answer to any question. All but
    `"right"` count as not right.
    """
    if is_empty(prediction):
        return "empty"
    if is_correct(prediction, answer):
        return "right"
    if parse(prediction, vocabulary) is not None:
        return "wrong"
    return "abstained" if is_abstention(prediction) else "unparsed"


def upstream_accuracy(predictions: Sequence[str], answers: Sequence[Sequence[str]]) -> tuple[float | None, int]:
    """Accuracy by the rule of ECG-Bench (github.com/willxxy/ECG-Bench), for comparison with numbers published with it.

    A prediction is right if it equals the answer's terms joined by single spaces, in their order and case, after
    stripping both. Pairs with an empty prediction or answer are left out, which flatters a model that says nothing, and
    no other wording is accepted. A set of several terms is right only in its own order and without commas: a model that
    was trained on `answer_text` never says it so. Returns the accuracy, None where no pair is left, and the number of
    pairs that were counted.

    Raises:
        ValueError: There are not as many predictions as answers.
    """
    if len(predictions) != len(answers):
        raise ValueError(f"{len(predictions)} predictions but {len(answers)} answers")
    pairs = [(text.strip(), " ".join(answer).strip()) for text, answer in zip(predictions, answers)]
    counted = [text == right for text, right in pairs if text and right]
    return (sum(counted) / len(counted) if counted else None), len(counted)


def vocabulary(rows: Iterable[Row]) -> frozenset[str]:
    """Every term that is an answer to some row."""
    return frozenset(term for row in rows for term in answer_set(row["answer"]))


def _by_type(row: Row) -> list[Hashable]:
    return [("type", row["question_type"]), ("all",)]


def _by_question(row: Row) -> list[Hashable]:
    attribute = ("attribute", row["attribute"], row["question_type"])
    return [("question", normalise(row["question"])), attribute, *_by_type(row)]


@dataclass(frozen=True)
class Majority:
    """The best answer without an ECG: the most common answer set, learned from training rows.

    `Majority(...)(row)` gives that set for the first of the row's keys that is known: its question, its attribute and
    type, its type, all rows (`majority_by_question`); or its type, all rows (`majority`).
    """

    answers: dict[Hashable, AnswerSet]
    keys: Callable[[Row], list[Hashable]] = _by_question  # most specific first

    def __call__(self, row: Row) -> AnswerSet:
        """The answer to this row's question."""
        return next(self.answers[key] for key in self.keys(row) if key in self.answers)


def majority_by_question(train_rows: Sequence[Row]) -> Majority:
    """Learn the most common answer set of every question. Ties and errors as `majority`."""
    return majority(train_rows, _by_question)


def majority(train_rows: Sequence[Row], keys: Callable[[Row], list[Hashable]] = _by_type) -> Majority:
    """Learn the most common answer set of every question type, whatever is asked: the plainest baseline.

    Of two equally common ones it is the first in alphabetical order.

    Raises:
        ValueError: There are no training rows. (The test rows must not stand in: their majority is an upper bound.)
    """
    if not train_rows:
        raise ValueError("the majority answer is learned from training rows, and there are none")
    counts: dict[Hashable, Counter[AnswerSet]] = {}
    for row in train_rows:
        terms = answer_set(row["answer"])
        for key in keys(row):
            counts.setdefault(key, Counter())[terms] += 1
    most_common = {key: min(seen, key=lambda terms: (-seen[terms], sorted(terms))) for key, seen in counts.items()}
    return Majority(most_common, keys)


@dataclass(frozen=True)
class Options:
    """The closed set of answers of a question, learned from training rows (`options_by_question`).

    `Options(...)(row)` gives answer texts (`answer_text`) in alphabetical order: what the question was answered with in
    training; where that is not known or is one answer only, what the same attribute was answered with in the same
    template and type (verify and choose questions), then what its type was (verify questions). None where the question
    is open: more than `most` answer sets, or fewer than two.

    The right answer of a test row may be missing from its options, if no training row has it: scored among the options
    such a row cannot be right, and counts as wrong.
    """

    texts: dict[Hashable, list[str]]
    most: int

    def __call__(self, row: Row) -> list[str] | None:
        """The options of this row's question."""
        texts = next((self.texts[key] for key in _by_form(row) if len(self.texts.get(key, ())) > 1), [])
        return list(texts) if 1 < len(texts) <= self.most else None


def options_by_question(train_rows: Sequence[Row], most: int = MAX_OPTIONS) -> Options:
    """Learn the options of every question.

    Raises:
        ValueError: There are no training rows (the test rows must not stand in: they would tell which answers occur),
            or `most` is less than 2.
    """
    if not train_rows:
        raise ValueError("the options of a question are learned from training rows, and there are none")
    if most < 2:
        raise ValueError(f"a closed question has at least two options, got most={most}")
    seen: dict[Hashable, dict[AnswerSet, str]] = {}
    for row in train_rows:
        terms, text = answer_set(row["answer"]), answer_text(row["answer"])
        for key in _by_form(row):
            texts = seen.setdefault(key, {})
            texts[terms] = min(text, texts.get(terms, text))  # of several spellings one, whatever the order of the rows
    return Options({key: sorted(texts.values()) for key, texts in seen.items()}, most)


def _by_form(row: Row) -> list[Hashable]:
    """Keys of a row's options, most specific first."""
    kind, attribute = row["question_type"], row["attribute"]
    keys: list[Hashable] = [("question", normalise(row["question"]))]
    # Not for query questions: some sets name the answer in their attribute, and the option would give it away.
    if attribute and kind.endswith(("verify", "choose")):
        keys.append(("attribute", row["template_id"], attribute, kind))
    if kind.endswith("verify"):
        keys.append(("type", kind))
    return keys
