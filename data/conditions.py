"""What can be done to the ECG of a question in an experiment. The question itself never changes.

| condition | the model is given                                        | done to                               |
|-----------|-----------------------------------------------------------|---------------------------------------|
| `real`    | the ECG the question is about                             | nothing                               |
| `swap`    | another patient's ECG, in place of every one              | the row: `ecgs`                       |
| `zero`    | zeros where the normalised signal was                     | the model's inputs: `zero_features`   |
| `none`    | the words alone, the ECG and its place in the text absent | the row: `messages`, `ecgs`           |

`swap` is the one that tells a reader of ECGs from a guesser. Zeros and absent ECGs are inputs a model may never have
seen: a blind model can break on them and then looks as if it had read the ECG (`zero` is set *after* the model's own
normaliser, because a min-max or z-score of a flat line is undefined or anything at all).

The audit draws its donors from the split it evaluates (`choose_donors`). Training on ECGs that say nothing about the
answer uses a fixed map (`derangement`), with the same `apply`:

    other = derangement({row["ecgs"][0]: row["patient_ids"][0] for row in train}, seed=0)
    rows = apply("swap", train, [[other[record] for record in row["ecgs"]] for row in train])
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:  # the readers of recordings import scipy, which `--help` need not wait for
    from data.conversations.rows import Message, Row


@dataclass(frozen=True)
class Condition:
    """One line of the table above.

    Attributes:
        name: What commands and files call it.
        label: What tables and pictures call it.
        zeroes_inputs: Whether whoever asks the model must zero its inputs; the row does not show it.
        needs_donors: Whether `apply` must be told which recordings to give instead.
    """

    name: str
    label: str
    zeroes_inputs: bool = False
    needs_donors: bool = False


CONDITIONS: Mapping[str, Condition] = MappingProxyType(
    {
        condition.name: condition
        for condition in (
            Condition("real", "the real ECG"),
            Condition("swap", "another patient's ECG", needs_donors=True),
            Condition("zero", "zeros for the ECG", zeroes_inputs=True),
            Condition("none", "no ECG"),
        )
    }
)


def condition_named(name: str) -> Condition:
    """The condition of that name.

    Raises:
        ValueError: There is none.
    """
    if name not in CONDITIONS:
        raise ValueError(f"unknown condition {name!r}: expected one of {', '.join(CONDITIONS)}")
    return CONDITIONS[name]


def apply(condition: str, rows: Sequence[Row], donors: Sequence[Sequence[str]] | None = None) -> list[Row]:
    """The rows as they are asked under a condition. Nothing is changed in place.

    `patient_ids` stay those of the question, also under `swap`: they are the unit of statistics.

    Args:
        condition: A name of `CONDITIONS`. For one that zeroes the model's inputs the rows come back as they are.
        rows: Questions.
        donors: For `swap`, the recordings to give instead: one list per row, as long as its `ecgs`.

    Raises:
        ValueError: An unknown condition, or donors that do not match the rows.
    """
    known = condition_named(condition)
    if known.needs_donors:
        if donors is None or len(donors) != len(rows):
            given = "no" if donors is None else f"{len(donors)} lists of"
            raise ValueError(f"condition {condition!r} of {len(rows)} rows was given {given} donors: see choose_donors")
        return [_with_ecgs(row, given) for row, given in zip(rows, donors)]
    if condition == "none":
        return [
            {**row, "messages": [_without_ecgs(message) for message in row["messages"]], "ecgs": []} for row in rows
        ]
    return list(rows)


def _with_ecgs(row: Row, donors: Sequence[str]) -> Row:
    if len(donors) != len(row["ecgs"]):
        raise ValueError(f"row {row['id']!r} has {len(row['ecgs'])} ECGs but was given {len(donors)} donors")
    return {**row, "ecgs": list(donors)}


def _without_ecgs(message: Message) -> Message:
    content = message["content"]
    if isinstance(content, str):
        return message
    return {**message, "content": [part for part in content if part["type"] != "ecg"]}


def zero_features(features: Mapping[str, Any], names: Iterable[str]) -> dict[str, Any]:
    """The features with their signal set to zero: torch tensors or numpy arrays, same type, shape and device.

    Of the named ones only floating-point values are touched: integers and booleans are positions and masks, which
    say where the signal is and not what it looks like. Features called masks are left alone whatever their type.

    Args:
        features: What a feature extractor or processor returned.
        names: The inputs of the encoder (`model.ecg_inputs`).

    Raises:
        ValueError: A name is missing, or nothing was left to zero: the answers would be those of `real`.
    """
    zeroed = dict(features)
    names = list(names)
    if missing := [name for name in names if name not in zeroed]:
        raise ValueError(f"cannot zero {missing}: the features are {sorted(zeroed)}")
    signals = [name for name in names if "mask" not in name and _is_floating(zeroed[name])]
    if not signals:
        raise ValueError(f"nothing to zero: none of {names} is a floating-point signal")
    for name in signals:
        value = zeroed[name]
        zeroed[name] = np.zeros_like(value) if isinstance(value, np.ndarray) else value.new_zeros(value.shape)
    return zeroed


def _is_floating(value: Any) -> bool:
    if isinstance(value, np.ndarray):
        return bool(np.issubdtype(value.dtype, np.floating))
    return bool(value.is_floating_point())


def choose_donors(rows: Sequence[Row], patient_of: Mapping[str, str], seed: int) -> list[list[str]]:
    """For every row, which recordings to give it instead of its own.

    Donors come from the recordings of `rows` and from no other split, and belong to none of the row's patients; the
    donors of a row with two ECGs belong to two patients. Answers are not looked at: a donor may well have the same
    finding, as often as chance has it. Every recording is given equally often (to within one), unless one patient has
    so many that this cannot be. The choice depends on the seed and on the rows, not on the order of the rows.

    Raises:
        ValueError: A row has no possible donor, or a recording has no known patient; names the row.
    """
    order = sorted(range(len(rows)), key=lambda i: rows[i]["id"])
    slots: list[int] = []
    barred: list[set[str]] = []
    for i in order:
        row = rows[i]
        if unknown := [record for record in row["ecgs"] if record not in patient_of]:
            raise ValueError(f"row {row['id']!r}: the patient of recording {unknown[0]!r} is not known")
        slots += [len(barred)] * len(row["ecgs"])
        barred.append({*row["patient_ids"], *(patient_of[record] for record in row["ecgs"])})
    pool = sorted({record for row in rows for record in row["ecgs"]})
    deal = _Deal(slots, barred, pool, patient_of, np.random.default_rng(seed))
    for slot in deal.repair():
        if not deal.settle(slot):
            row, patients = rows[order[slots[slot]]], {patient_of[record] for record in pool}
            raise ValueError(
                f"row {row['id']!r} has no donors: its {len(row['ecgs'])} ECGs need as many patients other than "
                f"{', '.join(sorted(barred[slots[slot]]))}; the {len(pool)} recordings are of {len(patients)} patients"
            )
    donors: list[list[str]] = [[] for _ in rows]
    for slot, record in zip(slots, deal.dealt):
        donors[order[slot]].append(record)
    return donors


def derangement(patient_of: Mapping[str, str], seed: int) -> dict[str, str]:
    """A fixed map from every recording to one of another patient, each used once: ECGs that say nothing about answers.

    Args:
        patient_of: Patient of every recording to be mapped. Pass the recordings of one split only: a recording of
            another split would leak into this one.
        seed: Which map.

    Raises:
        ValueError: One patient has more than half of the recordings, so there is no such map.
    """
    records = sorted(patient_of)
    barred = [{patient_of[record]} for record in records]
    deal = _Deal(list(range(len(records))), barred, records, patient_of, np.random.default_rng(seed))
    if stuck := deal.repair():
        patient = patient_of[records[stuck[0]]]
        count = sum(owner == patient for owner in patient_of.values())
        raise ValueError(
            f"patient {patient!r} has {count} of {len(records)} recordings, more than half: no map to others"
        )
    return dict(zip(records, deal.dealt))


class _Deal:
    """Recordings dealt like cards: shuffled packs one after the other, then exchanges where a card is not allowed.

    An exchange changes no count, so all recordings stay equally used. With one ECG per row an exchange can be found
    whenever an equally used deal exists at all: if every other row holds the patient that must go, there are too many
    of that patient's recordings for any deal.
    """

    def __init__(
        self,
        slots: Sequence[int],
        barred: Sequence[set[str]],
        pool: Sequence[str],
        patient_of: Mapping[str, str],
        rng: np.random.Generator,
    ) -> None:
        self.slots, self.barred, self.pool, self.patient_of, self.rng = slots, barred, pool, patient_of, rng
        self.siblings: dict[int, list[int]] = defaultdict(list)
        for slot, owner in enumerate(slots):
            self.siblings[owner].append(slot)
        packs = -(-len(slots) // max(len(pool), 1))
        self.dealt = [pool[i] for _ in range(packs) for i in rng.permutation(len(pool))][: len(slots)]

    def fits(self, slot: int, record: str) -> bool:
        """Whether the slot's row may be given this recording beside those its other slots have."""
        owner, patient = self.slots[slot], self.patient_of[record]
        return patient not in self.barred[owner] and all(
            self.patient_of[self.dealt[other]] != patient for other in self.siblings[owner] if other != slot
        )

    def repair(self) -> list[int]:
        """Exchange what does not fit; the slots for which no exchange was found."""
        stuck = []
        for slot, record in enumerate(self.dealt):
            if self.fits(slot, record):
                continue
            for other in map(int, self.rng.permutation(len(self.dealt))):
                theirs = self.dealt[other]
                if self.slots[other] != self.slots[slot] and self.fits(slot, theirs) and self.fits(other, record):
                    self.dealt[slot], self.dealt[other] = theirs, record
                    break
            else:
                stuck.append(slot)
        return stuck

    def settle(self, slot: int) -> bool:
        """Give the slot the least used recording that fits, at the price of evenness; false if none does."""
        if self.fits(slot, self.dealt[slot]):  # a later exchange has already made room
            return True
        used = Counter(self.dealt)
        shuffled = [self.pool[i] for i in self.rng.permutation(len(self.pool))]
        fitting = [record for record in shuffled if self.fits(slot, record)]
        if fitting:
            self.dealt[slot] = min(fitting, key=lambda record: used[record])
        return bool(fitting)
