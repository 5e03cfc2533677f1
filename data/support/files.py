"""Writing files so that nothing is ever half-written."""

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any


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
