"""XQRS, wfdb's beat detector, with the same beats in a fifth of its time.

wfdb designs its filters anew for every recording, and looks for local peaks with a Python loop over all samples. Here
filters are designed once per sampling rate, and the loop is over candidates for peaks only. All else is wfdb's own
code, and its beats are those of `wfdb.processing.xqrs_detect` (tests/encoders/test_qrs_tokenizer.py).
"""

from functools import cache

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import maximum_filter1d
from scipy.signal import butter, filtfilt
from wfdb.processing import XQRS
from wfdb.processing.basic import get_filter_gain
from wfdb.processing.qrs import ricker

Array = NDArray[np.float64]


def find_beats(signal: Array, fs: float) -> NDArray[np.int64]:
    """Samples at which the QRS complexes of one lead are, int64 `[beats]`, ascending.

    The signal is float64 `[samples]` at `fs` Hz, finite; its scale does not matter. There are none where no beat is
    found, or where the signal is shorter than the detector's filters need.
    """
    if len(signal) <= _edge(fs):
        return np.empty(0, np.int64)
    detector = _Xqrs(signal, fs)
    with np.errstate(invalid="ignore", divide="ignore"):  # a stretch of zeros has no shape
        detector.detect(verbose=False)
    return np.asarray(detector.qrs_inds, np.int64)


class _Xqrs(XQRS):  # type: ignore[misc]
    """wfdb's detector; each method does what it does there."""

    def _bandpass(self, fc_low: float = 5, fc_high: float = 20) -> None:
        self.fc_low, self.fc_high = fc_low, fc_high
        b, a, self.filter_gain = _bandpass(fc_low, fc_high, self.fs)
        self.sig_f = filtfilt(b, a, self.sig[self.sampfrom : self.sampto])

    def _mwi(self) -> None:
        wavelet, self.mwi_gain = _wavelet(self.qrs_width, (self.fc_low + self.fc_high) / 2, self.fs)
        self.sig_i = filtfilt(wavelet, [1], self.sig_f) ** 2
        self.transform_gain = self.filter_gain * self.mwi_gain
        self.peak_inds_i = _local_peaks(self.sig_i, self.qrs_radius)
        self.n_peaks_i = len(self.peak_inds_i)

    def _learn_init_params(self, n_calib_beats: int = 8) -> None:
        template = _template(self.qrs_radius)
        radius, filtered, integrated = self.qrs_radius, self.sig_f, self.sig_i
        peaks = _local_peaks(filtered, radius)
        first = int(np.searchsorted(peaks, self.qrs_width, "right"))
        last = int(np.searchsorted(peaks, self.sig_len - self.qrs_width, "right")) - 1
        previous, beats, beat_sizes, noise_sizes = -self.rr_max, [], [], []
        # The last peak is left out as in wfdb.
        for peak in peaks[first:last].tolist():
            shape = filtered[peak - radius : peak + radius]
            likeness = np.correlate(shape / np.sqrt(shape.dot(shape)), template)[0]
            if likeness > 0.6 and peak - previous > self.rr_min:
                previous = peak
                beats.append(peak)
                beat_sizes.append(integrated[peak])
            else:
                noise_sizes.append(integrated[peak])
            if len(beats) == n_calib_beats:
                break
        self.learned_init_params = len(beats) == n_calib_beats
        if not self.learned_init_params:
            self._set_default_init_params()
            return
        size, intervals = np.mean(beat_sizes), np.diff(beats)
        intervals = intervals[intervals < self.rr_max]
        self._set_init_params(
            qrs_amp_recent=size,
            noise_amp_recent=np.mean(noise_sizes) if noise_sizes else size / 10,
            rr_recent=np.mean(intervals) if len(intervals) else self.rr_init,
            last_qrs_ind=min(0, beats[0] - self.rr_min - 1),
        )

    def _run_detection(self) -> None:
        # Python's numbers are those of numpy, and much faster one at a time.
        self.sig_i, self.peak_inds_i = self.sig_i.tolist(), self.peak_inds_i.tolist()
        self.qrs_amp_recent, self.noise_amp_recent = float(self.qrs_amp_recent), float(self.noise_amp_recent)
        self.qrs_thr, self.rr_recent = float(self.qrs_thr), float(self.rr_recent)
        super()._run_detection()


@cache
def _bandpass(low: float, high: float, fs: float) -> tuple[Array, Array, float]:
    """Numerator, denominator and gain, twice that in the middle of the band: the filter runs in both directions."""
    b, a = butter(2, [float(low) * 2 / fs, float(high) * 2 / fs], "pass")
    return b, a, get_filter_gain(b, a, (low + high) / 2, fs) * 2


@cache
def _wavelet(width: int, frequency: float, fs: float) -> tuple[Array, float]:
    wavelet = ricker(width, 4)
    return wavelet, get_filter_gain(wavelet, [1], frequency, fs) * 2


@cache
def _template(radius: int) -> Array:
    return np.asarray(ricker(radius * 2, 4))


@cache
def _edge(fs: float) -> int:
    """Samples by which wfdb's filters lengthen a signal at its ends: it must have more."""
    return 3 * max(5, XQRS(np.zeros(1), fs).qrs_width)


def _local_peaks(signal: Array, radius: int) -> NDArray[np.int64]:
    """Samples that are the greatest of the `radius` before and behind them, and at least `radius` apart."""
    if signal.min() == signal.max():
        return np.empty(0, np.int64)
    # wfdb's window ends one sample before `radius` behind: an even number of samples.
    greatest = maximum_filter1d(signal, 2 * radius, mode="constant", cval=-np.inf)
    peaks, next_one = [], 0
    for place in np.flatnonzero(signal == greatest).tolist():
        if place >= next_one:
            peaks.append(place)
            next_one = place + radius
    return np.asarray(peaks, np.int64)
