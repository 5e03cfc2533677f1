"""An `Ecg` drawn on ECG paper, true to scale: SVG for a page, PNG for a model or a report.

A small box is 1 mm: 40 ms x 0.1 mV at 25 mm/s and 10 mm/mV; every fifth line is bold. What is on the page is said once,
in millimetres, as a `Drawing` of strokes and texts; `Drawing.svg` and `Drawing.png` only write it down.

    Paper().svg(ecg)                                  # 3x4 with a rhythm strip of lead II
    Paper("12x1", speed=50, gain=20).png(ecg, dpi=150)

The columns of a page show consecutive stretches of the recording, and the rhythm strip all of them below, aligned in
time. Traces may run into their neighbours' rows, as on paper, and are cut off at the page's edge. The signal is drawn
as it is: nothing is filtered or centred.
"""

import io
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from html import escape
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from data.ecg import LEADS, Ecg, canonical_lead

SPEEDS = (25, 50)  # mm/s
GAINS = (5, 10, 20)  # mm/mV
SECONDS = 10.0  # on a page
CABRERA = ("aVL", "I", "-aVR", "II", "aVF", "III", *LEADS[6:])  # the frontal plane in the order of its angles


class _Layout(NamedTuple):
    rows: int
    columns: int
    pitch: int  # mm from one row to the next
    above: int  # of which above the baseline


# With these pitches every page at 25 mm/s fits on A4, and every baseline lies on a bold line.
_LAYOUTS = {"3x4": _Layout(3, 4, 30, 20), "6x2": _Layout(6, 2, 25, 15), "12x1": _Layout(12, 1, 15, 10)}
LAYOUTS = tuple(_LAYOUTS)

_BOX = 5  # mm from one bold line to the next
_HEAD, _FOOT, _EDGE = 10, 10, 5  # mm above and below the rows, and beside them
_LEAD_IN, _LEAD_OUT = 2, 2  # mm of baseline before and after the calibration pulse
_PULSE = 0.2  # s, of 1 mV
_COLUMN = 0.1  # mm: of all samples within, the highest and the lowest are drawn
_UNIT = 0.01  # mm: what coordinates are rounded to

_PAPER = "#ffffff"  # stated, not left out: a page in dark mode must not shine through
# Colour, and width of the line or height of the letters in mm.
_STYLES = {
    "minor": ("#fad9dd", 0.12),
    "bold": ("#eda6af", 0.2),
    "mark": ("#1b1b1f", 0.2),
    "trace": ("#1b1b1f", 0.3),
    "title": ("#1b1b1f", 3.6),
    "lead": ("#1d4f9e", 3.6),  # not the colour of the trace, which may run through them
    "absent": ("#7a4b00", 3.2),
    "scale": ("#1b1b1f", 3.0),
}
_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")

Points = NDArray[np.int64]  # `[points, 2]`, x to the right and y down, in hundredths of a millimetre


@dataclass(frozen=True, eq=False)
class Stroke:
    """Lines of one style: the grid, a mark, or the trace of a segment, which breaks where the signal does."""

    style: Literal["minor", "bold", "mark", "trace"]
    lines: tuple[Points, ...]


@dataclass(frozen=True)
class Text:
    """A line of text whose baseline starts at `x`, `y` (mm)."""

    style: Literal["title", "lead", "absent", "scale"]
    x: float
    y: float
    text: str


@dataclass(frozen=True)
class Segment:
    """Where a lead is drawn: a time t (s) lies at `x + (t - start) * speed`, a level v (mV) at `baseline - v * gain`.

    All lengths are in mm, from the left and the top of the page.
    """

    lead: str
    start: float  # time at its left edge, s from the start of the recording
    seconds: float  # length; the recording may end before
    x: float  # left edge
    baseline: float  # level of 0 mV
    top: float  # upper edge of its row
    height: float  # of its row
    drawn: bool  # whether there is a trace: the lead was recorded, and has a finite sample here


@dataclass(frozen=True, eq=False)
class Drawing:
    """A page of paper, in mm: `strokes` first, `texts` above them."""

    width: int
    height: int
    speed: int  # mm per second
    gain: int  # mm per mV
    strokes: tuple[Stroke, ...]  # from the lowest to the uppermost
    texts: tuple[Text, ...]  # title, names of leads, speed and gain
    segments: tuple[Segment, ...]  # one for each lead and stretch of time on the page
    label: str  # what the picture shows, for those who cannot see it

    def svg(self, interactive: bool = False, css_class: str = "ecg-paper") -> str:
        """The page as an SVG element of its true size, whose unit is 1 mm.

        A page that shows it smaller sets `width` in CSS and `height: auto`; it is then scaled, never stretched.

        Args:
            interactive: Lay a transparent `<rect class="ecg-segment">` over each segment that has a trace, from which a
                script can read what is under the pointer. Its `dataset` holds `lead`, and as numbers `start` and
                `seconds` (s in the recording), `x` and `baseline` (mm in the picture), `mmPerSecond` and `mmPerMv`.
                `new DOMPoint(event.clientX, event.clientY).matrixTransform(svg.getScreenCTM().inverse())` is the
                pointer in mm, however the picture is scaled; there the time is `start + (point.x - x) / mmPerSecond`
                and the level `(baseline - point.y) / mmPerMv`.
            css_class: Class of the element, for styles and to find it by.
        """
        size = f'width="{self.width}mm" height="{self.height}mm" viewBox="0 0 {self.width} {self.height}"'
        parts = [
            f'<svg xmlns="http://www.w3.org/2000/svg" class="{css_class}" {size} role="img" '
            f'aria-label="{escape(self.label)}">',
            f'<rect width="{self.width}" height="{self.height}" fill="{_PAPER}"/>',
            # Whole numbers of small units and steps from point to point: half the size of points in mm.
            f'<g transform="scale({_UNIT:g})" fill="none" stroke-linecap="round" stroke-linejoin="round">',
        ]
        for stroke in self.strokes:
            colour, width = _STYLES[stroke.style]
            parts.append(
                f'<path class="ecg-{stroke.style}" stroke="{colour}" stroke-width="{width / _UNIT:g}" '
                f'd="{"".join(map(_path, stroke.lines))}"/>'
            )
        parts.append('</g><g font-family="DejaVu Sans,Verdana,Arial,sans-serif">')
        for text in self.texts:
            colour, height = _STYLES[text.style]
            parts.append(
                f'<text class="ecg-{text.style}" x="{text.x:g}" y="{text.y:g}" font-size="{height:g}" '
                f'fill="{colour}">{escape(text.text)}</text>'
            )
        parts.append("</g>")
        if interactive:
            parts.extend(
                f'<rect class="ecg-segment" x="{s.x:g}" y="{s.top:g}" width="{s.seconds * self.speed:g}" '
                f'height="{s.height:g}" fill="none" pointer-events="all" data-lead="{s.lead}" '
                f'data-start="{s.start:.10g}" data-seconds="{s.seconds:g}" data-x="{s.x:g}" '
                f'data-baseline="{s.baseline:g}" data-mm-per-second="{self.speed}" data-mm-per-mv="{self.gain}"/>'
                for s in self.segments
                if s.drawn
            )
        return "".join((*parts, "</svg>"))

    def png(self, dpi: float = 100) -> bytes:
        """The page as a PNG file, `dpi / 25.4` pixels per mm in both directions (and whole pixels in all).

        Raises:
            ValueError: `dpi` is not between 20 and 1200.
        """
        if not 20 <= dpi <= 1200:
            raise ValueError(f"the resolution of a picture of ECG paper must be 20 to 1200 dpi, got {dpi}")
        from matplotlib.backends.backend_agg import FigureCanvasAgg  # no pyplot: no global state, no window
        from matplotlib.collections import LineCollection
        from matplotlib.figure import Figure

        points = 72 / 25.4  # in a millimetre
        pixels = [round(side * dpi / 25.4) + 1e-3 for side in (self.width, self.height)]  # what is left over is cut off
        figure = Figure(figsize=(pixels[0] / dpi, pixels[1] / dpi), dpi=dpi, facecolor=_PAPER)
        axes = figure.add_axes((0.0, 0.0, 1.0, 1.0))
        axes.set_axis_off()
        axes.set(xlim=(0, self.width), ylim=(self.height, 0))
        for stroke in self.strokes:
            colour, width = _STYLES[stroke.style]
            lines = LineCollection([line * _UNIT for line in stroke.lines], colors=colour, linewidths=width * points)
            # Snapped to whole pixels, boxes would differ in size.
            lines.set(capstyle="round", joinstyle="round", antialiased=True, snap=False)
            axes.add_collection(lines, autolim=False)
        for text in self.texts:
            colour, height = _STYLES[text.style]
            words = axes.text(text.x, text.y, text.text, color=colour, fontsize=height * points, parse_math=False)
            words.set(family="DejaVu Sans", va="baseline", ha="left")
        out = io.BytesIO()
        FigureCanvasAgg(figure).print_png(out, metadata={"Software": None})  # type: ignore[no-untyped-call]
        return out.getvalue()


@dataclass(frozen=True)
class Paper:
    """How ECGs are drawn on paper.

    The lead `rhythm` is drawn once more in full length at the bottom, unless the layout shows it so already.

    Raises:
        ValueError: The layout, speed, gain or rhythm lead is none of these.
    """

    layout: str = "3x4"  # rows x columns: "3x4", "6x2" or "12x1"
    speed: int = 25  # mm per second, 25 or 50
    gain: int = 10  # mm per mV, 5, 10 or 20
    rhythm: str | None = "II"
    cabrera: bool = False  # limb leads as aVL, I, -aVR, II, aVF, III

    def __post_init__(self) -> None:
        for name, value, allowed, unit in (
            ("layout", self.layout, LAYOUTS, ""),
            ("speed", self.speed, SPEEDS, " mm/s"),
            ("gain", self.gain, GAINS, " mm/mV"),
        ):
            if value not in allowed:
                *most, last = map(str, allowed)
                raise ValueError(f"the {name} of ECG paper is {', '.join(most)} or {last}{unit}, got {value!r}")
        if self.rhythm is not None:
            object.__setattr__(self, "rhythm", canonical_lead(self.rhythm))

    def svg(self, ecg: Ecg, start: float = 0.0, title: str = "", interactive: bool = False) -> str:
        """`draw`, then `Drawing.svg`."""
        return self.draw(ecg, start, title).svg(interactive)

    def png(self, ecg: Ecg, start: float = 0.0, title: str = "", dpi: float = 100) -> bytes:
        """`draw`, then `Drawing.png`."""
        return self.draw(ecg, start, title).png(dpi)

    def draw(self, ecg: Ecg, start: float = 0.0, title: str = "") -> Drawing:
        """The 10 s of a recording that begin at `start` seconds.

        A lead that was not recorded, or has no finite sample in its stretch, leaves its place empty and says so. The
        trace breaks at samples that are not finite, and ends where the recording does.

        Args:
            ecg: What is drawn. Neither its record id nor anything else that may name a patient is printed.
            start: Where the page begins, in seconds from the start of the recording.
            title: Printed at the top.

        Raises:
            ValueError: The recording does not last until `start`, or has no sample to draw on this page.
        """
        who = f"record {ecg.record_id!r}" if ecg.record_id else "ECG"
        if not 0 <= start < ecg.duration:
            raise ValueError(f"{who}: cannot be drawn from {start:g} s on: it lasts {ecg.duration:g} s")
        layout = _LAYOUTS[self.layout]
        pulse = _PULSE * self.speed
        left = whole_boxes(_EDGE + _LEAD_IN + pulse + _LEAD_OUT)
        strips = [*self._strips(layout)]
        rows = len({row for row, *_ in strips})
        width = whole_boxes(left + SECONDS * self.speed + _EDGE)
        height = whole_boxes(_HEAD + rows * layout.pitch + _FOOT)

        recorded = {lead.removeprefix("-") for lead in ecg.leads}
        strokes = [*grid(width, height)]
        texts = [Text("title", _EDGE, 6.5, _line_of(title))] if title else []
        segments = []
        for row, lead, offset, seconds in strips:
            top = _HEAD + row * layout.pitch
            baseline = top + layout.above
            x = left + offset * self.speed
            if offset == 0:
                strokes.append(self._pulse(baseline))
            else:
                ticks = [((x, baseline + side * 8), (x, baseline + side * 5)) for side in (-1, 1)]
                strokes.append(Stroke("mark", tuple(_points(*np.array(tick).T) for tick in ticks)))
            lines: tuple[Points, ...] = ()
            if lead.removeprefix("-") in recorded:
                values = ecg.select([lead]).signal[0].astype(np.float64)
                first = math.ceil((start + offset) * ecg.fs - 1e-6)
                values = values[first : math.floor((start + offset + seconds) * ecg.fs + 1e-6) + 1]
                time = (first + np.arange(len(values))) / ecg.fs - start
                # Far outside the page one place is as good as another, and numbers stay short.
                y = np.clip(baseline - np.where(np.isfinite(values), values, np.nan) * self.gain, -height, 2 * height)
                lines = tuple(lines_through(left + time * self.speed, y))
            if lines:
                strokes.append(Stroke("trace", lines))
                texts.append(Text("lead", x + 1, top + 4, lead))
            else:
                why = "no signal" if lead.removeprefix("-") in recorded else "not recorded"
                texts.append(Text("absent", x + 1, top + 4, f"{lead} {why}"))
            segments.append(Segment(lead, start + offset, seconds, x, baseline, top, layout.pitch, bool(lines)))
        if not any(segment.drawn for segment in segments):
            leads = ", ".join(dict.fromkeys(segment.lead for segment in segments))
            raise ValueError(
                f"{who}: there is nothing to draw: no finite sample from {start:g} to {start + SECONDS:g} s in any of "
                f"{leads}; it has {', '.join(ecg.leads)}"
            )
        scale = f"{self.speed} mm/s · {self.gain} mm/mV" + (f" · from {start:.10g} s" if start else "")
        texts.append(Text("scale", left, height - 3.5, scale))
        label = f"ECG on paper, {self.layout}, {self.speed} mm/s, {self.gain} mm/mV"
        label += title and f": {_line_of(title)}"
        return Drawing(width, height, self.speed, self.gain, (*strokes,), (*texts,), (*segments,), label)

    def _strips(self, layout: _Layout) -> Iterator[tuple[int, str, float, float]]:
        """Row, lead, offset from the page's first second and length in seconds, of everything on the page."""
        leads = CABRERA if self.cabrera else LEADS
        seconds = SECONDS / layout.columns
        for i, lead in enumerate(leads):
            yield i % layout.rows, lead, i // layout.rows * seconds, seconds
        if self.rhythm is not None and not (layout.columns == 1 and self.rhythm in leads):
            yield layout.rows, self.rhythm, 0.0, SECONDS

    def _pulse(self, baseline: float) -> Stroke:
        rise = _EDGE + _LEAD_IN
        fall = rise + _PULSE * self.speed
        x = np.array([_EDGE, rise, rise, fall, fall, fall + _LEAD_OUT])
        return Stroke("trace", (_points(x, baseline - self.gain * np.array([0, 0, 1, 1, 0, 0])),))


def whole_boxes(length: float) -> int:
    """A length in mm, rounded up to whole large boxes."""
    return _BOX * math.ceil(length / _BOX - 1e-9)


def _line_of(text: str) -> str:
    """One line of characters that XML allows."""
    return " ".join(_NOT_XML.sub("\ufffd", text).split())


def _points(x: NDArray[np.float64], y: NDArray[np.float64]) -> Points:
    return np.rint(np.column_stack((x, y)) / _UNIT).astype(np.int64)


def _path(line: Points) -> str:
    """A line as the data of an SVG path: its first point, then the steps to the next ones."""
    steps = str((line[1:] - line[:-1]).ravel().tolist())[1:-1].replace(", ", " ").replace(" -", "-")
    return f"M{line[0, 0]} {line[0, 1]}l{steps}"


@cache  # there are only as many pages as settings, and this is a third of the work
def grid(width: int, height: int) -> tuple[Stroke, Stroke]:
    """The lines of a paper of this size in mm, and above them the bold ones."""
    lines: dict[bool, list[Points]] = {False: [], True: []}  # by whether they are bold
    for mm in range(max(width, height) + 1):
        if mm <= width:
            lines[mm % _BOX == 0].append(_points(np.array([mm, mm]), np.array([0, height])))
        if mm <= height:
            lines[mm % _BOX == 0].append(_points(np.array([0, width]), np.array([mm, mm])))
    return Stroke("minor", tuple(lines[False])), Stroke("bold", tuple(lines[True]))


def lines_through(x: NDArray[np.float64], y: NDArray[np.float64]) -> Iterator[Points]:
    """The trace through the points `x`, `y` (mm), as one line for each stretch of finite levels.

    Of the samples in a column of 0.1 mm only the highest and the lowest are kept, in their order and at their own
    places: no peak is lost, and at 50 mm/s and 500 Hz nothing is.
    """
    ends = np.flatnonzero(np.diff(np.isfinite(y), prepend=False, append=False)).reshape(-1, 2)
    for run in (slice(*pair) for pair in ends.tolist()):
        column = np.floor(x[run] / _COLUMN + 1e-6)
        order = np.lexsort((y[run], column))
        bounds = np.flatnonzero(np.diff(column)) + 1
        # The ends of the run stay too: a trace is as long as its signal.
        keep = np.zeros(len(column), dtype=bool)
        keep[[0, -1]] = keep[order[0]] = keep[order[bounds]] = keep[order[bounds - 1]] = keep[order[-1]] = True
        line = _points(x[run][keep], y[run][keep])
        # A line needs two points; the round ends make a dot of this one.
        yield line if len(line) > 1 else np.concatenate((line, line + [[1, 0]]))
