"""What all readers share: names of leads, missing samples and limb leads mean the same in every format."""

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from data.ecg import LEADS, Ecg, canonical_lead
from data.quality import FLAT, contradictions, signal_quality

Nan = Literal["raise", "interpolate"]

MOSTLY = 0.5  # of a lead's samples: where more are missing, straight lines would be most of what is read

# Words of signals that no electrocardiograph calls a lead; in a longer name, too ("RESP impedance", "ECG annotations").
_OTHER_WORDS = re.compile(
    r"abp|acc|accel\w*|airflow|annotations?|art|artifacts?|battery|bp|breath\w*|co2|counter|cvp|date\w*|eda|eeg|elapsed|"
    r"emg|eog|etco2|events?|flags?|flow|gsr|gyro\w*|hrv?|icp|idx|impedance|index|labels?|leadoff|markers?|nbp|nibp|noise|other|"
    r"pacemaker|pacing|pap|pcg|pleth\w*|ppg|pulse|qrs|quality|rap|resp\w*|rpeaks?|rri?|rsp|samples?|sao2|sound|spo2|sqi|"
    r"status|sync|temp|temperature|time\w*|trigger|uap|uvp"
)

# Einthoven's and Goldberger's laws: each limb lead by two others.
_BY_TWO: Mapping[tuple[str, ...], Mapping[str, tuple[float, float]]] = {
    ("I", "II"): {"III": (-1, 1), "aVR": (-0.5, -0.5), "aVL": (1, -0.5), "aVF": (-0.5, 1)},
    ("I", "III"): {"II": (1, 1), "aVR": (-1, -0.5), "aVL": (0.5, -0.5), "aVF": (0.5, 1)},
    ("II", "III"): {"I": (1, -1), "aVR": (-1, 0.5), "aVL": (0.5, -1), "aVF": (0.5, 0.5)},
}

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


def is_lead(name: str) -> bool:
    """Whether a name is that of a lead, in any spelling."""
    try:
        canonical_lead(name)
    except ValueError:
        return False
    return True


def is_other(name: str) -> bool:
    """Whether a name is evidently that of another signal than an ECG lead: breathing, pressure, time, marks, ..."""
    split = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name)  # "AccX" as "Acc X"; "SpO2" is one word
    words = [word for text in (name, split) for word in re.findall(r"[a-z]+[0-9]*", text.lower())]
    return any(_OTHER_WORDS.fullmatch(word) or _OTHER_WORDS.fullmatch(word.rstrip("0123456789")) for word in words)


def known_leads(names: Sequence[str], where: str, stated: Sequence[str] | None = None) -> Leads:
    """The leads among a file's signals, by the names that the file gives (empty ones are none) and those of the caller.

    The caller's names are one for each signal, or one for each that is not evidently something else. They rename
    signals, but no lead that the file names; an empty name or "-" leaves a signal out. Nothing that may be one of the
    twelve leads is left out unasked.

    Raises:
        ValueError: A name is not known, a lead is named twice, none is a lead, or the caller says others than the file.
            Begins with `where`.
    """
    # The lead of each signal: empty for another signal, None where nobody knows.
    by_file = [canonical_lead(name) if is_lead(name) else "" if is_other(name) else None for name in names]
    chosen = by_file if stated is None else _renamed(by_file, stated, f"{where}: leads")
    how = f"with leads= (commands: --leads) name all {len(names)} signals in order, - for one that is not a lead"
    if not any(chosen):
        listed = f"none of {list(names)} is an ECG lead"
        raise ValueError(f"{where}: leads: {listed}: name them I, II, ..., V6 (any case) in the file, or {how}")
    shown = [name or f"signal {number}" for number, name in enumerate(names, start=1)]
    unknown = [name for name, lead in zip(shown, chosen) if lead is None]
    if unknown and not set(LEADS) <= {lead.removeprefix("-") for lead in chosen if lead}:
        raise ValueError(f"{where}: leads: not known, though they may be leads: {', '.join(unknown)}: {how}")
    rows = [row for row, lead in enumerate(chosen) if lead]
    leads = tuple(lead for lead in chosen if lead)
    for lead in leads:
        if leads.count(lead) > 1:
            raise ValueError(f"{where}: leads: {lead} is named twice: rename or remove one of them")
    others = tuple(name for name, lead in zip(shown, chosen) if not lead)
    if others:
        _log.warning("%s: signals that are not ECG leads are left out: %s", where, ", ".join(others))
    return Leads(rows, leads, others)


def _renamed(by_file: Sequence[str | None], stated: Sequence[str], where: str) -> Sequence[str | None]:
    """The lead of each signal, as the caller says it where the file does not."""
    try:
        words = ["" if name.strip() in ("", "-") else canonical_lead(name) for name in stated]
    except ValueError as error:
        raise ValueError(f"{where}: {error}; - leaves a signal out") from None
    every = list(range(len(by_file)))
    rows = every if len(words) == len(every) else [row for row in every if by_file[row] != ""]
    if len(rows) != len(words) or any(word and by_file[row] not in (None, word) for row, word in zip(rows, words)):
        named = tuple(lead for lead in by_file if lead)
        if named:  # else what is wrong is that nothing is known
            agree("leads", tuple(words), named, where.removesuffix(": leads"))
        return by_file
    chosen = list(by_file)
    for row, word in zip(rows, words):
        chosen[row] = word
    return chosen


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
    """The recording, with its missing samples refused or repaired, its limb leads complete, and its quality.

    The signal is `[leads, samples]` in mV, NaN where a sample is missing. The file names the record. `meta` tells:

    - `file`: where it was read; `other_signals`: names of signals that are not leads.
    - `repaired_samples`: counts by lead of missing samples that now lie on a line between the neighbours in the same
      lead, constant at the ends.
    - `absent_leads`: leads that are left out because more than half of their samples are missing.
    - `derived_leads`: limb leads that the file does not have and two of I, II and III give; the leads are then in the
      usual order. A stored lead is never replaced, and none is computed from flat ones or from some that contradict.
    - `quality`: what `data.quality.signal_quality` says of all of this.

    Raises:
        ValueError: Samples are infinite, or missing and not to be repaired, or most of every lead is missing.
    """
    if nan not in ("raise", "interpolate"):
        raise ValueError(f"nan must be 'raise' or 'interpolate', got {nan!r}")
    if not signal.shape[1]:
        raise ValueError(f"{path}: no samples: it takes at least one sample of each lead")
    _require_finite(signal, leads.names, path)
    notes: dict[str, object] = {"file": str(path), **meta}
    if leads.others:
        notes["other_signals"] = leads.others
    recorded = _repaired(dict(zip(leads.names, signal)), path, nan, notes)
    if derived := _derived(recorded, leads.names, fs):
        notes["derived_leads"] = tuple(derived)
        recorded = dict(sorted((recorded | derived).items(), key=lambda item: _place(item[0])))
    samples = np.stack([*recorded.values()]).astype(np.float32)
    try:
        ecg = Ecg(samples, fs, tuple(recorded), record_id=path.stem, meta=notes)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return replace(ecg, meta={**notes, "quality": signal_quality(ecg)})


def _require_finite(signal: NDArray[np.floating], names: Sequence[str], path: Path) -> None:
    """Refuse infinite samples, and those that would be in the 32 bits of a recording. NaN is a missing one."""
    highest = np.maximum(np.fmax.reduce(signal, axis=1), -np.fmin.reduce(signal, axis=1))
    row = int(np.fmax(highest, 0).argmax())
    if highest[row] == np.inf:
        count = np.isinf(signal[row]).sum()
        raise ValueError(f"{path}: lead {names[row]}: {count} infinite samples: export the file again")
    if highest[row] > np.finfo(np.float32).max:
        raise ValueError(f"{path}: lead {names[row]}: {highest[row]:g} mV is not finite in 32 bits: check units")


def _repaired(
    signal: Mapping[str, NDArray[np.floating]], path: Path, nan: Nan, notes: dict[str, object]
) -> dict[str, NDArray[np.floating]]:
    """The leads of which most was recorded, gaps bridged; writes into `notes` what was done."""
    counts = {lead: int(count) for lead, row in signal.items() if (count := np.isnan(row).sum())}
    if not counts:
        return dict(signal)
    length = next(iter(signal.values())).size
    if nan == "raise":
        listed = ", ".join(f"{lead} {count}" for lead, count in counts.items())
        raise ValueError(
            f"{path}: missing samples (NaN) in leads {listed}, of {length} each: pass nan='interpolate' (commands: "
            "--nan interpolate) to bridge gaps and leave out leads that are mostly missing"
        )
    absent = tuple(lead for lead, count in counts.items() if count > MOSTLY * length)
    if len(absent) == len(signal):
        raise ValueError(f"{path}: most samples of every lead are missing (NaN): there is nothing to read")
    bridged = {lead: count for lead, count in counts.items() if lead not in absent}
    if absent:
        notes["absent_leads"] = absent
    if bridged:
        notes["repaired_samples"] = bridged
    repaired = {}
    for lead, row in signal.items():
        if lead in bridged:
            gap = np.isnan(row)
            row = np.where(gap, np.interp(np.arange(length), np.flatnonzero(~gap), row[~gap]), row)
        if lead not in absent:
            repaired[lead] = row
    return repaired


def _derived(
    recorded: Mapping[str, NDArray[np.floating]], stored: Sequence[str], fs: float
) -> dict[str, NDArray[np.floating]]:
    """Limb leads that the file does not hold, by those of I, II and III that show a signal."""
    held = {name.removeprefix("-") for name in stored}
    if held >= set(LEADS[:6]):
        return {}
    upright = dict(_upright(name, row) for name, row in recorded.items())
    limbs = {lead: row.astype(np.float64) for lead, row in upright.items() if lead in LEADS[:6] and np.ptp(row) >= FLAT}
    pair = next(combinations([lead for lead in LEADS[:3] if lead in limbs], 2), None)
    if pair is None or contradictions(limbs, fs, {}):  # of what contradicts itself, each pair would give another lead
        return {}
    one, other = (limbs[lead] for lead in pair)
    return {lead: a * one + b * other for lead, (a, b) in _BY_TWO[pair].items() if lead not in held}


def _upright(name: str, row: NDArray[np.floating]) -> tuple[str, NDArray[np.floating]]:
    return (name[1:], -row) if name.startswith("-") else (name, row)


def _place(lead: str) -> int:
    bare = lead.removeprefix("-")
    return LEADS.index(bare) if bare in LEADS else len(LEADS)
