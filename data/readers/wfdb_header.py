"""The header of a WFDB record, read by a strict grammar before any sample is.

Format: https://physionet.org/physiotools/wag/header-5.htm
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from data.units import sampling_rate

# Bytes of a sample, and the stored value that means "no sample here" (format 8 stores differences and has none).
# The compressed formats (508, 516, 524) are left out: their files cannot be checked against the header.
FORMATS: dict[str, tuple[float, int | None]] = {
    "8": (1, None),
    "16": (2, -(1 << 15)),
    "24": (3, -(1 << 23)),
    "32": (4, -(1 << 31)),
    "61": (2, -(1 << 15)),
    "80": (1, -(1 << 7)),
    "160": (2, -(1 << 15)),
    "212": (3 / 2, -(1 << 11)),
    "310": (4 / 3, -(1 << 9)),
    "311": (4 / 3, -(1 << 9)),
}

_MAX_HEADER_BYTES = 1 << 20
_MAX_SIGNALS = 64

_COUNTS = r"(?P<segments>/\d+)?\s+(?P<n>\d+)(\s+(?P<fs>\S+)(\s+(?P<length>\S+)(\s.*)?)?)?"
RECORD_LINE = re.compile(r"(?P<name>[^\s/#][^\s/]*)" + _COUNTS)
_RECORD_WITH_BLANKS = re.compile(r"(?P<name>[^\s/#][^/]{0,250}?[^\s/])" + _COUNTS)
_FORMAT = re.compile(r"(?P<code>\d{1,3})(x(?P<per_frame>\d{1,9}))?(:(?P<skew>\d{1,9}))?(\+(?P<offset>\d{1,9}))?")
_GAIN_FIELD = re.compile(r"(?P<gain>[^\s(/]+)(\((?P<baseline>-?\d{1,18})\))?(/(?P<units>\S+))?")
# A plain name in the header's own folder, blanks and all: no hidden file, no `..`, no `/`, no protocol; `~` is none.
_FILE = re.compile(r"[^\s~./\\:\x00-\x1f][^/\\:\x00-\x1f]{0,250}")
_FILE_WITH_BLANKS = re.compile(r"(?P<file>\S.*?\.[A-Za-z]\w*)\s+(?P<rest>\d.*)")


@dataclass(frozen=True)
class Signal:
    """One signal line of a header."""

    file: str  # name of the sample file, in the header's folder
    code: str  # WFDB's number of the sample format
    offset: int  # bytes before the first sample
    gain: float  # stored units per physical unit; 0 when the header does not say
    baseline: int  # stored value of 0 physical units
    units: str  # physical unit
    checksum: int | None  # sum of the stored samples modulo 65536; None when the header does not say
    name: str  # what the header calls the signal


@dataclass(frozen=True)
class Header:
    """A header that keeps to the grammar."""

    path: Path  # where it was read
    fs: float | None  # sampling rate, Hz; None when it does not say
    length: int  # samples of each signal
    signals: tuple[Signal, ...]  # one per signal line, in order
    comments: tuple[str, ...]  # lines after `#`, without it


def read_header(path: Path) -> Header:
    """Read and check a header, but none of its sample files.

    Raises:
        ValueError: The file is missing, too large, or breaks the grammar. Names the file, the line and the field.
    """
    if not path.is_file():
        raise ValueError(
            f"{path}: missing: a WFDB record needs its header (.hea) beside its samples; a bare .mat is not read"
        )
    if path.stat().st_size > _MAX_HEADER_BYTES:
        raise ValueError(f"{path}: {path.stat().st_size} bytes are too long for a WFDB header")
    comments: list[str] = []
    lines: list[tuple[int, str]] = []
    # Split as bytes: in text some other characters end a line, too, and a comment may hold them.
    for number, raw in enumerate(path.read_bytes().splitlines(), start=1):
        line = _text(raw.removeprefix(b"\xef\xbb\xbf"))
        if line.startswith("#"):
            comments.append(line.lstrip("# \t").rstrip())
        elif line.strip():
            lines.append((number, line.strip()))
    first = lines[0][1] if lines else ""
    record = RECORD_LINE.fullmatch(first) or _RECORD_WITH_BLANKS.fullmatch(first)
    if record is None:
        raise ValueError(f"{path}: record line: expected 'name signals rate samples', got {first[:80]!r}")
    if record["segments"]:
        raise ValueError(f"{path}: record line: records of several segments are not read: join them first")
    n_signals = _integer(record["n"], f"{path}: number of signals")
    if not 1 <= n_signals <= _MAX_SIGNALS or len(lines) - 1 != n_signals:
        raise ValueError(
            f"{path}: number of signals: the record line says {n_signals}, there are {len(lines) - 1} signal lines "
            f"(1 to {_MAX_SIGNALS} are read)"
        )
    fs = None
    if record["fs"]:
        # What follows a slash is the rate of a counter, of no use to us.
        fs = sampling_rate(_number(record["fs"].partition("/")[0], f"{path}: sampling rate"), str(path))
    length = _integer(record["length"] or "", f"{path}: number of samples")
    if length < 1:
        raise ValueError(f"{path}: number of samples: {length}: the record line must say how long the record is")
    signals = tuple(_signal(line, f"{path}: line {number}") for number, line in lines[1:])
    return Header(path, fs, length, signals, tuple(line for line in comments if line))


def _text(line: bytes) -> str:
    """A line in UTF-8, or in cp1252 where it is not that: older writers put `µV` so."""
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError:
        return line.decode("cp1252", "replace")


def _signal(line: str, where: str) -> Signal:
    # file format gain(baseline)/units resolution zero first checksum block name
    fields = line.split(maxsplit=8)
    if len(fields) > 1 and not _FORMAT.fullmatch(fields[1]) and (blanks := _FILE_WITH_BLANKS.fullmatch(line)):
        fields = [blanks["file"], *blanks["rest"].split(maxsplit=7)]
    if len(fields) < 2:
        raise ValueError(f"{where}: expected 'file format gain ... lead', got {line[:80]!r}")
    if not _FILE.fullmatch(fields[0]):
        raise ValueError(f"{where}: file name {fields[0][:80]!r}: expected the plain name of a file in the same folder")
    form = _FORMAT.fullmatch(fields[1])
    if form is None or form["code"] not in FORMATS:
        raise ValueError(f"{where}: format {fields[1][:80]!r}: expected one of {', '.join(FORMATS)}")
    if int(form["per_frame"] or 1) != 1 or int(form["skew"] or 0) != 0:
        problem = "several samples per frame and skew are not read: resample first"
        raise ValueError(f"{where}: format {fields[1]!r}: {problem}")
    field = _GAIN_FIELD.fullmatch(fields[2]) if len(fields) > 2 else None
    if len(fields) > 2 and field is None:
        raise ValueError(f"{where}: gain {fields[2][:80]!r}: expected a number, (baseline) and /units")
    zero = _integer(fields[4], f"{where}: ADC zero") if len(fields) > 4 else 0
    return Signal(
        file=fields[0],
        code=form["code"],
        offset=int(form["offset"] or 0),
        gain=_number(field["gain"], f"{where}: gain") if field else 0.0,
        baseline=int(field["baseline"]) if field and field["baseline"] else zero,
        units=(field["units"] if field else None) or "mV",  # the format's own default
        checksum=_integer(fields[6], f"{where}: checksum") if len(fields) > 6 else None,
        name=fields[8].strip() if len(fields) > 8 else "",
    )


def _number(text: str, where: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"{where}: {text[:80]!r} is not a number: correct the header") from None


def _integer(text: str, where: str) -> int:
    if not re.fullmatch(r"[-+]?\d{1,18}", text):
        raise ValueError(f"{where}: {text[:80]!r} is not a whole number: correct the header")
    return int(text)


def sample_bytes(signals: Sequence[Signal], length: int) -> tuple[int, int]:
    """Fewest and most bytes of a sample file that holds these signals, `length` samples each."""
    width = FORMATS[signals[0].code][0]
    need = signals[0].offset + math.ceil(length * len(signals) * width)
    return need, need if float(width).is_integer() else need + 3  # packed formats may end in a whole word
