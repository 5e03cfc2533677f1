"""Measured features of a recording: heart rate, PR, QRS, QT and QTc, frontal axis, QRS amplitude of every lead.

    python -m data.measure RECORD...

prints what is measured beside the labels of each record (WFDB, with SNOMED codes in `#Dx` comments or none).

Beats are found by NeuroKit2 (`pip install "ecg-elm[measure]"`) in the activity of all leads together, by its gradient
method (Makowski et al., Behavior Research Methods 2021), with a time limit. What lies around each beat is lined up; the
median of the beats of the prevailing shape is one beat of all leads, nearly without noise and ectopy, and intervals are
measured on it over all leads at once, as the standards for automated analysis have it (Kligfield et al., Circulation
2007): a QRS begins with the first lead and ends with the last. NeuroKit2's own delineation is of one lead: on simulated
recordings its median error in lead II is 10 ms of PR and 60 of QRS ("prominence"), or 41 and 29 ("dwt"); here 6 and 6.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from importlib.util import find_spec
from pathlib import Path
from queue import SimpleQueue
from threading import Lock
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from data.ecg import LEADS, Ecg, EcgSource
from data.support.commands import command_line
from data.wire import from_wire, to_wire

logger = logging.getLogger(__name__)

Array = NDArray[np.float64]
Quality = Literal["good", "poor", "failed"]

VERSION = 1  # in cache keys: tests/test_versions.py says when to raise it
FS = 500.0  # Hz, at which everything is measured: 2 ms
_BEFORE, _AFTER = 0.50, 0.70  # s of a beat around its fiducial point
_QRS = 0.12  # s around the fiducial point by whose shape beats are told apart
AMPLITUDES = ("leads", "mean", "none")
NOT_MEASURABLE = "Measured: not measurable."


@dataclass(frozen=True)
class Measurements:
    """What is measured in a recording; None where it cannot be determined.

    Attributes:
        quality: `"failed"` where nothing is measured, `"poor"` where it should be taken with care.
        reason: Why it is not `"good"`; empty where it is.
        rate: Mean ventricular rate, 1/min.
        pr: Onset of P to onset of QRS, ms; None without P waves before the beats.
        qrs: Duration of the QRS complex, ms.
        qt: Onset of QRS to end of T, ms.
        qtc: QT for a rate of 60/min after Bazett, QT / sqrt(RR / 1 s), ms.
        axis: Direction of the net area of the QRS complex in the frontal plane, degrees in (-180, 180]: 0 towards lead
            I, 90 towards aVF.
        r: Of each lead that was recorded, the highest point of the QRS complex over its onset, mV (0 or more).
        s: The same for the lowest point (0 or less).
    """

    quality: Quality
    reason: str = ""
    rate: float | None = None
    pr: float | None = None
    qrs: float | None = None
    qt: float | None = None
    qtc: float | None = None
    axis: float | None = None
    r: Mapping[str, float] = field(default_factory=dict)
    s: Mapping[str, float] = field(default_factory=dict)


def as_text(measured: Measurements, amplitudes: str = "leads") -> str:
    """One line for a prompt: always the same features in the same order, "unknown" where one is not determined.

    Args:
        measured: The measurements.
        amplitudes: Peak-to-peak amplitudes of the QRS complex: `"leads"` gives their mean and that of each lead,
            `"mean"` the mean alone, `"none"` none. They say something only where the recordings' millivolts are true.
    """
    if measured.quality == "failed":
        return NOT_MEASURABLE

    def number(value: float | None, unit: str) -> str:
        return "unknown" if value is None else f"{value:.0f}{unit}"

    line = f"Measured: rate {number(measured.rate, '/min')}, PR {number(measured.pr, ' ms')}, "
    line += f"QRS {number(measured.qrs, ' ms')}, QTc {number(measured.qtc, ' ms')}, "
    line += f"axis {number(measured.axis, ' degrees')}"
    sizes = {lead: measured.r[lead] - measured.s[lead] for lead in LEADS if lead in measured.r}
    if amplitudes == "none" or not sizes:
        return f"{line}."
    line += f", QRS amplitude {sum(sizes.values()) / len(sizes):.1f} mV"
    if amplitudes == "mean":
        return f"{line}."
    return f"{line} ({', '.join(f'{lead} {size:.1f}' for lead, size in sizes.items())})."


# --- the measurement --------------------------------------------------------------------------------------------------


def delineate(ecg: Ecg) -> Measurements:
    """Measure a recording in this process, without a time limit. `measure` is what to call.

    The same recording always gives the same numbers.

    Raises:
        ModuleNotFoundError: NeuroKit2 is not installed.
    """
    from scipy.signal import butter, sosfiltfilt

    ecg = ecg.select([lead for lead in LEADS if lead in ecg.leads or f"-{lead}" in ecg.leads]).resample(FS)
    signal = ecg.signal.astype(np.float64)
    if ecg.duration < 2 * (_BEFORE + _AFTER):
        return Measurements("failed", f"it lasts {ecg.duration:.1f} s")
    live = np.ptp(signal, axis=1) > 0
    if not live.any():
        return Measurements("failed", "all leads are flat")
    signal = sosfiltfilt(butter(2, 0.5, "highpass", fs=FS, output="sos"), signal)
    peaks = _peaks(signal)
    if len(peaks) < 3:
        return Measurements("failed", f"{len(peaks)} beats were found")
    quiet = sosfiltfilt(butter(2, 40, fs=FS, output="sos"), signal)  # times are taken here, amplitudes not
    place, likeness, rr_after = _beats(quiet, peaks)
    alike = likeness > 0.85
    if alike.sum() < max(2, 0.3 * len(place)):
        return Measurements("failed", "no shape of beat prevails")
    rr = float(np.diff(peaks).mean() / FS)
    # A premature beat begins in the T wave of the one before it.
    undisturbed = alike & (rr_after > 0.8 * np.median(np.diff(peaks) / FS))
    alike = undisturbed if undisturbed.sum() > 2 else alike
    beat = np.median(_cut(signal, place[alike]), axis=0)  # [leads, T]
    each = _cut(quiet, place[alike])  # [beats, leads, T]
    smooth = np.median(each, axis=0)
    onset, offset = _qrs(smooth)
    beat, smooth = (b - b[:, onset - _samples(0.01) : onset + 1].mean(axis=1, keepdims=True) for b in (beat, smooth))
    qt, t_end = _t_wave(smooth, onset, offset, rr)
    slow = butter(2, 20, fs=FS, output="sos")  # all of a P wave, and little of the muscles' noise
    # Where beats come irregularly, as in atrial fibrillation, a likeness by chance is likelier than P waves are.
    regular = np.std(rr_after[alike]) < 0.1 * rr
    pr = _p_wave(sosfiltfilt(slow, beat), sosfiltfilt(slow, each), onset, t_end - _samples(rr), 0.5 if regular else 0.9)
    complex_ = beat[:, onset : offset + 1]
    poor = [f"{len(LEADS) - int(live.sum())} leads are missing or flat"] if live.sum() < len(LEADS) else []
    poor += ["few beats"] if alike.sum() < 4 else []
    poor += ["noise"] if np.median(likeness[alike]) < 0.97 else []
    return Measurements(
        quality="poor" if poor else "good",
        reason=", ".join(poor),
        rate=60 / rr,
        pr=pr,
        qrs=(offset - onset) / FS * 1000,
        qt=qt,
        qtc=None if qt is None else qt / rr**0.5,
        axis=_axis(dict(zip(ecg.leads, complex_, strict=True))),
        r={lead: float(max(0.0, row.max())) for lead, row in zip(ecg.leads, complex_, strict=True)},
        s={lead: float(min(0.0, row.min())) for lead, row in zip(ecg.leads, complex_, strict=True)},
    )


def _samples(seconds: float) -> int:
    return round(seconds * FS)


def _peaks(signal: Array) -> NDArray[np.int64]:
    """Beats: samples at which the leads together are most active."""
    import neurokit2
    from scipy.signal import butter, sosfiltfilt

    activity = sosfiltfilt(butter(2, [5, 30], "bandpass", fs=FS, output="sos"), signal)
    activity = np.sqrt((activity**2).sum(axis=0))
    _, found = neurokit2.ecg_peaks(activity, sampling_rate=int(FS))
    peaks = np.asarray(found["ECG_R_Peaks"], dtype=np.int64)
    # In the long pauses of a slow heart it takes noise for beats.
    return peaks[activity[peaks] > 0.45 * np.median(activity[peaks])] if len(peaks) else peaks


def _cut(signal: Array, place: NDArray[np.int64]) -> Array:
    """Beats with their fiducial points at these samples, `[beats, leads, T]`."""
    return np.stack([signal[:, p - _samples(_BEFORE) : p + _samples(_AFTER)] for p in place])


def _beats(signal: Array, peaks: NDArray[np.int64]) -> tuple[NDArray[np.int64], Array, Array]:
    """Where whole beats are, lined up; the likeness of each one's QRS to the prevailing one; s to the next beat."""
    before, after, half = _samples(_BEFORE), _samples(_AFTER), _samples(_QRS)
    reach = _samples(0.04)
    whole = peaks[(peaks >= before + reach) & (peaks + after + reach < signal.shape[1])]
    if len(whole) < 2:
        return whole, np.zeros(len(whole)), np.zeros(len(whole))
    after_it = np.diff(peaks, append=peaks[-1] + int(np.median(np.diff(peaks))))[np.isin(peaks, whole)] / FS
    place = whole
    core = slice(before - half, before + half)
    for _ in range(3):
        cores = _cut(signal, place)[:, :, core]
        likeness = _likeness(cores)
        model = np.median(cores[likeness >= np.median(likeness)], axis=0)
        model = model - model.mean(axis=1, keepdims=True)
        # Each beat moves to where it fits the model best, never farther than `reach` from where it was found.
        shifts = []
        for p in whole:
            around = signal[:, p - reach - half : p + reach + half]
            fit = sum(np.correlate(row, m, "valid") for row, m in zip(around, model, strict=True))
            shifts.append(int(np.argmax(fit)) - reach)
        place = whole + np.array(shifts)
    return place, _likeness(_cut(signal, place)[:, :, core]), after_it


def _likeness(cores: Array) -> Array:
    """Correlation of each QRS complex with the median of those it is most like, over all leads."""
    flat = cores - cores.mean(axis=2, keepdims=True)
    flat = flat.reshape(len(cores), -1)
    norm = np.linalg.norm(flat, axis=1, keepdims=True)
    unit = np.divide(flat, norm, out=np.zeros_like(flat), where=norm > 0)
    prevailing = int(np.argmax(np.median(unit @ unit.T, axis=1)))  # the beat that most others look like
    model = np.median(flat[unit @ unit[prevailing] > 0.8], axis=0)
    size = np.linalg.norm(model)
    return np.asarray(unit @ model / size) if size > 0 else np.zeros(len(cores))


def _qrs(beat: Array) -> tuple[int, int]:
    """Onset and offset of the QRS complex: where all leads together move fast, and what lies between."""
    speed = np.sqrt((np.gradient(beat, axis=1) ** 2).sum(axis=0))
    speed = np.convolve(speed, np.full(6, 1 / 6), "same")
    centre, quiet = _samples(_BEFORE), _samples(0.016)
    near = slice(centre - _samples(0.15), centre + _samples(0.15))
    rest = float(np.percentile(speed, 20))
    top = near.start + int(np.argmax(speed[near]))
    slow = speed < rest + 0.07 * (speed[top] - rest)
    onset, offset = top, top
    while onset > quiet and not slow[onset - quiet : onset].all():
        onset -= 1
    while offset < len(speed) - quiet and not slow[offset + 1 : offset + 1 + quiet].all():
        offset += 1
    return onset, offset


def _principal(part: Array) -> Array:
    """The combination of leads in which most of a wave is seen, `[leads]`."""
    vectors, _, _ = np.linalg.svd(part - part.mean(axis=1, keepdims=True), full_matrices=False)
    return np.asarray(vectors[:, 0])


def _t_wave(beat: Array, onset: int, offset: int, rr: float) -> tuple[float | None, int]:
    """QT in ms, and the sample of T's peak. The end is where the steepest tangent behind the peak meets the level."""
    start = offset + _samples(0.05)
    stop = min(beat.shape[1], onset + _samples(min(0.75 * rr, 0.62) if rr > 0.5 else 0.7 * rr))
    if stop - start < _samples(0.08):
        return None, start
    lead = _principal(beat[:, start:stop])
    wave = lead @ beat
    wave = wave * (1 if abs(wave[start:stop].max()) >= abs(wave[start:stop].min()) else -1)
    peak = start + int(np.argmax(wave[start:stop]))
    slope = np.gradient(wave)
    behind = slice(peak, min(peak + _samples(0.18), beat.shape[1]))
    if wave[peak] <= 0 or behind.stop - behind.start < _samples(0.02):
        return None, peak
    steepest = behind.start + int(np.argmin(slope[behind]))
    if slope[steepest] >= 0:
        return None, peak
    end = steepest + wave[steepest] / -slope[steepest]
    if end >= beat.shape[1]:
        return None, peak
    if end - onset > 0.8 * rr * FS:
        return None, peak + _samples(0.06)
    return float((end - onset) / FS * 1000), max(peak + _samples(0.06), int(end) - _samples(0.04))


def _p_wave(beat: Array, each: Array, onset: int, t_before: int, least: float) -> float | None:
    """PR in ms; None where the wave before a beat is less than `least` (a correlation) like that before the others."""
    from scipy.signal import find_peaks

    start, stop = max(0, onset - _samples(0.36), t_before), onset - _samples(0.01)
    if stop - start < _samples(0.08):
        return None
    span = np.linspace(0, 1, stop - start)
    part = beat[:, start:stop]
    lead = _principal(part - part[:, :1] * (1 - span) - part[:, -1:] * span)
    waves = []
    for sign in (1.0, -1.0):
        tops, about = find_peaks(sign * (lead @ part), prominence=0.0, wlen=_samples(0.24) | 1)
        waves += [(int(t), h, int(b), sign) for t, h, b in zip(tops, about["prominences"], about["left_bases"])]
    # What is left of the T wave stands before P.
    top, best, left, sign = max((w for w in waves if w[1] > 0.5 * max(w[1] for w in waves)), default=(0, 0.0, 0, 0.0))
    if best < 0.01 * np.ptp(lead @ beat):
        return None
    wave = sign * (lead @ part)
    left = max(left, top - _samples(0.12))
    base = float(wave[left : top + 1].min())
    low = np.flatnonzero(wave[: top + 1] < base + 0.1 * (wave[top] - base))
    first = int(low[-1])
    if first <= 1 and start == t_before:
        return None  # it begins in the T wave
    # Fibrillation waves stand at another place before every beat, so that no beat is like the rest.
    core = slice(max(0, first - _samples(0.02)), min(len(wave), top + _samples(0.06)))
    single = sign * np.einsum("l,blt->bt", lead, each[:, :, start:stop])[:, core]
    single = single - single.mean(axis=1, keepdims=True)
    rest = (single.sum(axis=0) - single) / max(1, len(single) - 1)
    size = np.linalg.norm(single, axis=1) * np.linalg.norm(rest, axis=1)
    alike = np.divide((single * rest).sum(axis=1), size, out=np.zeros(len(single)), where=size > 0)
    if np.median(alike) < least:
        return None
    return (onset - start - first) / FS * 1000


def _axis(complex_: Mapping[str, Array]) -> float | None:
    """From the net areas in leads I and II or aVF; None where they are missing, flat or cancel out."""
    if "I" not in complex_ or not ({"II", "aVF"} & complex_.keys()):
        return None
    x = float(complex_["I"].sum())
    of_avf = complex_["II"] - complex_["I"] / 2 if "II" in complex_ else complex_["aVF"]
    y = float(of_avf.sum()) * 2 / np.sqrt(3)
    total = float(np.abs(complex_["I"]).sum() + np.abs(of_avf).sum())
    if np.hypot(x, y) < 0.1 * total or not total:
        return None
    return float(np.degrees(np.arctan2(y, x)))


# --- with a time limit ------------------------------------------------------------------------------------------------


class Worker:
    """A process that measures one recording after the other, and is ended and replaced where one takes too long.

    A process, because nothing else stops a computation for certain; kept, because importing NeuroKit2 takes seconds.

    Args:
        program: Python code it runs: for tests of what a worker that hangs or dies is answered by.
    """

    def __init__(self, program: str = "from data.measure.worker import serve; serve()") -> None:
        self.program = program
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = Lock()

    def measure(self, ecg: Ecg, timeout: float) -> Measurements:
        """Measurements of one recording, within `timeout` seconds after the process is up."""
        try:
            sent = to_wire(ecg)
        except ValueError as error:
            return Measurements("failed", str(error))
        with self._lock:
            process = self._running()
            assert process.stdin is not None and process.stdout is not None
            with suppress(BrokenPipeError):  # it died: there is no answer either
                process.stdin.write(f"{timeout}\n".encode() + sent + b"\n")
                process.stdin.flush()
            answer = process.stdout.readline()
            if answer:
                return Measurements(**json.loads(answer))
            ended = process.wait()
            self._end()
        if ended == 1:  # what the watch over the time ends it with
            return Measurements("failed", f"it took longer than {timeout:g} s")
        return Measurements("failed", f"the process that measured it ended with status {ended}")

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
                raise RuntimeError(f"a process to measure ECGs in did not start: {sys.executable} -c {self.program!r}")
        return self._process

    def _end(self) -> None:
        if self._process is not None:
            self._process.kill()
            with suppress(BrokenPipeError):
                self._process.communicate()
            self._process = None


def serve() -> None:
    """What a worker does: per recording, a line with a time limit and one with the recording in, one of numbers out.

    The limit is kept by a thread that needs no interpreter, so that it holds in compiled code too, and after the
    parent's death.
    """
    import faulthandler

    import neurokit2  # noqa: F401  (takes seconds, which are in no recording's time limit)
    import scipy.signal  # noqa: F401

    out, sys.stdout = sys.stdout.buffer, sys.stderr
    out.write(b"ready\n")
    out.flush()
    with open(os.devnull, "w") as nowhere:
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
    """Refuse to go on without NeuroKit2.

    Raises:
        ModuleNotFoundError: It is not installed; says how to.
    """
    if find_spec("neurokit2") is None:
        raise ModuleNotFoundError('measuring ECGs needs NeuroKit2: pip install "ecg-elm[measure]"')


_WORKERS: dict[int, Worker] = {}  # of each process: a fork must not share its parent's pipe


def measure(ecg: Ecg, timeout: float = 5.0) -> Measurements:
    """Measure one recording, in a process that is ended where it takes longer than `timeout` seconds.

    What cannot be measured is no error: `quality` and `reason` say so.

    Raises:
        ModuleNotFoundError: NeuroKit2 is not installed.
    """
    require_neurokit()
    worker = _WORKERS.setdefault(os.getpid(), Worker())
    return worker.measure(ecg, timeout)


def measure_many(
    source: EcgSource, records: Iterable[str], jobs: int | None = None, timeout: float = 5.0
) -> Iterator[Measurements]:
    """Measurements of recordings in their order, `jobs` at a time (as many as there are cores, if not given).

    Raises:
        ModuleNotFoundError: NeuroKit2 is not installed.
        ValueError: `jobs` is less than 1.
    """
    require_neurokit()
    jobs = jobs if jobs is not None else os.cpu_count() or 1
    if jobs < 1:
        raise ValueError(f"jobs must be at least 1, got {jobs}")
    idle: SimpleQueue[Worker] = SimpleQueue()
    workers = [Worker() for _ in range(jobs)]
    for worker in workers:
        idle.put(worker)

    def one(record: str) -> Measurements:
        worker = idle.get()
        try:
            return worker.measure(source[record], timeout)
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
    from importlib.metadata import version as installed

    return f"v{VERSION}-neurokit2-{installed('neurokit2')}"


# --- the command ------------------------------------------------------------------------------------------------------


def main(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = command_line("data.measure", __doc__)
    parser.add_argument("record", nargs="+", help="recordings: WFDB records")
    parser.add_argument("--names", type=Path, help="CSV table of codes (SNOMEDCTCode, Dx) to print labels by name")
    args = parser.parse_args(argv)

    from data.readers import read_ecg

    names: dict[str, str] = {}
    try:
        if args.names:
            import csv

            with args.names.open(encoding="utf-8-sig", newline="") as table:
                names = {row["SNOMEDCTCode"]: row["Dx"] for row in csv.DictReader(table)}
        ecgs = {path: read_ecg(path, nan="interpolate") for path in dict.fromkeys(args.record)}
    except (ValueError, OSError, KeyError) as error:
        parser.exit(2, f"error: {error}\n")
    for (path, ecg), measured in zip(ecgs.items(), measure_many(ecgs, ecgs)):
        labels = ", ".join(names.get(code, code) for code in ecg.meta.get("dx", ()))
        quality = measured.quality + (f" ({measured.reason})" if measured.reason else "")
        sys.stdout.write(f"{path}\n  {as_text(measured)}\n  quality: {quality}; labels: {labels or 'none'}\n")


if __name__ == "__main__":
    main()
