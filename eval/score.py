"""Whether an answer is right, and what one would answer who sees only the question.

An answer is a set of terms, written as a list with commas. Order, repetition, case, white space and a final period do
not count; every other difference does. A comma in brackets is part of a term: "bigeminal pattern (unknown origin, sv or
ventricular)" is one answer of ECG-QA.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # the readers of recordings import scipy, which `--help` need not wait for
    from data.conversations.rows import Row

AnswerSet = frozenset[str]

_COMMA = re.compile(r",(?![^()]*\))")  # not between brackets


def normalise(text: str) -> str:
    """The text in lower case, with single spaces, without final periods. The one normalisation there is."""
    return " ".join(text.lower().split()).rstrip(". ")


def parse(text: str, vocabulary: Collection[str] | None = None) -> AnswerSet | None:
    """The set of terms in what a model said.

    Args:
        text: Terms with commas between them.
        vocabulary: The terms that are answers (`vocabulary(rows)`). Text with any other term is not an answer.

    Returns:
        The normalised terms; None where there is no answer: an empty text, or one outside the vocabulary.
    """
    terms = frozenset(term for part in _COMMA.split(text) if (term := normalise(part)))
    if not terms or (vocabulary is not None and not terms.issubset(vocabulary)):
        return None
    return terms


def answer_set(answer: Iterable[str]) -> AnswerSet:
    """The normalised terms of a row's `answer`, split as `parse` would split them when a model says them."""
    return frozenset[str]().union(*(parse(term) or () for term in answer))


def is_correct(prediction: str, answer: Iterable[str]) -> bool:
    """Whether the prediction is exactly this set of terms. Saying nothing is never right."""
    return parse(prediction) is not None and parse(prediction) == answer_set(answer)


def is_empty(prediction: str) -> bool:
    """Whether nothing was said at all. Such answers are wrong; leaving them out would flatter a model that abstains."""
    return not normalise(prediction)


def vocabulary(rows: Iterable[Row]) -> frozenset[str]:
    """Every term that is an answer to some row."""
    return frozenset(term for row in rows for term in answer_set(row["answer"]))


@dataclass(frozen=True)
class Majority:
    """The best answer without an ECG: the most common answer set of the question, learned from training rows.

    `Majority(...)(row)` gives that set, for a question not seen in training that of its attribute and type, of its
    type, or of all rows, whichever is the first that is known.
    """

    answers: dict[Hashable, AnswerSet]

    def __call__(self, row: Row) -> AnswerSet:
        """What to answer to this row's question."""
        return next(self.answers[key] for key in _keys(row) if key in self.answers)


def majority_by_question(train_rows: Sequence[Row]) -> Majority:
    """Learn the most common answer set of every question; of two equally common ones, the first in alphabetical order.

    Raises:
        ValueError: There are no training rows. (The test rows must not stand in: their majority is an upper bound.)
    """
    if not train_rows:
        raise ValueError("the majority answer is learned from training rows, and there are none")
    counts: dict[Hashable, Counter[AnswerSet]] = {}
    for row in train_rows:
        for key in _keys(row):
            counts.setdefault(key, Counter())[answer_set(row["answer"])] += 1
    return Majority({key: min(seen, key=lambda terms: (-seen[terms], sorted(terms))) for key, seen in counts.items()})


def _keys(row: Row) -> list[Hashable]:
    """What a row's majority answer is looked up by, most specific first."""
    kind = row["question_type"]
    return [("question", normalise(row["question"])), ("attribute", row["attribute"], kind), ("type", kind), ("all",)]
