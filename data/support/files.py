"""Writing files so that nothing is ever half-written, and errors that name the file."""

import errno
import json
import os
import secrets
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

# Errors of a disk, which the system reports where a file is written or closed, without its name.
_OF_THE_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS)


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
        if isinstance(error, OSError) and _is_about(error, temporary):
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise


def _is_about(error: OSError, file: Path) -> bool:
    """Whether an error names this file, or none and is one of the disk."""
    if error.filename is None:
        return error.errno in _OF_THE_DISK
    return str(error.filename) == str(file)


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
