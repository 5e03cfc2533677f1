"""Corpora of WFDB records whose labels and splits are tables of benchmarks: what CPSC2018 and CSN have in common.

A table has one row per recording and one column of 0 and 1 per class. Classes are taken by the names of their columns:
benchmarks order the same columns differently in their train and test files.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import ClassVar

from data.corpora.folder import CorpusFolder, table_rows
from data.support.files import visible_files

SPLITS = ("train", "valid", "test")


class LabelledWfdb(CorpusFolder):
    """Recordings of 500 Hz: `source["A0001"]` is that of `A0001.hea`, wherever below `root`.

    The tables do not say who the patients are, so every record stands for a patient of its own.

    Raises:
        ValueError: No record is below the folder, or one is there twice.
    """

    pattern: ClassVar[str]  # of the names of its headers
    where: ClassVar[str]  # what to do when there is none
    classes: ClassVar[tuple[str, ...]]  # names of its label columns
    tables: ClassVar[Mapping[str, str]]  # file of the labels of each split, without `.csv`
    column: ClassVar[str]  # of those tables that names the recording
    rates = (500,)

    def __init__(self, root: Path | str, rate: int = 500) -> None:
        super().__init__(root, rate)
        self._files: dict[str, Path] = {}
        for path in visible_files(self.root, self.pattern, below=True):
            if path.stem in self._files:
                raise ValueError(f"{path}: {path.stem} is also {self._files[path.stem]}: pass one of the two folders")
            self._files[path.stem] = path
        if not self._files:
            raise ValueError(f"{self.root}: no record {self.pattern} in it or below: {self.where}")
        self.records = tuple(sorted(self._files))
        self.patient_of = {record: record for record in self.records}

    def file_of(self, record_id: str) -> Path:
        """Header of a recording; `KeyError` when there is none."""
        if record_id not in self._files:
            raise KeyError(f"no record {record_id!r} below {self.root}")
        return self._files[record_id]

    @classmethod
    def split_labels(cls, folder: Path | str) -> dict[str, dict[str, frozenset[str]]]:
        """Labels by split and record, as the columns of the tables have them, of recordings on disk or not.

        The folder holds the three tables, `.csv` or `.csv.gz`, in it or in folders below.

        Raises:
            ValueError: A table is missing or there twice, lacks a column, names a recording twice or for two splits, or
                holds a label that is neither 0 nor 1; names the file and the recording.
        """
        return cls._labels(folder, lambda row: {name for name in cls.classes if row[name] == "1"})

    @classmethod
    def _labels(
        cls, folder: Path | str, names_in: Callable[[Mapping[str, str]], set[str]], *columns: str
    ) -> dict[str, dict[str, frozenset[str]]]:
        """`split_labels` by a function of a table's row, which may need further columns."""
        labels: dict[str, dict[str, frozenset[str]]] = {split: {} for split in SPLITS}
        table_of: dict[str, Path] = {}
        for split in SPLITS:
            table = cls._table(Path(folder), f"{cls.tables[split]}.csv")
            for row in table_rows(table, (cls.column, *cls.classes, *columns), "the split table of this corpus"):
                record = Path(row[cls.column]).stem
                if record in table_of:
                    raise ValueError(f"{table}: {record} is also in {table_of[record]}: take tables of one benchmark")
                table_of[record] = table
                for name in cls.classes:
                    if row[name] not in ("0", "1"):
                        raise ValueError(f"{table}: {record}: {name} is {row[name]!r}, not 0 or 1")
                labels[split][record] = frozenset(names_in(row))
        return labels

    @classmethod
    def _table(cls, folder: Path, name: str) -> Path:
        paths = [path for end in ("", ".gz") for path in visible_files(folder, f"{name}{end}", below=True)]
        if len(paths) != 1:
            where = f"is there {len(paths)} times, as {paths[0]} and {paths[1]}" if paths else "is not"
            raise ValueError(
                f"{folder}: {name} (or {name}.gz) {where} in it or below: the splits of {cls.title} come with the code "
                "of MERL, MELP and HeartLang; pass the folder that holds one copy"
            )
        return paths[0]
