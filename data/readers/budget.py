"""What an upload may be: limits, and the refusal that may be shown to its sender."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from data.ecg import Ecg, canonical_lead
from data.quality import require_readable
from data.units import millivolts

NO_LEAD = "-"  # among the names of leads: this signal is none

Words = dict[str, float | str | list[str] | None]  # keywords of `read_ecg`


@dataclass(frozen=True)
class Budget:
    """What an upload may be, and what reading it may take: the most there may be, or the least and the most."""

    files: int = 20  # of a record whose signals lie in a file each, and what a computer leaves beside them
    file_bytes: int = 5_000_000  # of all files together
    header_bytes: int = 1 << 16  # of a WFDB header
    header_lines: int = 32  # of a WFDB header, without comments
    signals: int = 16  # of a WFDB record
    fs: tuple[float, float] = (50.0, 2000.0)  # Hz
    seconds: tuple[float, float] = (1.0, 600.0)  # of a recording
    gain: tuple[float, float] = (1.0, 1e6)  # stored units per mV
    peak: float = 1000.0  # mV, of spikes: from there on float32 overflows inside encoders
    # Bytes the child may claim beyond what the interpreter and the packages hold when it begins to read (RLIMIT_AS
    # counts addresses, not pages: about 250 MB of them, and 580 MB with the `wfdb` package, are claimed before).
    memory: int = 1 << 30
    cpu_seconds: int = 5  # of the processor, that the child may take to read, apart from its start
    wall_seconds: float = 30.0  # that the child may take in all


class UploadError(ValueError):
    """Why an upload is not read, in words that may be shown to whoever sent it.

    Whatever it is made from, the message has no markup, no control characters and no other letters than English ones,
    and it is short; it names no path of the server.
    """

    def __init__(self, message: str) -> None:
        plain = message.translate({ord("["): "(", ord("]"): ")", ord('"'): "'", ord("µ"): "u", ord("μ"): "u"})
        plain = re.sub(r"[^A-Za-z0-9 .,:;()+\-=/_'%]", "?", plain)
        super().__init__(plain if len(plain) <= 300 else f"{plain[:297]}...")


class WordsNeeded(UploadError):
    """What the files do not say themselves, but their sender can: sampling rate, units, or names of the leads."""


def listed(names: Sequence[str]) -> str:
    """Names of files for a message: the first four, none of them long."""
    short = [name if len(name) <= 40 else f"{name[:37]}..." for name in names]
    return ", ".join(short[:4]) + (f" and {len(short) - 4} more" if len(short) > 4 else "")


def require_count(count: int, budget: Budget) -> None:
    """Refuse no files, and more than the budget allows."""
    if not 1 <= count <= budget.files:
        raise UploadError(
            f"files: {count} were sent, 1 to {budget.files} are read: upload one .npy or .csv file, or a WFDB header "
            "(.hea) and its sample files"
        )


def checked_words(fs: float | None, units: str | None, leads: Sequence[str] | None, budget: Budget) -> Words:
    """What the caller says of the recording, checked: it may be what a stranger typed into a form."""
    if fs is not None:
        if isinstance(fs, bool) or not isinstance(fs, (int, float)) or not budget.fs[0] <= fs <= budget.fs[1]:
            raise UploadError(f"sampling rate: {expected_rate(budget)}")
        fs = float(fs)
    if leads is not None:
        if isinstance(leads, str) or not 1 <= len(leads) <= budget.signals:
            raise UploadError(f"leads: expected a list of 1 to {budget.signals} names")
        try:
            leads = [lead if lead == NO_LEAD else canonical_lead(lead[:32]) for lead in leads]
        except (ValueError, AttributeError, TypeError) as error:
            raise UploadError(f"leads: {error}") from None
    if units is not None:
        try:
            millivolts(units, "units")
        except (ValueError, AttributeError) as error:
            raise UploadError(str(error)) from None
    return {"fs": fs, "units": units, "leads": leads}


def expected_rate(budget: Budget) -> str:
    """What a sampling rate must be, for a refusal."""
    return f"expected a number from {budget.fs[0]:g} to {budget.fs[1]:g} Hz"


def require_duration(seconds: float, budget: Budget) -> None:
    """Refuse a recording that is too short or too long."""
    if not budget.seconds[0] <= seconds <= budget.seconds[1]:
        limits = f"{budget.seconds[0]:g} to {budget.seconds[1]:g} s"
        raise UploadError(f"duration: {seconds:g} s, {limits} are read: cut the recording")


def require_plausible(ecg: Ecg, budget: Budget) -> None:
    """Refuse a recording that cannot be an ECG. Its samples are finite and its leads known, thanks to `from_wire`."""
    if not budget.fs[0] <= ecg.fs <= budget.fs[1]:
        raise UploadError(f"sampling rate: {expected_rate(budget)}")
    require_duration(ecg.duration, budget)
    try:
        require_readable(ecg)
    except ValueError as error:
        raise UploadError(str(error)) from None
    if (peak := float(np.abs(ecg.signal).max())) > budget.peak:
        raise UploadError(f"amplitude: reaches {peak:.4g} mV, at most {budget.peak:g} are read: remove the spikes")
