"""What corpora that lie in a folder have in common: how they are named, read, and their tables opened."""

import csv
import gzip
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from data.corpus import Corpus
from data.ecg import Ecg
from data.readers import read_ecg
from data.readers.common import Nan


class CorpusFolder(Corpus):
    """A corpus whose recordings are files below one folder, of the published sampling rate `rate` (Hz)."""

    def __init__(self, root: Path | str, rate: int | None = None) -> None:
        self.check_rate(rate)
        self.root, self.rate = Path(root), rate or self.rates[0]

    @classmethod
    def check_rate(cls, rate: int | None) -> None:
        """Refuse a sampling rate at which the corpus is not published."""
        if rate is not None and rate not in cls.rates:
            published = " and ".join(map(str, cls.rates))
            raise ValueError(f"{cls.title} is published at {published} Hz, not at {rate}: resample after reading")

    @property
    def key(self) -> str:
        """A name for these recordings, for caches of what is made of them."""
        return f"{self.name} {self.root.resolve()} {self.rate} Hz"

    def _read(self, record_id: str, file: Path, nan: Nan) -> Ecg:
        try:
            ecg = read_ecg(file, fs=self.rate, nan=nan)
        except ValueError as error:
            raise ValueError(f"record {record_id}: {error}") from error
        return replace(ecg, record_id=record_id, patient_id=self.patient_of[record_id])


def table_rows(table: Path, required: tuple[str, ...], what: str) -> Iterator[dict[str, str]]:
    """Rows of a table, `.csv` or `.csv.gz`.

    Raises:
        ValueError: A required column is missing; names the file, and `what` table it must be.
    """
    opened = gzip.open if table.suffix == ".gz" else open
    with opened(table, "rt", newline="", encoding="utf-8") as file:
        reader = csv.DictReader(line for line in file if line.strip())  # one table begins with an empty line
        if lacking := [column for column in required if column not in (reader.fieldnames or ())]:
            raise ValueError(f"{table}: no column {', '.join(map(repr, lacking))}: not {what}")
        yield from reader
