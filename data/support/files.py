"""Writing files so that nothing is ever half-written, and listing those that are data."""

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

_LEFT_BEHIND = ("Thumbs.db", "desktop.ini", "__MACOSX")  # by Windows, and by macOS in archives


@contextmanager
def written_whole(path: Path | str, mode: str = "wb") -> Iterator[IO[Any]]:
    """Open a file for writing that appears at `path` only when it is complete.

    It is written beside its destination under a temporary name, flushed to disk and renamed; on an error it is removed
    and what stood at `path` before stays. Missing folders are made. Who may read it follows from the process's umask,
    as for any new file. The mode is `"wb"`, or `"w"` for UTF-8 text; for any other, `ValueError` is raised.
    """
    if mode not in ("w", "wb"):
        raise ValueError(f"mode must be 'w' or 'wb', got {mode!r}")
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        with open(temporary, mode.replace("w", "x"), encoding=None if "b" in mode else "utf-8") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


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
