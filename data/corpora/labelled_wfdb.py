"""Corpora of WFDB records whose labels and splits are tables of benchmarks: what CPSC2018 and CSN have in common.

A table has one row per recording and one column of 0 and 1 per class. Classes are taken by the names of their columns:
benchmarks order the same columns differently in their train and test files.
"""

from __future__ import annotations

import csv
import gzip
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

from data.ecg import Ecg
from data.readers import read_ecg

SPLITS = ("train", "valid", "test")


class LabelledWfdb:
    """Recordings of 500 Hz as an `EcgSource`: `source["A0001"]` is that of `A0001.hea`, wherever below `root`.

    Attributes:
        name: Of the corpus.
        title: What it is called in texts.
        pattern: Of the names of its headers.
        where: What to do when there is none.
        classes: Names of its label columns.
        tables: Of each split, the file of its labels without `.csv`.
        column: Of those tables: what names the recording.
        root: The folder.
        records: Ids of the recordings there, sorted.
        patient_of: Patient of each record. The tables do not say who that is, so every record stands for a patient of
            its own.

    Raises:
        ValueError: No record is below the folder, or one is there twice.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    pattern: ClassVar[str]
    where: ClassVar[str]
    classes: ClassVar[tuple[str, ...]]
    tables: ClassVar[Mapping[str, str]]
    column: ClassVar[str]
    rate: ClassVar[int] = 500

    def __init__(self, root: Path | str) -> None:
        self.root = Path(root)
        self._files: dict[str, Path] = {}
        for path in sorted(self.root.rglob(self.pattern)):
            if path.stem in self._files:
                raise ValueError(f"{path}: {path.stem} is also {self._files[path.stem]}: pass one of the two folders")
            self._files[path.stem] = path
        if not self._files:
            raise ValueError(f"{self.root}: no record {self.pattern} in it or below: {self.where}")
        self.records = tuple(sorted(self._files))
        self.patient_of = {record: record for record in self.records}

    @property
    def key(self) -> str:
        """A name for these recordings, for caches of what is made of them."""
        return f"{self.name} {self.root.resolve()} {self.rate} Hz"

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, record_id: str) -> Ecg:
        """The recording, missing samples interpolated.

        Raises:
            KeyError: There is none of that name.
            ValueError: It cannot be read; names the record and the file.
        """
        if record_id not in self._files:
            raise KeyError(f"no record {record_id!r} below {self.root}")
        try:
            ecg = read_ecg(self._files[record_id], fs=self.rate, nan="interpolate")
        except ValueError as error:
            raise ValueError(f"record {record_id}: {error}") from error
        return replace(ecg, record_id=record_id, patient_id=self.patient_of[record_id])

    @classmethod
    def labels(cls, folder: Path | str) -> dict[str, dict[str, frozenset[str]]]:
        """Labels by split and record, as the columns of the tables have them, of recordings on disk or not.

        Args:
            folder: Holds the three tables, `.csv` or `.csv.gz`, in it or in folders below.

        Raises:
            ValueError: A table is missing or there twice, lacks a column, names a recording twice or for two splits, or
                holds a label that is neither 0 nor 1; names the file and the recording.
        """
        return cls._read(folder, lambda row: {name for name in cls.classes if row[name] == "1"})

    @classmethod
    def _read(
        cls, folder: Path | str, names_in: Callable[[Mapping[str, str]], set[str]], *columns: str
    ) -> dict[str, dict[str, frozenset[str]]]:
        """`labels`, said by a function of a table's row, which may need further columns."""
        found: dict[str, dict[str, frozenset[str]]] = {split: {} for split in SPLITS}
        of_record: dict[str, Path] = {}
        for split in SPLITS:
            table = cls._table(Path(folder), f"{cls.tables[split]}.csv")
            for row in _rows(table, (cls.column, *cls.classes, *columns)):
                record = Path(row[cls.column]).stem
                if record in of_record:
                    raise ValueError(f"{table}: {record} is also in {of_record[record]}: take tables of one benchmark")
                of_record[record] = table
                for name in cls.classes:
                    if row[name] not in ("0", "1"):
                        raise ValueError(f"{table}: {record}: {name} is {row[name]!r}, not 0 or 1")
                found[split][record] = frozenset(names_in(row))
        return found

    @classmethod
    def _table(cls, folder: Path, name: str) -> Path:
        paths = sorted(path for end in ("", ".gz") for path in folder.rglob(f"{name}{end}"))
        if len(paths) != 1:
            told = f"is there {len(paths)} times, as {paths[0]} and {paths[1]}" if paths else "is not"
            raise ValueError(
                f"{folder}: {name} (or {name}.gz) {told} in it or below: the splits of {cls.title} come with the code "
                "of MERL, MELP and HeartLang; pass the folder that holds one copy"
            )
        return paths[0]


def _rows(table: Path, required: tuple[str, ...]) -> Iterator[dict[str, str]]:
    opened = gzip.open if table.suffix == ".gz" else open
    with opened(table, "rt", newline="", encoding="utf-8") as file:
        reader = csv.DictReader(line for line in file if line.strip())  # one table begins with an empty line
        if lacking := [column for column in required if column not in (reader.fieldnames or ())]:
            raise ValueError(f"{table}: no column {', '.join(map(repr, lacking))}: not the split table of this corpus")
        yield from reader
