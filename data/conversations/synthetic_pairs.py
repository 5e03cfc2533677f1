"""Many questions about each of some pairs of simulated ECGs: they teach to compare, not to know pairs by heart."""

from collections import Counter, defaultdict
from collections.abc import Sequence
from itertools import product

import numpy as np

from data.conversations.rows import Row, answer_text, question_row
from data.conversations.synthetic_words import FINDINGS, GROUPS, NEW, WHICH
from data.synthetic import Array, SyntheticCohort

PER_PAIR = 8  # questions about one pair of ECGs
AHEAD = 16  # rows of a question by which one kind of pairs may be ahead of another
RELATIONS = ("consecutive", "irrelevant")
# How often rows of a question are about pairs that show a finding so (in the first ECG, in the second), about as such
# pairs fall once answers are balanced.
SHARES = {
    "verify": {(False, True): 1 / 2, (False, False): 1 / 4, (True, False): 1 / 6, (True, True): 1 / 12},
    "query": {(False, True): 1 / 4, (False, False): 1 / 4, (True, False): 1 / 4, (True, True): 1 / 4},
}


def pair_rows(cohort: SyntheticCohort, records: Array, pairs: int, rng: np.random.Generator) -> list[Row]:
    """Up to `PER_PAIR` questions about each of so many pairs of ECGs; every second pair is of one patient.

    While rows are drawn, what is ahead of its share (`SHARES`) waits. Half the pairs of two patients share a finding,
    else "both" would be too rare. In `records`, numbers in the cohort, those of a patient stand together.
    """
    visits = rng.permutation(records.reshape(-1, cohort.records_per_patient))
    present, askable = (np.stack([of(name) for name in FINDINGS]) for of in (cohort.present, cohort.askable))
    counts: dict[tuple[str, str, int], Counter[tuple[bool, ...]]] = defaultdict(Counter)
    rows: list[Row] = []
    drawn: set[tuple[int, ...]] = set()
    for number in range(pairs):
        if number % 2 and cohort.records_per_patient > 1:
            pair = rng.permutation(visits[number // 2 % len(visits)])[:2]
        else:
            alike = records[present[rng.integers(len(FINDINGS)), records]] if number % 4 else records
            pair = rng.choice(alike if len(alike) > 1 else records, 2, replace=False)
        if tuple(pair.tolist()) in drawn:
            continue
        drawn.add(tuple(pair.tolist()))
        relation = RELATIONS[len({cohort.patient_of[cohort.records[i]] for i in pair}) - 1]
        candidates = []
        for finding, kind in product(np.flatnonzero(askable[:, pair].all(axis=1)).tolist(), SHARES):
            shown, so_far = tuple(present[finding, pair].tolist()), counts[relation, kind, finding]
            progress = {state: so_far[state] / share for state, share in SHARES[kind].items()}
            candidates.append((progress[shown] - min(progress.values()), rng.random(), kind, finding, shown))
        for ahead, _, kind, finding, shown in sorted(candidates)[:PER_PAIR]:
            if ahead <= AHEAD:
                rows.append(_pair_row(cohort, pair, relation, kind, finding, counts[relation, kind, finding][shown]))
                counts[relation, kind, finding][shown] += 1
    return _as_many_of_each_answer(rows)


def _pair_row(cohort: SyntheticCohort, pair: Array, relation: str, kind: str, finding: int, number: int) -> Row:
    """Asks whether a finding is new in the second of two ECGs (`verify`), or which of them shows it (`query`).

    `number` counts rows with the same answer for the same reason: phrasings rotate within it.
    """
    name, ecgs = FINDINGS[finding], [cohort.records[i] for i in pair]
    first, second = cohort.present(name)[pair].tolist()
    which = [f"{place} ECG" for place, is_shown in (("first", first), ("second", second)) if is_shown]
    new = "yes" if second and not first else "no"
    template = 11 + RELATIONS.index(relation) + (2 if kind == "query" else 0)
    phrasing = number % 2
    return question_row(
        id=f"{template}/{name}/{'+'.join(ecgs)}/{phrasing}", ecgs=ecgs,
        patient_ids=[cohort.patient_of[record] for record in ecgs], question_type=f"comparison_{relation}-{kind}",
        question=(NEW if kind == "verify" else WHICH)[phrasing].format(name),
        answer=(which or ["none"]) if kind == "query" else [new], template_id=template, attribute=name,
        group=GROUPS[name],
    )  # fmt: skip


def _as_many_of_each_answer(rows: Sequence[Row]) -> list[Row]:
    """Rows without those by which one answer to a question is more frequent than another."""
    by_question: dict[tuple[str, str], dict[str, list[Row]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        by_question[row["question_type"], row["question"]][answer_text(row["answer"])].append(row)
    left_out: set[str] = set()
    for (question_type, _), by_answer in by_question.items():
        possible = 4 if question_type.endswith("query") else 2
        each = min(map(len, by_answer.values())) if len(by_answer) == possible else 0
        left_out.update(row["id"] for some in by_answer.values() for row in some[each:])
    return [row for row in rows if row["id"] not in left_out]
