"""What all readers share: lead names and missing samples mean the same in every format."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from data.ecg import Ecg, canonical_lead

Nan = Literal["raise", "interpolate"]

_log = logging.getLogger(__name__)


def first_bytes(path: Path, count: int = 4096) -> bytes:
    """The first bytes of a regular file; none when there is no such file."""
    if not path.is_file():
        return b""
    with path.open("rb") as file:
        return file.read(count)


def known_leads(names: Sequence[str], where: str) -> tuple[list[int], tuple[str, ...], tuple[str, ...]]:
    """Which of a file's signals are ECG leads.

    Returns:
        Rows that are leads, their canonical names, and the names of the other signals (respiration, time, ...).

    Raises:
        ValueError: None is a lead, or a lead is named twice. Begins with `where`.
    """
    rows: list[int] = []
    leads: list[str] = []
    others: list[str] = []
    for row, name in enumerate(names):
        try:
            lead = canonical_lead(name)
        except ValueError:
            others.append(name)
            continue
        if lead in leads:
            raise ValueError(f"{where}: leads: {lead} is named twice: rename or remove one of them")
        rows.append(row)
        leads.append(lead)
    if not leads:
        raise ValueError(f"{where}: leads: none of {list(names)} is an ECG lead: name them I, II, ..., V6 (any case)")
    if others:
        _log.warning("%s: signals that are not ECG leads are left out: %s", where, ", ".join(others))
    return rows, tuple(leads), tuple(others)


def agree(field: str, wanted: object, stated: object, where: str) -> None:
    """Refuse what a caller says against the file; None says nothing.

    Raises:
        ValueError: Both are known and differ. Begins with `where`.
    """
    if wanted is not None and wanted != stated:
        raise ValueError(f"{where}: {field}: the file says {stated}, the caller says {wanted}: one is wrong, so decide")


def to_ecg(
    signal: NDArray[np.floating],
    fs: float,
    leads: tuple[str, ...],
    path: Path,
    *,
    record_id: str,
    nan: Nan,
    meta: Mapping[str, object],
    others: tuple[str, ...] = (),
) -> Ecg:
    """The recording, with its missing samples refused or repaired.

    Args:
        signal: `[leads, samples]` in mV; NaN where a sample is missing.
        fs: Sampling rate, Hz.
        leads: Canonical names of the rows.
        path: The file, for messages and `meta["file"]`.
        record_id: Name of the record.
        nan: `"raise"`, or `"interpolate"`: a line between the neighbours in the same lead, constant at the ends;
            `meta["repaired_samples"]` then counts them by lead.
        meta: What else is known.
        others: Signals of the file that are not leads, kept by name in `meta["other_signals"]`.

    Raises:
        ValueError: Samples are infinite, or missing and not to be repaired, or all of a lead is missing.
    """
    if nan not in ("raise", "interpolate"):
        raise ValueError(f"nan must be 'raise' or 'interpolate', got {nan!r}")
    if np.isinf(signal).any():
        lead = leads[int(np.isinf(signal).any(axis=1).argmax())]
        raise ValueError(f"{path}: lead {lead}: {np.isinf(signal).sum()} infinite samples: export the file again")
    missing = np.isnan(signal)
    counts = {lead: int(count) for lead, count in zip(leads, missing.sum(axis=1)) if count}
    if counts and nan == "raise":
        listed = ", ".join(f"{lead} {count}" for lead, count in counts.items())
        raise ValueError(
            f"{path}: missing samples (NaN) in leads {listed}, of {signal.shape[1]} each: pass nan='interpolate'"
        )
    for lead in counts:
        row, absent = signal[leads.index(lead)], missing[leads.index(lead)]
        if absent.all():
            raise ValueError(
                f"{path}: lead {lead}: all {absent.size} samples are missing (NaN): there is nothing to repair"
            )
        row[absent] = np.interp(np.flatnonzero(absent), np.flatnonzero(~absent), row[~absent])
    notes: dict[str, object] = {"file": str(path), **meta}
    if counts:
        notes["repaired_samples"] = counts
    if others:
        notes["other_signals"] = others
    try:
        return Ecg(signal.astype(np.float32), fs, leads, record_id=record_id, meta=notes)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
