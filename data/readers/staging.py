"""Reads an ECG that a stranger uploaded: for a chat page, an API, and whatever else serves people nobody knows.

`read_ecg` trusts that a path was chosen by its user. Here nothing is trusted: neither paths nor names, sizes, headers
or samples. The bytes of a few regular files are taken (no link, pipe or device), their kind is decided by what they
hold, and what they say of themselves is held against a `Budget` and against their length before any sample is
read. They are then written to a fresh folder that only this user may enter, under names of ours; of a WFDB header
only the numbers are written, never its comments, which often name the patient. A child process with limits on memory,
time and written bytes reads them there and hands the recording back in the format of `data.wire`. The folder is
deleted whatever happens.

A process cannot give up its network without privileges: run servers where there is none to misuse. Reading costs about
one second and 100 MB, nearly all of it to start the child, so servers bound how many uploads are read at a time. The
limits are Linux's.
"""

import math
import os
import re
import stat
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from data.ecg import Ecg
from data.readers.arrays import is_csv, is_npy
from data.readers.budget import (
    Budget,
    UploadError,
    Words,
    WordsNeeded,
    checked_words,
    listed,
    require_count,
    require_plausible,
)
from data.readers.child import read_in_child
from data.readers.staged_wfdb import File, Staged, stage_wfdb
from data.readers.tables import decoded

_LOOKS_LIKE_HEADER = re.compile(rb"([ \t\r]*(#[^\n]*)?\n)*[\w.-]+(/\d+)?[ \t]+\d+\s")
# As every known writer of `.npy` puts it. NumPy itself would evaluate the text as Python.
_NPY_HEADER = re.compile(
    r"\{\s*'descr':\s*'(?P<type>[^']{1,64})',\s*'fortran_order':\s*(True|False),\s*"
    r"'shape':\s*\((?P<shape>\d{1,9}(,\s*\d{1,9})?),?\s*\),?\s*\}\s*"
)
_NPY_NUMBER = re.compile(r"[<>|=]?[fiu][1248]")
_ARCHIVES = (b"PK\x03\x04", b"\x1f\x8b", b"7z\xbc\xaf", b"Rar!")  # zip (and .npz), gzip, 7z, RAR
_NOT_TEXT = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")


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
        paths: A `.npy`, a `.csv`, or a WFDB header and its sample files in any order; hidden files and those that the
            header does not name are left out. The folders they lie in are the server's: only the last component of a
            path may not be a link.
        fs: As for `read_ecg`: `.npy` and `.csv` need it, a WFDB header must agree with it. So are the next two.
        units: V, mV, uV or nV, in any case.
        leads: Names in order; a `.csv` may name them in its first row instead, a header for each signal. `-` is a
            signal of a header that is none.
        names: What the sender called the files, where the server saved them under other names. A WFDB header refers to
            its sample file by this name; nothing is opened by it.
        budget: Limits other than the usual ones.

    Returns:
        The recording, called `upload`, with nothing but its signal: no comments, no names. Signals that are not ECG
        leads are left out, short gaps are bridged, and leads that are mostly missing left out: `meta` counts them
        (`other_signals`, `repaired_samples`, `absent_leads`, `derived_leads`), and the files that were not needed
        (`files_left_out`).

    Raises:
        WordsNeeded: They do not say all of it: `fs`, `units` or `leads` must.
        UploadError: The files are not a recording that can be read, too much of one, or nothing can be read in it.
    """
    if names is None:
        names = [Path(path).name for path in paths]
    if len(names) != len(paths):
        raise UploadError(f"names: {len(names)} names were given for {len(paths)} files: give one each")
    budget = budget or Budget()
    require_count(len(paths), budget)
    contents = [_contents(path, f"file {number}", budget) for number, path in enumerate(paths, start=1)]
    files = list(zip(names, contents))
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

    Arguments, result and refusals are those of `read_upload`.

    Raises:
        WordsNeeded: As `read_upload`. So is the next one.
        UploadError: The files are not a recording that can be read.
    """
    budget = budget or Budget()
    require_count(len(files), budget)
    sent, files = len(files), [file for file in files if not _is_hidden(file[0])]
    if not files:
        raise UploadError("files: only hidden ones were sent, which hold no ECG: upload the record itself")
    size = sum(len(content) for _, content in files)
    if size > budget.file_bytes:
        raise UploadError(f"files: more than {budget.file_bytes} bytes: upload a shorter recording")
    if empty := [str(number) for number, (_, content) in enumerate(files, start=1) if not content]:
        raise UploadError(f"file {' and '.join(empty)}: empty: upload it again")
    words = checked_words(fs, units, leads, budget)
    with TemporaryDirectory(prefix="ecg-upload-") as name:  # made for this user alone (mode 0700)
        folder = Path(name).resolve()
        try:
            staged, used = _stage(files, words, folder, budget)
            ecg = read_in_child(staged.file, staged.needs_wfdb, staged.words, folder, size, budget)
        except UploadError:
            raise
        except ValueError as error:  # of a reader: names its path, and quotes the file
            raise UploadError(_to_sender(str(error), folder)) from None
    require_plausible(ecg, budget)
    left_out = {"files_left_out": sent - used} if sent > used else {}
    return replace(ecg, record_id="upload", meta={**ecg.meta, **left_out})


def _is_hidden(name: str) -> bool:
    """Whether a file is what macOS and Windows put beside others."""
    last = re.split(r"[/\\]", name)[-1]
    return last.startswith(".") or last.lower() in ("thumbs.db", "desktop.ini")


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


# What readers say to a caller in Python or on a command line, and what it is for somebody who fills in a form.
_PLAIN = tuple(
    (re.compile(words), plain)
    for words, plain in (
        (r" ?\(commands: [^)]*\)", ""),
        (r"\bwith leads= name all", "name all"),
        (r"(--fs\b|\bfs=)(\.\.\.)?", "the sampling rate"),
        (r"(--units\b|\bunits=)(\.\.\.)?", "the units"),
        (r"(--leads\b|\bleads=)(\.\.\.|\[[^]]*\])?", "the names of the leads"),
        (r"\bpass (?=the )", "give "),
        (r"(the (?:sampling rate|units|names of the leads))(,? ?(\bor\b|/) ?\1)+", r"\1"),
        (r"\bthe caller says\b", "you say"),
    )
)


def _to_sender(message: str, folder: Path) -> str:
    """What a reader says to its caller, said to somebody who sees no paths and has a form in place of arguments."""
    message = message.replace(f"{folder}{os.sep}", "").replace(str(folder), "")
    for words, plain in _PLAIN:
        message = words.sub(plain, message)
    return message


def _stage(files: Sequence[File], words: Words, folder: Path, budget: Budget) -> tuple[Staged, int]:
    """Check the files and write those that are needed into the folder, under names of ours; also returns how many."""
    kinds = [_kind(name, content) for name, content in files]
    if "header" in kinds and len(files) > 1:
        names = [name for (name, _), kind in zip(files, kinds) if kind == "header"]
        if len(names) > 1:
            raise UploadError(f"files: {len(names)} WFDB headers ({listed(names)}): upload the files of one record")
        place = kinds.index("header")
        staged = stage_wfdb(files[place], [*files[:place], *files[place + 1 :]], words, folder, budget)
        return staged, len(list(folder.iterdir()))
    if len(files) > 1:
        raise UploadError(
            f"files: {listed([name for name, _ in files])}: several are read only where one is a WFDB header (.hea) "
            "and the others are the sample files it names"
        )
    (kind,), ((name, content),) = kinds, files
    if content.startswith(_ARCHIVES):
        raise UploadError("file 1: archives are not opened: upload the files in it")
    if kind in ("header", "samples"):
        raise UploadError(
            f"files: a WFDB record is a header (.hea) and its sample file (.dat or .mat), and only {listed([name])} "
            "was sent: upload both"
        )
    if kind == "unknown":
        raise UploadError(
            "file 1: not a known format: upload a NumPy array (.npy), a table (.csv), or a WFDB header "
            "(.hea) and its sample file"
        )
    return _stage_numbers(kind, content, words, folder), 1


def _stage_numbers(kind: str, content: bytes, words: Words, folder: Path) -> Staged:
    """Check an array or a table, of which the sender must say what its numbers are."""
    if kind == "npy":
        _require_npy(content)
    else:
        _require_text(content)
    needed = {"fs": "sampling rate", "units": "units"}
    if kind == "npy":  # a table may name its leads itself, which the child will see
        needed["leads"] = "names of the leads"
    if unsaid := [what for word, what in needed.items() if words[word] is None]:
        raise WordsNeeded(f"{', '.join(unsaid)}: not in a .{kind} file, which holds bare numbers: give them with it")
    file = "array.npy" if kind == "npy" else "table.csv"
    (folder / file).write_bytes(content)
    return Staged(file, words)


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
        sizes = f"{len(content)} bytes, its header promises {need}"
        raise UploadError(f"array.npy: {sizes}: the file is cut off or more than an array")


def _require_text(content: bytes) -> None:
    try:
        text = decoded(content)
    except ValueError as error:
        raise UploadError(f"table.csv: {error}") from None
    if _NOT_TEXT.search(text):
        raise UploadError("table.csv: holds control characters: save the table as CSV (UTF-8)")
