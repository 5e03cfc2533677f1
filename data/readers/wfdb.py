"""Reads and writes WFDB records: a header `.hea` beside sample files (`.dat`, or the PhysioNet challenge's `.mat`).

The header is checked against its sample files *before* any sample is read: the `wfdb` package takes a gain of 0, a
sampling rate of -500 and a length of 9e12 in silence. Samples of format 16, which all 12-lead corpora use, are read by
this module; the `wfdb` package reads the other formats.
"""

import re
from collections.abc import Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data.ecg import Ecg, split_unit
from data.readers.arrays import is_csv
from data.readers.common import Stated, agree, first_bytes, known_leads, to_ecg
from data.readers.wfdb_header import FORMATS, RECORD_LINE, Header, Signal, read_header, sample_bytes
from data.support.files import written_whole
from data.units import millivolts, sampling_rate

_GAIN = (1.0, 1e9)  # stored units per mV: coarser than 1 mV shows no ECG, finer than 1e9 overflows every format
_WRITTEN_GAINS = (8000, 4000, 2000, 1000)  # multiples of the corpora's 200, 500 and 1000: their samples survive exactly


def is_wfdb(path: Path, head: bytes) -> bool:
    """Whether the path is a header, a sample file beside its header, or the name that the files of a record share."""
    named = path.suffix.lower() in (".hea", ".dat", ".mat")
    return named or (not is_csv(path, head) and _header_of(path, head).is_file())


def _header_of(path: Path, head: bytes) -> Path:
    text = [line.decode("utf-8", "replace") for line in head.splitlines()]
    lines = [line.strip() for line in text if line.strip() and not line.startswith("#")]
    if path.suffix.lower() == ".hea" or (lines and RECORD_LINE.fullmatch(lines[0])):
        return as_on_disk(path)
    whole = as_on_disk(path.with_name(path.name + ".hea"))
    # A name that is no file may have a dot of its own: cutting it there would read some other record.
    cut = path.suffix.lower() in (".dat", ".mat") or bool(head)
    return as_on_disk(path.with_suffix(".hea")) if cut and not whole.is_file() else whole


def as_on_disk(path: Path) -> Path:
    """The file itself or, where it is not there, the one of its folder that has this name in other capitals."""
    if path.is_file() or not path.parent.is_dir():
        return path
    twins = [file for file in path.parent.iterdir() if file.name.casefold() == path.name.casefold() and file.is_file()]
    return twins[0] if len(twins) == 1 else path


def read_wfdb(path: Path, stated: Stated) -> Ecg:
    """Read the record of a header, of one of its sample files, or of a name without suffix.

    Raises:
        ValueError: Header, sample files and the caller's words do not agree, or cannot be an ECG. Names file and field.
    """
    header = read_header(_header_of(path, first_bytes(path)))
    named = {as_on_disk(header.path.parent / line.file).name for line in header.signals}
    if path.is_file() and path != header.path and path.name not in named:
        raise ValueError(f"{path}: the header {header.path.name} beside it does not name this file")
    where = str(header.path)
    if header.fs is None and stated.fs is None:
        raise ValueError(f"{where}: sampling rate: the header does not say: pass fs=...")
    agree("sampling rate", stated.fs if header.fs else None, header.fs, where)
    leads = known_leads([signal.name for signal in header.signals], where, stated.leads)
    lines = [header.signals[row] for row in leads.rows]
    scales = np.array([_scale(line, name, stated.units, where) for line, name in zip(lines, leads.names)])

    stored = _samples(header)[leads.rows]
    signal_mv = (stored - np.array([[line.baseline] for line in lines])) / scales[:, None]
    for row, line in enumerate(lines):
        if (missing := FORMATS[line.code][1]) is not None:
            signal_mv[row, stored[row] == missing] = np.nan
    rate = sampling_rate(header.fs or stated.fs or 0.0, where)
    return to_ecg(signal_mv, rate, leads, header.path, stated.nan, _meta(header.comments))


def _scale(signal: Signal, lead: str, units: str | None, where: str) -> float:
    """Stored units per millivolt of a lead."""
    unit = millivolts(signal.units, f"{where}: lead {lead}")
    named = split_unit(signal.name)[1]
    if named is not None and millivolts(named, f"{where}: lead {lead}") != unit:
        raise ValueError(f"{where}: lead {lead} is named {signal.name!r}, its gain is per {signal.units}: correct one")
    if units is not None and millivolts(units, f"{where}: units=") != unit:
        agree("units", units, signal.units, f"{where}: lead {lead}")
    if not _GAIN[0] <= signal.gain / unit <= _GAIN[1]:
        raise ValueError(
            f"{where}: lead {lead}: gain {signal.gain:g}/{signal.units} is absent or absurd: "
            f"expected {_GAIN[0]:g} to {_GAIN[1]:g} stored units per mV; correct the header"
        )
    return signal.gain / unit


def sample_files(header: Header) -> list[tuple[str, list[Signal]]]:
    """The sample files of a record, each with its signals. No sample is read.

    Raises:
        ValueError: One is missing or is not of the size that the header promises.
    """
    groups = [(name, list(lines)) for name, lines in groupby(header.signals, key=lambda signal: signal.file)]
    if len({name for name, _ in groups}) != len(groups):
        raise ValueError(f"{header.path}: file name: the signals of a file must follow each other")
    for name, lines in groups:
        file, first = as_on_disk(header.path.parent / name), lines[0]
        if any((line.code, line.offset) != (first.code, first.offset) for line in lines):
            raise ValueError(f"{header.path}: format: the signals in {name} differ in format or offset")
        if not file.is_file():
            raise ValueError(
                f"{file}: missing: the header {header.path.name} names it, and the two belong in one folder"
            )
        need, most = sample_bytes(lines, header.length)
        if not need <= file.stat().st_size <= most:
            raise ValueError(
                f"{file}: {file.stat().st_size} bytes, but {header.path.name} promises {need} ({header.length} samples "
                f"of {len(lines)} signals): the file is cut off or the header belongs to another one"
            )
    return groups


def _samples(header: Header) -> NDArray[np.int64]:
    """Stored samples `[signals, samples]`, once the files are known to be as the header says."""
    groups = sample_files(header)
    if all(line.code == "16" for line in header.signals):
        files = [(as_on_disk(header.path.parent / name), lines[0].offset) for name, lines in groups]
        flat = [np.fromfile(file, "<i2", offset=offset) for file, offset in files]
        stored = np.concatenate([samples.reshape(header.length, -1).T for samples in flat]).astype(np.int64)
    else:
        import wfdb  # the package; slow to import and seldom needed

        try:
            # Absolute, so that the name cannot be taken for an address (`s3://...`), which wfdb would open. Links stay:
            # in a store of files each has another folder and name.
            record = wfdb.rdrecord(str(header.path.absolute().with_suffix("")), physical=False)
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


def _meta(comments: tuple[str, ...]) -> dict[str, object]:
    """Age, sex and diagnosis codes, where comments like `Age: 56` and `Dx: 426783006,270492004` give them."""
    meta: dict[str, object] = {"comments": comments}
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
    """Write a recording as a WFDB record: format 16, mV, exact to 1 µV or better; files are named by `record_id`.

    Nothing about the patient is written but the record's name, the waveform, its diagnosis codes (`meta["dx"]`) and the
    `comments` for the header: no patient id, age, sex or free comment. A missing folder is made.

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
    """A folder of WFDB records as an `EcgSource`: `source["sub/record"]` reads `root/sub/record`.

    Missing samples are treated as in the corpora: short gaps are bridged, leads that are mostly missing left out.
    """

    def __init__(self, root: Path | str) -> None:
        self.root = Path(root).expanduser()

    def file_of(self, record_id: str) -> Path:
        """The header of a record; `KeyError` when there is none."""
        name = Path(f"{record_id}.hea")
        header = self.root / name
        if ".." in name.parts or name.is_absolute() or not header.is_file():
            raise KeyError(f"no record {record_id!r} in {self.root}")
        return header

    def __getitem__(self, record_id: str) -> Ecg:
        """The recording of that id; `KeyError` when there is none, `ValueError` when it cannot be read."""
        return replace(read_wfdb(self.file_of(record_id), Stated(nan="interpolate")), record_id=record_id)
