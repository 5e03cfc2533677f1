"""Flip pairs as a page shows them: the leads of two ECGs one below the other on paper, at the same scale."""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from data.paper import Drawing, Stroke, Text, grid, lines_through, whole_boxes
from eval.scoring.jsonable import Json

SPEED, GAIN = 25, 10  # mm per second and per mV
SECONDS = 5.0  # of a strip: two stand side by side on a screen, each as large as on paper
MARGIN = 15  # mm left of the trace, for the lead's name and the pulse; whole large boxes
LEAST_ABOVE, LEAST_BELOW, MOST = 15, 5, 40  # mm of paper above and below the baseline of a lead


class ShownEcg(Json):
    """One ECG of a flip pair."""

    record: str  # its record id
    fs: float  # in Hz
    leads: Mapping[str, Sequence[float]]  # signal in mV, by lead
    right: Sequence[str]  # right answer about it
    said: str  # answer of the model
    correct: bool  # whether that is right
    p: Mapping[str, float] | None  # probability of each option; None where they were not scored


class Example(Json):
    """One question and two ECGs whose right answers to it differ."""

    question: str
    ecgs: Sequence[ShownEcg]


def strips(ecgs: Sequence[ShownEcg]) -> list[Drawing]:
    """Each ECG on its own paper, rows of the same height in all."""
    rows = max(len(ecg.leads) for ecg in ecgs)
    room = []
    for row in range(rows):
        signals = [_signal(ecg, list(ecg.leads)[row]) for ecg in ecgs if row < len(ecg.leads)]
        above, below = max(s.max() for s in signals) * GAIN, -min(s.min() for s in signals) * GAIN
        room.append((_boxes(above, LEAST_ABOVE), _boxes(below, LEAST_BELOW)))
    return [_strip(ecg, room) for ecg in ecgs]


def _strip(ecg: ShownEcg, room: Sequence[tuple[int, int]]) -> Drawing:
    width, height = MARGIN + int(SECONDS * SPEED), sum(above + below for above, below in room)
    strokes, texts, top = [*grid(width, height)], [], 0
    for lead, (above, below) in zip(ecg.leads, room):
        baseline = top + above
        signal = _signal(ecg, lead)  # what is higher than its room runs into its neighbour's, as on paper
        x = MARGIN + np.arange(len(signal)) * SPEED / ecg.fs
        pulse = np.array([3, 5, 5, 10, 10, 12]), baseline - GAIN * np.array([0, 0, 1, 1, 0, 0])
        strokes += [Stroke("trace", (*lines_through(*pulse), *lines_through(x, baseline - signal * GAIN)))]
        texts.append(Text("lead", 1, baseline + 4.2, lead))
        top += above + below
    label = f"ECG {ecg.record}, leads {', '.join(ecg.leads)}, {SPEED} mm/s, {GAIN} mm/mV"
    return Drawing(width, height, SPEED, GAIN, tuple(strokes), tuple(texts), (), label)


def _signal(ecg: ShownEcg, lead: str) -> NDArray[np.float64]:
    """The first seconds of a lead, in mV."""
    return np.asarray(ecg.leads[lead], dtype=np.float64)[: int(SECONDS * ecg.fs) + 1]


def _boxes(length: float, least: int) -> int:
    """Mm of paper for a deflection of this length, in whole large boxes."""
    return min(MOST, max(least, whole_boxes(length + 1)))
