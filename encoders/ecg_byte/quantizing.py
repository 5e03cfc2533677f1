"""What ECG-Byte's tokens depend on besides their table; first of all, how millivolts become 26 levels, and back.

Source: ECG-Byte (Han et al., 2024, arXiv 2412.14373) and ECG-Bench (arXiv 2505.18847), code MIT. Both divide a range
into 26 equal bins. ECG-Bench takes the range of each recording, over all its leads, so that how high a wave is in
millivolts is lost; ECG-Byte takes percentiles of its training set. `"millivolts"` is ours: one range for all.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from data.ecg import LEADS, canonical_lead
from encoders.base import check_choice

LEVELS = 26
_EPSILON = 1e-6  # added to a range by upstream

Normalize = Literal["millivolts", "minmax", "percentile"]
Decode = Literal["midpoint", "upstream"]


@dataclass(frozen=True)
class Quantizer:
    """How samples become levels.

    Attributes:
        normalize: Which range is divided:

            * `"millivolts"`: `low` to `high`, the same for every recording, so that amplitude is kept.
            * `"minmax"`: the least to the greatest sample of the recording, all leads together, in float32, as
              ECG-Bench does it. A constant recording is level 0 throughout, whatever its voltage.
            * `"percentile"`: `low - 0.5` to `high + 0.5` in float64, as the stand-alone ECG-Byte does it with the first
              and 99th percentile of its training set (it does not publish them).

            What lies outside becomes the first or the last level, however far it is.
        low: Millivolts; not used by `"minmax"`.
        high: Millivolts; not used by `"minmax"`. With the defaults a bin is 0.16 mV, and 0 mV is the middle of one, so
            that an isoelectric line with some noise stays one level (with a range of -2 to 2 mV it would waver between
            two, which takes a quarter more tokens). 1.75 mV in each of two leads, the voltage criterion of Sokolow and
            Lyon, is within it. Of 71 real recordings of six sources, 39 lie within it throughout, and of all samples
            0.16 % lie outside, a fifth of these in one recording whose file states a wrong gain.
        decode: What a level becomes: the middle of its bin, so that no sample within the range is off by more than half
            a bin; or what upstream takes, `level / 25` of the range, which is off by up to a bin.

    Raises:
        ValueError: One of these is another word, or the range is none.
    """

    normalize: Normalize = "millivolts"
    low: float = -2.0
    high: float = 2.16
    decode: Decode = "midpoint"

    def __post_init__(self) -> None:
        check_choice("normalize", self.normalize, Normalize)
        check_choice("decode", self.decode, Decode)
        if not -np.inf < self.low < self.high < np.inf:
            raise ValueError(f"low and high must be millivolts in ascending order, got {self.low} and {self.high}")

    def range_of(self, signal: NDArray[np.float32]) -> tuple[float, float]:
        """The range to divide for this recording, in millivolts: what the other methods must be given."""
        return (float(signal.min()), float(signal.max())) if self.normalize == "minmax" else self.fixed_range

    @property
    def fixed_range(self) -> tuple[float, float]:
        """The range of every recording, in millivolts; 0 to 1, in parts of a recording's own, for `"minmax"`."""
        if self.normalize == "minmax":
            return 0.0, 1.0
        margin = 0.5 if self.normalize == "percentile" else 0.0
        return self.low - margin, self.high + margin

    def levels(self, signal: NDArray[np.float32], low: float, high: float) -> NDArray[np.uint8]:
        """The level, 0 to 25, of finite millivolts float32 `[..., samples]` in `range_of` their recording.

        Raises:
            ValueError: The recording's own range is too large for float32.
        """
        if self.normalize == "minmax":
            # Upstream computes in the recording's float32; in float64 a few samples on an edge are another level.
            if high - low > float(np.finfo(np.float32).max):
                raise ValueError(f"samples from {low:g} to {high:g} mV have no range in float32")
            unit = (signal - np.float32(low)) / (np.float32(high) - np.float32(low) + np.float32(_EPSILON))
        else:
            unit = (signal.astype(np.float64) - low) / self._width(low, high)
        # The cast cuts towards zero, which is the floor of what is not negative.
        np.clip(unit, 0, 1, out=unit)
        unit *= LEVELS
        return np.minimum(unit.astype(np.uint8), np.uint8(LEVELS - 1))

    def voltages(self, levels: NDArray[np.uint8], low: float, high: float) -> NDArray[np.float32]:
        """Millivolts float32 of levels uint8 of any shape; `low` and `high` as for `levels`."""
        if self.decode == "upstream":
            return np.asarray(levels / (LEVELS - 1) * (high - low) + low, np.float32)
        return np.asarray((levels + 0.5) / LEVELS * self._width(low, high) + low, np.float32)

    def outside(self, signal: NDArray[np.float32], low: float, high: float) -> int:
        """How many samples lie outside the range, and are therefore off by more than half a bin."""
        return int(np.count_nonzero((signal < low) | (signal > high)))

    def _width(self, low: float, high: float) -> float:
        return high - low + (0.0 if self.normalize == "millivolts" else _EPSILON)


@dataclass(frozen=True)
class EcgByteSettings:
    """What tokens depend on besides their table.

    Raises:
        ValueError: A number is not positive, or a lead is none or stands twice.
    """

    sampling_rate: float = 100.0  # Hz; a recording of another rate is resampled
    seconds: float | None = 10.0  # a longer recording is cut to its first seconds; `None` takes all of it
    # Which leads, in this order; `None` takes the rows of a recording as they come.
    leads: tuple[str, ...] | None = LEADS
    quantizer: Quantizer = Quantizer()  # how millivolts become levels
    across: bool = False  # whether a token may go from one lead into the next
    # What a recording may need at most. One that needs more loses its high frequencies until it fits: it is smoothed by
    # a Gaussian of 0.5, 1, then 2 samples. One that does not fit then is refused.
    max_tokens: int | None = None

    def __post_init__(self) -> None:
        for name in ("sampling_rate", "seconds", "max_tokens"):
            value = vars(self)[name]
            if value is not None and not 0 < value < np.inf:
                raise ValueError(f"{name} must be a positive number, got {value}")
        if self.leads is not None:
            leads = tuple(map(canonical_lead, self.leads))
            if not leads or len(set(leads)) != len(leads):
                raise ValueError(f"leads must be names of leads, each once, got {self.leads}")
            object.__setattr__(self, "leads", leads)


DEFAULTS = EcgByteSettings()
