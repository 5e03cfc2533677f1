"""The classification tasks that papers probe ECG encoders with: recordings, labels by name, patients, splits.

PTB-XL's come from the data set itself, as in its makers' benchmark (Strodthoff et al., IEEE JBHI 2021): statements of
every likelihood count, folds 1-8 train, 9 validates and 10 tests, and a recording without a label of the task's kind is
not in the task. That gives, record by record, the splits that MERL, MELP and HeartLang ship as tables. CPSC2018 and CSN
are split by those tables (`data/corpora/cpsc2018.py`, `csn.py`), recordings without any label included.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
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

PUBLISHED_FOLDS = "1-8/9/10"

# Names of the label kinds of PTB-XL, as `PtbXl.labels` knows them, and the classes of each in the benchmarks' order.
_PTBXL = {
    "ptbxl-super": ("super_class", ("HYP", "NORM", "MI", "CD", "STTC")),
    "ptbxl-sub": (
        "sub_class",
        (
            "AMI", "LAFB/LPFB", "LVH", "STTC", "IMI", "SEHYP", "CRBBB", "WPW", "LAO/LAE", "NORM", "AVB", "RAO/RAE",
            "ISC", "LMI", "ISCI", "ISCA", "NST", "CLBBB", "ILBBB", "IRBBB", "PMI", "RVH", "IVCD",
        ),
    ),
    "ptbxl-form": (
        "form",
        (
            "PAC", "DIG", "HVOLT", "STD", "LPR", "QWAVE", "VCLVH", "NDT", "TAB", "LOWT", "ABQRS", "LNGQT", "PRC(S)",
            "NT", "STE", "NST", "PVC", "INVT", "LVOLT",
        ),
    ),
    "ptbxl-rhythm": (
        "rhythm",
        ("SVARR", "BIGU", "STACH", "SARRH", "SBRAD", "TRIGU", "AFIB", "SR", "SVTAC", "PSVT", "AFLT", "PACE"),
    ),
}  # fmt: skip
_STATEMENTS = "ptbxl-all"  # all SCP-ECG statements: what transfer between corpora needs
_WFDB: Mapping[str, type[LabelledWfdb]] = {corpus.name: corpus for corpus in (Cpsc2018, Csn)}
_STATED = "csn-stated"  # CSN by its diagnoses, without the labels that its tables have too many
TASKS = (*_PTBXL, _STATEMENTS, *_WFDB, _STATED)

# By which names `pretrained_on` may mention a corpus, in small letters and figures.
_ALIASES = {
    "ptbxl": ("ptbxl",),
    "cpsc2018": ("cpsc2018", "icbeb"),
    "csn": ("csn", "chapman", "ningbo", "ecgarrhythmia"),
}

# Findings that corpora name differently, by what each calls them. Rarer labels that mean no more than one of another
# corpus are left out, and so is CPSC2018's normal ECG beside CSN, which has sinus rhythm but no label for a normal ECG.
FINDINGS: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "normal ECG": {"ptbxl": ("NORM",), "cpsc2018": ("NORM",)},
    "sinus rhythm": {"ptbxl": ("SR",), "csn": ("SR",)},
    "sinus tachycardia": {"ptbxl": ("STACH",), "csn": ("ST",)},
    "sinus arrhythmia": {"ptbxl": ("SARRH",), "csn": ("SA",)},
    "atrial fibrillation": {"ptbxl": ("AFIB",), "cpsc2018": ("AFIB",), "csn": ("AFIB",)},
    "atrial flutter": {"ptbxl": ("AFLT",), "csn": ("AF",)},
    "supraventricular tachycardia": {"ptbxl": ("SVTAC", "PSVT"), "csn": ("SVT",)},
    "first degree AV block": {"ptbxl": ("1AVB",), "cpsc2018": ("1AVB",), "csn": ("1AVB",)},
    "second degree AV block": {"ptbxl": ("2AVB",), "csn": ("2AVB", "2AVB1")},
    "left bundle branch block": {"ptbxl": ("CLBBB",), "cpsc2018": ("CLBBB",), "csn": ("LBBB",)},
    "right bundle branch block": {"ptbxl": ("CRBBB",), "cpsc2018": ("CRBBB",), "csn": ("RBBB",)},
    "Wolff-Parkinson-White": {"ptbxl": ("WPW",), "csn": ("WPW",)},
    "premature atrial beats": {"ptbxl": ("PAC",), "cpsc2018": ("PAC",), "csn": ("APB",)},
    "premature ventricular beats": {"ptbxl": ("PVC",), "cpsc2018": ("VPC",), "csn": ("VPB",)},
    "ST elevation": {"ptbxl": ("STE",), "cpsc2018": ("STE",), "csn": ("STE",)},
    "ST depression": {"ptbxl": ("STD",), "cpsc2018": ("STD",), "csn": ("STDD",)},
    "inverted T waves": {"ptbxl": ("INVT",), "csn": ("TWO",)},
    "abnormal Q waves": {"ptbxl": ("QWAVE",), "csn": ("AQW",)},
    "long PR interval": {"ptbxl": ("LPR",), "csn": ("PRIE",)},
    "long QT interval": {"ptbxl": ("LNGQT",), "csn": ("QTIE",)},
    "left ventricular hypertrophy": {"ptbxl": ("LVH",), "csn": ("LVH",)},
    "right ventricular hypertrophy": {"ptbxl": ("RVH",), "csn": ("RVH",)},
}


@dataclass(frozen=True)
class Task:
    """What can be learned and tested.

    Attributes:
        name: One of `TASKS`, or `synthetic`.
        corpus: `ptbxl`, `cpsc2018`, `csn` or `synthetic`.
        source: Gives the recordings.
        source_key: A name for these recordings, for caches.
        classes: Names of the labels.
        labels: Those of each record.
        patient_of: Whose it is.
        splits: Records of `train`, `valid` and `test`.
        notes: What was left out, in sentences.

    Raises:
        ValueError: A split is empty, or a patient is in two; names them.
    """

    name: str
    corpus: str
    source: EcgSource
    source_key: str
    classes: tuple[str, ...]
    labels: Mapping[str, frozenset[str]]
    patient_of: Mapping[str, str]
    splits: Mapping[str, tuple[str, ...]]
    notes: tuple[str, ...] = ()

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


def load_task(
    name: str,
    root: Path | str,
    *,
    tables: Path | str | None = None,
    folds: str = PUBLISHED_FOLDS,
    rate: int = 500,
    leave_out: bool = False,
) -> Task:
    """A task on the recordings of a folder.

    Args:
        name: One of `TASKS`.
        root: Folder of the corpus.
        tables: Of CPSC2018 and CSN: folder of the split tables.
        folds: Of PTB-XL: those that train, validate and test.
        rate: Of PTB-XL: which published records are read, 100 or 500 Hz. The other corpora have 500 Hz alone.
        leave_out: Of CPSC2018 and CSN: leave out, and count, recordings that the tables list and the folder lacks.
            Without it they are an error. PTB-XL lists what is there.

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
    found = Csn.stated(tables) if name == _STATED else corpus.split_labels(tables)
    task = _from_tables(name, corpus, found, leave_out)
    if name == Csn.name:
        stated = {record: names for part in Csn.stated(tables).values() for record, names in part.items()}
        wrong = sum(task.labels[record] != stated[record] for records in task.splits.values() for record in records)
        note = (
            f"{wrong:,} records have labels in the published tables that their diagnoses do not name (docs/probe.md): "
            "csn-stated is the task without these."
        )
        task = replace(task, notes=(*task.notes, *([note] if wrong else [])))
    return task


def _from_tables(
    name: str, corpus: LabelledWfdb, found: Mapping[str, Mapping[str, frozenset[str]]], leave_out: bool
) -> Task:
    there = set(corpus.records)
    missing = {split: sorted(set(found[split]) - there) for split in SPLITS}
    count = sum(map(len, missing.values()))
    if count and not leave_out:
        first = next(record for split in SPLITS for record in missing[split])
        raise ValueError(
            f"{corpus.root}: {first} is in the split tables and not on disk, {count:,} of "
            f"{sum(map(len, found.values())):,} records are missing: download them, or leave them out "
            "(--leave_out_missing), which is then not the published test"
        )
    notes = []
    if count:
        told = ", ".join(f"{split} {len(records):,} of {len(found[split]):,}" for split, records in missing.items())
        notes.append(f"Records of the split tables that are not on disk were left out: {told}.")
    splits = {split: tuple(sorted(set(found[split]) & there)) for split in SPLITS}
    for split in SPLITS:
        if not splits[split]:
            raise ValueError(f"{corpus.root}: none of the {len(found[split]):,} {split} records is on disk")
    return Task(
        name, corpus.name, corpus, corpus.key, corpus.classes,
        {record: names for part in found.values() for record, names in part.items() if record in there},
        corpus.patient_of, splits, tuple(notes),
    )  # fmt: skip


def _ptbxl(name: str, root: Path | str, folds: str, rate: int) -> Task:
    parts = parse_folds(folds)
    ptbxl = PtbXl(root, rate)
    if name == _STATEMENTS:
        classes, known = ptbxl.code_names, ptbxl.codes()
    else:
        kind, classes = _PTBXL[name]
        known = ptbxl.labels(kind)
    notes = []
    if len(ptbxl) < ptbxl.listed:
        notes.append(f"{len(ptbxl):,} of the {ptbxl.listed:,} records of PTB-XL's table are on disk.")
    if folds != PUBLISHED_FOLDS:
        notes.append(f"Folds {folds}, not {PUBLISHED_FOLDS}: numbers are not those of the published split.")
    if unknown := sum(labels is None for labels in known.values()):
        notes.append(f"{unknown:,} records of which no label is known were left out.")
    if empty := sum(labels == () for labels in known.values()):
        notes.append(f"{empty:,} records without a label of this kind were left out, as in the benchmark.")
    labels = {record: frozenset(names) for record, names in known.items() if names}
    if strange := sorted(set().union(*labels.values()) - set(classes)):
        raise ValueError(f"{ptbxl.root}: labels {', '.join(strange)} are none of the classes of {name}")
    splits = {
        split: tuple(record for record in ptbxl.records if record in labels and ptbxl.fold_of[record] in chosen)
        for split, chosen in zip(SPLITS, parts)
    }
    for split, chosen in zip(SPLITS, parts):
        if not splits[split]:
            there = sorted({ptbxl.fold_of[record] for record in labels})
            raise ValueError(
                f"{ptbxl.root}: no record of {name} in fold {_told(chosen)}, which is to be {split}; there are records "
                f"in fold {_told(there)}: choose folds with --folds TRAIN/VALID/TEST, such as --folds 1-7/8/9"
            )
    return Task(name, "ptbxl", ptbxl, ptbxl.key, classes, labels, ptbxl.patient_of, splits, tuple(notes))


def simulated(patients: int = 2000, folds: str = PUBLISHED_FOLDS, cache: Path | str | None = None) -> Task:
    """The findings of simulated recordings, two of each patient, in folds by patient (`data.experiment.recordings`).

    A finding is there where it is planted. It is absent where another one excludes it, and reports say so.

    Args:
        patients: Of the cohort; those of a smaller one are among those of a larger one, in the same folds.
        folds: As for `load_task`.
        cache: Folder for the simulated recordings.

    Raises:
        ValueError: No patient in a split, or as `parse_folds`.
    """
    cohort = SyntheticCohort(patients, cache=cache)
    there = {name: present for name, (present, _) in findings(cohort.parameters).items()}
    labels = {
        record: frozenset(name for name, present in there.items() if present[i])
        for i, record in enumerate(cohort.records)
    }
    splits = {
        split: tuple(r for r in cohort.records if fold_by_patient(cohort.patient_of[r]) in chosen)
        for split, chosen in zip(SPLITS, parse_folds(folds))
    }
    note = "Recordings are simulated: numbers on them say nothing about real patients."
    return Task(
        "synthetic", "synthetic", cohort, cohort.key, tuple(there), labels, cohort.patient_of, splits, (note,)
    )  # fmt: skip


def parse_folds(text: str) -> list[tuple[int, ...]]:
    """Folds of training, validation and test from `1-8/9/10`; parts may also be lists, `1,3,5-8/2/9`.

    Raises:
        ValueError: It is not of that form, a fold is not from 1 to 10, or one is there twice.
    """
    wrong = f"folds {text!r}: expected training, validation and test such as {PUBLISHED_FOLDS} or 1,3,5-8/2/9"
    parts = []
    for part in text.split("/"):
        folds: list[int] = []
        for piece in part.split(","):
            if not (match := re.fullmatch(r"(\d+)(?:-(\d+))?", piece.strip())):
                raise ValueError(wrong)
            first, last = int(match[1]), int(match[2] or match[1])
            if not 1 <= first <= last <= 10:
                raise ValueError(f"{wrong}, from 1 to 10")
            folds += range(first, last + 1)
        parts.append(tuple(folds))
    given = [fold for part in parts for fold in part]
    if len(parts) != len(SPLITS):
        raise ValueError(wrong)
    if len(set(given)) < len(given):
        raise ValueError(f"folds {text!r}: a fold is there twice, and its patients would be on both sides")
    return parts


def _told(folds: Collection[int]) -> str:
    return ", ".join(map(str, folds))


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
    kept = {patients[i] for i in order[: max(1, round(percent / 100 * len(patients)))]}
    return tuple(record for record in train if task.patient_of[record] in kept)


def lacking(task: Task, train: Sequence[str], test_task: Task) -> dict[str, str]:
    """Classes that cannot be learned from these records, or not be tested, and why."""
    test = test_task.splits["test"]
    why: dict[str, str] = {}
    for where, of, records in (("test", test_task, test), ("training", task, train)):
        for name, count in of.counts(records).items():
            if count in (0, len(records)):
                why[name] = f"{'no' if count == 0 else 'every'} {where} record has it"
    return {name: why[name] for name in task.classes if name in why}


def transferred(train: Task, test: Task) -> tuple[Task, Task, list[str]]:
    """Two tasks of different corpora with the findings of `FINDINGS` that both have for classes, and the table.

    Returns:
        The tasks, and sentences: which label of one is which of the other, and which have no counterpart.

    Raises:
        ValueError: They are of one corpus, or have no finding in common.
    """
    if train.corpus == test.corpus:
        raise ValueError(f"{train.name} and {test.name} are of one corpus: transfer is from one to another")
    of: list[dict[str, tuple[str, ...]]] = []
    for task in (train, test):
        names = {finding: called.get(task.corpus, ()) for finding, called in FINDINGS.items()}
        of.append({finding: kept for finding, called in names.items() if (kept := _in(called, task.classes))})
    shared = tuple(finding for finding in FINDINGS if all(finding in names for names in of))
    if not shared:
        told = "; ptbxl-all has the statements of all kinds" if "ptbxl" in (train.corpus, test.corpus) else ""
        raise ValueError(f"{train.name} and {test.name} have no finding in common{told}")
    said = [
        f"{finding}: {'/'.join(of[0][finding])} of {train.name} is {'/'.join(of[1][finding])} of {test.name}."
        for finding in shared
    ]
    made = []
    for task, names in zip((train, test), of):
        used = {label for finding in shared for label in names[finding]}
        rest = [label for label in task.classes if label not in used]
        other = test if task is train else train
        if rest:
            said.append(f"Labels of {task.name} that {other.name} lacks: {', '.join(rest)}.")
        labels = {
            record: frozenset(finding for finding in shared if not known.isdisjoint(names[finding]))
            for record, known in task.labels.items()
        }
        made.append(replace(task, classes=shared, labels=labels))
    return made[0], made[1], said


def _in(names: Sequence[str], classes: Sequence[str]) -> tuple[str, ...]:
    return tuple(name for name in names if name in classes)


def seen_corpora(pretrained_on: str, tasks: Sequence[Task]) -> list[str]:
    """Of the tasks' corpora, those that `pretrained_on` names."""
    told = "".join(letter for letter in pretrained_on.casefold() if letter.isalnum())
    corpora = dict.fromkeys(task.corpus for task in tasks)
    return [corpus for corpus in corpora if any(alias in told for alias in _ALIASES[corpus])]
