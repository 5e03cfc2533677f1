"""Reads ECGs that are bare numbers: NumPy `.npy` arrays and `.csv` tables.

Neither says what its numbers mean, so the caller must: sampling rate, units and leads are never guessed. Only the
names of the leads may stand in the file, as the header row of a table.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np

from data.ecg import Ecg, split_unit
from data.readers.columns import Table, agreed_rate
from data.readers.common import Stated, agree, known_leads, to_ecg
from data.readers.tables import looks_like_table, parse_table
from data.units import millivolts, sampling_rate

_TABLES = (".csv", ".tsv")


def is_npy(path: Path, head: bytes) -> bool:
    """Whether the file begins as NumPy arrays do, or is named like one."""
    return head.startswith(b"\x93NUMPY") or path.suffix.lower() == ".npy"


def is_csv(path: Path, head: bytes) -> bool:
    """Whether the file is text that begins with columns of numbers below a header at most, or is named like a table."""
    return path.suffix.lower() in _TABLES or looks_like_table(head, 1 if path.suffix.lower() == ".txt" else 2)


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
    return _ecg(path, Table(np.array(array, dtype=np.float64), None), stated)


def read_csv(path: Path, stated: Stated) -> Ecg:
    """Read a table of one column per lead (or one row per lead), with or without a header row; empty cells are NaN.

    Raises:
        ValueError: `fs`, `units` or the leads' names are missing or do not fit, or a cell is no number. Names the file.
    """
    try:
        table = parse_table(path.read_bytes(), stated.leads is not None)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    leads = stated.leads
    if leads is not None and len(leads) == table.values.shape[1] + len(table.others):
        # One name for each column of the file: those that were taken away must be called no lead.
        places = {place for _, place in table.others}
        if all(leads[place].strip() in ("", "-") for place in places):
            leads = [name for place, name in enumerate(leads) if place not in places]
    values = table.values
    if table.names is None and leads and values.shape[1] == len(leads) + 1 and np.isnan(values[:, -1]).all():
        values = values[:, :-1]  # every line ends with a delimiter
    fs = agreed_rate(table, stated.fs, str(path))
    return _ecg(path, replace(table, values=values), replace(stated, fs=fs, leads=leads))


def _ecg(path: Path, table: Table, stated: Stated) -> Ecg:
    array, header = table.values, table.names
    names = tuple(header or stated.leads or ())
    units = {name: unit for name in names if (unit := split_unit(name)[1])}
    words = {"fs": stated.fs, "units": stated.units, "leads": stated.leads if header is None else header}
    if header and units:
        words["units"] = stated.units or "by column"
    if missing := [name for name, value in words.items() if value is None]:
        listed = ", ".join(f"{name}=..." for name in missing)
        flags = ", ".join(f"--{name}" for name in missing)
        raise ValueError(f"{path}: a bare array does not say what its numbers mean: pass {listed} (commands: {flags})")
    # Where the file names nothing, the caller does: "-" is a signal that is not a lead.
    leads = known_leads(header or [""] * len(names), str(path), stated.leads)
    if array.ndim == 1:
        array = array[None]
    if array.ndim != 2 or len(names) not in array.shape:
        read = f": its cells are separated by {table.delimiter}" if table.delimiter else ""
        taken = f", {', '.join(name for name, _ in table.others)} left out" if table.others else ""
        raise ValueError(f"{path}: shape {array.shape} does not fit {len(names)} leads {names}{read}{taken}")
    if array.shape[0] == array.shape[1] and header is None and len(names) > 1:
        shape = array.shape
        raise ValueError(f"{path}: shape {shape}: samples and leads cannot be told apart: give a longer recording")
    # Below a header row the columns are the leads, whatever the number of rows.
    by_lead = array.T if header is not None or array.shape[0] != len(names) else array
    scales = [_scale(names[row], stated.units, str(path)) for row in leads.rows]
    leads = leads._replace(others=(*(name for name, _ in table.others), *leads.others))
    signal = by_lead[leads.rows] * np.array(scales)[:, None]
    return to_ecg(signal, sampling_rate(stated.fs or 0.0, str(path)), leads, path, stated.nan, {})


def _scale(name: str, units: str | None, where: str) -> float:
    """Millivolts per number of a lead, as its name or the caller says."""
    unit = split_unit(name)[1]
    if unit is None and units is None:
        raise ValueError(f"{where}: column {name}: its units are not known: pass units=... (commands: --units)")
    own = millivolts(unit, f"{where}: column {name}") if unit else None
    stated = millivolts(units, f"{where}: units=") if units is not None else None
    if own is not None and stated is not None and own != stated:
        agree("units", units, unit, f"{where}: column {name}")
    return own if own is not None else stated or 0.0
