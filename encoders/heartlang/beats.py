"""Beats in which the leads of a recording agree.

At 100 Hz XQRS takes many T waves for beats and misses others: on simulated recordings whose beats are known (300 of
`data.synthetic`) lead I gives an F1 of 0.84, what all leads have in common 0.99.
"""

from functools import cache

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import uniform_filter1d
from scipy.signal import butter, filtfilt, find_peaks

from encoders.heartlang.words import Array, Indices
from encoders.heartlang.xqrs import find_beats

_FIRST_LEAD = 0.9  # the first lead is preferred while it agrees this well, compared with the one that agrees best
# Below either the leads do not agree. Of 1,625 recordings of PTB-XL none does, and with white noise of the signal's own
# size added few do; noise in each lead agrees by less than 0.5, noise at the electrodes (which leads share) has a
# contrast of at most 1.65. One or two leads agree with themselves or by chance: noise has 1.5 to 2.1, recordings 2.3.
_AGREEMENT, _CONTRAST, _CONTRAST_OF_TWO = 0.7, 1.65, 2.1
_BEAT = 0.4  # of the height of the beats; QRS complexes are above 0.7, T waves below 0.35
_SAME = 0.12  # s between a beat of XQRS and one of all leads that are the same


def agreed_beats(signal: Array, flat: NDArray[np.bool_], fs: float) -> tuple[Array, Indices, int | None, list[str]]:
    """The beats of all leads together.

    Each lead's activity is the size of what it holds between 5 and 20 Hz (mostly QRS complexes), over 0.11 s. Leads
    count by how much they have in common, so that those which are off or noisy lose. XQRS runs on the first lead if
    that agrees with the others, else on the lead that does most. `signal` is float64 `[leads, samples]` at `fs` Hz;
    `flat` leads are constant.

    Returns:
        Where the beats are; where words are centred, which is where XQRS has found the same beat; the row XQRS ran on;
        flags of `EcgSentence`.
    """
    if flat.all():
        return np.empty(0), np.empty(0, np.int64), None, ["no_beats"]
    activity = _activity(signal, fs)
    weights, agreement = _agreement(np.where(flat[:, None], 0.0, activity))
    lead = 0 if not flat[0] and agreement[0] >= _FIRST_LEAD * agreement.max() else int(agreement.argmax())
    beats = find_beats(signal[lead], fs)
    peaks, contrast = _peaks(weights @ activity, fs)
    few = (~flat).sum() < 3
    if contrast < (_CONTRAST_OF_TWO if few else _CONTRAST) or (not few and agreement.max() < _AGREEMENT):
        return beats.astype(np.float64), beats, lead, ["noisy"] + ([] if len(beats) else ["no_beats"])
    if not len(beats):
        return peaks.astype(np.float64), peaks, lead, ["corrected"]
    distance = np.abs(peaks[:, None] - beats)  # [peaks, beats]
    nearest, numbers = distance.argmin(axis=1), np.arange(len(peaks))
    mutual = distance.argmin(axis=0)[nearest] == numbers  # each other's nearest
    same = (distance[numbers, nearest] <= _SAME * fs) & mutual
    centres = np.where(same, beats[nearest], peaks)
    return peaks.astype(np.float64), centres, lead, [] if same.all() and len(beats) == len(peaks) else ["corrected"]


@cache
def _qrs_band(fs: float) -> tuple[Array, Array]:
    return butter(2, (5, 20), "bandpass", fs=fs)


def _activity(signal: Array, fs: float) -> Array:
    """How active each lead is: `[leads, samples]`."""
    quick = filtfilt(*_qrs_band(fs), signal, padlen=min(15, signal.shape[1] - 1))
    return np.sqrt(np.maximum(uniform_filter1d(quick * quick, round(0.11 * fs)), 0.0))


def _agreement(activity: Array) -> tuple[Array, Array]:
    """How much each lead counts in the sum of all, and its correlation with the sum of the others: `[leads]` each.

    The weights are the first principal component of the leads' activities, each of unit variance: of groups of leads
    that agree among themselves the largest prevails.
    """
    centred = activity - activity.mean(axis=1, keepdims=True)
    size = np.linalg.norm(centred, axis=1)
    unit = np.divide(centred, size[:, None], out=np.zeros_like(centred), where=size[:, None] > 0)
    alike = unit @ unit.T
    weights = np.abs(np.linalg.eigh(alike)[1][:, -1])
    # Of the others: a lead is taken out of the sum that it is compared with.
    with_others = alike @ weights - weights * alike.diagonal()
    others = weights @ alike @ weights - 2 * weights * (alike @ weights) + weights**2 * alike.diagonal()
    live = size > 0
    if live.sum() > 1:
        agreement = np.divide(with_others, np.sqrt(others), out=np.zeros(len(size)), where=others > 1e-12)
    else:
        agreement = live.astype(np.float64)
    agreement[~live] = 0.0
    return np.divide(weights, size, out=np.zeros_like(size), where=live), agreement


def _peaks(activity: Array, fs: float) -> tuple[Indices, float]:
    """Beats in the activity of all leads, and how far they stand out: their usual height over the median of all."""
    tops = find_peaks(np.concatenate([[0.0], activity, [0.0]]), distance=round(0.2 * fs))[0] - 1
    if not len(tops):
        return tops, 0.0
    level = float(np.median(activity))
    heights = activity[tops] - level
    # A beat has at most three waves, so that the highest third are QRS complexes.
    usual = float(np.median(np.sort(heights)[-max(3, len(heights) // 3) :]))
    return tops[heights > _BEAT * usual], 1 + usual / level if level > 0 else np.inf
