"""Measures heart rate, PR, QRS, QT and QTc, frontal axis, and the QRS amplitude of every lead.

Beats are found by NeuroKit2 (`pip install "ecg-elm[measure]"`) in the activity of all leads together, by its gradient
method (Makowski et al., Behavior Research Methods 2021). What lies around each beat is lined up; the median of the
beats of the prevailing shape is one beat of all leads, nearly without noise and ectopy, and intervals are measured on
it over all leads at once, as the standards for automated analysis have it (Kligfield et al., Circulation 2007): a QRS
begins with the first lead and ends with the last. NeuroKit2's own delineation is of one lead: on simulated recordings
its median error in lead II is 10 ms of PR and 60 of QRS ("prominence"), or 41 and 29 ("dwt"); here 6 and 6.
"""

from collections.abc import Mapping
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from data.ecg import LEADS, Ecg
from data.measure.values import Measurements

Array = NDArray[np.float64]

VERSION = 2  # in cache keys: tests/test_versions.py says when to raise it
FS = 500.0  # Hz, at which everything is measured: 2 ms
_BEFORE, _AFTER = 0.50, 0.70  # s of a beat around its fiducial point
_QRS = 0.12  # s around the fiducial point by whose shape beats are compared


def delineate(ecg: Ecg) -> Measurements:
    """Measure a recording in this process, without a time limit. `measure` is what to call.

    The same recording always gives the same numbers.

    Raises:
        ModuleNotFoundError: NeuroKit2 is not installed.
    """
    if not (leads := [lead for lead in LEADS if lead in ecg.leads or f"-{lead}" in ecg.leads]):
        return Measurements("failed", f"none of its leads ({', '.join(ecg.leads)}) is one of the twelve")
    ecg = ecg.select(leads).resample(FS)
    signal = ecg.signal.astype(np.float64)
    if ecg.duration < 2 * (_BEFORE + _AFTER):
        return Measurements("failed", f"it lasts {ecg.duration:.1f} s")
    live = np.ptp(signal, axis=1) > 0
    if not live.any():
        return Measurements("failed", "all leads are flat")
    signal = _filter(signal, 0.5, "highpass")
    peaks = _peaks(signal)
    if len(peaks) < 3:
        return Measurements("failed", f"{len(peaks)} beats were found")
    quiet = _filter(signal, 40)  # times are taken from this one, amplitudes not
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
    # Where beats come irregularly, as in atrial fibrillation, a likeness by chance is likelier than P waves are.
    regular = np.std(rr_after[alike]) < 0.1 * rr
    slow, slow_each = _filter(beat, 20), _filter(each, 20)  # all of a P wave, and little of the muscles' noise
    pr = _p_wave(slow, slow_each, onset, t_end - _samples(rr), 0.5 if regular else 0.9)
    complex_ = beat[:, onset : offset + 1]
    poor = ["few beats"] if alike.sum() < 4 else []
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


def _filter(
    signal: Array, corner: float | tuple[float, float], kind: Literal["lowpass", "highpass", "bandpass"] = "lowpass"
) -> Array:
    """Butterworth filter of second order, run forwards and backwards; corners in Hz."""
    from scipy.signal import butter, sosfiltfilt

    return np.asarray(sosfiltfilt(butter(2, corner, kind, fs=FS, output="sos"), signal))


def _peaks(signal: Array) -> NDArray[np.int64]:
    """Beats: samples at which the leads together are most active."""
    import neurokit2

    activity = np.sqrt((_filter(signal, (5, 30), "bandpass") ** 2).sum(axis=0))
    _, info = neurokit2.ecg_peaks(activity, sampling_rate=int(FS))
    peaks = np.asarray(info["ECG_R_Peaks"], dtype=np.int64)
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
        # Each beat moves to where it fits the model best, never farther than `reach` from where it was detected.
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
    idle = float(np.percentile(speed, 20))
    top = near.start + int(np.argmax(speed[near]))
    slow = speed < idle + 0.07 * (speed[top] - idle)
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
    # Fibrillation waves stand at another place before every beat, so that no beat is like the others.
    core = slice(max(0, first - _samples(0.02)), min(len(wave), top + _samples(0.06)))
    single = sign * np.einsum("l,blt->bt", lead, each[:, :, start:stop])[:, core]
    single = single - single.mean(axis=1, keepdims=True)
    others = (single.sum(axis=0) - single) / max(1, len(single) - 1)
    size = np.linalg.norm(single, axis=1) * np.linalg.norm(others, axis=1)
    alike = np.divide((single * others).sum(axis=1), size, out=np.zeros(len(single)), where=size > 0)
    if np.median(alike) < least:
        return None
    return (onset - start - first) / FS * 1000


def _axis(complex_: Mapping[str, Array]) -> float | None:
    """Axis from the net areas in leads I and II or aVF; None where they are missing, flat or cancel out."""
    if "I" not in complex_ or not ({"II", "aVF"} & complex_.keys()):
        return None
    x = float(complex_["I"].sum())
    avf = complex_["II"] - complex_["I"] / 2 if "II" in complex_ else complex_["aVF"]
    y = float(avf.sum()) * 2 / np.sqrt(3)
    total = float(np.abs(complex_["I"]).sum() + np.abs(avf).sum())
    if np.hypot(x, y) < 0.1 * total or not total:
        return None
    return float(np.degrees(np.arctan2(y, x)))
