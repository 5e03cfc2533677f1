"""Units of amplitude and time, checked wherever they come in: files, uploads, requests."""

import math

_MILLIVOLTS = {"v": 1e3, "mv": 1.0, "μv": 1e-3, "uv": 1e-3, "nv": 1e-6}  # `casefold` makes the micro sign a mu
_MAX_FS = 100_000.0


def millivolts(unit: str, where: str) -> float:
    """How many millivolts one `unit` is: V, mV, uV, µV or nV, in any case.

    Raises:
        ValueError: The unit is none of these. Begins with `where`.
    """
    scale = _MILLIVOLTS.get(unit.strip().casefold())
    if scale is None:
        raise ValueError(f"{where}: unknown units {unit!r}: expected V, mV, uV or nV, in any case")
    return scale


def sampling_rate(fs: float, where: str) -> float:
    """`fs` in Hz, if it can be one.

    Raises:
        ValueError: The rate is not above 0 and at most 100 kHz. Begins with `where`.
    """
    if not (math.isfinite(fs) and 0 < fs <= _MAX_FS):
        raise ValueError(f"{where}: sampling rate {fs:g} Hz is not above 0 and at most {_MAX_FS:g}: correct it")
    return float(fs)
