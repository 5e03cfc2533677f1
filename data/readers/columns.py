"""Columns of a table: which of them count the rows or tell the time, and the sampling rate that times give.

Such a column is no signal: it is taken away and named.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from data.readers.common import agree

_INDEX = re.compile(r"|#|index|idx|n|no\.?|row|samples?( ?(no\.?|number|#))?|unnamed: ?\d+|x", re.IGNORECASE)
_TIME = re.compile(
    r"(elapsed )?(time|zeit|temps|tempo|timestamp|t)?[ _]*(in )?[(\[]?"
    r"(?P<unit>s|sec|seconds?|[mun]s|msec|milliseconds)?[)\]]?",
    re.IGNORECASE,
)
_SECONDS = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "ns": 1e-9}
_FEWEST = 10  # rows by which a column without a name is known to count
_RATES = (20.0, 20_000.0)  # Hz: of units taken for each other, one at most gives a rate between these


@dataclass(frozen=True)
class Table:
    """Numbers of a table.

    Attributes:
        values: float64 `[rows, columns]`, without columns of row numbers and times; NaN where nothing stands.
        names: Header of the columns; None where there is none, or one that only numbers them.
        rates: Sampling rates that a column of times may mean, Hz: several where it does not say its unit.
        others: Columns that were taken away: name and place of each.
        delimiter: What separates the cells, in words.
    """

    values: NDArray[np.float64]
    names: tuple[str, ...] | None
    rates: tuple[float, ...] = ()
    others: tuple[tuple[str, int], ...] = ()
    delimiter: str = ""


def agreed_rate(table: Table, fs: float | None, where: str) -> float | None:
    """The caller's sampling rate, Hz, or that of a column of times; None where neither says one.

    Raises:
        ValueError: They differ by more than half a sample at the end. Begins with `where`.
    """
    if not table.rates:
        return fs
    close = min(0.01, 0.5 / (len(table.values) - 1))
    likely = [rate for rate in table.rates if len(table.rates) == 1 or _RATES[0] <= rate < _RATES[1]]
    if fs is not None:
        if not any(abs(rate / fs - 1) <= close for rate in table.rates):
            agree("sampling rate", fs, float(f"{(likely or table.rates)[0]:.6g}"), where)
        return fs
    if len(likely) != 1:
        return None
    whole = float(round(likely[0]))  # times are written with few digits
    return whole if abs(whole / likely[0] - 1) <= close else likely[0]


def is_count(words: Sequence[str]) -> bool:
    """Whether the words are 0, 1, 2, ... or 1, 2, 3, ..."""
    if not words or not all(word.isdecimal() and len(word) < 10 for word in words):
        return False
    start = int(words[0])
    return start in (0, 1) and [int(word) for word in words] == list(range(start, start + len(words)))


def without_counters(values: NDArray[np.float64], names: tuple[str, ...] | None, delimiter: str) -> Table:
    """The table without columns of row numbers and times: by their names or, without names, by how they begin."""
    columns = values.shape[1]
    names = None if names and is_count(names) else names
    others: dict[int, str] = {}
    rates: tuple[float, ...] = ()
    for column, row in enumerate(values.T):
        if names is None and (column > len(others) or column + 1 == columns or len(values) < _FEWEST):
            break
        name = names[column] if names else ""
        steps = np.diff(row)
        counts = bool(np.all(steps == 1)) and float(row[0]).is_integer()
        if counts and columns > 1 and _INDEX.fullmatch(name) and (names or row[0] in (0, 1)):
            others[column] = name or "index"
        elif names and name and (time := _TIME.fullmatch(name)):
            others[column], rates = name, _rates(row, name, time["unit"])
        elif names is None and np.all(steps > 0) and np.allclose(steps, steps.mean(), rtol=0.01):
            others[column], rates = "time", _rates(row, "time", None)
    left = [column for column in range(columns) if column not in others]
    names = tuple(names[column] for column in left) if names else None
    names = None if names and is_count(names) else names
    return Table(values[:, left], names, rates, tuple((name, column) for column, name in others.items()), delimiter)


def _rates(times: NDArray[np.float64], name: str, unit: str | None) -> tuple[float, ...]:
    """Sampling rates that times may mean, Hz."""
    if len(times) < 2:
        return ()
    steps = np.diff(times)
    if not np.all(steps > 0):
        at = int(np.flatnonzero(~(steps > 0))[0])
        raise ValueError(
            f"column {name!r}: time does not rise from {times[at]:g} to {times[at + 1]:g}: correct or remove it"
        )
    mean = steps.mean()
    if steps.max() > 1.75 * max(mean, np.median(steps)):
        at = int(steps.argmax())
        gap = f"samples are missing between {times[at]:g} and {times[at + 1]:g}"
        raise ValueError(
            f"column {name!r}: {gap}: fill in rows with empty cells, or remove the column and state the rate"
        )
    seconds = {"sec": "s", "second": "s", "seconds": "s", "msec": "ms", "milliseconds": "ms"}
    units = [seconds.get(unit.lower(), unit.lower())] if unit else [*_SECONDS]
    return tuple(float(1 / (mean * _SECONDS[word])) for word in units)
