"""Reads an ECG that a stranger uploaded: for a chat page, an API, and whatever else serves people nobody knows.

`read_ecg` trusts that a path was chosen by its user. Here nothing is trusted: neither paths nor names, sizes, headers
or samples. The bytes of at most two regular files are taken (no link, pipe or device), their kind is decided by what
they hold, and what they say of themselves is held against a `Budget` and against their length before any sample is
read. They are then written to a fresh folder that only this user may enter, under names of ours; of a WFDB header
only the numbers are written, never its comments, which often name the patient. A child process with limits on memory,
time and written bytes reads them there and hands the recording back in the format of `data.wire`. The folder is
deleted whatever happens.

A process cannot give up its network without privileges: run servers where there is none to misuse. Reading costs about
one second and 100 MB, nearly all of it to start the child, so servers bound how many uploads are read at a time. The
limits are Linux's.
"""

from __future__ import annotations

import json
import logging
import math
import os
import re
import signal
import stat
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Timer
from typing import Any

import numpy as np

from data.ecg import Ecg, canonical_lead
from data.readers import read_ecg
from data.readers.arrays import is_csv, is_npy
from data.readers.common import millivolts
from data.readers.wfdb import _FORMATS, Header, Signal, read_header
from data.wire import from_wire, to_wire

logger = logging.getLogger(__name__)

# Format 8 stores differences from a sample in the header, and the header that the child reads is made anew.
_ALLOWED = {code: width for code, (width, _) in _FORMATS.items() if code != "8"}
_SAMPLE_FILE = re.compile(r"[A-Za-z0-9_-]{1,64}\.(dat|mat)", re.ASCII)
_LOOKS_LIKE_HEADER = re.compile(rb"([ \t\r]*(#[^\n]*)?\n)*[\w.-]+(/\d+)?[ \t]+\d+\s")
# As every known writer of `.npy` puts it. NumPy itself would evaluate the text as Python.
_NPY_HEADER = re.compile(
    r"\{\s*'descr':\s*'(?P<type>[^']{1,64})',\s*'fortran_order':\s*(True|False),\s*"
    r"'shape':\s*\((?P<shape>\d{1,9}(,\s*\d{1,9})?),?\s*\),?\s*\}\s*"
)
_NPY_NUMBER = re.compile(r"[<>|=]?[fiu][1248]")
_ARCHIVES = (b"PK\x03\x04", b"\x1f\x8b", b"7z\xbc\xaf", b"Rar!")  # zip (and .npz), gzip, 7z, RAR
_NOT_TEXT = re.compile(rb"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
_READ, _REFUSED = b"+", b"-"  # first byte of what the child says


@dataclass(frozen=True)
class Budget:
    """What an upload may be, and what reading it may take.

    Attributes:
        files: Most files.
        file_bytes: Most bytes of all files together.
        header_bytes: Most bytes of a WFDB header.
        header_lines: Most lines of a WFDB header that are no comments.
        signals: Most signals of a WFDB record.
        fs: Lowest and highest sampling rate, Hz.
        seconds: Shortest and longest recording, s.
        gain: Lowest and highest gain, stored units per mV.
        peak: Highest absolute value of a sample, mV. Microvolts that a file calls millivolts exceed it wherever the
            ECG exceeds 0.02 mV; values that are too *small* cannot be told from an ECG of low voltage.
        memory: Bytes the child may claim beyond what the interpreter and the packages hold when it begins to read
            (RLIMIT_AS counts addresses, not pages: about 250 MB of them, and 580 MB with the `wfdb` package, are
            claimed before).
        cpu_seconds: Processor time the child may take to read, s, apart from its start.
        wall_seconds: Time the child may take in all, s.
    """

    files: int = 2
    file_bytes: int = 5_000_000
    header_bytes: int = 1 << 16
    header_lines: int = 32
    signals: int = 16
    fs: tuple[float, float] = (50.0, 2000.0)
    seconds: tuple[float, float] = (1.0, 600.0)
    gain: tuple[float, float] = (1.0, 1e6)
    peak: float = 20.0
    memory: int = 1 << 30
    cpu_seconds: int = 5
    wall_seconds: float = 30.0


class UploadError(ValueError):
    """Why an upload is not read, in words that may be shown to whoever sent it.

    Whatever it is made from, the message has no markup, no control characters and no other letters than English ones,
    and it is short; it names no path of the server.
    """

    def __init__(self, message: str) -> None:
        plain = message.translate({ord("["): "(", ord("]"): ")", ord('"'): "'", ord("µ"): "u", ord("μ"): "u"})
        plain = re.sub(r"[^A-Za-z0-9 .,:;()+\-=/_'%]", "?", plain)
        super().__init__(plain if len(plain) <= 300 else f"{plain[:297]}...")


def read_upload(
    paths: Sequence[Path | str],
    *,
    fs: float | None = None,
    units: str | None = None,
    leads: Sequence[str] | None = None,
    names: Sequence[str] | None = None,
    budget: Budget | None = None,
) -> Ecg:
    """Read the recording in files that a stranger uploaded and the server saved.

    Args:
        paths: A `.npy`, a `.csv`, or a WFDB header and its one sample file in any order. The folders they lie in are
            the server's: only the last component of a path may not be a link.
        fs: Sampling rate, Hz. `.npy` and `.csv` need it; a WFDB header must agree with it. So are the next two.
        units: Units of the samples: V, mV, uV or nV, in any case.
        leads: Names of the leads, in order; a `.csv` may name them in its first row instead.
        names: What the sender called the files, where the server saved them under other names. A WFDB header refers to
            its sample file by this name; nothing is opened by it.
        budget: Limits other than the usual ones.

    Returns:
        The recording, called `upload`, with nothing but its signal: no comments, no names. Signals that are not ECG
        leads are left out.

    Raises:
        UploadError: The files are not a recording that can be read, or too much of one.
    """
    if names is None:
        names = [Path(path).name for path in paths]
    if len(names) != len(paths):
        raise UploadError(f"names: {len(names)} names were given for {len(paths)} files: give one each")
    budget = budget or Budget()
    _require_number_of_files(len(paths), budget)
    files: list[tuple[str, bytes]] = []
    for number, (path, name) in enumerate(zip(paths, names), start=1):
        files.append((name, _contents(path, f"file {number}", budget)))
    return read_uploaded(files, fs=fs, units=units, leads=leads, budget=budget)


def read_uploaded(
    files: Sequence[tuple[str, bytes]],
    *,
    fs: float | None = None,
    units: str | None = None,
    leads: Sequence[str] | None = None,
    budget: Budget | None = None,
) -> Ecg:
    """Read the recording in files that a stranger uploaded and that are in memory: (name, content) of each.

    As `read_upload` in all else.

    Raises:
        UploadError: The files are not a recording that can be read, or too much of one.
    """
    budget = budget or Budget()
    _require_number_of_files(len(files), budget)
    size = sum(len(content) for _, content in files)
    if size > budget.file_bytes:
        raise UploadError(_too_long(budget))
    if empty := [str(number) for number, (_, content) in enumerate(files, start=1) if not content]:
        raise UploadError(f"file {' and '.join(empty)}: empty: upload it again")
    words = _words(fs, units, leads, budget)
    with TemporaryDirectory(prefix="ecg-upload-") as name:  # made for this user alone (mode 0700)
        folder = Path(name).resolve()
        try:
            file, package = _stage(files, words, folder, budget)
            ecg = _read_in_child(file, package, words, folder, size, budget)
        except UploadError:
            raise
        except ValueError as error:  # of a reader: names its path, and quotes the file
            raise UploadError(_to_sender(str(error), folder)) from None
    _require_plausible(ecg, budget)
    return replace(ecg, record_id="upload")


# --- before anything is believed --------------------------------------------------------------------------------------


def _require_number_of_files(count: int, budget: Budget) -> None:
    if not 1 <= count <= budget.files:
        raise UploadError(
            f"files: {count} were sent, 1 to {budget.files} are read: upload one .npy or .csv file, or a WFDB header "
            "(.hea) and its sample file"
        )


def _too_long(budget: Budget) -> str:
    return f"files: more than {budget.file_bytes} bytes: upload a shorter recording"


def _contents(path: Path | str, which: str, budget: Budget) -> bytes:
    """The bytes of a regular file, and one more than the budget at most."""
    # A link, a folder, nothing there, no permission, a name with a zero byte.
    with suppress(OSError, ValueError), open(path, "rb", opener=_opener) as file:
        if stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            return file.read(budget.file_bytes + 1)
    raise UploadError(f"{which}: not a regular file that can be opened: upload the file itself")


def _opener(path: str, flags: int) -> int:
    # O_NONBLOCK: opening a pipe would otherwise wait for somebody to write into it.
    return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY)


def _words(
    fs: float | None, units: str | None, leads: Sequence[str] | None, budget: Budget
) -> dict[str, float | str | list[str] | None]:
    """What the caller says of the recording, which may be what a stranger typed into a form."""
    if fs is not None:
        if isinstance(fs, bool) or not isinstance(fs, (int, float)) or not budget.fs[0] <= fs <= budget.fs[1]:
            raise UploadError(f"sampling rate (fs): {_expected_rate(budget)}")
        fs = float(fs)
    if leads is not None:
        if isinstance(leads, str) or not 1 <= len(leads) <= budget.signals:
            raise UploadError(f"leads: expected a list of 1 to {budget.signals} names")
        try:
            leads = [canonical_lead(lead[:32]) for lead in leads]
        except (ValueError, AttributeError, TypeError) as error:
            raise UploadError(f"leads: {error}") from None
    if units is not None:
        try:
            millivolts(units, "units")
        except (ValueError, AttributeError) as error:
            raise UploadError(str(error)) from None
    return {"fs": fs, "units": units, "leads": leads}


def _expected_rate(budget: Budget) -> str:
    return f"expected a number from {budget.fs[0]:g} to {budget.fs[1]:g} Hz"


def _to_sender(message: str, folder: Path) -> str:
    """What a reader says to its caller, said to somebody who sees no paths and has no such arguments."""
    message = message.replace(f"{folder}{os.sep}", "").replace(str(folder), "")
    before, missing, _ = message.partition(": pass nan=")
    return f"{before}: fill them, or leave these leads out" if missing else message


# --- what it is, and whether it can be --------------------------------------------------------------------------------


def _stage(files: Sequence[tuple[str, bytes]], words: dict[str, Any], folder: Path, budget: Budget) -> tuple[str, bool]:
    """Check the files and write them into the folder under names of ours.

    Returns:
        Name of the file to read, and whether its format needs the `wfdb` package.
    """
    kinds = [_kind(name, content) for name, content in files]
    if len(files) > 1:
        if kinds.count("header") != 1:
            raise UploadError(
                "files: several are read only where one is a WFDB header (.hea) and the other the sample file it names"
            )
        header = kinds.index("header")
        return _stage_wfdb(files[header][1], *files[1 - header], folder, budget)
    kind, content = kinds[0], files[0][1]
    if content.startswith(_ARCHIVES):
        raise UploadError("file 1: archives are not opened: upload the files in it")
    if kind in ("header", "samples"):
        raise UploadError("files: a WFDB record is a header (.hea) and its sample file (.dat or .mat): upload both")
    if kind == "npy":
        _require_npy(content)
    elif kind == "csv":
        _require_text(content)
    else:
        raise UploadError(
            "file 1: not a known format: upload a NumPy array (.npy), a table (.csv) with commas, or a WFDB header "
            "(.hea) and its sample file"
        )
    # A table may name its leads itself, which the child will see.
    needed = {"fs": "sampling rate (fs)", "units": "units", "leads": "names of the leads (leads)"}
    if kind == "csv":
        del needed["leads"]
    if unsaid := [what for word, what in needed.items() if words[word] is None]:
        raise UploadError(f"{', '.join(unsaid)}: not in a .{kind} file, which holds bare numbers: give them with it")
    file = "array.npy" if kind == "npy" else "table.csv"
    (folder / file).write_bytes(content)
    return file, False


def _kind(name: str, content: bytes) -> str:
    """What a file is by its content; by its name only where the content could be several things."""
    head, path = content[:4096], Path(name.replace("\0", "")[-128:])
    if is_npy(Path("unnamed"), head):
        return "npy"
    if path.suffix.lower() == ".hea":
        return "header"
    if path.suffix.lower() in (".dat", ".mat"):
        return "samples"
    if is_csv(path, head):
        return "csv"
    return "header" if _LOOKS_LIKE_HEADER.match(head) else "unknown"


def _require_npy(content: bytes) -> None:
    """Refuse an array of other things than numbers, and one whose length is not what its header promises."""
    version, width = content[6:7], 2 if content[6:7] == b"\1" else 4
    length = int.from_bytes(content[8 : 8 + width], "little")
    start = 8 + width + length
    text = content[8 + width : start].decode("latin-1")
    header = _NPY_HEADER.fullmatch(text) if length <= 4096 else None
    if version not in (b"\1", b"\2", b"\3") or header is None:
        raise UploadError("array.npy: header: not that of an array of numbers with one or two axes: save it again")
    if not _NPY_NUMBER.fullmatch(header["type"]):
        raise UploadError(f"array.npy: values are of type {header['type']}: save real numbers (float32, int16, ...)")
    shape = [int(size) for size in header["shape"].split(",")]
    need = start + math.prod(shape) * int(header["type"][-1])
    if need != len(content):
        raise UploadError(
            f"array.npy: {len(content)} bytes, its header promises {need}: the file is cut off or more than an array"
        )


def _require_text(content: bytes) -> None:
    try:
        content.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise UploadError("table.csv: not text in UTF-8: save the table as CSV (UTF-8)") from None
    if _NOT_TEXT.search(content):
        raise UploadError("table.csv: holds control characters: save the table as CSV (UTF-8)")


def _stage_wfdb(header: bytes, name: str, samples: bytes, folder: Path, budget: Budget) -> tuple[str, bool]:
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
        raise UploadError(f"header: sampling rate: {_expected_rate(budget)}: resample the recording")
    _require_duration(header.length / header.fs, budget)
    for number, line in enumerate(header.signals, start=1):
        if line.code not in _ALLOWED:
            raise UploadError(f"header: signal {number}: format {line.code}: save the record in format 16")
        if abs(line.baseline) > 1 << 31:
            raise UploadError(f"header: signal {number}: baseline: beyond what a sample can store: correct it")
        if _lead(line) is not None and not budget.gain[0] <= _per_millivolt(line, number) <= budget.gain[1]:
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
    width = _ALLOWED[first.code]
    need = first.offset + math.ceil(header.length * len(header.signals) * width)
    spare = 0 if float(width).is_integer() else 3  # packed formats may end in a whole word
    if not need <= size <= need + spare:
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


def _per_millivolt(line: Signal, number: int) -> float:
    return line.gain / millivolts(line.units, f"header: signal {number}")


def _rewritten(header: Header) -> str:
    """The header, made anew of its numbers: no comment and no word of the sender is read after this."""
    rewritten = [f"header {len(header.signals)} {header.fs!r} {header.length}"]
    for number, line in enumerate(header.signals, start=1):
        lead = _lead(line)
        name, gain = (f"signal{number}", "1.0(0)/mV") if lead is None else (lead, _gain(line))
        checksum = line.checksum or 0  # 0: not known
        rewritten.append(f"samples.dat {line.code}+{line.offset} {gain} 0 0 0 {checksum} 0 {name}")
    return "\n".join(rewritten) + "\n"


def _gain(line: Signal) -> str:
    return f"{line.gain!r}({line.baseline})/{line.units}"  # units that `millivolts` knew


def _require_duration(seconds: float, budget: Budget) -> None:
    if not budget.seconds[0] <= seconds <= budget.seconds[1]:
        raise UploadError(
            f"duration: {seconds:g} s, {budget.seconds[0]:g} to {budget.seconds[1]:g} s are read: cut the recording"
        )


def _require_plausible(ecg: Ecg, budget: Budget) -> None:
    """Refuse a recording that cannot be an ECG. That its samples are finite and its leads known, `from_wire` saw to."""
    if not budget.fs[0] <= ecg.fs <= budget.fs[1]:
        raise UploadError(f"sampling rate: {_expected_rate(budget)}")
    _require_duration(ecg.duration, budget)
    peaks = np.abs(ecg.signal).max(axis=1)
    if peaks.max() > budget.peak:
        raise UploadError(
            f"lead {ecg.leads[int(peaks.argmax())]}: reaches {peaks.max():.4g} mV, an ECG stays below {budget.peak:g}: "
            "check units, gain, baseline and byte order, and remove an offset"
        )


# --- the child --------------------------------------------------------------------------------------------------------


def _read_in_child(file: str, package: bool, words: dict[str, Any], folder: Path, size: int, budget: Budget) -> Ecg:
    """Read a staged file in a process of its own.

    Raises:
        ValueError: The file is no recording, as `read_ecg` says it; or (`UploadError`) the child failed.
    """
    job = {"file": file, "package": package, "words": words, "memory": budget.memory, "cpu": budget.cpu_seconds}
    root = Path(__file__).resolve().parents[2]
    program = "import sys; sys.path.insert(0, sys.argv[1]); from data.readers.staging import _child; _child()"
    # Nothing of the server's environment, which may hold keys; without the library path some Pythons do not start.
    kept = {key: value for key, value in os.environ.items() if key == "LD_LIBRARY_PATH"}
    threads = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MPLBACKEND": "Agg"}
    process = subprocess.Popen(
        [sys.executable, "-I", "-c", program, str(root), json.dumps(job)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        cwd=folder,
        env={**kept, **threads, "HOME": str(folder), "LC_ALL": "C.UTF-8"},
        start_new_session=True,
    )
    assert process.stdout is not None

    def end() -> None:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)

    deadline = Timer(budget.wall_seconds, end)
    deadline.start()
    try:
        # At least a byte a sample in the file; four in the answer, and a third more in base64.
        answer = process.stdout.read(6 * size + (1 << 16))
    finally:
        deadline.cancel()
        deadline.join()
        end()
        process.stdout.close()
        status = process.wait()
    verdict, content = answer[:1], answer[1:]
    if status == 0 and verdict == _READ:
        return from_wire(content)
    if status == 0 and verdict == _REFUSED:
        raise ValueError(content.decode("utf-8", "replace"))
    logger.warning("the process that read an upload ended with status %d", status)
    raise UploadError("files: reading them took too much time or memory, or failed: upload a shorter recording")


def _child() -> None:
    """What the child process does: read one recording, and write it or the reason against it to standard output."""
    job = json.loads(sys.argv[2])
    if job["package"]:
        import wfdb  # noqa: F401  (takes addresses and time, which are not the recording's)
    _limit(job["memory"], job["cpu"])
    try:
        answer = _READ + to_wire(read_ecg(job["file"], **job["words"]))
    except ValueError as error:
        answer = _REFUSED + str(error).encode("utf-8", "replace")
    sys.stdout.buffer.write(answer)
    sys.stdout.flush()


def _limit(memory: int, cpu_seconds: int) -> None:
    """Limit this process from now on: its packages are loaded, and no byte of the upload was read yet."""
    import resource

    pages = int(Path("/proc/self/statm").read_text().split()[0])
    used = resource.getrusage(resource.RUSAGE_SELF)
    limits = {
        resource.RLIMIT_AS: pages * resource.getpagesize() + memory,
        resource.RLIMIT_CPU: math.ceil(used.ru_utime + used.ru_stime) + cpu_seconds,
        resource.RLIMIT_FSIZE: 0,
        resource.RLIMIT_CORE: 0,  # a core dump would hold the recording
    }
    for kind, most in limits.items():
        hard = resource.getrlimit(kind)[1]
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(kind, (most, most))
