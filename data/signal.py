"""Signal operations on arrays `[..., samples]`: pure functions, no state."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
from numpy.typing import NDArray
from scipy.signal import resample_poly


def resample(signal: NDArray[np.float32], fs_in: float, fs_out: float) -> NDArray[np.float32]:
    """Resample along the last axis with an anti-aliasing polyphase filter.

    What lies below 0.8 of the lower Nyquist frequency keeps its amplitude to 0.5 %; straight lines (offset, drift) pass
    unchanged.

    Args:
        signal: `[..., samples]`.
        fs_in: Sampling rate of `signal`, Hz.
        fs_out: Wanted sampling rate, Hz.

    Returns:
        float32 `[..., round(samples * fs_out / fs_in)]`, its first sample at the time of the first of `signal`.

    Raises:
        ValueError: A rate is not positive, or their ratio cannot be met to one part in a million.
    """
    if not (fs_in > 0 and fs_out > 0):
        raise ValueError(f"sampling rates must be positive, got {fs_in} and {fs_out}")
    ratio = Fraction(fs_out / fs_in).limit_denominator(10_000)
    if abs(float(ratio) / (fs_out / fs_in) - 1) > 1e-6:
        raise ValueError(f"cannot resample {fs_in} Hz to {fs_out} Hz: their ratio is not a simple fraction")
    # The straight line through both ends is taken away and put back: an offset would ring at the ends, and, because
    # the filter's phases differ in gain by 1e-3, an electrode's 100 mV would ripple by 50 uV all along when upsampling.
    first, last = signal[..., :1].astype(np.float64), signal[..., -1:].astype(np.float64)
    slope = (last - first) / max(1, signal.shape[-1] - 1)
    level = signal - (first + slope * np.arange(signal.shape[-1]))
    out = resample_poly(level, ratio.numerator, ratio.denominator, axis=-1)
    count = min(out.shape[-1], max(1, round(signal.shape[-1] * fs_out / fs_in)))
    return np.asarray(out[..., :count] + first + slope * (np.arange(count) * fs_in / fs_out), dtype=np.float32)
