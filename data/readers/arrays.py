"""Reads ECGs that are bare numbers: NumPy `.npy` arrays and `.csv` tables.

Neither says what its numbers mean, so the caller must: sampling rate, units and leads are never guessed. Only the
names of the leads may stand in the file, as the header row of a table.
"""

import csv
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data.ecg import Ecg
from data.readers.common import Stated, known_leads, to_ecg
from data.units import millivolts, sampling_rate


def is_npy(path: Path, head: bytes) -> bool:
    """Whether the file begins as NumPy arrays do, or is named like one."""
    return head.startswith(b"\x93NUMPY") or path.suffix.lower() == ".npy"


def is_csv(path: Path, head: bytes) -> bool:
    """Whether the file is text whose first two lines have the same number of commas, or is named like a table."""
    first, second = [*head.split(b"\n"), b"", b""][:2]
    return path.suffix.lower() == ".csv" or (b"\0" not in head and first.count(b",") == second.count(b",") > 0)


def read_npy(path: Path, stated: Stated) -> Ecg:
    """Read `[leads, samples]` or `[samples, leads]`: the number of names tells which.

    Raises:
        ValueError: `fs`, `units` or `leads` is missing, or they do not fit the array. Names the file.
    """
    try:
        # Mapped, so that a header which promises more than the file holds is refused before memory is claimed.
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise ValueError(f"{path}: not a readable .npy array of numbers: {error}") from error
    if array.dtype.kind not in "fiu":
        raise ValueError(f"{path}: values are of type {array.dtype}: expected real numbers")
    return _ecg(path, np.array(array, dtype=np.float64), None, stated)


def read_csv(path: Path, stated: Stated) -> Ecg:
    """Read a table of one column per lead (or one row per lead), with or without a header row; empty cells are NaN.

    Raises:
        ValueError: `fs`, `units` or the leads' names are missing or do not fit, or a cell is no number. Names the file.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            table = [row for row in csv.reader(file) if row]
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path}: not a readable .csv table: {error}") from error
    names = tuple(table[0]) if table and not all(_is_number(cell) for cell in table[0]) else None
    rows = table[1:] if names else table
    if not rows:
        raise ValueError(f"{path}: the table has no samples")
    for number, row in enumerate(rows, start=2 if names else 1):
        if len(row) != len(table[0]):
            raise ValueError(f"{path}: row {number} has {len(row)} cells, the first row has {len(table[0])}")
        for column, cell in enumerate(row):
            if not _is_number(cell):
                raise ValueError(f"{path}: row {number}, column {column + 1}: {cell!r} is not a number")
    values = [[float(cell.strip() or "nan") for cell in row] for row in rows]
    return _ecg(path, np.array(values), names, stated)


def _is_number(cell: str) -> bool:
    """Whether a cell holds a number or nothing."""
    try:
        float(cell.strip() or "nan")
    except ValueError:
        return False
    return True


def _ecg(path: Path, array: NDArray[np.float64], header: tuple[str, ...] | None, stated: Stated) -> Ecg:
    fs, units, names = stated.fs, stated.units, tuple(header or stated.leads or ())
    if fs is None or units is None or (header is None and stated.leads is None):
        words = {"fs": fs, "units": units, "leads": stated.leads if header is None else header}
        missing = ", ".join(f"{name}=..." for name, value in words.items() if value is None)
        raise ValueError(f"{path}: a bare array does not say what its numbers mean: pass {missing}")
    leads = known_leads(names, str(path), None if header is None else stated.leads)
    if array.ndim == 1:
        array = array[None]
    if array.ndim != 2 or len(names) not in array.shape:
        raise ValueError(f"{path}: shape {array.shape} does not fit {len(names)} leads {names}")
    if array.shape[0] == array.shape[1] and header is None and len(names) > 1:
        shape = array.shape
        raise ValueError(f"{path}: shape {shape}: samples and leads cannot be told apart: give a longer recording")
    # Below a header row the columns are the leads, whatever the number of rows.
    by_lead = array.T if header is not None or array.shape[0] != len(names) else array
    signal = by_lead[leads.rows] * millivolts(units, f"{path}: units=")
    return to_ecg(signal, sampling_rate(fs, str(path)), leads, path, stated.nan, {})
