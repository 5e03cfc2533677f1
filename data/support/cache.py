"""What is computed once and kept on disk: keys, locks, files and folders made once, and bounded folders of shards.

A file or folder appears whole under its name or not at all, so a process killed at any moment (`kill -9`) costs what it
was computing. Locks are the system's: they end with the process that holds them.
"""

import errno
import fcntl
import hashlib
import json
import logging
import math
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import IO, TypeVar

from filelock import FileLock

from data.support.files import written_whole

logger = logging.getLogger(__name__)

T = TypeVar("T")
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT)


def cache_key(*parts: object) -> str:
    """16 hex digits for what a result follows from: settings, names, and the `VERSION` of the code that computes it.

    Raises `TypeError` for a part that cannot be written as JSON.
    """
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def content_key(path: Path) -> str:
    """16 hex digits for the content of a file, a part of a `cache_key`."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Holds the lock of a path, which need not exist, against other processes; waits for whoever has it."""
    lock = path.with_name(f".{path.name}.lock")
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(lock):
        try:
            yield
        finally:
            # Whoever opened it a moment ago may then hold a lock beside that of a new file. So all that is done under
            # a lock may be done twice: what is there is looked for first, and what is written appears whole.
            lock.unlink(missing_ok=True)


def built_once(folder: Path, build: Callable[[Path], None]) -> Path:
    """A folder, filled by `build` if it is not there; a second process waits for the first.

    It is built under another name. A build that fails leaves nothing; what a killed one left goes with the next.
    """
    if not folder.exists():
        with locked(folder):
            if not folder.exists():
                partial = folder.with_name(f".{folder.name}.partial")
                shutil.rmtree(partial, ignore_errors=True)
                partial.mkdir()
                try:
                    build(partial)
                    partial.rename(folder)
                finally:
                    shutil.rmtree(partial, ignore_errors=True)
    return folder


def written_once(path: Path, write: Callable[[IO[bytes]], object]) -> Path:
    """A file, written by `write` if it is not there; a second process waits for the first."""
    if not path.exists():
        with locked(path):
            if not path.exists():
                with written_whole(path) as file:
                    write(file)
    return path


def computed_once(path: Path, compute: Callable[[], T]) -> T:
    """The result of `compute`, kept as JSON in a file; tuples come back as lists."""
    written_once(path, lambda file: file.write(json.dumps(compute()).encode()))
    value: T = json.loads(path.read_text(encoding="utf-8"))
    return value


# --- shards -----------------------------------------------------------------------------------------------------------


class NoRoom(OSError):
    """No room for a shard; the message says why."""


class Shards:
    """A folder of files, each with what was computed of some records. Many processes may write and read it at once.

    Readers lock nothing. Who computes what is settled by `claimed`; without it, processes that compute the same write
    the same.

    It is a folder of `root`, named by what is kept (`kind`) and what that follows from (`key`, see `cache_key`). All
    folders of a kind share `limit_gb`, the most that they may take, in 10^9 bytes. File names end in `suffix`.
    """

    def __init__(
        self, root: Path | str, kind: str, key: Sequence[object], suffix: str, limit_gb: float = math.inf
    ) -> None:
        self.root, self.kind, self.suffix, self.limit_gb = Path(root), kind, suffix, limit_gb
        self.folder = self.root / f"{kind}-{cache_key(*key)}"
        self._names: set[str] = set()
        self._used: dict[str, float] = {}  # when a shard's time of last use was last written

    def refresh(self, read: Callable[[Path], object]) -> set[str]:
        """Reads the shards that have come since the last time, and returns the names of those that have gone.

        A shard for which `read` raises `ValueError` is damaged: it is deleted, with a warning.
        """
        names = {path.name for path in self.folder.glob(f"*{self.suffix}") if not path.name.startswith(".")}
        gone = self._names - names
        for name in sorted(names - self._names):
            path = self.folder / name
            try:
                read(path)
                self._names.add(name)
            except FileNotFoundError:
                continue
            except ValueError as error:
                logger.warning("%s is damaged, %s: it is deleted and computed anew", path, error)
                with suppress(OSError):
                    path.unlink()
        self._names -= gone
        return gone

    def path_of(self, records: Sequence[str]) -> Path:
        """The place of the shard of these records, whether it is there or not."""
        return self.folder / f"{cache_key(*records)}{self.suffix}"

    def write(self, records: Sequence[str], content: bytes, *, evict: bool = False) -> None:
        """Writes the shard of some records; raises `NoRoom` where `limit_gb` or the disk leaves none.

        With `evict` the least recently used shards of other folders of this kind are deleted, if that makes room.
        """
        # One process at a time, lest two take the same room.
        alone = nullcontext() if math.isinf(self.limit_gb) else locked(self.root / self.kind)
        with _disk_full_is_no_room(), alone:
            self._make_room(len(content), evict)
            with written_whole(self.path_of(records)) as file:
                file.write(content)

    def touch(self, path: Path) -> None:
        """Notes that a shard is used: its modification time says when it last was, to a minute."""
        now = time.monotonic()
        if now - self._used.get(path.name, -math.inf) > 60:
            self._used[path.name] = now
            with suppress(OSError):  # somebody else's folder, or gone by now
                os.utime(path)

    def forget(self, path: Path) -> None:
        """Has the shard read again at the next `refresh`, if it is there by then."""
        self._names.discard(path.name)

    def room(self, *, evict: bool = False) -> float:
        """Bytes left of `limit_gb`; with `evict`, and those that other folders of this kind take."""
        others, left = self._usage()
        return left + sum(size for _, size, _ in others) * evict

    def _usage(self) -> tuple[list[tuple[float, int, Path]], float]:
        """Shards of other folders of this kind (last use, bytes, path), and the bytes that all of them leave."""
        others: list[tuple[float, int, Path]] = []
        left = self.limit_gb * 1e9
        for path in self.root.glob(f"{self.kind}-*/*"):
            with suppress(FileNotFoundError, PermissionError):  # gone by now; another user's
                stat = path.stat()
                left -= stat.st_size
                if path.parent != self.folder and not path.name.startswith("."):
                    others.append((stat.st_mtime, stat.st_size, path))
        return others, left

    def _make_room(self, needed: int, evict: bool) -> None:
        """Room for so many bytes. Whoever holds the lock of `root` writes: leftovers are those of dead processes."""
        if math.isinf(self.limit_gb):
            return
        for path in self.root.glob(f"{self.kind}-*/.*"):
            with suppress(FileNotFoundError, PermissionError):
                if path.name != ".claims":
                    path.unlink()
        if self.room(evict=evict) < needed:
            raise NoRoom(f"cache_gb is {self.limit_gb:g}")
        others, left = self._usage()
        for _, size, path in sorted(others):
            if left >= needed:
                break
            with suppress(PermissionError):
                path.unlink(missing_ok=True)
                left += size

    @contextmanager
    def claimed(self, records: Iterable[str], most: int) -> Iterator[list[str]]:
        """The first `most` of the records that no other process has claimed, for this one alone until the block ends.

        Where others have claimed all of them, waits until the first is free, and gives none. A claim is the lock of one
        byte of a file, at a place that follows from the record.
        """
        with ExitStack() as opened:
            with _disk_full_is_no_room():
                self.folder.mkdir(parents=True, exist_ok=True)
                file = opened.enter_context(open(self.folder / ".claims", "ab"))
            names: list[str] = []
            taken = None
            for record in records:
                if len(names) == most:
                    break
                place = int(cache_key(record), 16) >> 2  # within the sizes of files
                try:
                    fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, place)
                    names.append(record)
                except (BlockingIOError, PermissionError):
                    taken = place if taken is None else taken
            if taken is not None and not names:
                fcntl.lockf(file, fcntl.LOCK_EX, 1, taken)
            yield names


@contextmanager
def _disk_full_is_no_room() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in _DISK_FULL:
            raise
        raise NoRoom(f"{error.strerror} on its disk") from error
