"""Folders that cannot be written, as on a read-only mount. The user of a container may be root, whom no mode stops."""

import errno
import os
import resource
import sys
from contextlib import contextmanager
from pathlib import Path

_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_CHANGES = {"os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.chmod", "os.utime", "os.link", "os.symlink"}
_folders: list[Path] = []


def _refuse(event, args):
    if not _folders or not (event == "open" or event in _CHANGES) or isinstance(args[0], int | None):
        return
    if event == "open" and not args[2] & _WRITES:
        return
    path = Path(os.path.abspath(os.fsdecode(args[0])))
    if any(path.is_relative_to(folder) for folder in _folders):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))


sys.addaudithook(_refuse)  # for good: there is no way to take one off


@contextmanager
def read_only(folder):
    """Have whatever Python writes below a folder fail."""
    _folders.append(Path(folder).absolute())
    try:
        yield
    finally:
        _folders.pop()


@contextmanager
def little_room(most=4096):
    """Let no file grow beyond some bytes, as where a disk is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def state_of(folder):
    """Size and time of last change of everything in a folder."""
    paths = sorted(Path(folder).rglob("*"))
    return {str(path): (path.stat().st_size, path.stat().st_mtime_ns) for path in paths}
