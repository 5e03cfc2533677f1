"""The classification tasks that papers probe ECG encoders with: recordings, labels by name, patients, splits.

PTB-XL's come from the data set itself, as in its makers' benchmark (Strodthoff et al., IEEE JBHI 2021): statements of
every likelihood count, folds 1-8 train, 9 validates and 10 tests, and a recording without a label of the task's kind is
not in the task. That gives, record by record, the splits that MERL, MELP and HeartLang ship as tables. CPSC2018 and CSN
are split by those tables (`data/corpora/cpsc2018.py`, `csn.py`), recordings without any label included.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data.corpora.cpsc2018 import Cpsc2018
from data.corpora.csn import Csn
from data.corpora.labelled_wfdb import SPLITS, LabelledWfdb
from data.corpora.ptbxl import PtbXl
from data.ecg import EcgSource
from data.experiment.recordings import fold_by_patient
from data.synthetic import SyntheticCohort, findings
from eval.probing.settings import PUBLISHED_FOLDS, Recordings

SYNTHETIC = "synthetic"

# By task, the label kind as `PtbXl.labels` has it, and its classes in the benchmarks' order.
_PTBXL: Mapping[str, tuple[str, tuple[str, ...]]] = {
    name: (kind, tuple(classes.split()))
    for name, (kind, classes) in json.loads(Path(__file__).with_name("ptbxl.json").read_text(encoding="utf-8")).items()
}
_STATEMENTS = "ptbxl-all"  # all SCP-ECG statements: what transfer between corpora needs
_WFDB: Mapping[str, type[LabelledWfdb]] = {corpus.name: corpus for corpus in (Cpsc2018, Csn)}
_STATED = "csn-stated"  # CSN by its diagnoses, without the labels that its tables have too many
TASKS = (*_PTBXL, _STATEMENTS, *_WFDB, _STATED)


@dataclass(frozen=True)
class Task:
    """Recordings with labels, to learn from and to be tested on.

    Raises:
        ValueError: A split is empty, or a patient is in two; names them.
    """

    name: str  # one of `TASKS`, or `synthetic`
    corpus: str  # `ptbxl`, `cpsc2018`, `csn` or `synthetic`
    source: EcgSource
    source_key: str  # a name for these recordings, for caches
    classes: tuple[str, ...]
    labels: Mapping[str, frozenset[str]]  # names of the classes of each record
    patient_of: Mapping[str, str]
    splits: Mapping[str, tuple[str, ...]]  # records of `train`, `valid` and `test`
    notes: tuple[str, ...] = ()  # what was left out, in sentences

    def __post_init__(self) -> None:
        owner: dict[str, str] = {}
        for split in SPLITS:
            if not self.splits[split]:
                raise ValueError(f"{self.name}: no record in the split {split!r}")
            for patient in {self.patient_of[record] for record in self.splits[split]}:
                if owner.setdefault(patient, split) != split:
                    raise ValueError(f"{self.name}: patient {patient} is in {owner[patient]!r} and in {split!r}")

    def matrix(self, records: Sequence[str], classes: Sequence[str]) -> NDArray[np.bool_]:
        """Whether each record has each class, `[records, classes]`."""
        return np.array([[name in self.labels[record] for name in classes] for record in records], dtype=bool)

    def counts(self, records: Sequence[str]) -> dict[str, int]:
        """How many records have each class."""
        return {name: sum(name in self.labels[record] for record in records) for name in self.classes}

    def unvaried(self, records: Sequence[str], what: str) -> dict[str, str]:
        """Classes that none or all of these (test, training) records have, and which of the two."""
        counts = self.counts(records).items()
        return {name: f"{'every' if n else 'no'} {what} record has it" for name, n in counts if n in (0, len(records))}


def task_of(recordings: Recordings, name: str) -> Task:
    """A task by name, on the recordings of a command line.

    Raises:
        ValueError: As `load_task`; or the folder of its corpus is not there.
    """
    corpus = name.partition("-")[0]
    root: Path | None = getattr(recordings, corpus, None)
    if name in TASKS and root is None:
        raise ValueError(f"{name}: pass the folder of its recordings (--{corpus})")
    tables, leave_out = recordings.splits, recordings.leave_out_missing
    return load_task(name, root or "", tables=tables, folds=recordings.folds, rate=recordings.rate, leave_out=leave_out)


def load_task(
    name: str,
    root: Path | str,
    *,
    tables: Path | str | None = None,
    folds: str = PUBLISHED_FOLDS,
    rate: int = 500,
    leave_out: bool = False,
) -> Task:
    """A task of `TASKS` on the recordings of a folder.

    `folds` and `rate`, 100 or 500 Hz, are of PTB-XL; `tables` is the folder of the split tables of CPSC2018 and CSN.
    With `leave_out`, recordings that these list and the folder lacks are left out and counted; else they are an error.

    Raises:
        ValueError: There is no such task, no record in a split, or a record missing; says what to do.
    """
    if name not in TASKS:
        raise ValueError(f"no task {name!r}: expected one of {', '.join(TASKS)}")
    if name.startswith("ptbxl"):
        return _ptbxl(name, root, folds, rate)
    if tables is None:
        raise ValueError(f"{name}: pass the folder of its split tables (--splits)")
    corpus = _WFDB[name.partition("-")[0]](root)
    labels = Csn.stated(tables) if name == _STATED else corpus.split_labels(tables)
    task = _from_tables(name, corpus, labels, leave_out)
    if name == Csn.name:
        stated = {record: names for part in Csn.stated(tables).values() for record, names in part.items()}
        wrong = sum(task.labels[record] != stated[record] for records in task.splits.values() for record in records)
        note = (
            f"{wrong:,} records have labels in the published tables that their diagnoses do not name (docs/probe.md): "
            "csn-stated is the task without these."
        )
        return replace(task, notes=(*task.notes, note)) if wrong else task
    return task


def _from_tables(
    name: str, corpus: LabelledWfdb, labels: Mapping[str, Mapping[str, frozenset[str]]], leave_out: bool
) -> Task:
    on_disk = set(corpus.records)
    missing = {split: sorted(set(labels[split]) - on_disk) for split in SPLITS}
    count = sum(map(len, missing.values()))
    if count and not leave_out:
        first = next(record for split in SPLITS for record in missing[split])
        raise ValueError(
            f"{corpus.root}: {first} is in the split tables and not on disk, {count:,} of "
            f"{sum(map(len, labels.values())):,} records are missing: download them, or leave them out "
            "(--leave_out_missing), which is then not the published test"
        )
    notes = []
    if count:
        counts = ", ".join(f"{split} {len(records):,} of {len(labels[split]):,}" for split, records in missing.items())
        notes.append(f"Records of the split tables that are not on disk were left out: {counts}.")
    splits = {split: tuple(sorted(set(labels[split]) & on_disk)) for split in SPLITS}
    if empty := [split for split in SPLITS if not splits[split]]:
        raise ValueError(f"{corpus.root}: none of the {len(labels[empty[0]]):,} {empty[0]} records is on disk")
    present = {record: names for part in labels.values() for record, names in part.items() if record in on_disk}
    return Task(name, corpus.name, corpus, corpus.key, corpus.classes, present, corpus.patient_of, splits, tuple(notes))


def _ptbxl(name: str, root: Path | str, folds: str, rate: int) -> Task:
    parts = parse_folds(folds)
    ptbxl = PtbXl(root, rate)
    kind, classes = _PTBXL.get(name, ("", ptbxl.code_names))
    of_kind = ptbxl.labels(kind) if kind else ptbxl.codes()
    notes = []
    if len(ptbxl) < ptbxl.listed:
        notes.append(f"{len(ptbxl):,} of the {ptbxl.listed:,} records of PTB-XL's table are on disk.")
    if folds != PUBLISHED_FOLDS:
        notes.append(f"Folds {folds}, not {PUBLISHED_FOLDS}: numbers are not those of the published split.")
    if unknown := sum(labels is None for labels in of_kind.values()):
        notes.append(f"{unknown:,} records of which no label is known were left out.")
    if empty := sum(labels == () for labels in of_kind.values()):
        notes.append(f"{empty:,} records without a label of this kind were left out, as in the benchmark.")
    labels = {record: frozenset(names) for record, names in of_kind.items() if names}
    if strange := sorted(set().union(*labels.values()) - set(classes)):
        raise ValueError(f"{ptbxl.root}: labels {', '.join(strange)} are none of the classes of {name}")
    splits: dict[str, tuple[str, ...]] = {}
    for split, chosen in zip(SPLITS, parts):
        splits[split] = tuple(r for r in ptbxl.records if r in labels and ptbxl.fold_of[r] in chosen)
        if not splits[split]:
            wanted, filled = (", ".join(map(str, sorted(f))) for f in (chosen, {ptbxl.fold_of[r] for r in labels}))
            raise ValueError(
                f"{ptbxl.root}: no record of {name} in fold {wanted}, which is to be {split}; there are records "
                f"in fold {filled}: choose folds with --folds TRAIN/VALID/TEST, such as --folds 1-7/8/9"
            )
    return Task(name, "ptbxl", ptbxl, ptbxl.key, classes, labels, ptbxl.patient_of, splits, tuple(notes))


def simulated(patients: int = 2000, folds: str = PUBLISHED_FOLDS, cache: Path | str | None = None) -> Task:
    """The findings of simulated recordings, two of each patient, in folds by patient (`data.experiment.recordings`).

    A finding is there where it is planted. It is absent where another one excludes it, and reports say so. Patients of
    a smaller cohort are in a larger one too, in the same folds.

    Raises:
        ValueError: No patient in a split, or as `parse_folds`.
    """
    cohort = SyntheticCohort(patients, cache=cache)
    planted = {name: present for name, (present, _) in findings(cohort.parameters).items()}
    labels = {
        record: frozenset(name for name, present in planted.items() if present[i])
        for i, record in enumerate(cohort.records)
    }
    splits = {
        split: tuple(r for r in cohort.records if fold_by_patient(cohort.patient_of[r]) in chosen)
        for split, chosen in zip(SPLITS, parse_folds(folds))
    }
    notes = ("Recordings are simulated: numbers on them say nothing about real patients.",)
    return Task(SYNTHETIC, SYNTHETIC, cohort, cohort.key, tuple(planted), labels, cohort.patient_of, splits, notes)


def parse_folds(text: str) -> list[tuple[int, ...]]:
    """Folds of training, validation and test from `1-8/9/10`; parts may also be lists, `1,3,5-8/2/9`.

    Raises:
        ValueError: It is not of that form, a fold is not from 1 to 10, or one is there twice.
    """
    wrong = f"folds {text!r}: expected training, validation and test such as {PUBLISHED_FOLDS} or 1,3,5-8/2/9"
    parts: list[tuple[int, ...]] = []
    for part in text.split("/"):
        parts.append(())
        for piece in part.split(","):
            if not (match := re.fullmatch(r"(\d+)(?:-(\d+))?", piece.strip())):
                raise ValueError(wrong)
            first, last = int(match[1]), int(match[2] or match[1])
            if not 1 <= first <= last <= 10:
                raise ValueError(f"{wrong}, from 1 to 10")
            parts[-1] += tuple(range(first, last + 1))
    if len(parts) != len(SPLITS):
        raise ValueError(wrong)
    if len(set().union(*parts)) < sum(map(len, parts)):
        raise ValueError(f"folds {text!r}: a fold is there twice, and its patients would be on both sides")
    return parts


def drawn(task: Task, percent: float, seed: int) -> tuple[str, ...]:
    """Training records of so many per cent of the training patients, at least one patient.

    The draw depends on the task and the seed alone, and a smaller one is part of a larger one.

    Raises:
        ValueError: It is no percentage above 0.
    """
    if not 0 < percent <= 100:
        raise ValueError(f"percent of the training patients must be above 0 and at most 100, got {percent:g}")
    train = task.splits["train"]
    patients = sorted({task.patient_of[record] for record in train})
    order = np.random.default_rng(seed).permutation(len(patients))
    chosen = {patients[i] for i in order[: max(1, round(percent / 100 * len(patients)))]}
    return tuple(record for record in train if task.patient_of[record] in chosen)


def lacking(task: Task, train: Sequence[str], test_task: Task) -> dict[str, str]:
    """Classes that cannot be learned from these records, or not be tested, and why."""
    why = test_task.unvaried(test_task.splits["test"], "test") | task.unvaried(train, "training")
    return {name: why[name] for name in task.classes if name in why}
