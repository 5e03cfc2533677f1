"""Finds recordings that are there twice under two names, by their content.

A recording is recognised whatever its gain, offset, sampling rate, filter or order of leads, and also when it was cut
shorter. Around every heart beat two seconds of all leads are boiled down to 192 signs of random projections (Charikar,
STOC 2002): the same beat gives nearly the same signs at any gain. Beats that share 32 of them are looked at more
closely, as in audio fingerprinting (Wang, ISMIR 2003): most beats of both recordings must pair up at one lag, and then
the recordings themselves must correlate. One pass over the recordings, some 5 ms each with their reading (a minute or
two for PTB-XL, an hour or two for MIMIC-IV-ECG); what is kept of a recording is some 350 bytes.

Of 1,625 PTB-XL recordings, 1.3 million pairs, the two most alike correlate at 0.91 and no two are taken for one. Whole
copies were all found, of 200 each: other gains and offsets, leads, rates (100 to 500 Hz) and filters, 5 s cut on the
sampling grid; of cuts off the grid 98 % of 6 s, 92 % of 4 s.

Beats are not those of `data.measure`: what counts is that two copies give the same place, at whatever rate and length,
in a millisecond and without NeuroKit2, which is optional and takes far longer.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter1d
from scipy.signal import find_peaks
from tqdm.auto import tqdm

from data.ecg import LEADS, Ecg, EcgSource

VERSION = 1  # in cache keys: tests/test_versions.py says when to raise it
_RATE = 100  # Hz
_WINDOW, _BEFORE = 2 * _RATE, _RATE // 5  # samples around a beat, and how many of them before it
_TABLES = 6  # of 32 signs each
_NEAR = 0.15  # share of signs in which two views of one beat may differ
_PAIRED = 0.6  # share of the beats that must pair up
_SLACK = 2  # samples by which a beat may be found earlier or later
_SAME = 0.97  # correlation of what is one recording
_COVERED = 0.8  # share of the shorter recording that must lie within the longer one
_SHORTEST = 3 * _RATE
_EDGE = _RATE // 2  # samples in which a filter may ring where a recording begins or ends

Floats = NDArray[np.float32]
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Duplicate:
    """One recording under two names."""

    train: str  # id among the training records
    test: str  # id among the test records
    correlation: float  # median over the leads, at the best lag


def find_duplicates(source: EcgSource, train: Sequence[str], test: Sequence[str]) -> tuple[Duplicate, ...]:
    """Recordings that are among `train` and among `test` under two names, sorted by their names.

    Found are copies at another gain or offset of any lead, sampling rate (100 Hz and more), band or order of leads, and
    cuts of 4 s and more. Recordings without a beat, or shorter than that, cannot be compared and are logged.

    Raises:
        ValueError: A recording cannot be read, or holds samples that are not finite.
    """
    if not (train and test):
        return ()
    beats = _read([*train, *test], source)
    train_beats, test_beats = beats.of(0, len(train)), beats.of(len(train), len(train) + len(test))
    duplicates = []
    for one, other in sorted(_candidates(beats, train_beats, test_beats)):
        if lags := _lags(beats, one, other):
            names = train[one], test[other - len(train)]
            first, second = (_prepared(source[name]) for name in names)
            correlation = max(_correlation(first, second, lag) for lag in lags)
            if correlation >= _SAME:
                duplicates.append(Duplicate(*names, round(correlation, 4)))
    return tuple(sorted(duplicates, key=lambda pair: (pair.test, pair.train)))


@dataclass(frozen=True)
class _Beats:
    """All beats of all recordings, those of a recording together."""

    signs: NDArray[np.uint32]  # `[beats, tables]`
    record: NDArray[np.int32]  # `[beats]`: number of the recording
    place: NDArray[np.int32]  # `[beats]`: where in it the beat is, samples
    first: NDArray[np.int64]  # `[records + 1]`: number of a recording's first beat

    def of(self, start: int, stop: int) -> slice:
        """The beats of recordings `start` to `stop`."""
        return slice(int(self.first[start]), int(self.first[stop]))


def _read(records: Sequence[str], source: EcgSource) -> _Beats:
    rng = np.random.default_rng(0)
    projections = rng.standard_normal((len(LEADS) * _WINDOW // 4, 32 * _TABLES), dtype=np.float32)
    signs, places, blank = [], [], []
    for record in tqdm(records, desc="Looking for leaks", unit="ECG", delay=5):
        signal = _prepared(source[record])
        beats = _beats(signal)
        if not len(beats):
            blank.append(record)
        windows = np.zeros((len(beats), len(LEADS), _WINDOW // 4), np.float32)
        for window, beat in zip(windows, beats):
            window[:] = signal[:, beat - _BEFORE : beat - _BEFORE + _WINDOW : 4]
        positive = _standard(windows).reshape(len(beats), len(projections)) @ projections > 0
        signs.append(np.packbits(positive, axis=1).view("<u4"))
        places.append(beats)
    if blank:
        _log.warning("%d recordings have no beat to compare them by, such as %s", len(blank), blank[0])
    counts = np.array([len(beats) for beats in places])
    return _Beats(
        signs=np.concatenate(signs),
        record=np.repeat(np.arange(len(records), dtype=np.int32), counts),
        place=np.concatenate(places).astype(np.int32),
        first=np.concatenate([[0], np.cumsum(counts)]),
    )


def _prepared(ecg: Ecg) -> Floats:
    """`[12, samples]` at 100 Hz: the twelve leads by name, about 1 to 15 Hz, each of standard deviation 1 or all 0."""
    if not np.isfinite(ecg.signal).all():
        raise ValueError(f"record {ecg.record_id!r}: samples that are not finite cannot be compared: repair them")
    ecg = ecg.resample(_RATE)
    rows = [name in ecg.leads for name in LEADS]
    signal = np.zeros((len(LEADS), ecg.signal.shape[1]), np.float32)
    signal[rows] = ecg.select(name for name, present in zip(LEADS, rows) if present).signal if any(rows) else 0
    return _standard(gaussian_filter1d(signal, 1.2, axis=1) - gaussian_filter1d(signal, 20, axis=1))


def _standard(signal: Floats) -> Floats:
    """Mean 0 and standard deviation 1 along the last axis; 0 where nothing varies."""
    signal = signal - signal.mean(-1, keepdims=True)
    deviation = signal.std(-1, keepdims=True)
    return np.asarray(np.divide(signal, deviation, out=np.zeros_like(signal), where=deviation > 1e-6), np.float32)


def _beats(signal: Floats) -> NDArray[np.intp]:
    """Where the signal is steepest in all leads together, with a whole window around it."""
    slope = np.zeros(signal.shape[1])
    slope[1:-1] = ((signal[:, 2:] - signal[:, :-2]) ** 2).sum(0)
    slope = gaussian_filter1d(slope, 4)
    if not slope.any():
        return np.zeros(0, np.intp)
    # A beat is in most stretches of a window's length; an artefact, steeper than any, is in few.
    usual = np.median([slope[start : start + _WINDOW].max() for start in range(0, len(slope), _WINDOW)])
    peaks, _ = find_peaks(slope, height=0.25 * usual, distance=_RATE // 4)
    return np.asarray(peaks[(peaks >= _BEFORE) & (peaks - _BEFORE + _WINDOW <= signal.shape[1])])


def _candidates(beats: _Beats, train: slice, test: slice, chunk: int = 1 << 20) -> set[tuple[int, int]]:
    """Pairs of recordings, one of each side, that have two near beats with one table in common."""
    pairs: set[tuple[int, int]] = set()
    for table in range(_TABLES):
        keys = beats.signs[train, table]
        order = np.argsort(keys, kind="stable")
        sought = beats.signs[test, table]
        low, high = (np.searchsorted(keys[order], sought, side) for side in ("left", "right"))
        ends = np.cumsum(high - low)
        for start in range(0, int(ends[-1]) if len(ends) else 0, chunk):
            hit = np.arange(start, min(start + chunk, int(ends[-1])))
            tested = np.searchsorted(ends, hit, "right")
            trained = order[hit - (ends - (high - low))[tested] + low[tested]]
            near = _distance(beats.signs[train][trained], beats.signs[test][tested]) <= _NEAR
            sides = beats.record[train][trained[near]].tolist(), beats.record[test][tested[near]].tolist()
            pairs |= set(zip(*sides, strict=True))
    return pairs


def _distance(a: NDArray[np.uint32], b: NDArray[np.uint32]) -> NDArray[np.float64]:
    """Share of signs that differ, over the last axis."""
    return np.asarray(np.bitwise_count(a ^ b).sum(-1) / (32 * _TABLES))


def _lags(beats: _Beats, one: int, other: int) -> list[int]:
    """Lags of the second recording at which most of the beats that both cover pair up, in samples."""
    a, b = beats.of(one, one + 1), beats.of(other, other + 1)
    near = _distance(beats.signs[a][:, None], beats.signs[b][None]) <= _NEAR
    lags = beats.place[a][:, None] - beats.place[b][None]
    good: list[int] = []
    for lag in sorted(set(lags[near].tolist())):
        if good and lag - good[-1] <= _SLACK:
            continue
        paired = (near & (np.abs(lags - lag) <= _SLACK)).any(0).sum()
        moved = beats.place[b] + lag
        covered = (moved >= beats.place[a].min() - _SLACK) & (moved <= beats.place[a].max() + _SLACK)
        if paired >= _PAIRED * covered.sum():
            good.append(lag)
    return good


def _correlation(first: Floats, second: Floats, lag: int) -> float:
    """Median over leads of the correlation of what both cover, at the best lag near `lag`."""
    at = []
    for shift in range(lag - _SLACK - 1, lag + _SLACK + 2):
        a, b = first[:, max(0, shift) :], second[:, max(0, -shift) :]
        count = min(a.shape[1], b.shape[1])
        if count < max(_SHORTEST, _COVERED * min(first.shape[1], second.shape[1])):
            at.append(0.0)
            continue
        a, b = a[:, _EDGE : count - _EDGE], b[:, _EDGE : count - _EDGE]
        by_lead = (_standard(a) * _standard(b)).mean(-1)
        live = a.any(-1) & b.any(-1)
        at.append(float(np.median(by_lead[live])) if live.any() else 0.0)
    best = int(np.argmax(at[1:-1])) + 1
    before, peak, after = at[best - 1 : best + 2]
    bend = before - 2 * peak + after
    # The recordings need not have been sampled at the same instants: the top of the parabola through three lags.
    return min(1.0, peak - (after - before) ** 2 / (8 * bend)) if bend < 0 else peak
