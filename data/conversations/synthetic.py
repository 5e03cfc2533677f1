"""Reports and ECG-QA-shaped questions about the simulated cohort.

The answers to every question are balanced: for each question text, as many recordings are asked about for each of its
answers. A question alone therefore tells nothing about its answer, and a model that does not read the ECG scores
1 / (number of answers).

Question types are those of ECG-QA (Oh et al., NeurIPS 2023): `single-verify`, `single-choose`, `single-query`, and
`comparison_consecutive-*` (two recordings of a patient) and `comparison_irrelevant-*` (of two patients).

Questions about voltage are a negative control (`control="voltage"`): voltage is a gain on the whole recording, which an
encoder blind to gain cannot read.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from data.conversations.rows import QuestionSet, Row, question_row
from data.conversations.synthetic_pairs import pair_rows
from data.conversations.synthetic_words import CHOOSE, FINDINGS, GROUPS, NEW, PAIRS, QUERIES, VERIFY, WHICH
from data.synthetic import ST_SITES, VOLTAGES, Array, SyntheticCohort

_HELD_OUT_REPORTS = 200
_ASK_REPORT = ("Write the report of this ECG.", "Describe this ECG.", "What does this ECG show?")


class _Asker:
    """Draws balanced questions about a part of the cohort."""

    def __init__(self, cohort: SyntheticCohort, records: Array, per_question: int, rng: np.random.Generator) -> None:
        self.cohort, self.records, self.per_question, self.rng = cohort, records, per_question, rng
        per_patient = cohort.records_per_patient
        visits = records.reshape(-1, per_patient)[:, :2] if per_patient > 1 else np.zeros((0, 2), int)
        both = np.concatenate([visits, visits[:, ::-1]])  # "new" must not mean "later" only
        others = np.stack([rng.permutation(records), rng.permutation(records)], axis=1)
        patient = others // per_patient
        self.pairs = {"consecutive": both, "irrelevant": others[patient[:, 0] != patient[:, 1]]}
        self.rows: list[Row] = []

    def ask(
        self, kind: str, template: int, attribute: str, phrasings: Sequence[str], about: Array,
        answers: Iterable[tuple[Sequence[str], Array]], control: str = "", share: float = 1.0,
    ) -> None:  # fmt: skip
        """Rows that ask about equally many items of `about` `[items, ecgs]` for each (answer, bool `[items]`).

        None where fewer than two answers are given: the question would give its answer away.
        """
        items_of = [(answer, np.flatnonzero(where)) for answer, where in answers]
        each = min(round(self.per_question * share), *(len(items) for _, items in items_of)) if len(items_of) > 1 else 0
        records, patient_of = self.cohort.records, self.cohort.patient_of
        names = attribute.split(" / ")
        groups = {GROUPS[name] for name in names}
        group = groups.pop() if len(groups) == 1 else "several"
        for answer, items in items_of:
            alike = [
                question_row(
                    id="", ecgs=[""] * about.shape[1], patient_ids=[], question=text.format(*names), answer=answer,
                    question_type=kind, template_id=template, attribute=attribute, group=group, control=control,
                ) for text in phrasings
            ]  # fmt: skip
            for k, item in enumerate(about[self.rng.choice(items, each, replace=False)].tolist()):
                ids = [records[i] for i in item]
                phrasing = k % len(phrasings)  # they rotate within each answer, so that each of them is balanced too
                name, patients = f"{template}/{attribute}/{'+'.join(ids)}/{phrasing}", [patient_of[i] for i in ids]
                self.rows.append({**alike[phrasing], "id": name, "ecgs": ids, "patient_ids": patients})

    def all(self) -> list[Row]:
        """Every template about every finding."""
        cohort, one = self.cohort, self.records[:, None]
        for control, names, share in (("", FINDINGS, 1.0), ("voltage", VOLTAGES[1:], 0.4)):
            for name in names:
                has, may = cohort.present(name)[self.records], cohort.askable(name)[self.records]
                self.ask("single-verify", 1, name, VERIFY, one, [(["yes"], has), (["no"], ~has & may)], control, share)
        normal = cohort.present("normal ECG")[self.records]
        answers = [(["yes"], normal), (["no"], ~normal)]
        self.ask("single-verify", 2, "normal ECG", ["Is this a normal ECG?"], one, answers)
        for a, b in PAIRS:
            may = (cohort.askable(a) & cohort.askable(b))[self.records]
            in_a, in_b = cohort.present(a)[self.records], cohort.present(b)[self.records]
            choices = (([a], in_a & ~in_b), ([b], in_b & ~in_a), (["none"], ~in_a & ~in_b), ([a, b], in_a & in_b))
            possible = [(answer, where & may) for answer, where in choices if (where & may).any()]
            self.ask("single-choose", 3, f"{a} / {b}", CHOOSE, one, possible, share=0.15)
        for template, (name, (text, labels)) in enumerate(QUERIES.items(), start=4):
            is_askable = cohort.askable(ST_SITES[1]) if name == "st" else True
            value = np.where(is_askable, cohort.categories[name], -1)[self.records]
            queries = [([label], value == i) for i, label in enumerate(labels)]
            control = "voltage" if name == "voltage" else ""
            self.ask("single-query", template, name, [text], one, queries, control, share=0.35)
        for template, (relation, pairs) in zip((11, 12), self.pairs.items(), strict=True):
            for name in FINDINGS if len(pairs) else ():
                first, second = cohort.present(name)[pairs].T
                may = cohort.askable(name)[pairs].all(axis=1)
                new = [(["yes"], second & ~first & may), (["no"], ~(second & ~first) & may)]
                self.ask(f"comparison_{relation}-verify", template, name, NEW, pairs, new, share=0.06)
                which = [
                    (["first ECG"], first & ~second & may), (["second ECG"], second & ~first & may),
                    (["none"], ~first & ~second & may), (["first ECG", "second ECG"], first & second & may),
                ]  # fmt: skip
                self.ask(f"comparison_{relation}-query", template + 2, name, WHICH, pairs, which, share=0.03)
        return self.rows


def _report_rows(cohort: SyntheticCohort, records: Array, rng: np.random.Generator) -> list[Row]:
    """Rows that ask for the reports of these recordings."""
    return [
        question_row(
            id=f"report/{record}", ecgs=[record], patient_ids=[cohort.patient_of[record]], question_type="report",
            answer=[cohort.report(record, rng)], question=_ASK_REPORT[rng.integers(len(_ASK_REPORT))],
        ) for record in (cohort.records[i] for i in records.tolist())
    ]  # fmt: skip


def load(
    patients: int = 2000,
    held_out: str = "test",
    held_out_patients: int = 700,
    questions: int = 1000,
    held_out_questions: int = 80,
    seed: int = 0,
    pairs: int = 0,
    cache: Path | str | None = None,
) -> QuestionSet:
    """The cohort's questions, split by patient.

    Args:
        patients: Training patients, two recordings each.
        held_out: `"test"`, or `"validation"`: other patients, for choosing settings.
        held_out_patients: Patients of each of the two held-out splits.
        questions: How many recordings each verify question is asked about per answer, in training; fewer where a
            finding is rarer. The other kinds of question get a fixed share of it.
        held_out_questions: The same for the held-out split.
        seed: Seed of the cohort and of the questions.
        pairs: Ask many questions about each of so many pairs of training recordings (`synthetic_pairs`), in place of
            single ones about two ECGs.
        cache: Folder for the simulated recordings.
    """
    if held_out not in ("test", "validation"):
        raise ValueError(f"held_out must be 'test' or 'validation', got {held_out!r}")
    cohort = SyntheticCohort(patients + 2 * held_out_patients, seed=seed, cache=cache)
    visits = np.arange(len(cohort)).reshape(-1, cohort.records_per_patient)
    start = patients + (held_out_patients if held_out == "validation" else 0)
    train, test = visits[:patients].ravel(), visits[start : start + held_out_patients]

    def rng(*stream: int) -> np.random.Generator:
        return np.random.default_rng([seed, *stream])

    train_rows = _Asker(cohort, train, questions, rng(4)).all()
    if pairs:
        train_rows = [row for row in train_rows if len(row["ecgs"]) == 1] + pair_rows(cohort, train, pairs, rng(7))
    return QuestionSet(
        name="simulated cohort",
        source=cohort,
        source_key=cohort.key,
        train=train_rows,
        test=_Asker(cohort, test.ravel(), held_out_questions, rng(5, start)).all(),
        reports=_report_rows(cohort, train, rng(3)),
        test_reports=_report_rows(cohort, test[:_HELD_OUT_REPORTS, 0], rng(6, start)),
        patient_of=cohort.patient_of,
        notes=[
            f"Simulated recordings with planted findings: {patients} training and {held_out_patients} {held_out} "
            "patients, two recordings each. Numbers on them say nothing about real patients."
        ],
    )
