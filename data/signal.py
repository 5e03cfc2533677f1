"""Signal operations on arrays `[..., samples]`: pure functions, no state."""

import math
from fractions import Fraction
from functools import cache

import numpy as np
from numpy.typing import NDArray


def resample(signal: NDArray[np.float32], fs_in: float, fs_out: float) -> NDArray[np.float32]:
    """Resample along the last axis with an anti-aliasing polyphase filter.

    What lies below 0.8 of the lower Nyquist frequency keeps its amplitude to 0.5 %; straight lines (offset, drift) pass
    unchanged.

    Rates are in Hz. Gives float32 `[..., round(samples * fs_out / fs_in)]`, the first sample at the same time.

    Raises:
        ValueError: A rate is not a positive number.
    """
    if not (0 < fs_in < math.inf and 0 < fs_out < math.inf):
        raise ValueError(f"sampling rates must be positive numbers, got {fs_in} and {fs_out}")
    ratio = _ratio(fs_out / fs_in, signal.shape[-1])
    from scipy.signal import resample_poly  # takes longer to import than most recordings to read

    # The straight line through both ends is taken away and put back: an offset would ring at the ends, and, because
    # the filter's phases differ in gain by 1e-3, an electrode's 100 mV would ripple by 50 uV all along when upsampling.
    first, last = signal[..., :1].astype(np.float64), signal[..., -1:].astype(np.float64)
    slope = (last - first) / max(1, signal.shape[-1] - 1)
    level = signal - (first + slope * np.arange(signal.shape[-1]))
    out = resample_poly(level, ratio.numerator, ratio.denominator, axis=-1)
    count = min(out.shape[-1], max(1, round(signal.shape[-1] * fs_out / fs_in)))
    return np.asarray(out[..., :count] + first + slope * (np.arange(count) * fs_in / fs_out), dtype=np.float32)


def _ratio(exact: float, samples: int) -> Fraction:
    """The fraction by which a signal of so many samples is resampled: the ratio of the rates, or one next to it.

    Rates that were chosen (500, 360, 128 Hz) have ratios of small whole numbers, met to one part in a million. One
    that was measured (499.99 Hz) has none: a fraction with a denominator of 10,000 may still be 2e-5 beside it, and the
    filter grows with the denominator. So the simplest fraction is taken with which the last sample is less than half
    a sample early or late, which no wave of an ECG shows; longer recordings need larger denominators.
    """
    ratio = Fraction(exact).limit_denominator(10_000)
    if abs(float(ratio) / exact - 1) <= 1e-6:
        return ratio
    for digits in range(1, 7):  # a filter for a denominator of a million takes 160 MB
        ratio = Fraction(exact).limit_denominator(10**digits)
        if ratio and abs(float(ratio) - exact) * samples < 0.5:
            return ratio
    return max(ratio, Fraction(1, samples))  # at least one sample comes out


def bandpass(signal: NDArray[np.floating], fs: float, low: float, high: float, order: int = 5) -> NDArray[np.float64]:
    """Butterworth band-pass along the last axis, run forwards and backwards: no delay, and the response squared.

    `fs`, and the corners `low` and `high` (-6 dB), are in Hz.

    Raises:
        ValueError: The corners are not in ascending order between 0 and half the sampling rate.
    """
    if not 0 < low < high < fs / 2:
        raise ValueError(f"a band-pass at {fs:g} Hz needs 0 < low < high < {fs / 2:g} Hz, got {low} and {high}")
    from scipy.signal import sosfiltfilt

    sections = _bandpass_sections(fs, low, high, order)
    # As scipy's own choice, but for a recording shorter than that.
    edge = min(3 * (2 * order + 1), signal.shape[-1] - 1)
    return np.asarray(sosfiltfilt(sections, signal, axis=-1, padlen=edge), dtype=np.float64)


@cache
def _bandpass_sections(fs: float, low: float, high: float, order: int) -> NDArray[np.float64]:
    from scipy.signal import butter

    # Second-order sections: the polynomials of a low corner at a high sampling rate are not numbers to compute with.
    return np.asarray(butter(order, (low, high), "bandpass", fs=fs, output="sos"))
