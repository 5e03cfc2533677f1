"""The leak check: whether a question set's test says anything about patients that were not trained on.

Three things are looked for, each with a finding in words: patients who are in training and in the test; recordings that
are in both under two names; and test recordings in those folds of a published split that encoders are commonly
pretrained on. What the encoder itself was pretrained on is repeated.

A recording is found again by its content, whatever its gain, offset, sampling rate, filter or order of leads, and also
when it was cut shorter. Around every heart beat two seconds of all leads are boiled down to 192 signs of random
projections (Charikar, STOC 2002): the same beat gives nearly the same signs at any gain. Beats that share 32 of them
are looked at more closely, as in audio fingerprinting (Wang, ISMIR 2003): most beats of both recordings must pair up at
one lag, and then the recordings themselves must correlate. One pass over the recordings, some 5 ms each with
their reading (a minute or two for PTB-XL, an hour or two for MIMIC-IV-ECG); what is kept of a recording is some 350
bytes.

Of 1,625 PTB-XL recordings, 1.3 million pairs, the two most alike correlate at 0.91 and no two are taken for one. Whole
copies were all found, of 200 each: other gains and offsets, leads, rates (100 to 500 Hz) and filters, 5 s cut on the
sampling grid; of cuts off the grid 98 % of 6 s, 92 % of 4 s. Simulated recordings are drawn one by one from few
parameters and not compared: two patients with the same ones are as alike as copies.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter1d
from scipy.signal import find_peaks

from data.conversations.rows import QuestionSet
from data.corpora.ptbxl import TRAIN_FOLDS
from data.ecg import LEADS, Ecg, EcgSource
from data.support.cache import cache_key, computed_once
from data.synthetic import SyntheticCohort

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
_NAMED = 5  # in a refusal

# Of each corpus, the folds its makers give for training.
PRETRAINING_FOLDS = {"ptb-xl": frozenset(map(str, TRAIN_FOLDS))}

Floats = NDArray[np.float32]
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Duplicate:
    """One recording under two names.

    Attributes:
        train: Its id among the training records.
        test: Its id among the test records.
        correlation: Median over the leads, at the best lag.
    """

    train: str
    test: str
    correlation: float


@dataclass(frozen=True)
class Leaks:
    """What the leak check found.

    Attributes:
        train: Records and patients of training.
        test: Records and patients of the test.
        patients: Patients in both, sorted.
        duplicates: Recordings in both under two names; None when they were not compared, being simulated.
        folds: Test records in each fold of their corpus' published split.
        pretraining_folds: Those of these folds that encoders are commonly pretrained on.
        corpora: Corpora of the test records.
        pretrained_on: What the encoder says it was pretrained on.
    """

    train: tuple[int, int]
    test: tuple[int, int]
    patients: tuple[str, ...]
    duplicates: tuple[Duplicate, ...] | None
    folds: Mapping[str, int]
    pretraining_folds: tuple[str, ...]
    corpora: tuple[str, ...]
    pretrained_on: str

    def sentences(self) -> list[str]:
        """The findings, for the model card."""
        said = [
            f"Training: {self.train[0]:,} ECGs of {self.train[1]:,} patients. Test: {self.test[0]:,} ECGs of "
            f"{self.test[1]:,} patients.",
            _patients(self.patients) or "No patient is in both.",
            "The recordings are simulated one by one: none is a copy of another."
            if self.duplicates is None
            else _duplicates(self.duplicates) or "No recording is in both under two names (compared by content).",
        ]
        if self.folds:
            seen = sum(count for fold, count in self.folds.items() if fold in self.pretraining_folds)
            total = sum(self.folds.values())
            said.append(
                f"Of {total:,} test ECGs {seen:,} lie in {_ranges(self.pretraining_folds)} of their corpus' "
                "published split, which encoders are commonly pretrained on."
                if seen
                else f"All {total:,} test ECGs lie in {_ranges(self.folds)} of their corpus' published split; "
                f"encoders are commonly pretrained on {_ranges(self.pretraining_folds)}."
            )
        said.append(f"The encoder was pretrained on: {self.pretrained_on or 'nothing stated'}.")
        said += [
            f"That names {corpus}, the corpus of the test ECGs: the encoder may have seen them, or other ECGs of their "
            "patients."
            for corpus in self.corpora
            if _letters(corpus) in _letters(self.pretrained_on)
        ]
        return said

    def refusal(self) -> str:
        """Why this split must not be trained on; empty when nothing speaks against it."""
        found = [text for text in (_patients(self.patients), _duplicates(self.duplicates or ())) if text]
        if not found:
            return ""
        return " ".join(found) + (
            " Scores on this test would not be those of new patients. Leave these out of one side, or pass "
            "allow_leaks: true to train all the same; the model card then says so."
        )


def check_leaks(questions: QuestionSet, pretrained_on: str = "", cache: Path | str | None = None) -> Leaks:
    """Look for patients and recordings that are in training and in the test, and cross the split with published folds.

    Reads every recording of the question set once.

    Args:
        questions: The question set. Its reports count with the split they are of.
        pretrained_on: What the encoder says it was pretrained on.
        cache: Folder in which the duplicates are kept, by the recordings that were compared.

    Raises:
        ValueError: A recording cannot be read, or holds samples that are not finite.
    """
    train = {ecg for row in (*questions.train, *questions.reports) for ecg in row["ecgs"]}
    test = {ecg for row in (*questions.test, *questions.test_reports) for ecg in row["ecgs"]}
    # A record without a known patient stands for one of its own.
    patients = [{questions.patient_of.get(ecg) or f"of record {ecg}" for ecg in side} for side in (train, test)]
    corpora = {str(told["corpus"]) for ecg in test if "corpus" in (told := questions.traits.get(ecg, {}))}
    folds = Counter(questions.fold_of[ecg] for ecg in test if ecg in questions.fold_of)
    drawn = isinstance(questions.source, SyntheticCohort)
    pretraining = {fold for corpus in corpora for fold in PRETRAINING_FOLDS.get(corpus, ())}
    return Leaks(
        train=(len(train), len(patients[0])),
        test=(len(test), len(patients[1])),
        patients=tuple(sorted(patients[0] & patients[1])),
        duplicates=None if drawn else _kept(questions, sorted(train), sorted(test - train), cache),
        folds=dict(sorted(folds.items(), key=lambda item: _order(item[0]))) if pretraining else {},
        pretraining_folds=tuple(sorted(pretraining, key=_order)),
        corpora=tuple(sorted(corpora)),
        pretrained_on=pretrained_on,
    )


def _patients(shared: Sequence[str]) -> str:
    many = _count(shared, "patient is", "patients are")
    return f"{many} in training and in the test: {_some(shared)}." * bool(shared)


def _duplicates(shared: Sequence[Duplicate]) -> str:
    pairs = [f"{pair.train} and {pair.test}" for pair in shared]
    many = _count(shared, "recording is", "recordings are")
    return f"{many} in training and in the test under two names: {_some(pairs)}." * bool(shared)


def _count(what: Sequence[Any], one: str, many: str) -> str:
    return f"{len(what):,} {one if len(what) == 1 else many}"


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:_NAMED]) + (", ..." if len(names) > _NAMED else "")


def _letters(text: str) -> str:
    return "".join(letter for letter in text.casefold() if letter.isalnum())


def _order(fold: str) -> tuple[int, str]:
    return (int(fold), "") if fold.isdecimal() else (1 << 30, fold)


def _ranges(folds: Iterable[str]) -> str:
    """`folds 1-8, 10` of 1, 2, ..., 8 and 10."""
    runs: list[list[str]] = []
    for fold in sorted(folds, key=_order):
        if runs and fold.isdecimal() and runs[-1][-1].isdecimal() and int(fold) == int(runs[-1][-1]) + 1:
            runs[-1].append(fold)
        else:
            runs.append([fold])
    named = ", ".join(run[0] if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)
    return f"fold {named}" if [len(run) for run in runs] == [1] else f"folds {named}"


# --- recordings by content --------------------------------------------------------------------------------------------


def _kept(
    questions: QuestionSet, train: Sequence[str], test: Sequence[str], cache: Path | str | None
) -> tuple[Duplicate, ...]:
    """The duplicates, from the cache if these recordings were compared before."""
    if cache is None:
        return find_duplicates(questions.source, train, test)
    file = Path(cache) / f"duplicates-{cache_key(VERSION, questions.source_key, train, test)}.json"
    pairs = computed_once(file, lambda: [asdict(pair) for pair in find_duplicates(questions.source, train, test)])
    return tuple(Duplicate(**pair) for pair in pairs)


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
    found = []
    for one, other in sorted(_candidates(beats, train_beats, test_beats)):
        lags = _lags(beats, one, other)
        if not lags:
            continue
        names = train[one], test[other - len(train)]
        first, second = (_prepared(source[name]) for name in names)
        correlation = max(_correlation(first, second, lag) for lag in lags)
        if correlation >= _SAME:
            found.append(Duplicate(*names, round(correlation, 4)))
    return tuple(sorted(found, key=lambda pair: (pair.test, pair.train)))


@dataclass(frozen=True)
class _Beats:
    """All beats of all recordings, those of a recording together.

    Attributes:
        signs: uint32 `[beats, tables]`.
        record: int32 `[beats]`: number of the recording.
        place: int32 `[beats]`: where in it the beat is, samples.
        first: int64 `[records + 1]`: number of a recording's first beat.
    """

    signs: NDArray[np.uint32]
    record: NDArray[np.int32]
    place: NDArray[np.int32]
    first: NDArray[np.int64]

    def of(self, start: int, stop: int) -> slice:
        """The beats of recordings `start` to `stop`."""
        return slice(int(self.first[start]), int(self.first[stop]))


def _read(records: Sequence[str], source: EcgSource) -> _Beats:
    from tqdm.auto import tqdm

    rng = np.random.default_rng(0)
    projections = rng.standard_normal((len(LEADS) * _WINDOW // 4, 32 * _TABLES), dtype=np.float32)
    signs, places, blank = [], [], []
    for record in tqdm(records, desc="Looking for leaks", unit="ECG", delay=5):
        signal = _prepared(source[record])
        beats = _beats(signal)
        if not len(beats):
            blank.append(record)
        windows = np.stack([signal[:, b - _BEFORE : b - _BEFORE + _WINDOW : 4] for b in beats]) if len(beats) else None
        positive = np.zeros((0, projections.shape[1]), bool)
        if windows is not None:
            positive = _standard(windows).reshape(len(beats), -1) @ projections > 0
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
    signal[rows] = ecg.select(name for name, there in zip(LEADS, rows) if there).signal if any(rows) else 0
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
    found: set[tuple[int, int]] = set()
    for table in range(_TABLES):
        keys = beats.signs[train, table]
        order = np.argsort(keys, kind="stable")
        sought = beats.signs[test, table]
        low, high = (np.searchsorted(keys[order], sought, side) for side in ("left", "right"))
        ends = np.cumsum(high - low)
        for start in range(0, int(ends[-1]) if len(ends) else 0, chunk):
            hit = np.arange(start, min(start + chunk, int(ends[-1])))
            there = np.searchsorted(ends, hit, "right")
            here = order[hit - (ends - (high - low))[there] + low[there]]
            near = _distance(beats.signs[train][here], beats.signs[test][there]) <= _NEAR
            found |= set(
                zip(beats.record[train][here[near]].tolist(), beats.record[test][there[near]].tolist(), strict=True)
            )
    return found


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
