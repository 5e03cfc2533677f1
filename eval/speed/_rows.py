"""Ways of doing one thing, timed one after the other in every repeat, and the table of them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

Way = Callable[[Any], object]
Rows = dict[str, tuple[Way, str]]  # by name, what it does with one of what is given, and the name of its baseline


def timed(given: Sequence[Any], rows: Rows, repeats: int, records: int) -> dict[str, list[float]]:
    """Milliseconds of CPU time per recording of every row over all that is given, `records` in all, in each repeat.

    CPU time, as other processes may run beside: all ways must keep to one thread. The first round warms up and is not
    timed.
    """
    times: dict[str, list[float]] = {name: [] for name in rows}
    for repeat in range(repeats + 1):
        for name, (run, _) in rows.items():
            start = time.process_time()
            for one in given:
                run(one)
            if repeat:
                times[name].append((time.process_time() - start) / records * 1000)
    return times


def show(rows: Rows, times: dict[str, list[float]]) -> None:
    """Print a table: medians, and the median of the ratios to the baseline with the least and the greatest."""
    print(f"{'':<28}{'ms/record':>12}{'records/s':>12}{'ratio':>10}")
    for name, (_, baseline) in rows.items():
        middle = statistics.median(times[name])
        line = f"{name:<28}{middle:>12.3g}{1000 / middle:>12.3g}"
        if baseline:
            ratios = sorted(base / here for base, here in zip(times[baseline], times[name], strict=True))
            line += f"{statistics.median(ratios):>9.3g}x  ({ratios[0]:.3g}-{ratios[-1]:.3g}) of {baseline}"
        print(line)
