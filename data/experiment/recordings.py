"""Recordings to pretrain an encoder on, and the held-out patients' to measure it on."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar
from zlib import crc32

from data.corpora.mimic_iv_ecg import MimicIvEcg
from data.corpora.ptbxl import PtbXl
from data.ecg import EcgSource
from data.synthetic import SyntheticCohort

FOLDS = 10

Item = TypeVar("Item")


@dataclass(frozen=True, eq=False)
class Recordings:
    """Recordings of a corpus, split so that no patient is on both sides.

    Attributes:
        name: What the corpus and the folds trained on are called, for `pretrained_on`.
        source: Where recordings come from.
        key: Tells sources apart that use the same record ids.
        train: Record ids to train on.
        held_out: Record ids to measure on.
        patient_of: Patient of each record.
    """

    name: str
    source: EcgSource
    key: str
    train: list[str]
    held_out: list[str]
    patient_of: Mapping[str, str]

    @property
    def sides(self) -> tuple[list[str], list[str]]:
        """`train` and `held_out`."""
        return self.train, self.held_out


def fold_by_patient(patient: str) -> int:
    """A fold from 1 to 10 that follows from the patient's id alone, for corpora without published folds."""
    return crc32(patient.encode()) % FOLDS + 1


def load_recordings(
    corpus: str, train_folds: Collection[int], held_out_folds: Collection[int], **settings: Any
) -> Recordings:
    """The recordings of a corpus in the folds to train on and in those held out.

    PTB-XL has published folds; the others get ten by `fold_by_patient`.

    Args:
        corpus: `"ptbxl"`, `"mimic_iv_ecg"` or `"synthetic"` (`data.synthetic`).
        train_folds: From 1 to 10.
        held_out_folds: From 1 to 10.
        **settings: Of the corpus: `root`, and `rate` for PTB-XL; for simulated recordings those of `SyntheticCohort`.

    Raises:
        ValueError: The corpus is unknown or not there, a fold is not from 1 to 10 or on both sides, a side has no
            recordings, or a patient is on both.
    """
    if corpus not in _CORPORA:
        raise ValueError(f"unknown corpus {corpus!r}: one of {', '.join(_CORPORA)}")
    for folds in (train_folds, held_out_folds):
        if wrong := [fold for fold in folds if not 1 <= fold <= FOLDS]:
            raise ValueError(f"folds are numbered from 1 to {FOLDS}, got {wrong[0]}")
    if both := sorted(set(train_folds) & set(held_out_folds)):
        raise ValueError(f"fold {both[0]} cannot be both trained on and held out")
    try:
        source, records, fold_of = _CORPORA[corpus](settings)
    except TypeError as error:
        raise ValueError(f"settings of the corpus {corpus!r}: {error}") from error
    sides: dict[str, list[str]] = {"train": [], "held out": []}
    for record in records:
        fold = fold_of(record)
        if fold in train_folds:
            sides["train"].append(record)
        elif fold in held_out_folds:
            sides["held out"].append(record)
    patients = {side: {source.patient_of[record] for record in found} for side, found in sides.items()}
    for side, folds in (("train", train_folds), ("held out", held_out_folds)):
        if not sides[side]:
            raise ValueError(
                f"{source.key}: none of its {len(records):,} recordings is in folds {named(folds)} ({side})"
            )
    if shared := sorted(patients["train"] & patients["held out"]):
        raise ValueError(f"{source.key}: patient {shared[0]} is in a fold to train on and in one held out")
    return Recordings(
        name=f"{_NAMES[corpus]}, folds {named(train_folds)}",
        source=source,
        key=source.key,
        train=sides["train"],
        held_out=sides["held out"],
        patient_of=source.patient_of,
    )


def evenly(items: Sequence[Item], limit: int) -> list[Item]:
    """At most `limit` of the items, evenly over all."""
    count = min(limit, len(items))
    return [items[i * len(items) // count] for i in range(count)]


def named(folds: Collection[int]) -> str:
    """`1-8, 10` of folds 1, 2, ..., 8 and 10."""
    runs: list[list[int]] = []
    for fold in sorted(folds):
        if runs and fold == runs[-1][-1] + 1:
            runs[-1].append(fold)
        else:
            runs.append([fold])
    return ", ".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)


def _ptbxl(settings: dict[str, Any]) -> tuple[PtbXl, Collection[str], Callable[[str], int]]:
    source = PtbXl(**settings)
    return source, source.records, source.fold_of.__getitem__


def _mimic(settings: dict[str, Any]) -> tuple[MimicIvEcg, Collection[str], Callable[[str], int]]:
    source = MimicIvEcg(**settings)
    return source, source.patient_of, lambda record: fold_by_patient(source.patient_of[record])


def _synthetic(settings: dict[str, Any]) -> tuple[SyntheticCohort, Collection[str], Callable[[str], int]]:
    source = SyntheticCohort(**settings)
    return source, source.records, lambda record: fold_by_patient(source.patient_of[record])


_CORPORA: dict[str, Callable[[dict[str, Any]], tuple[Any, Collection[str], Callable[[str], int]]]] = {
    "ptbxl": _ptbxl,
    "mimic_iv_ecg": _mimic,
    "synthetic": _synthetic,
}
_NAMES = {
    "ptbxl": "PTB-XL",
    "mimic_iv_ecg": "MIMIC-IV-ECG by patient",
    "synthetic": "simulated ECGs by patient",
}
