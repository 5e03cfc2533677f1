"""What is measured in a recording, and its words for a prompt."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from data.ecg import LEADS

Quality = Literal["good", "poor", "failed"]

AMPLITUDES = ("leads", "mean", "none")
NOT_MEASURABLE = "Measured: not measurable."


@dataclass(frozen=True)
class Measurements:
    """What is measured in a recording; None where it cannot be determined."""

    # `"failed"` where nothing is measured, `"poor"` where it should be taken with care. Of the measurement, and never
    # better than the signal's (`data.quality`).
    quality: Quality
    reason: str = ""  # why it is not `"good"`; empty where it is
    rate: float | None = None  # mean ventricular rate, 1/min
    pr: float | None = None  # onset of P to onset of QRS, ms; None without P waves before the beats
    qrs: float | None = None  # duration of the QRS complex, ms
    qt: float | None = None  # onset of QRS to end of T, ms
    qtc: float | None = None  # QT for a rate of 60/min after Bazett, QT / sqrt(RR / 1 s), ms
    axis: float | None = None  # direction of the net QRS area, degrees in (-180, 180]: 0 towards lead I, 90 towards aVF
    # Of each lead that was recorded, mV: highest (0 or more) and lowest point (0 or less) of QRS over its onset.
    r: Mapping[str, float] = field(default_factory=dict)
    s: Mapping[str, float] = field(default_factory=dict)


def as_text(measured: Measurements, amplitudes: str = "leads") -> str:
    """One line for a prompt: always the same features in the same order, "unknown" where one is not determined.

    Args:
        measured: The measurements.
        amplitudes: Peak-to-peak amplitudes of the QRS complex: `"leads"` gives their mean and that of each lead,
            `"mean"` the mean alone, `"none"` none. They say something only where the recordings' millivolts are true.
    """
    if measured.quality == "failed":
        return NOT_MEASURABLE
    features = {"rate": (measured.rate, "/min"), "PR": (measured.pr, " ms"), "QRS": (measured.qrs, " ms")}
    features |= {"QTc": (measured.qtc, " ms"), "axis": (measured.axis, " degrees")}
    numbers = {name: "unknown" if value is None else f"{value:.0f}{unit}" for name, (value, unit) in features.items()}
    line = f"Measured: {', '.join(f'{name} {number}' for name, number in numbers.items())}"
    sizes = {lead: measured.r[lead] - measured.s[lead] for lead in LEADS if lead in measured.r}
    if amplitudes == "none" or not sizes:
        return f"{line}."
    line += f", QRS amplitude {sum(sizes.values()) / len(sizes):.1f} mV"
    if amplitudes == "mean":
        return f"{line}."
    return f"{line} ({', '.join(f'{lead} {size:.1f}' for lead, size in sizes.items())})."
