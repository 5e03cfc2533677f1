"""`Ecg`: the one in-memory recording, and the names of its leads."""

import re
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from types import MappingProxyType
from typing import Any, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from data.signal import resample

LEADS = ("I", "II", "III", "aVR", "aVL", "aVF", "V1", "V2", "V3", "V4", "V5", "V6")
# Frank's orthogonal leads and the additional right-sided and posterior leads that cart files carry beside the twelve.
_KNOWN = {name.lower(): name for name in (*LEADS, "VX", "VY", "VZ", "V3R", "V4R", "V7", "V8", "V9")}
# Other names of the same electrodes: D and L for the limb leads in southern and in northern Europe, C for the chest.
# Modified leads (MLII, MCL1, CM5) have electrodes elsewhere and stand for no other lead.
_SPELLINGS = (
    _KNOWN
    | {f"{letter}{number}": lead for letter in "dl" for number, lead in enumerate(LEADS[:3], start=1)}
    | {f"{letter}{lead.lower()}": lead for letter in "dl" for lead in LEADS[:3]}
    | {f"c{number}": f"V{number}" for number in range(1, 7)}
)
# What may stand before a name: "Lead I", "lead_I", "ECG-II", "ekg lead v1", "MDC_ECG_LEAD_AVR" (ISO/IEEE 11073).
_PREFIX = re.compile(
    r"^(?:mdc_ecg_lead|(?:ecg|ekg)(?:[\s_.:-]*lead)?|lead|ableitung|derivation)(?:\s*-\s+|[\s_.:]+|-)?", re.IGNORECASE
)
_UNIT = re.compile(
    r"\s*[(\[]\s*(?P<bracketed>[num\u03bc]?v|adu)\s*[)\]]$|[\s_/,]\s*(?P<after>[num\u03bc]v)$", re.IGNORECASE
)
_BLANK = re.compile(r"(?<=[avcdl])[\s_](?=[vrlfxyzi1-9])")  # "aV R", "V 1"; not "I I", which is no name


@lru_cache(maxsize=1024)  # every `Ecg` looks at its names
def canonical_lead(name: str) -> str:
    """The canonical name of a lead: `AVR`, `Lead aVR` and `aVR (mV)` are `aVR`; `-avr` is Cabrera's `-aVR`.

    Raises:
        ValueError: The name is not that of a lead.
    """
    bare, _ = split_unit(name)
    inverted = bare.startswith("-")
    bare = _PREFIX.sub("", bare[inverted:].strip(), count=1)
    if not inverted and bare.startswith("-"):  # "Lead -aVR"
        inverted, bare = True, bare[1:].strip()
    lead = _SPELLINGS.get(_BLANK.sub("", bare.lower()))
    if lead is None:
        raise ValueError(f"unknown lead {name!r}: expected one of {', '.join(_KNOWN.values())} (any case, '-' inverts)")
    return f"-{lead}" if inverted else lead


def split_unit(name: str) -> tuple[str, str | None]:
    """A signal's name without quotes, comment sign and unit, and the unit: `"# I (uV)"` gives `"I"` and `"uV"`."""
    bare = unicodedata.normalize("NFKC", name).strip("\ufeff \t\r\n\"'").lstrip("# \t\"'")
    if (unit := _UNIT.search(bare)) is None:
        return bare, None
    return bare[: unit.start()].strip(" \t\"'"), unit["bracketed"] or unit["after"]


@dataclass(frozen=True, eq=False)
class Ecg:
    """One recording.

    Attributes:
        signal: float32 `[leads, samples]`, in **millivolts**. Read-only.
        fs: Sampling rate in Hz.
        leads: Canonical lead names, one per row of `signal`.
        record_id: Name of the record in its corpus.
        patient_id: Whose recording it is; empty when unknown.
        meta: Anything else its reader knows (file, age, sex, comments, ...).

    Raises:
        ValueError: Shape, rate and lead names do not fit together.
    """

    signal: NDArray[np.float32]
    fs: float
    leads: tuple[str, ...]
    record_id: str = ""
    patient_id: str = ""
    meta: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        who = self.who
        leads = tuple(canonical_lead(name) for name in self.leads)
        signal = np.array(self.signal, dtype=np.float32)  # a copy: no caller can change a frozen recording
        if signal.ndim != 2 or signal.shape[1] == 0:
            shape = f"[leads, samples] with at least one sample, got shape {signal.shape}"
            raise ValueError(f"{who}: signal must be {shape}")
        if signal.shape[0] != len(leads):
            raise ValueError(f"{who}: {signal.shape[0]} rows of signal but {len(leads)} lead names {leads}")
        if len(set(leads)) != len(leads):
            raise ValueError(f"{who}: a lead is named twice in {leads}")
        if not (np.isfinite(self.fs) and self.fs > 0):
            raise ValueError(f"{who}: sampling rate must be positive, got {self.fs}")
        signal.flags.writeable = False
        checked = {"signal": signal, "fs": float(self.fs), "leads": leads, "meta": MappingProxyType(dict(self.meta))}
        for name, value in checked.items():
            object.__setattr__(self, name, value)

    def __reduce__(self) -> tuple[Any, ...]:
        # A MappingProxyType cannot be pickled; loader workers and `copy.deepcopy` need to.
        return Ecg, (self.signal, self.fs, self.leads, self.record_id, self.patient_id, dict(self.meta))

    @property
    def who(self) -> str:
        """What messages call the recording."""
        return f"record {self.record_id!r}" if self.record_id else "ECG"

    @property
    def duration(self) -> float:
        """Length in seconds."""
        return float(self.signal.shape[1] / self.fs)

    def select(self, leads: Iterable[str]) -> Self:
        """The named leads in the given order, in any spelling; `-aVR` gives aVR inverted.

        Raises:
            ValueError: A name is not a lead, or the recording does not have it.
        """
        rows, missing, names = [], [], tuple(canonical_lead(name) for name in leads)
        for name in names:
            bare = name.removeprefix("-")
            if name in self.leads:
                rows.append(self.signal[self.leads.index(name)])
            elif bare in self.leads or f"-{bare}" in self.leads:
                stored = bare if bare in self.leads else f"-{bare}"
                rows.append(-self.signal[self.leads.index(stored)])
            else:
                missing.append(bare)
        if missing:
            raise ValueError(f"{self.who} has no lead {', '.join(missing)}; it has {', '.join(self.leads)}")
        if not rows:
            raise ValueError(f"{self.who}: no lead was asked for; it has {', '.join(self.leads)}")
        return replace(self, signal=np.stack(rows), leads=names)

    def resample(self, fs: float) -> Self:
        """The recording at another sampling rate (Hz), band-limited: same duration, to one sample."""
        return self if fs == self.fs else replace(self, signal=resample(self.signal, self.fs, fs), fs=fs)

    def crop(self, start: float, seconds: float) -> Self:
        """The `seconds` that begin at `start` (both in seconds).

        Raises:
            ValueError: The recording does not cover that span.
        """
        first, count = round(start * self.fs), round(seconds * self.fs)
        if start < 0 or count < 1 or first + count > self.signal.shape[1]:
            raise ValueError(f"{self.who}: cannot crop {seconds} s from {start} s: it lasts {self.duration:g} s")
        return replace(self, signal=self.signal[:, first : first + count])

    def pad(self, seconds: float, value: float = 0.0) -> Self:
        """The recording lengthened at its end to `seconds` with a constant (mV).

        Raises:
            ValueError: The recording is already longer; crop it instead.
        """
        missing = round(seconds * self.fs) - self.signal.shape[1]
        if missing < 0:
            raise ValueError(f"{self.who} lasts {self.duration:g} s, longer than {seconds} s: crop it")
        return replace(self, signal=np.pad(self.signal, ((0, 0), (0, missing)), constant_values=value))


class EcgSource(Protocol):
    """Where recordings come from: a folder of records, a prepared store, or the simulated cohort."""

    def __getitem__(self, record_id: str) -> Ecg:
        """The recording of that id; `KeyError` when there is none."""
