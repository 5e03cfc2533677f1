"""What an audit asks: which questions, under which conditions, about which ECGs. Settled before anything is asked."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections import defaultdict
from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from data.experiment.conditions import CONDITIONS, FAST, apply

if TYPE_CHECKING:  # torch and scipy take seconds to import, which `--help` need not wait for
    from data.conversations.rows import QuestionSet, Row
    from data.experiment.donors import Donor, Question, Rule
    from eval.answerers.model import Responder
    from eval.audit.journal import Journal
    from eval.scoring.lines import Key, Line

SIMULATED_PATIENTS = 25  # beside the recordings of a corpus
SCORED_ONLY = ("question-swap", "both-swap", "planted")  # what they measure is a likelihood, not words


class Plan:
    """What is asked under each condition, and what is known about the right answers.

    Args:
        questions: The question set.
        rows: Those of its test rows that are asked.
        key: What answers are scored with.
        seed: Of donors.
        reports: The rows ask for reports: they are among its `test_reports`, and open.
    """

    def __init__(self, questions: QuestionSet, rows: Sequence[Row], key: Key, seed: int, reports: bool = False) -> None:
        self.questions, self.rows, self.key, self.seed = questions, rows, key, seed
        self.everything = questions.test_reports if reports else questions.test
        self.options = (lambda row: None) if reports else key.options
        self._donors: dict[str, dict[str, Donor]] = {}

    @property
    def digest(self) -> str:
        """A hash of the questions, their options and their order."""
        told = [[row["id"], row["question"], row["answer"], row["ecgs"], self.options(row)] for row in self.rows]
        whole = [told, len(self.everything), self.questions.source_key]
        return hashlib.sha256(json.dumps(whole, ensure_ascii=False).encode()).hexdigest()[:16]

    def donors(self, rule: Rule) -> dict[str, Donor]:
        """Who gives an ECG to which row, by id. Chosen among all test rows: it does not depend on the sample."""
        from data.experiment.donors import choose_donors

        if rule not in self._donors:
            chosen = choose_donors(self.everything, self.questions.patient_of, rule, self.seed, self.questions.traits)
            self._donors[rule] = {row["id"]: donor for row, donor in zip(self.everything, chosen) if donor is not None}
        return self._donors[rule]

    def ask(
        self, responder: Responder, condition: str, journal: Journal, batch_size: int, called: str | None = None
    ) -> list[Line]:
        """The scored lines of one condition; `called` is its name in them, where another one says more."""
        from data.conversations.rows import answer_text
        from eval.audit.journal import ask_all
        from eval.scoring.lines import lines

        known = CONDITIONS[condition]
        rows, more = self.planted() if condition == "planted" else (list(self.rows), None)
        given = self.donors(known.donors) if known.donors else None
        other = self.other_questions if known.questions else None
        rows = [row for row in rows if all(by_id is None or row["id"] in by_id for by_id in (given, other))]
        donors = None if given is None else [given[row["id"]] for row in rows]
        questions = None if other is None else [other[row["id"]] for row in rows]
        asked = apply(condition, rows, donors, questions)
        options = [self.options(row) if responder.scores else None for row in rows]
        gold = [answer_text(row["answer"]) for row in rows]
        answers = ask_all(responder, condition, asked, options, gold, journal, batch_size)
        return lines(called or condition, rows, answers, options, self.key, donors, self.questions.patient_of, more)

    @property
    def can_plant(self) -> bool:
        """Whether there are simulated recordings, and training questions about what can be planted in them."""
        from data.experiment.planted import DOSES, simulated

        return simulated(self.questions.source) is not None and bool(
            wordings(self.questions.train).keys() & {doses.finding for doses in DOSES}
        )

    @cached_property
    def other_questions(self) -> dict[str, Question]:
        """What else could be asked about the ECGs of each row, by id."""
        from data.experiment.donors import choose_questions

        chosen = choose_questions(self.everything, self.seed)
        return {row["id"]: other for row, other in zip(self.everything, chosen) if other is not None}

    def planted(self) -> tuple[list[Row], dict[str, dict[str, Any]]]:
        """Questions about simulated recordings with one parameter moved, and the dose of each.

        Asked in the words of the training questions; what these never ask about is left out.
        """
        from data.experiment.planted import DOSES, planted_rows, simulated

        cohort = simulated(self.questions.source)
        assert cohort is not None  # `_names` has looked
        mine = {record for row in self.questions.test for record in row["ecgs"] if record in cohort.patient_of}
        words = wordings(self.questions.train)
        rows = [
            row
            for doses in DOSES
            if doses.finding in words
            for row in planted_rows(
                cohort, mine or cohort.records, seed=self.seed, question=words[doses.finding], doses=[doses]
            )
        ]
        return list(rows), {row["id"]: {name: row[name] for name in ("parameter", "dose", "sign")} for row in rows}


def wordings(train: Sequence[Row]) -> dict[str, str]:
    """How training questions ask whether a finding is there, as a pattern with `{finding}`, by finding."""
    found: dict[str, str] = {}
    for row in sorted(train, key=lambda row: (row["template_id"], row["question"])):
        if row["question_type"] == "single-verify" and row["attribute"] and row["attribute"] in row["question"]:
            found.setdefault(row["attribute"], row["question"].replace(row["attribute"], "{finding}"))
    return found


def choose_conditions(
    wanted: Sequence[str] | None, full: bool, responder: Responder, plan: Plan
) -> tuple[list[str], list[str]]:
    """Conditions to ask under, and notes on those that this responder cannot be asked under.

    Raises:
        ValueError: One that was asked for by name is not possible; says why.
    """
    names, notes = [], []
    for name in dict.fromkeys(wanted if wanted is not None else CONDITIONS if full else FAST):
        level = CONDITIONS[name].level
        reason = None
        if level not in responder.levels:
            reason = (
                f"condition {name!r} is done to the model's {level}s, which a server keeps to itself: it can be asked "
                f"under {', '.join(n for n, c in CONDITIONS.items() if c.level in responder.levels)}"
            )
        elif name in SCORED_ONLY and not responder.scores:
            reason = f"condition {name!r} is read from log-probabilities, which this responder does not give"
        elif name == "planted" and not plan.can_plant:
            reason = "condition 'planted' asks about findings of simulated recordings; no training question does"
        if reason is None:
            names.append(name)
        elif wanted is not None:
            raise ValueError(reason)
        else:
            notes.append(f"Not asked: {reason}.")
    return names, notes


def with_simulated(questions: QuestionSet) -> QuestionSet:
    """The question set with simulated patients beside its recordings, in whom doses can be planted."""
    from data.experiment.planted import Beside, simulated
    from data.synthetic import SyntheticCohort

    if simulated(questions.source) is not None:
        return questions
    cohort = SyntheticCohort(SIMULATED_PATIENTS, records_per_patient=1, fs=500)
    return dataclasses.replace(questions, source=Beside(questions.source, cohort))


def sample(rows: Sequence[Row], limit: int | None, seed: int) -> list[Row]:
    """At most `limit` rows, one from each template in turn, in their old order; which ones depends on the seed only."""
    if limit is None or limit >= len(rows):
        return list(rows)
    if limit < 1:
        raise ValueError(f"limit must be positive, got {limit}")
    rng = np.random.default_rng(seed)
    templates: dict[tuple[int, str, str], list[int]] = defaultdict(list)
    for i in sorted(range(len(rows)), key=lambda i: rows[i]["id"]):
        row = rows[i]
        templates[row["template_id"], row["question_type"], row["control"]].append(i)
    # (turn, template, row): the first rows of all templates, in shuffled order, then the second ones, ...
    turns = [
        (turn, place, members[j])
        for place, (_, members) in zip(rng.permutation(len(templates)), sorted(templates.items()))
        for turn, j in enumerate(rng.permutation(len(members)))
    ]
    return [rows[i] for i in sorted(i for _, _, i in sorted(turns)[:limit])]


def check(name: str, rows: Sequence[Row]) -> None:
    """Refuse questions that would be counted wrongly rather than fail."""
    from data.conversations.contract import check_rows

    if not any(row["control"] == "" for row in rows):
        raise ValueError(
            f"{name}: of {len(rows)} held-out questions none is other than a control: there is no headline"
        )
    check_rows(name, rows)
