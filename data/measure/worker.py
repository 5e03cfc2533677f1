"""Measures recordings in processes of their own, which are ended where one takes too long."""

import json
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, replace
from importlib.metadata import version as installed_version
from importlib.util import find_spec
from queue import SimpleQueue
from threading import Lock

import numpy as np

from data.ecg import Ecg, EcgSource
from data.measure.delineation import VERSION, delineate
from data.measure.values import Measurements, Quality
from data.quality import signal_quality
from data.support.sentences import Refused
from data.wire import from_wire, to_wire


class Worker:
    """A process that measures one recording after the other, and is ended and replaced where one takes too long.

    A process, because nothing else stops a computation for certain; kept, because importing NeuroKit2 takes seconds.

    Args:
        program: Python code it runs; tests give one that hangs or dies.
    """

    def __init__(self, program: str = "from data.measure.worker import serve; serve()") -> None:
        self.program = program
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = Lock()

    def measure(self, ecg: Ecg, timeout: float) -> Measurements:
        """Measurements of one recording, within `timeout` seconds after the process is up."""
        try:
            request = to_wire(ecg)
        except ValueError as error:
            return Measurements("failed", str(error))
        with self._lock:
            process = self._running()
            assert process.stdin is not None and process.stdout is not None
            with suppress(BrokenPipeError):  # it died: there is no answer either
                process.stdin.write(f"{timeout}\n".encode() + request + b"\n")
                process.stdin.flush()
            answer = process.stdout.readline()
            if answer:
                return Measurements(**json.loads(answer))
            status = process.wait()
            self._end()
        if status == 1:  # what the watch over the time ends it with
            return Measurements("failed", f"it took longer than {timeout:g} s")
        return Measurements("failed", f"the process that measured it ended with status {status}")

    def close(self) -> None:
        """End the process."""
        with self._lock:
            self._end()

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is not None and self._process.poll() is not None:
            self._end()  # killed since: nobody's recording
        if self._process is None:
            # One thread: there are several workers, or a training beside this one.
            threads = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MPLBACKEND": "Agg"}
            self._process = subprocess.Popen(
                [sys.executable, "-c", self.program],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env={**os.environ, **threads},
            )
            assert self._process.stdout is not None
            if not self._process.stdout.readline():
                self._end()
                raise Refused(f"a process to measure ECGs in did not start: {sys.executable} -c {self.program!r}")
        return self._process

    def _end(self) -> None:
        if self._process is not None:
            self._process.kill()
            with suppress(BrokenPipeError):
                self._process.communicate()
            self._process = None


def serve() -> None:
    """Work as a worker: per recording, read a line with a time limit and one with the recording, write one of numbers.

    The limit is kept by a thread that needs no interpreter, so that it holds in compiled code too, and after the
    parent's death.
    """
    import faulthandler

    import neurokit2  # noqa: F401  (takes seconds, which are in no recording's time limit)
    import scipy.signal  # noqa: F401

    out, sys.stdout = sys.stdout.buffer, sys.stderr
    out.write(b"ready\n")
    out.flush()
    with open(os.devnull, "w", encoding="utf-8") as nowhere:
        while limit := sys.stdin.buffer.readline():
            recording = sys.stdin.buffer.readline()
            faulthandler.dump_traceback_later(float(limit), exit=True, file=nowhere)
            try:
                measured = delineate(from_wire(recording))
            except Exception as error:  # of a recording: the next one is another
                measured = Measurements("failed", f"{type(error).__name__}: {error}")
            faulthandler.cancel_dump_traceback_later()
            out.write(json.dumps(asdict(measured)).encode() + b"\n")
            out.flush()


def require_neurokit() -> None:
    """Refuse to go on without NeuroKit2: a `ModuleNotFoundError` says how to install it."""
    if find_spec("neurokit2") is None:
        raise ModuleNotFoundError('measuring ECGs needs NeuroKit2: pip install "ecg-elm[measure]"')


_WORKERS: dict[int, Worker] = {}  # of each process: a fork must not share its parent's pipe


def measure(ecg: Ecg, timeout: float = 5.0) -> Measurements:
    """Measure one recording, in a process that is ended where it takes longer than `timeout` seconds.

    What cannot be measured is no error: `quality` and `reason` say so. The quality is never better than the signal's.

    Raises:
        ModuleNotFoundError: NeuroKit2 is not installed.
    """
    require_neurokit()
    return _measure(_WORKERS.setdefault(os.getpid(), Worker()), ecg, timeout)


def _measure(worker: Worker, ecg: Ecg, timeout: float) -> Measurements:
    """A worker's measurements, and what is wrong with the signal; some of it stands in `meta`, which no worker gets."""
    if not np.isfinite(ecg.signal).all():
        return worker.measure(ecg, timeout)  # which says where
    signal = signal_quality(ecg)
    if signal.grade == "unreadable":
        return Measurements("failed", _joined(signal.notes))
    measured = worker.measure(ecg, timeout)
    if signal.grade == "good":
        return measured
    quality: Quality = "failed" if measured.quality == "failed" else "poor"
    return replace(measured, quality=quality, reason=_joined([measured.reason, *signal.notes]))


def _joined(notes: Iterable[str]) -> str:
    return "; ".join(note.rstrip(".") for note in notes if note)


def measure_many(
    source: EcgSource, records: Iterable[str], jobs: int | None = None, timeout: float = 5.0
) -> Iterator[Measurements]:
    """What `measure` gives of recordings in their order, `jobs` at a time (as many as there are cores, if not given).

    Raises:
        ModuleNotFoundError: NeuroKit2 is not installed.
        ValueError: `jobs` is less than 1.
    """
    require_neurokit()
    jobs = jobs if jobs is not None else os.cpu_count() or 1
    if jobs < 1:
        raise ValueError(f"jobs must be at least 1, got {jobs}")
    workers = [Worker() for _ in range(jobs)]
    idle: SimpleQueue[Worker] = SimpleQueue()
    for worker in workers:
        idle.put(worker)

    def one(record: str) -> Measurements:
        worker = idle.get()
        try:
            return _measure(worker, source[record], timeout)
        finally:
            idle.put(worker)

    try:
        with ThreadPoolExecutor(jobs) as pool:
            yield from pool.map(one, records)
    finally:
        for worker in workers:
            worker.close()


def version() -> str:
    """Names what measurements follow from beside the recording: `VERSION` and NeuroKit2's version."""
    return f"v{VERSION}-neurokit2-{installed_version('neurokit2')}"
