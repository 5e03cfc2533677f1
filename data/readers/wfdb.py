"""Reads and writes WFDB records: a header `.hea` beside sample files (`.dat`, or the PhysioNet challenge's `.mat`).

The header is read by the strict grammar below and checked against its sample files *before* any sample is read: the
`wfdb` package takes a gain of 0, a sampling rate of -500 and a length of 9e12 in silence. Samples of format 16, which
all 12-lead corpora use, are read here; the `wfdb` package reads the other formats.

Format: https://physionet.org/physiotools/wag/header-5.htm
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data.ecg import Ecg
from data.readers.arrays import is_csv
from data.readers.common import Nan, agree, first_bytes, known_leads, millivolts, sampling_rate, to_ecg
from data.support.files import written_whole

# Bytes of a sample, and the stored value that means "no sample here" (format 8 stores differences and has none).
# The compressed formats (508, 516, 524) are left out: their files cannot be checked against the header.
_FORMATS: dict[str, tuple[float, int | None]] = {
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
_GAIN = (1.0, 1e9)  # stored units per mV: coarser than 1 mV shows no ECG, finer than 1e9 overflows every format
_WRITTEN_GAINS = (8000, 4000, 2000, 1000)  # multiples of the corpora's 200, 500 and 1000: their samples survive exactly

_RECORD = re.compile(r"(?P<name>[\w.-]+)(?P<segments>/\d+)?\s+(?P<n>\d+)(\s+(?P<fs>\S+)(\s+(?P<length>\S+)(\s.*)?)?)?")
_FORMAT = re.compile(r"(?P<code>\d{1,3})(x(?P<per_frame>\d{1,9}))?(:(?P<skew>\d{1,9}))?(\+(?P<offset>\d{1,9}))?")
_GAIN_FIELD = re.compile(r"(?P<gain>[^\s(/]+)(\((?P<baseline>-?\d{1,18})\))?(/(?P<units>\S+))?")
_FILE = re.compile(r"\w[\w-]*(\.\w+)?")  # a plain name in the header's own folder: no `..`, no `/`, no protocol


@dataclass(frozen=True)
class Signal:
    """One signal line of a header.

    Attributes:
        file: Name of the sample file, in the header's folder.
        code: WFDB's number of the sample format.
        offset: Bytes before the first sample.
        gain: Stored units per physical unit; 0 when the header does not say.
        baseline: Stored value of 0 physical units.
        units: Physical unit.
        checksum: Sum of the stored samples modulo 65536; None when the header does not say.
        name: What the header calls the signal.
    """

    file: str
    code: str
    offset: int
    gain: float
    baseline: int
    units: str
    checksum: int | None
    name: str


@dataclass(frozen=True)
class Header:
    """A header that keeps to the grammar.

    Attributes:
        path: Where it was read.
        fs: Sampling rate, Hz; None when it does not say.
        length: Samples of each signal.
        signals: One per signal line, in order.
        comments: Lines after `#`, without it.
    """

    path: Path
    fs: float | None
    length: int
    signals: tuple[Signal, ...]
    comments: tuple[str, ...]


def is_wfdb(path: Path, head: bytes) -> bool:
    """Whether the path is a header, a sample file beside its header, or the name that the files of a record share."""
    named = path.suffix.lower() in (".hea", ".dat", ".mat")
    return named or (not is_csv(path, head) and _header_of(path, head).is_file())


def _header_of(path: Path, head: bytes) -> Path:
    text = [line.decode("utf-8", "replace") for line in head.splitlines()]
    lines = [line.strip() for line in text if line.strip() and not line.startswith("#")]
    if path.suffix.lower() == ".hea" or (lines and _RECORD.fullmatch(lines[0])):
        return path
    whole = path.with_name(path.name + ".hea")
    # A name that is no file may have a dot of its own: cutting it there would read some other record.
    cut = path.suffix.lower() in (".dat", ".mat") or bool(head)
    return path.with_suffix(".hea") if cut and not whole.is_file() else whole


def read_header(path: Path) -> Header:
    """Read and check a header, but none of its sample files.

    Raises:
        ValueError: It is missing, too large, or breaks the grammar. Names the file, the line and the field.
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
        line = raw.decode("utf-8", "replace")
        if line.startswith("#"):
            comments.append(line.lstrip("# \t").rstrip())
        elif line.strip():
            lines.append((number, line.strip()))
    record = _RECORD.fullmatch(lines[0][1]) if lines else None
    if record is None:
        raise ValueError(
            f"{path}: record line: expected 'name signals rate samples', got {lines[0][1][:80] if lines else ''!r}"
        )
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
        # What follows a slash is the rate of a counter, of no use here.
        fs = sampling_rate(_number(record["fs"].partition("/")[0], f"{path}: sampling rate"), str(path))
    length = _integer(record["length"] or "", f"{path}: number of samples")
    if length < 1:
        raise ValueError(f"{path}: number of samples: {length}: the record line must say how long the record is")
    signals = tuple(_signal(line, f"{path}: line {number}") for number, line in lines[1:])
    return Header(path, fs, length, signals, tuple(line for line in comments if line))


def _signal(line: str, where: str) -> Signal:
    # file format gain(baseline)/units resolution zero first checksum block name
    fields = line.split(maxsplit=8)
    if len(fields) < 2:
        raise ValueError(f"{where}: expected 'file format gain ... lead', got {line[:80]!r}")
    if not _FILE.fullmatch(fields[0]):
        raise ValueError(f"{where}: file name {fields[0][:80]!r}: expected the plain name of a file in the same folder")
    form = _FORMAT.fullmatch(fields[1])
    if form is None or form["code"] not in _FORMATS:
        raise ValueError(f"{where}: format {fields[1][:80]!r}: expected one of {', '.join(_FORMATS)}")
    if int(form["per_frame"] or 1) != 1 or int(form["skew"] or 0) != 0:
        raise ValueError(
            f"{where}: format {fields[1]!r}: several samples per frame and skew are not read: resample first"
        )
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


def read_wfdb(path: Path, *, fs: float | None, units: str | None, leads: Sequence[str] | None, nan: Nan) -> Ecg:
    """Read the record of a header, of one of its sample files, or of a name without suffix.

    Raises:
        ValueError: Header, sample files and the caller's words do not agree, or cannot be an ECG. Names file and field.
    """
    header = read_header(_header_of(path, first_bytes(path)))
    if path.is_file() and path != header.path and path.name not in (line.file for line in header.signals):
        raise ValueError(f"{path}: the header {header.path.name} beside it does not name this file")
    where = str(header.path)
    if header.fs is None and fs is None:
        raise ValueError(f"{where}: sampling rate: the header does not say: pass fs=...")
    agree("sampling rate", fs if header.fs else None, header.fs, where)
    names = tuple(signal.name for signal in header.signals)
    if not any(names) and leads is not None and len(leads) == len(names):
        names = tuple(leads)
    rows, known, others = known_leads(names, where)
    if leads is not None:
        agree("leads", known_leads(tuple(leads), where)[1], known, where)
    scales = np.array([_scale(header.signals[row], name, units, where) for row, name in zip(rows, known)])

    stored = _samples(header)[rows]
    lines = [header.signals[row] for row in rows]
    baseline = np.array([[signal.baseline] for signal in lines])
    signal_mv = (stored - baseline) / scales[:, None]
    for row, line in enumerate(lines):
        missing = _FORMATS[line.code][1]
        if missing is not None:
            signal_mv[row, stored[row] == missing] = np.nan
    rate = sampling_rate(header.fs or fs or 0.0, where)
    meta = _meta(header.comments)
    return to_ecg(signal_mv, rate, known, header.path, record_id=header.path.stem, nan=nan, meta=meta, others=others)


def _scale(signal: Signal, lead: str, units: str | None, where: str) -> float:
    """Stored units per millivolt of a lead."""
    unit = millivolts(signal.units, f"{where}: lead {lead}")
    if units is not None and millivolts(units, f"{where}: units=") != unit:
        agree("units", units, signal.units, f"{where}: lead {lead}")
    if not _GAIN[0] <= signal.gain / unit <= _GAIN[1]:
        raise ValueError(
            f"{where}: lead {lead}: gain {signal.gain:g}/{signal.units} is absent or absurd: "
            f"expected {_GAIN[0]:g} to {_GAIN[1]:g} stored units per mV; correct the header"
        )
    return signal.gain / unit


def _samples(header: Header) -> NDArray[np.int64]:
    """Stored samples `[signals, samples]`, after the files were found to be as the header says."""
    groups = [(name, list(lines)) for name, lines in groupby(header.signals, key=lambda signal: signal.file)]
    if len({name for name, _ in groups}) != len(groups):
        raise ValueError(f"{header.path}: file name: the signals of a file must follow each other")
    for name, lines in groups:
        file, first = header.path.parent / name, lines[0]
        if any((line.code, line.offset) != (first.code, first.offset) for line in lines):
            raise ValueError(f"{header.path}: format: the signals in {name} differ in format or offset")
        if not file.is_file():
            raise ValueError(f"{file}: missing: the header {header.path.name} names it")
        width = _FORMATS[first.code][0]
        need = first.offset + math.ceil(header.length * len(lines) * width)
        spare = 0 if float(width).is_integer() else 3  # packed formats may end in a whole word
        if not need <= file.stat().st_size <= need + spare:
            raise ValueError(
                f"{file}: {file.stat().st_size} bytes, but {header.path.name} promises {need} ({header.length} samples "
                f"of {len(lines)} signals): the file is cut off or the header belongs to another one"
            )
    if all(line.code == "16" for line in header.signals):
        shape = {name: (header.length, len(lines)) for name, lines in groups}
        parts = [
            np.fromfile(header.path.parent / name, "<i2", offset=lines[0].offset).reshape(shape[name]).T
            for name, lines in groups
        ]
        stored = np.concatenate(parts).astype(np.int64)
    else:
        import wfdb  # the package; slow to import and seldom needed

        try:
            # Resolved, so that the name cannot be taken for an address (`s3://...`), which wfdb would open.
            record = wfdb.rdrecord(str(header.path.resolve().with_suffix("")), physical=False)
        except Exception as error:  # the package raises whatever its parsing runs into
            raise ValueError(f"{header.path}: the wfdb package cannot read its samples: {error!r}") from error
        stored = np.asarray(record.d_signal, dtype=np.int64).T
    if stored.shape != (len(header.signals), header.length):
        raise ValueError(f"{header.path}: {stored.shape} samples were read, the header promises another number")
    for row, line in enumerate(header.signals):
        # A wrong sum is an error: it alone tells damaged samples or a foreign sample file of the right size, and it is
        # right in all 74 real records at hand (six corpora). 0 is what converters write that never sum.
        if line.checksum and (line.checksum - int(stored[row].sum())) % 65536:
            raise ValueError(
                f"{header.path.parent / line.file}: checksum of signal {line.name}: {header.path.name} promises "
                f"{line.checksum}, the samples give {int(stored[row].sum()) % 65536}: the file is damaged or another's"
            )
    return stored


def _meta(comments: tuple[str, ...]) -> dict[str, Any]:
    """Age, sex and diagnosis codes, where comments like `Age: 56` and `Dx: 426783006,270492004` give them."""
    meta: dict[str, Any] = {"comments": comments}
    for comment in comments:
        key, _, value = (part.strip() for part in comment.partition(":"))
        if key.lower() == "age" and re.fullmatch(r"\d+(\.\d+)?", value):
            meta["age"] = float(value)
        elif key.lower() == "sex" and value.lower() in ("female", "male", "f", "m"):
            meta["sex"] = "female" if value.lower().startswith("f") else "male"
        elif key.lower() == "dx":
            codes = [code.strip() for code in value.split(",")]
            meta["dx"] = tuple(dict.fromkeys(code for code in codes if code and code.lower() != "unknown"))
    return meta


def write_wfdb(ecg: Ecg, folder: Path | str, comments: Sequence[str] = ()) -> Path:
    """Write a recording as a WFDB record: format 16, mV, exact to 1 µV or better.

    Nothing about the patient is written but the record's name, the waveform and its diagnosis codes (`meta["dx"]`):
    no patient id, age, sex or free comment.

    Args:
        ecg: The recording. `record_id` names the files.
        folder: Where to write; made when absent.
        comments: Further lines for the header.

    Returns:
        The header's path; `read_ecg` takes it. A header never stands there without its samples.

    Raises:
        ValueError: The record has no usable name, or samples that are not finite or beyond 32 mV.
    """
    if not re.fullmatch(r"\w[\w-]*", ecg.record_id, re.ASCII):
        raise ValueError(f"record_id {ecg.record_id!r} cannot name a WFDB record: use letters, digits, '_' and '-'")
    peak = float(np.abs(ecg.signal).max())
    gain = next((gain for gain in _WRITTEN_GAINS if peak * gain <= 32767), None)
    if gain is None:
        raise ValueError(
            f"record {ecg.record_id!r}: a peak of {peak:g} mV does not fit 16 bits of 1 uV: "
            "repair missing samples, remove the offset, or check the units"
        )
    stored = np.rint(ecg.signal.astype(np.float64) * gain).astype("<i2")
    lines = [f"{ecg.record_id} {len(ecg.leads)} {ecg.fs:.10g} {stored.shape[1]}"]
    for lead, row in zip(ecg.leads, stored):
        checksum = int(row.sum(dtype=np.int64)) % 65536
        lines.append(f"{ecg.record_id}.dat 16 {gain}/mV 16 0 {row[0]} {checksum} 0 {lead}")
    notes = [f"Dx: {','.join(ecg.meta['dx'])}"] if "dx" in ecg.meta else []
    lines += [f"#{' '.join(note.split())}" for note in (*notes, *comments)]
    header = Path(folder) / f"{ecg.record_id}.hea"
    with written_whole(header.with_suffix(".dat")) as file:
        file.write(stored.T.tobytes())
    with written_whole(header, "w") as file:
        file.write("\n".join(lines) + "\n")
    return header


class WfdbFolder:
    """A folder of WFDB records as an `EcgSource`: `source["sub/record"]` reads `root/sub/record`."""

    def __init__(self, root: Path | str) -> None:
        self.root = Path(root)

    def __getitem__(self, record_id: str) -> Ecg:
        """The recording of that id; `KeyError` when there is none, `ValueError` when it cannot be read."""
        name = Path(f"{record_id}.hea")
        header = self.root / name
        if ".." in name.parts or name.is_absolute() or not header.is_file():
            raise KeyError(f"no record {record_id!r} in {self.root}")
        return replace(read_wfdb(header, fs=None, units=None, leads=None, nan="raise"), record_id=record_id)
