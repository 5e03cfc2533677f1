"""Which recordings, or which question, stand in for those of a row.

A donor is another **row that asks the same** (`same_question`): it gives all of its ECGs, so that a question about two
ECGs gets two that are related as its own are, and the right answer to the question about the ECGs that are shown is
known: it is the donor's. Its patients are none of the row's. Three rules say what its answer is:

* `any`: whatever it is;
* `flip`: another one. A reader of ECGs changes its answer to the donor's; who guesses from the question repeats itself;
* `same`: the same one. A reader repeats its answer although the patient is another.

Within a question, rows and donors are matched one to one: no ECG is seen more often than the others. As many rows as
possible get a donor; of these matchings one is taken in which donors resemble their rows in corpus, sex and age where
that is known, so that these are not what the answers follow. Under `any` a donor has the row's own answer a little less
often than chance has it, because a row is not its own donor: in a question of n rows, by about 1 / n.

Everything depends on the seed and on the rows, not on their order; and a question's donors on no other question.
"""

from collections import Counter, defaultdict, deque
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple, get_args
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from data.conversations.rows import Row, same_question
from data.corpus import Traits

Rule = Literal["any", "flip", "same"]
Key = tuple[str, int, str, str, tuple[str, ...], str, int]  # of a question: `same_question`, and how many ECGs

# A matching takes time with the third power of its rows: larger groups are split at random.
_PART = 1000
# What a pair costs, beside the decades of age between the two, which are ten at most: each more than all that is less.
_OTHER_CORPUS, _OTHER_SEX = 100.0, 11.0


class Donor(NamedTuple):
    """Stands in for the ECGs of a row."""

    row: int  # index of the row whose ECGs are given
    ecgs: list[str]  # these ECGs
    answer: list[str]  # the right answer to the question about them, as in `Row["answer"]`; empty where it is unknown


class Question(NamedTuple):
    """Stands in for the question of a row."""

    row: int  # index of the row whose question is asked
    text: str  # words of that question


def choose_donors(
    rows: Sequence[Row],
    patient_of: Mapping[str, str],
    rule: Rule,
    seed: int,
    traits: Mapping[str, Traits] | None = None,
) -> list[Donor | None]:
    """A donor for every row that has one under the rule, from these rows and no other split.

    With unbalanced answers, `flip` leaves rows over: a question with 3 answers yes and 20 no has 3 donors for each
    side. Under `any`, a row for which its question offers nobody (it is the only row, or of the only patient) gets a
    row of other patients that asks something else about as many ECGs, preferably of the same type; the right answer
    to its question is then unknown (`Donor.answer` is empty), and such a donor may serve twice.

    Args:
        rows: Single-turn rows of one split.
        patient_of: Patient of every recording of theirs.
        rule: What the donor's answer must be, see the module.
        seed: Which of the equally good matchings.
        traits: `QuestionSet.traits`. Pairs are kept within a corpus first, then within a sex, then near in age; a
            trait that is not known of both sides does not count.

    Returns:
        One per row; None where a row has no donor and cannot be asked under this rule.

    Raises:
        ValueError: An unknown rule, or a recording whose patient is not known; names the row.
    """
    if rule not in get_args(Rule):
        raise ValueError(f"unknown rule {rule!r} for donors: expected one of {', '.join(get_args(Rule))}")
    patients = [_patients(row, patient_of) for row in rows]
    order = sorted(range(len(rows)), key=lambda i: rows[i]["id"])
    donor: dict[int, int] = {}
    for question, members in _by_question(rows, order).items():
        rng = _rng(seed, question)
        for part in _parts(rows, members, rng):
            donor.update(_match(rows, part, patients, rule, traits or {}, rng))
    chosen = {i: Donor(j, list(rows[j]["ecgs"]), list(rows[j]["answer"])) for i, j in donor.items()}
    if rule == "any":
        alone = [i for i in order if i not in donor]
        chosen |= {i: Donor(j, list(rows[j]["ecgs"]), []) for i, j in _elsewhere(rows, alone, patients, seed).items()}
    return [chosen.get(i) for i in range(len(rows))]


def choose_questions(rows: Sequence[Row], seed: int) -> list[Question | None]:
    """Another question for every row, asked in its place: of the same type and control, about as many ECGs.

    Returns:
        One per row; None where all rows of its type ask the same.
    """
    order = sorted(range(len(rows)), key=lambda i: rows[i]["id"])
    kinds: dict[tuple[str, str, int], list[tuple[Key, list[int]]]] = defaultdict(list)
    for question, members in sorted(_by_question(rows, order).items()):
        row = rows[members[0]]
        kinds[row["question_type"], row["control"], len(row["ecgs"])].append((question, members))
    chosen: list[Question | None] = [None] * len(rows)
    for questions in kinds.values():
        everyone = [i for _, members in questions for i in members]
        start = 0
        for question, members in questions:
            size, others = len(members), len(everyone) - len(members)
            if others:
                drawn = _rng(seed, question).choice(others, size, replace=size > others)
                for i, k in zip(members, drawn.tolist()):
                    j = everyone[k if k < start else k + size]  # the question's own rows are left out
                    chosen[i] = Question(j, rows[j]["question"])
            start += size
    return chosen


def derangement(patient_of: Mapping[str, str], seed: int) -> dict[str, str]:
    """A fixed map from every recording to one of another patient, each used once: ECGs that say nothing about answers.

    For training on them. Recordings of a patient go to neighbouring ones, so that two of one patient often become
    two of one other. `patient_of` must hold the recordings of one split only: others would leak into it.

    Raises:
        ValueError: One patient has more than half of the recordings, so there is no such map.
    """
    records = sorted(patient_of)
    if not records:
        return {}
    patient, most = Counter(patient_of[record] for record in records).most_common(1)[0]
    if 2 * most > len(records):
        raise ValueError(
            f"patient {patient!r} has {most} of {len(records)} recordings, more than half: no map to others"
        )
    rng = np.random.default_rng(seed)
    patients = sorted(set(patient_of.values()))
    place = dict(zip(patients, rng.permutation(len(patients)).tolist()))
    shuffled = sorted((records[i] for i in rng.permutation(len(records))), key=lambda record: place[patient_of[record]])
    # No patient's recordings are more than `most` in a row, so moving all of them on by that many leaves that patient.
    return dict(zip(shuffled, shuffled[most:] + shuffled[:most]))


def _patients(row: Row, patient_of: Mapping[str, str]) -> frozenset[str]:
    if unknown := [record for record in row["ecgs"] if record not in patient_of]:
        raise ValueError(f"row {row['id']!r}: the patient of recording {unknown[0]!r} is not known")
    return frozenset((*row["patient_ids"], *(patient_of[record] for record in row["ecgs"])))


def _by_question(rows: Sequence[Row], order: Sequence[int]) -> dict[Key, list[int]]:
    """Rows that can stand in for each other: they ask the same about as many ECGs."""
    groups: dict[Key, list[int]] = defaultdict(list)
    for i in order:
        groups[(*same_question(rows[i]), len(rows[i]["ecgs"]))].append(i)
    return groups


def _rng(seed: int, question: Key) -> np.random.Generator:
    return np.random.default_rng([seed, crc32(repr(question).encode())])


def _parts(rows: Sequence[Row], members: Sequence[int], rng: np.random.Generator) -> list[list[int]]:
    """Random parts of at most `_PART` rows, each with its share of every answer, so that `flip` loses hardly a pair."""
    parts = -(-len(members) // _PART)
    shuffled = [members[i] for i in rng.permutation(len(members))]
    shuffled.sort(key=lambda i: rows[i]["answer"])
    return [shuffled[start::parts] for start in range(parts)]


def _match(
    rows: Sequence[Row],
    members: Sequence[int],
    patients: Sequence[frozenset[str]],
    rule: Rule,
    traits: Mapping[str, Traits],
    rng: np.random.Generator,
) -> dict[int, int]:
    """Row to donor, one to one, for as many of the members as can be, at the least cost."""
    from scipy.optimize import linear_sum_assignment

    if len(members) < 2:
        return {}
    answers = _codes([tuple(rows[i]["answer"]) for i in members])
    alike = _equal(answers, answers)
    barred = {"any": np.zeros_like(alike), "flip": alike, "same": ~alike}[rule]
    owners = _padded([sorted(patients[i]) for i in members])
    for row_owner in owners.T:
        for donor_owner in owners.T:
            barred |= _equal(row_owner, donor_owner) & (row_owner >= 0)[:, None]
    np.fill_diagonal(barred, True)
    cost = rng.random(alike.shape) / len(members)  # ties: all of them together weigh less than one decade
    for position in zip(*(rows[i]["ecgs"] for i in members)):
        cost += _unlike([traits.get(record, {}) for record in position])
    cost[barred] = len(members) * (cost.max() + 1)  # dearer than any matching without: there are as few as can be
    pairs = zip(*(index.tolist() for index in linear_sum_assignment(cost)))
    return {members[i]: members[j] for i, j in pairs if not barred[i, j]}


def _unlike(traits: Sequence[Traits]) -> NDArray[np.float64]:
    """How unlike recordings are in what is known of both, `[n, n]`."""
    cost = np.zeros((len(traits), len(traits)))
    for name, weight in (("corpus", _OTHER_CORPUS), ("sex", _OTHER_SEX)):
        codes = _codes([each.get(name) for each in traits])
        has_trait = codes >= 0
        cost += weight * (~_equal(codes, codes) & has_trait[:, None] & has_trait)
    decade = np.array([each.get("age", np.nan) for each in traits], float) // 10
    cost += np.nan_to_num(np.abs(decade[:, None] - decade))
    return cost


def _codes(values: Sequence[object]) -> NDArray[np.int64]:
    """A number for each value, -1 for None."""
    codes: dict[object, int] = {None: -1}
    return np.array([codes.setdefault(value, len(codes)) for value in values], np.int64)


def _padded(lists: Sequence[Sequence[str]]) -> NDArray[np.int64]:
    """Codes of the items, `[n, longest list]`, with -1 where a list is shorter."""
    longest = max(map(len, lists))
    padded = [item for items in lists for item in (*items, *[None] * (longest - len(items)))]
    return _codes(padded).reshape(len(lists), longest)


def _equal(first: NDArray[np.int64], second: NDArray[np.int64]) -> NDArray[np.bool_]:
    return np.asarray(first[:, None] == second)


def _elsewhere(
    rows: Sequence[Row], alone: Sequence[int], patients: Sequence[frozenset[str]], seed: int
) -> dict[int, int]:
    """Donors that ask something else, for rows whose question offers nobody; dealt in shuffled rounds."""
    if not alone:
        return {}
    order = sorted(range(len(rows)), key=lambda i: rows[i]["id"])
    pools: dict[tuple[object, ...], deque[int]] = defaultdict(deque)
    for i in (order[k] for k in np.random.default_rng(seed).permutation(len(order))):
        count = len(rows[i]["ecgs"])
        pools[(count,)].append(i)
        pools[count, rows[i]["question_type"]].append(i)
    donor: dict[int, int] = {}
    for i in alone:
        count, question = len(rows[i]["ecgs"]), same_question(rows[i])
        for pool in (pools[count, rows[i]["question_type"]], pools[(count,)]):
            for _ in range(len(pool) if i not in donor else 0):
                pool.rotate(-1)
                if patients[pool[-1]].isdisjoint(patients[i]) and same_question(rows[pool[-1]]) != question:
                    donor[i] = pool[-1]
                    break
    return donor
