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
    """What is measured in a recording; None where it cannot be determined.

    Attributes:
        quality: `"failed"` where nothing is measured, `"poor"` where it should be taken with care.
        reason: Why it is not `"good"`; empty where it is.
        rate: Mean ventricular rate, 1/min.
        pr: Onset of P to onset of QRS, ms; None without P waves before the beats.
        qrs: Duration of the QRS complex, ms.
        qt: Onset of QRS to end of T, ms.
        qtc: QT for a rate of 60/min after Bazett, QT / sqrt(RR / 1 s), ms.
        axis: Direction of the net area of the QRS complex in the frontal plane, degrees in (-180, 180]: 0 towards lead
            I, 90 towards aVF.
        r: Highest point of the QRS complex over its onset, mV (0 or more), of each lead that was recorded.
        s: The same for the lowest point (0 or less).
    """

    quality: Quality
    reason: str = ""
    rate: float | None = None
    pr: float | None = None
    qrs: float | None = None
    qt: float | None = None
    qtc: float | None = None
    axis: float | None = None
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

    def number(value: float | None, unit: str) -> str:
        return "unknown" if value is None else f"{value:.0f}{unit}"

    line = f"Measured: rate {number(measured.rate, '/min')}, PR {number(measured.pr, ' ms')}, "
    line += f"QRS {number(measured.qrs, ' ms')}, QTc {number(measured.qtc, ' ms')}, "
    line += f"axis {number(measured.axis, ' degrees')}"
    sizes = {lead: measured.r[lead] - measured.s[lead] for lead in LEADS if lead in measured.r}
    if amplitudes == "none" or not sizes:
        return f"{line}."
    line += f", QRS amplitude {sum(sizes.values()) / len(sizes):.1f} mV"
    if amplitudes == "mean":
        return f"{line}."
    return f"{line} ({', '.join(f'{lead} {size:.1f}' for lead, size in sizes.items())})."
