"""Stages an uploaded WFDB record: checks its header, and writes one of ours with nothing but its numbers."""

import re
from pathlib import Path

from data.ecg import canonical_lead
from data.readers.budget import Budget, UploadError, expected_rate, require_duration
from data.readers.common import is_other
from data.readers.wfdb_header import FORMATS, Header, Signal, read_header, sample_bytes
from data.units import millivolts

# Format 8 stores differences from a sample in the header, and the header that the child reads is made anew.
_ALLOWED = FORMATS.keys() - {"8"}
_SAMPLE_FILE = re.compile(r"[A-Za-z0-9_-]{1,64}\.(dat|mat)", re.ASCII)


def stage_wfdb(header: bytes, name: str, samples: bytes, folder: Path, budget: Budget) -> tuple[str, bool]:
    """Check a header and its sample file and write them into the folder.

    Returns:
        Name of the header, and whether its format needs the `wfdb` package.
    """
    if len(header) > budget.header_bytes:
        raise UploadError(f"header: {len(header)} bytes, {budget.header_bytes} are read: remove comments")
    lines = [line for line in header.splitlines() if line.strip() and not line.startswith(b"#")]
    if len(lines) > budget.header_lines:
        raise UploadError(f"header: {len(lines)} lines, {budget.header_lines} are read: upload a record of one segment")
    path = folder / "header.hea"
    path.write_bytes(header)
    parsed = read_header(path)
    _require_bounded(parsed, budget)
    named = parsed.signals[0].file
    if any(signal.file != named for signal in parsed.signals):
        raise UploadError("header: file name: the samples lie in several files: join them in one")
    if not _SAMPLE_FILE.fullmatch(named):
        raise UploadError(
            "header: file name: expected letters, digits, _ and - (at most 64) and .dat or .mat: rename the sample file"
        )
    if name != named:
        raise UploadError(f"header: file name: it names {named}, which was not sent: upload the files of one record")
    _require_length(parsed, len(samples))
    path.write_text(_rewritten(parsed), encoding="utf-8")
    (folder / "samples.dat").write_bytes(samples)
    return path.name, parsed.signals[0].code != "16"


def _require_bounded(header: Header, budget: Budget) -> None:
    if len(header.signals) > budget.signals:
        raise UploadError(f"header: number of signals: {len(header.signals)}, {budget.signals} are read: remove some")
    if header.fs is None or not budget.fs[0] <= header.fs <= budget.fs[1]:
        raise UploadError(f"header: sampling rate: {expected_rate(budget)}: resample the recording")
    require_duration(header.length / header.fs, budget)
    for number, line in enumerate(header.signals, start=1):
        if line.code not in _ALLOWED:
            raise UploadError(f"header: signal {number}: format {line.code}: save the record in format 16")
        if abs(line.baseline) > 1 << 31:
            raise UploadError(f"header: signal {number}: baseline: beyond what a sample can store: correct it")
        if _lead(line) is None:
            continue
        scale = line.gain / millivolts(line.units, f"header: signal {number}")
        if not budget.gain[0] <= scale <= budget.gain[1]:
            raise UploadError(
                f"header: signal {number}: gain: expected {budget.gain[0]:g} to {budget.gain[1]:.0f} stored units per "
                "mV: correct the header"
            )


def _require_length(header: Header, size: int) -> None:
    """Refuse samples that are not as many bytes as the header says."""
    first = header.signals[0]
    if any((line.code, line.offset) != (first.code, first.offset) for line in header.signals):
        raise UploadError("header: format: the signals differ in format or offset: save the record in format 16")
    if first.offset >= size:
        raise UploadError(f"header: offset: {first.offset} bytes, the sample file has {size}: correct the header")
    need, most = sample_bytes(header.signals, header.length)
    if not need <= size <= most:
        raise UploadError(
            f"sample file: {size} bytes, but the header promises {need} ({header.length} samples of "
            f"{len(header.signals)} signals): the file is cut off or the header belongs to another one"
        )


def _lead(line: Signal) -> str | None:
    """Canonical name of a signal, empty where it has none (the caller may name it); None where it is not a lead."""
    try:
        return canonical_lead(line.name) if line.name else ""
    except ValueError:
        return None


def _rewritten(header: Header) -> str:
    """The header, made anew of its numbers: no comment and no word of the sender is read after this."""
    rewritten = [f"header {len(header.signals)} {header.fs!r} {header.length}"]
    for number, line in enumerate(header.signals, start=1):
        lead = _lead(line)
        # Units of a lead are some that `millivolts` knew.
        gain = "1.0(0)/mV" if lead is None else f"{line.gain!r}({line.baseline})/{line.units}"
        other = "other" if is_other(line.name) else "signal"  # evidently no lead, or perhaps one
        name = f"{other}{number}" if lead is None else lead
        checksum = line.checksum or 0  # 0: not known
        rewritten.append(f"samples.dat {line.code}+{line.offset} {gain} 0 0 0 {checksum} 0 {name}")
    return "\n".join(rewritten) + "\n"
