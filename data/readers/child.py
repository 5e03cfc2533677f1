"""Reads a staged upload in a child process with limits on memory, time and written bytes."""

import json
import logging
import math
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from threading import Timer
from typing import Any

from data.ecg import Ecg, canonical_lead
from data.readers import read_ecg
from data.readers.budget import Budget, UploadError, Words
from data.wire import from_wire, to_wire

logger = logging.getLogger(__name__)

_READ, _REFUSED = b"+", b"-"  # first byte of the child's answer
_LEADS_OF = ("absent_leads", "derived_leads")  # entries of `Ecg.meta` that are names of leads


def read_in_child(file: str, package: bool, words: Words, folder: Path, size: int, budget: Budget) -> Ecg:
    """Read a staged file in a process of its own.

    Raises:
        ValueError: The file is no recording, as `read_ecg` says it; or (`UploadError`) the child failed.
    """
    job = {"file": file, "package": package, "words": words, "memory": budget.memory, "cpu": budget.cpu_seconds}
    root = Path(__file__).resolve().parents[2]
    program = "import sys; sys.path.insert(0, sys.argv[1]); from data.readers.child import main; main()"
    # Nothing of the server's environment, which may hold keys; without the library path some Pythons do not start.
    library = {key: value for key, value in os.environ.items() if key == "LD_LIBRARY_PATH"}
    threads = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MPLBACKEND": "Agg"}
    process = subprocess.Popen(
        [sys.executable, "-I", "-c", program, str(root), json.dumps(job)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        cwd=folder,
        env={**library, **threads, "HOME": str(folder), "LC_ALL": "C.UTF-8"},
        start_new_session=True,
    )
    assert process.stdout is not None

    def end() -> None:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)

    deadline = Timer(budget.wall_seconds, end)
    deadline.start()
    try:
        # At least a byte a sample in the file; four in the answer, a third more in base64, and of two limb leads six.
        answer = process.stdout.read(18 * size + (1 << 16))
    finally:
        deadline.cancel()
        deadline.join()
        end()
        process.stdout.close()
        status = process.wait()
    verdict, content = answer[:1], answer[1:]
    if status == 0 and verdict == _READ:
        notes, _, wire = content.partition(b"\n")
        return replace(from_wire(wire), meta=unpacked(notes))
    if status == 0 and verdict == _REFUSED:
        raise ValueError(content.decode("utf-8", "replace"))
    logger.warning("the process that read an upload ended with status %d", status)
    raise UploadError("files: reading them took too much time or memory, or failed: upload a shorter recording")


def main() -> None:
    """Be the child: read one recording, and write it or the reason against it to standard output."""
    job = json.loads(sys.argv[2])
    if job["package"]:
        import wfdb  # noqa: F401  (takes addresses and time, which are not the recording's)
    limit(job["memory"], job["cpu"])
    try:
        ecg = read_ecg(job["file"], nan="interpolate", **job["words"])
        answer = _READ + packed(ecg.meta) + b"\n" + to_wire(ecg)
    except ValueError as error:
        answer = _REFUSED + str(error).encode("utf-8", "replace")
    sys.stdout.buffer.write(answer)
    sys.stdout.flush()


def packed(meta: Mapping[str, Any]) -> bytes:
    """What the reader noted about leads and gaps, without a word of the sender: canonical names, and counts."""
    notes = {name: list(meta.get(name, ())) for name in _LEADS_OF}
    return json.dumps([dict(meta.get("repaired_samples", {})), notes, len(meta.get("other_signals", ()))]).encode()


def unpacked(notes: bytes) -> dict[str, Any]:
    """The entries of `Ecg.meta` that `packed` was made from, where there were any; other signals have no names.

    Raises:
        ValueError: They are anything else, or name something that is no lead.
    """
    try:
        repaired, leads, others = json.loads(notes)
        meta: dict[str, Any] = {name: tuple(map(canonical_lead, leads[name])) for name in _LEADS_OF}
        meta["repaired_samples"] = {canonical_lead(lead): int(count) for lead, count in repaired.items()}
        meta["other_signals"] = ("another signal",) * int(others)
    except (TypeError, KeyError, AttributeError) as error:
        raise ValueError("what the reader noted about the leads cannot be read") from error
    return {name: value for name, value in meta.items() if value}


def limit(memory: int, cpu_seconds: int) -> None:
    """Limit this process from now on: its packages are loaded, and no byte of the upload was read yet."""
    import resource

    pages = int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[0])
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
