"""The questions of an audit, their conditions and ECGs. Settled before anything is asked."""

import dataclasses
import hashlib
import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import cached_property

import numpy as np

from data.conversations.contract import check_rows
from data.conversations.rows import QuestionSet, Row, answer_text
from data.experiment import donors as donors_of
from data.experiment.conditions import CONDITIONS, FAST, apply
from data.experiment.donors import Donor, Rule
from data.experiment.planted import DOSES, Beside, PlantedRow, planted_rows, simulated
from data.synthetic import SyntheticCohort
from eval.answerers.base import Responder
from eval.audit import journal as journals
from eval.audit.journal import Journal
from eval.scoring.lines import Asked, Key, Line, Planted, line

SIMULATED_PATIENTS = 25  # beside the recordings of a corpus
SCORED_ONLY = ("question-swap", "both-swap", "planted")  # what they measure is a likelihood, not words


@dataclasses.dataclass
class Plan:
    """The questions of each condition, and what is known about the right answers."""

    questions: QuestionSet
    rows: Sequence[Row]  # those of its test rows that are asked
    key: Key  # what answers are scored with
    seed: int  # seed of donors
    reports: bool = False  # the rows ask for reports: they are among the `test_reports`, and open

    def __post_init__(self) -> None:
        self.everything = self.questions.test_reports if self.reports else self.questions.test
        self.options = (lambda row: None) if self.reports else self.key.options
        self._donors: dict[str, dict[str, Donor]] = {}

    @property
    def digest(self) -> str:
        """A hash of the questions, their options and their order."""
        rows = [[row["id"], row["question"], row["answer"], row["ecgs"], self.options(row)] for row in self.rows]
        whole = [rows, len(self.everything), self.questions.source_key]
        return hashlib.sha256(json.dumps(whole, ensure_ascii=False).encode()).hexdigest()[:16]

    def donors(self, rule: Rule) -> dict[str, Donor]:
        """Who gives an ECG to which row, by id. Chosen among all test rows: it does not depend on the sample."""
        if rule not in self._donors:
            rows, patient_of, traits = self.everything, self.questions.patient_of, self.questions.traits
            chosen = donors_of.choose_donors(rows, patient_of, rule, self.seed, traits)
            self._donors[rule] = {row["id"]: donor for row, donor in zip(rows, chosen) if donor is not None}
        return self._donors[rule]

    def ask(
        self, responder: Responder, name: str, journal: Journal, batch_size: int, label: str | None = None
    ) -> list[Line]:
        """The scored lines of one condition; `label` is its name in them, where another one says more."""
        condition = CONDITIONS[name]
        rows, planted = self.planted() if name == "planted" else (list(self.rows), {})
        donors = self.donors(condition.donors) if condition.donors else None
        other = self.other_questions if condition.questions else None
        rows = [row for row in rows if all(by_id is None or row["id"] in by_id for by_id in (donors, other))]
        donor_of_row = None if donors is None else [donors[row["id"]] for row in rows]
        other_of_row = None if other is None else [other[row["id"]] for row in rows]
        entries = [self._asked(row, responder.scores, (donors or {}).get(row["id"]), planted) for row in rows]
        questions = [
            journals.Question(row, about.options, answer_text(about.row["answer"]))
            for row, about in zip(apply(name, rows, donor_of_row, other_of_row), entries)
        ]
        answers = journals.ask_all(responder, name, questions, journal, batch_size)
        return [line(label or name, about, answer, self.key) for about, answer in zip(entries, answers, strict=True)]

    def _asked(self, row: Row, scores: bool, donor: Donor | None, planted: Mapping[str, Planted]) -> Asked:
        patients = set() if donor is None else {self.questions.patient_of[ecg] for ecg in donor.ecgs}
        return Asked(row, self.options(row) if scores else None, donor, sorted(patients), planted.get(row["id"]))

    @property
    def can_plant(self) -> bool:
        """Whether there are simulated recordings, and training questions about what can be planted in them."""
        findings = {doses.finding for doses in DOSES}
        return simulated(self.questions.source) is not None and not findings.isdisjoint(wordings(self.questions.train))

    @cached_property
    def other_questions(self) -> dict[str, donors_of.Question]:
        """Another question that could be asked about the ECGs of each row, by id."""
        chosen = donors_of.choose_questions(self.everything, self.seed)
        return {row["id"]: other for row, other in zip(self.everything, chosen) if other is not None}

    def planted(self) -> tuple[list[Row], dict[str, Planted]]:
        """Questions about simulated recordings with one parameter moved, and what was moved for each, by id.

        Asked in the words of the training questions; what these never ask about is left out.
        """
        cohort = simulated(self.questions.source)
        assert cohort is not None  # `choose_conditions` has looked
        held_out = {record for row in self.questions.test for record in row["ecgs"] if record in cohort.patient_of}
        words = wordings(self.questions.train)
        rows: list[PlantedRow] = []
        for doses in DOSES:
            if pattern := words.get(doses.finding):
                records = held_out or cohort.records
                rows += planted_rows(cohort, records, seed=self.seed, question=pattern, doses=[doses])
        return list(rows), {row["id"]: Planted(row["parameter"], row["dose"], row["sign"]) for row in rows}


def wordings(train: Sequence[Row]) -> dict[str, str]:
    """How training questions ask whether a finding is there, as a pattern with `{finding}`, by finding."""
    patterns: dict[str, str] = {}
    for row in sorted(train, key=lambda row: (row["template_id"], row["question"])):
        if row["question_type"] == "single-verify" and row["attribute"] and row["attribute"] in row["question"]:
            patterns.setdefault(row["attribute"], row["question"].replace(row["attribute"], "{finding}"))
    return patterns


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
    if simulated(questions.source) is not None:
        return questions
    cohort = SyntheticCohort(SIMULATED_PATIENTS, records_per_patient=1, fs=500)
    return dataclasses.replace(questions, source=Beside(questions.source, cohort))


def sample(rows: Sequence[Row], limit: int | None, seed: int) -> list[Row]:
    """Pick at most `limit` rows, one from each template in turn, by the seed alone; their order stays."""
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
    if not any(row["control"] == "" for row in rows):
        none = f"of {len(rows)} held-out questions none is other than a control"
        raise ValueError(f"{name}: {none}: there is no headline")
    check_rows(name, rows)
