"""Recordings to pretrain an encoder on, and the held-out patients' to measure it on; folds of a split, in words."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar
from zlib import crc32

from data.corpora import load_corpus
from data.corpus import Corpus

FOLDS = 10

Item = TypeVar("Item")


@dataclass(frozen=True, eq=False)
class Recordings:
    """Recordings of a corpus, split so that no patient is on both sides."""

    name: str  # names the corpus and the folds trained on, for `pretrained_on`
    source: Corpus
    key: str  # tells sources apart that use the same record ids
    train: list[str]  # record ids to train on
    held_out: list[str]  # record ids to measure on
    patient_of: Mapping[str, str]

    @property
    def sides(self) -> tuple[list[str], list[str]]:
        """`train` and `held_out`."""
        return self.train, self.held_out


def fold_by_patient(patient: str) -> int:
    """A fold from 1 to 10 that follows from the patient's id alone, for corpora without published folds."""
    return crc32(patient.encode()) % FOLDS + 1


def fold_order(fold: int | str) -> tuple[int, str]:
    """A key to sort folds by: numbers first, in their order."""
    name = str(fold)
    return (int(name), "") if name.isdecimal() else (1 << 30, name)


def fold_ranges(folds: Iterable[int | str]) -> str:
    """`1-8, 10` for the folds 1, 2, ..., 8 and 10."""
    runs: list[list[str]] = []
    for fold in map(str, sorted(folds, key=fold_order)):
        if runs and fold.isdecimal() and runs[-1][-1].isdecimal() and int(fold) == int(runs[-1][-1]) + 1:
            runs[-1].append(fold)
        else:
            runs.append([fold])
    return ", ".join(run[0] if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)


def folds_in_words(folds: Iterable[int | str]) -> str:
    """`folds 1-8, 10`, or `fold 9`."""
    folds = list(folds)
    return f"{'fold' if len(folds) == 1 else 'folds'} {fold_ranges(folds)}"


def load_recordings(
    corpus: str, train_folds: Collection[int], held_out_folds: Collection[int], **settings: object
) -> Recordings:
    """The recordings of a corpus in the folds to train on and in those held out.

    Folds are numbered from 1 to 10; corpora without published folds get ten by `fold_by_patient`. Name and settings of
    the corpus are those of `load_corpus`.

    Raises:
        ValueError: The corpus is unknown or not there, a fold is not from 1 to 10 or on both sides, a side has no
            recordings, or a patient is on both.
    """
    for folds in (train_folds, held_out_folds):
        if wrong := [fold for fold in folds if not 1 <= fold <= FOLDS]:
            raise ValueError(f"folds are numbered from 1 to {FOLDS}, got {wrong[0]}")
    if both := sorted(set(train_folds) & set(held_out_folds)):
        raise ValueError(f"fold {both[0]} cannot be both trained on and held out")
    source = load_corpus(corpus, **settings)
    sides: dict[str, list[str]] = {"train": [], "held out": []}
    for record in source.records:
        fold = source.fold_of[record] if source.fold_of else fold_by_patient(source.patient_of[record])
        if fold in train_folds:
            sides["train"].append(record)
        elif fold in held_out_folds:
            sides["held out"].append(record)
    for (side, records), folds in zip(sides.items(), (train_folds, held_out_folds)):
        if not records:
            count, ranges = len(source.records), fold_ranges(folds)
            raise ValueError(f"{source.key}: none of its {count:,} recordings is in folds {ranges} ({side})")
    patients = [{source.patient_of[record] for record in records} for records in sides.values()]
    if shared := sorted(set.intersection(*patients)):
        raise ValueError(f"{source.key}: patient {shared[0]} is in a fold to train on and in one held out")
    return Recordings(
        name=f"{source.title}{'' if source.fold_of else ' by patient'}, folds {fold_ranges(train_folds)}",
        source=source,
        key=source.key,
        train=sides["train"],
        held_out=sides["held out"],
        patient_of=source.patient_of,
    )


def evenly(items: Sequence[Item], limit: int) -> list[Item]:
    """Pick at most `limit` of the items, evenly over all."""
    count = min(limit, len(items))
    return [items[i * len(items) // count] for i in range(count)]
