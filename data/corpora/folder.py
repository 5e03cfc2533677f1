"""What corpora that lie in a folder have in common: how they are named, read, and their tables opened."""

import csv
import gzip
import logging
import re
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from data.corpus import Corpus
from data.ecg import Ecg
from data.readers import read_ecg

_WINDOWS = "cp1252"  # what Excel writes in western Europe and America where it is not told "UTF-8"
_BYTE_ORDER_MARKS = (b"\xff\xfe", b"\xfe\xff")  # of UTF-16

_log = logging.getLogger(__name__)


class CorpusFolder(Corpus):
    """A corpus whose recordings are files below one folder, of the published sampling rate `rate` (Hz).

    Recordings are read as `elm.ask` reads a file: missing samples are interpolated, and counted in
    `meta["repaired_samples"]`.
    """

    def __init__(self, root: Path | str, rate: int | None = None) -> None:
        self.check_rate(rate)
        self.root, self.rate = Path(root).expanduser(), rate or self.rates[0]

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

    def file_of(self, record_id: str) -> Path:
        """The file of a recording (of a WFDB record its header), there or not; `KeyError` where none is listed."""
        raise NotImplementedError(f"{type(self).__name__} must say which file a recording is in")

    def __getitem__(self, record_id: str) -> Ecg:
        """The recording; `KeyError` when there is none of that id, `ValueError` when it cannot be read."""
        file = self.file_of(record_id)
        try:
            ecg = read_ecg(file, fs=self.rate, nan="interpolate")
        except ValueError as error:
            raise ValueError(f"record {record_id}: {error}") from error
        return replace(ecg, record_id=record_id, patient_id=self.patient_of[record_id])


def table_rows(table: Path, required: Sequence[str], what: str) -> Iterator[dict[str, str]]:
    """Rows of a table, `.csv` or `.csv.gz`, by the names of its columns.

    Raises:
        ValueError: As `table_columns`.
    """
    for header, row, _ in _table(table, required, what):
        yield dict(zip(header, row))


def table_columns(table: Path, columns: Sequence[str], what: str) -> Iterator[tuple[int, list[str]]]:
    """Number of its last line, and the named columns, of each row of a table, `.csv` or `.csv.gz`.

    It is UTF-8, with or without a byte order mark. What is not UTF-8 in it is read as cp1252, with a warning.

    Raises:
        ValueError: A column is missing, a row has another number of fields, or the file is cut off or no text; names
            the file, the line, and `what` table it must be.
    """
    places: list[int] = []
    for header, row, line in _table(table, columns, what):
        places = places or [header.index(column) for column in columns]
        yield line, [row[place] for place in places]


def _table(table: Path, required: Sequence[str], what: str) -> Iterator[tuple[list[str], list[str], int]]:
    """Header, row, and number of the row's last line, of each row of a table."""
    reader = csv.reader(_lines(table))
    try:
        header = next((row for row in reader if any(row)), [])  # one table begins with an empty line
        if lacking := [column for column in required if column not in header]:
            raise ValueError(f"{table}: no column {', '.join(map(repr, lacking))}: not {what}{_separated(header)}")
        for row in reader:
            if len(row) != len(header) and row:
                raise ValueError(
                    f"{table}: line {reader.line_num}: {','.join(row)[:80]!r} is no row of {len(header)} fields, as "
                    "the header has: download the table again"
                )
            if row:
                yield header, row, reader.line_num
    except csv.Error as error:
        raise ValueError(f"{table}: line {reader.line_num}: not a table of commas ({error}): export it anew") from error


def _separated(header: Sequence[str]) -> str:
    """What else would explain that a table has one column."""
    separator = next((mark for mark in ";\t|" if len(header) == 1 and mark in header[0]), "")
    return f". Its columns are separated by {separator!r}: save it with commas" if separator else ""


def _lines(table: Path) -> Iterator[str]:
    """Lines of a table in text; in those that are not UTF-8, bytes are taken for cp1252's, with one warning."""
    is_warned = False
    try:
        with (gzip.open if table.suffix == ".gz" else open)(table, "rb") as file:
            for number, line in enumerate(file, start=1):
                if number == 1 and line.startswith(_BYTE_ORDER_MARKS):
                    raise ValueError(f"{table}: is UTF-16: save it as UTF-8")
                try:
                    yield line.decode("utf-8-sig" if number == 1 else "utf-8")
                except UnicodeDecodeError as error:
                    where = f"{table}: line {number}: byte 0x{line[error.start]:02x} is not UTF-8"
                    try:
                        yield line.decode(_WINDOWS)
                    except UnicodeDecodeError:
                        raise ValueError(f"{where}, nor is the line {_WINDOWS}: save the table as UTF-8") from None
                    if not is_warned:
                        _log.warning("%s: such lines are read as %s; save the table as UTF-8", where, _WINDOWS)
                    is_warned = True
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ValueError(f"{table}: cut off or damaged ({error}): download it again") from error


def whole_number(text: str) -> int:
    """An id or a fold in a table, which may be written as a decimal: `15709`, or `15709.0` as pandas writes it.

    Raises:
        ValueError: It is anything else.
    """
    text = text.strip()
    return int(re.sub(r"\.0*$", "", text) if re.fullmatch(r"[-+]?\d+\.0*", text) else text)
