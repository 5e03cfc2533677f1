"""Words of HeartLang: which stretches of a recording they are about, and how these are cut out of it."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Indices = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Words:
    """Words about the same stretches in some leads: rows of the signal, sample in the middle of each, `spans_of`."""

    rows: Indices
    middles: Indices
    spans: Indices


@dataclass(frozen=True, eq=False)
class Reading:
    """Beats (samples) and words of a recording; the others as in `EcgSentence`."""

    groups: list[Words]
    beats: Array | Indices
    beat_of_word: Indices
    lead: str
    flags: tuple[str, ...]


def spans_of(beats: Indices, samples: int, length: int) -> Indices:
    """First sample, end, and first column in the word, of what is cut around each beat: `[3, beats]`, as upstream."""
    if not len(beats):
        return np.zeros((3, 0), np.int64)
    half = length // 2
    between = (beats[1:] + beats[:-1]) // 2
    start = np.concatenate([[max(beats[0] - half, 0)], between])
    end = np.concatenate([between, [min(beats[-1] + half, samples)]])
    if len(beats) == 1:
        end[0] = min(start[0] + length, samples)
    long = end - start > length
    start = np.where(long, np.maximum(beats - half, 0), start)
    end = np.where(long, np.minimum(start + length, samples), end)
    column = np.maximum(half - (beats - start), 0)
    return np.stack([start, np.minimum(end, start + length - column), column])


def cut(signal: Array, spans: Indices, length: int) -> NDArray[np.float32]:
    """Words float32 `[leads * spans, length]`, lead after lead."""
    start, end, column = spans[..., None]
    take = start - column + np.arange(length)  # [spans, length]
    inside = (take >= start) & (take < end)
    words = signal.astype(np.float32).take(np.where(inside, take, 0), axis=1)
    words *= inside
    return words.reshape(-1, length)


def covered_by(spans: Indices, samples: int) -> NDArray[np.bool_]:
    """Which samples are in a word: bool `[samples]`."""
    covered = np.zeros(samples, bool)
    for start, end in spans[:2].T.tolist():
        covered[start:end] = True
    return covered


def windows_over(moves: NDArray[np.bool_], covered: NDArray[np.bool_], length: int, *, whole: bool) -> Indices:
    """Windows side by side over what is not covered, like `spans_of`: of `length`, the last of each row half or more.

    With `whole` they are all of a recording without beats, be it shorter or flat; otherwise a window in most of which
    no lead moves (a recording filled up with zeros) is no pause.
    """
    edges = np.flatnonzero(np.diff(covered.astype(np.int8), prepend=1, append=1))
    windows = []
    for start, end in edges.reshape(-1, 2).tolist():
        stops = [*range(start + length, end + 1, length)]
        if (last := (end - start) % length) >= length // 2 or (whole and not stops):
            stops.append(end)
        windows += [(stop - (length if (stop - start) % length == 0 else last), stop) for stop in stops]
    if not whole:
        windows = [(start, end) for start, end in windows if moves[start:end].mean() >= 0.5]
    start, end = np.array(windows, np.int64).reshape(-1, 2).T
    return np.stack([start, end, length // 2 - (end - start) // 2])
