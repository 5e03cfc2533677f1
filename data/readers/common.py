"""What all readers share: lead names and missing samples mean the same in every format."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

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


@dataclass(frozen=True)
class Stated:
    """What the caller of `read_ecg` says, by its keywords."""

    fs: float | None = None
    units: str | None = None
    leads: Sequence[str] | None = None
    nan: Nan = "raise"


class Leads(NamedTuple):
    """Which of a file's signals are ECG leads: their rows and canonical names, and the names of the other signals."""

    rows: list[int]
    names: tuple[str, ...]
    others: tuple[str, ...]


def known_leads(names: Sequence[str], where: str, stated: Sequence[str] | None = None) -> Leads:
    """The leads among the names of a file's signals, which must be those that the caller states, if any.

    Raises:
        ValueError: None is a lead, a lead is named twice, or the caller states others. Begins with `where`.
    """
    leads: dict[str, int] = {}  # and the row of each
    others: list[str] = []
    for row, name in enumerate(names):
        try:
            lead = canonical_lead(name)
        except ValueError:
            others.append(name)
            continue
        if lead in leads:
            raise ValueError(f"{where}: leads: {lead} is named twice: rename or remove one of them")
        leads[lead] = row
    if not leads:
        raise ValueError(f"{where}: leads: none of {list(names)} is an ECG lead: name them I, II, ..., V6 (any case)")
    if others:
        _log.warning("%s: signals that are not ECG leads are left out: %s", where, ", ".join(others))
    if stated is not None:
        agree("leads", known_leads(stated, where).names, tuple(leads), where)
    return Leads([*leads.values()], tuple(leads), tuple(others))


def agree(field: str, wanted: object, stated: object, where: str) -> None:
    """Refuse what a caller says against the file; None says nothing.

    Raises:
        ValueError: Both are known and differ. Begins with `where`.
    """
    if wanted is not None and wanted != stated:
        raise ValueError(f"{where}: {field}: the file says {stated}, the caller says {wanted}: one is wrong, so decide")


def to_ecg(
    signal: NDArray[np.floating], fs: float, leads: Leads, path: Path, nan: Nan, meta: Mapping[str, object]
) -> Ecg:
    """The recording, with its missing samples refused or repaired.

    Repaired ones lie on a line between the neighbours in the same lead, constant at the ends; counts by lead are in
    `meta["repaired_samples"]`. The file is in `meta["file"]`, the names of other signals in `meta["other_signals"]`.

    The signal is `[leads, samples]` in mV, NaN where a sample is missing. The file names the record.

    Raises:
        ValueError: Samples are infinite, or missing and not to be repaired, or all of a lead is missing.
    """
    names = leads.names
    if nan not in ("raise", "interpolate"):
        raise ValueError(f"nan must be 'raise' or 'interpolate', got {nan!r}")
    if np.isinf(signal).any():
        lead = names[int(np.isinf(signal).any(axis=1).argmax())]
        raise ValueError(f"{path}: lead {lead}: {np.isinf(signal).sum()} infinite samples: export the file again")
    missing = np.isnan(signal)
    counts = {lead: int(count) for lead, count in zip(names, missing.sum(axis=1)) if count}
    if counts and nan == "raise":
        listed = ", ".join(f"{lead} {count}" for lead, count in counts.items())
        raise ValueError(
            f"{path}: missing samples (NaN) in leads {listed}, of {signal.shape[1]} each: pass nan='interpolate'"
        )
    for lead in counts:
        row, absent = signal[names.index(lead)], missing[names.index(lead)]
        if absent.all():
            count = absent.size
            raise ValueError(f"{path}: lead {lead}: all {count} samples are missing (NaN): there is nothing to repair")
        row[absent] = np.interp(np.flatnonzero(absent), np.flatnonzero(~absent), row[~absent])
    notes: dict[str, object] = {"file": str(path), **meta}
    if counts:
        notes["repaired_samples"] = counts
    if leads.others:
        notes["other_signals"] = leads.others
    try:
        return Ecg(signal.astype(np.float32), fs, names, record_id=path.stem, meta=notes)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
