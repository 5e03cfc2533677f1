"""Writing files so that nothing is ever half-written, errors that name the file, and listing those that are data."""

import errno
import json
import os
import re
import secrets
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from data.support.sentences import TORCH_WRITES

# Errors of a disk, which the system reports where a file is written or closed, without its name.
_OF_THE_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS)
_LEFT_BEHIND = ("Thumbs.db", "desktop.ini", "__MACOSX")  # by Windows, and by macOS in archives


@contextmanager
def written_whole(path: Path | str, mode: str = "wb") -> Iterator[IO[Any]]:
    """Open a file for writing that appears at `path` only when it is complete.

    It is written beside its destination under a temporary name, flushed to disk and renamed; on an error it is removed
    and what stood at `path` before stays. Missing folders are made. Who may read it follows from the process's umask,
    as for any new file. The mode is `"wb"`, or `"w"` for UTF-8 text.

    Raises:
        OSError: It cannot be written; names `path`.
        ValueError: Another mode.
    """
    if mode not in ("w", "wb"):
        raise ValueError(f"mode must be 'w' or 'wb', got {mode!r}")
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, mode.replace("w", "x"), encoding=None if "b" in mode else "utf-8") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        with suppress(OSError):  # as where its folder is a file
            temporary.unlink()
        if isinstance(error, OSError) and str(error.filename) == str(temporary):
            raise OSError(error.errno, error.strerror, str(path)) from error
        if (number := _of_the_disk(error)) is not None:
            raise OSError(number, os.strerror(number), str(path)) from error
        raise


@contextmanager
def disk_errors_of(place: Path | str) -> Iterator[None]:
    """Have errors of the disk in the block name a place: libraries that write files leave it out.

    Raises `OSError` in their place.
    """
    try:
        yield
    except Exception as error:
        if (number := _of_the_disk(error)) is None:
            raise
        raise OSError(number, os.strerror(number), str(place)) from error


def _of_the_disk(error: BaseException) -> int | None:
    """The number of an error of the disk that names no file, as the system, numpy, safetensors or torch raise it."""
    words = str(error)
    if isinstance(error, OSError) and error.filename is None:
        if error.errno is None and re.search(r"\d+ requested and \d+ written", words):  # numpy's
            return errno.ENOSPC
        return error.errno if error.errno in _OF_THE_DISK else None
    if (rust := re.search(r"\(os error (\d+)\)", words)) and int(rust[1]) in _OF_THE_DISK:
        return int(rust[1])
    return errno.ENOSPC if isinstance(error, RuntimeError) and any(part in words for part in TORCH_WRITES) else None


def require_writable(folder: Path | str, flag: str) -> None:
    """Make a folder and see that files can be written into it, before hours of work depend on it.

    Raises `OSError` where they cannot; it names the folder, and the flag with which another one is given.
    """
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        _write_and_remove(folder)
    except OSError as error:
        named = OSError(error.errno, error.strerror, str(folder))
        named.add_note(f"give {flag} a folder that can be written")
        raise named from error


def is_writable(folder: Path | str) -> bool:
    """Whether a folder is there and files can be written into it."""
    try:
        _write_and_remove(folder)
    except OSError:
        return False
    return True


def _write_and_remove(folder: Path | str) -> None:
    with tempfile.TemporaryFile(dir=folder):  # whose rights say less: a mount may be read-only, and root may do all
        pass


def read_json(path: Path | str) -> Any:
    """What a JSON file holds. Raises `ValueError` where it is damaged; names the file."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:  # that of an encoding is one, too
        raise ValueError(f"{path} is damaged, it is not JSON ({error}): copy or make it again") from error


def is_hidden(name: str) -> bool:
    """Whether a file or folder is what a system leaves behind (`._x`, `.DS_Store`, `Thumbs.db`), nobody's data."""
    return name.startswith(".") or name in _LEFT_BEHIND


def visible_files(folder: Path | str, pattern: str = "*", *, below: bool = False) -> list[Path]:
    """Files of a folder whose names match a pattern, sorted; with `below` those of its folders, too.

    Hidden files and folders are passed over (`is_hidden`). Links are followed, to a folder once.
    """
    return sorted(path for path, hidden in _listed(Path(folder), below) if not hidden and path.match(pattern))


def hidden_files(folder: Path | str) -> list[Path]:
    """What `visible_files` passes over in a folder and below, sorted."""
    return sorted(path for path, hidden in _listed(Path(folder), True) if hidden)


def _listed(folder: Path, below: bool) -> Iterator[tuple[Path, bool]]:
    """Files, and whether each is hidden or in a hidden folder."""
    entered: set[tuple[int, int]] = set()  # a link may lead back to where it stands
    for place, folders, files in os.walk(folder, followlinks=True):
        stat = os.stat(place)
        if (stat.st_dev, stat.st_ino) in entered:
            folders.clear()
            continue
        entered.add((stat.st_dev, stat.st_ino))
        in_hidden = any(map(is_hidden, Path(place).relative_to(folder).parts))
        yield from ((Path(place, name), in_hidden or is_hidden(name)) for name in files)
        if not below:
            folders.clear()
