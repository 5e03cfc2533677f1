"""`report.html`: the whole report on one page that needs no network, with flip pairs drawn as ECG strips on paper.

Written for a reader who knows ECGs and not this project. Everything that comes from data is escaped by the template.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup, escape

from eval.report.headline import DISCLAIMER, VERDICTS, Report, asked, headline, model_name, purpose, reasons
from eval.report.parts import Section

# ECG paper: 25 mm/s and 10 mm/mV, a box of 1 mm is 40 ms x 0.1 mV.
MM_PER_SECOND, MM_PER_MV = 25.0, 10.0
SECONDS = 5.0  # of a strip: two stand side by side on a screen, each as large as on paper
PULSE = 5.0  # mm wide, 1 mV high
MARGIN = 15  # mm left of the trace, for the lead's name and the pulse; whole large boxes
PIXEL = 0.72  # of a figure on the page: sharp on fine screens, its letters a little smaller than the text's
LEAST_ABOVE, LEAST_BELOW, MOST = 15, 5, 40  # mm of paper above and below the baseline of a lead


def page(
    report: Report, sections: Sequence[Section], pictures: Mapping[str, bytes], examples: Sequence[Mapping[str, Any]]
) -> str:
    """The page.

    Args:
        report: As `eval.ablation.run` makes it.
        sections: What it says (`eval.report.sections.sections`).
        pictures: PNG files by name (`eval.report.figures.draw`).
        examples: Flip pairs: `question` and two `ecgs`, each with `record`, `fs` in Hz, `leads` (mV by name), the
            `right` answer, what the model `said`, whether that is `correct`, and the probabilities `p` of its options,
            or None.
    """
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters.update(code=_code, together=_together)
    template = environment.from_string(Path(__file__).with_name("page.html.jinja").read_text(encoding="utf-8"))
    first, *others = sections if sections and sections[0].key == "verdict" else (None, *sections)
    return template.render(
        model=model_name(report),
        verdict=None if report["verdict"] is None else report["verdict"]["verdict"],
        verdicts=VERDICTS,
        headline=headline(report),
        reasons=reasons(report),
        purpose=purpose(report),
        asked=asked(report),
        disclaimer=DISCLAIMER,
        rule=first,
        sections=others,
        pictures={name: _picture(png) for name, png in pictures.items()},
        examples=[_example(example) for example in examples],
    )


def _code(text: str) -> Markup:
    """Escaped text, with what stands between backticks as code."""
    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(text))))


def _together(text: str) -> Markup:
    """Escaped text; what stands between brackets, such as an interval, is not broken into lines."""
    return Markup(re.sub(r"\([^()]*\)", r"<span>\g<0></span>", str(escape(text))))


def _picture(png: bytes) -> dict[str, Any]:
    pixels = int.from_bytes(png[16:20])  # of the header: its width
    return {"data": base64.b64encode(png).decode(), "width": round(PIXEL * pixels)}


def _example(example: Mapping[str, Any]) -> dict[str, Any]:
    ecgs = example["ecgs"]
    said = {" ".join(ecg["said"].lower().split()) for ecg in ecgs}
    if all(ecg["correct"] for ecg in ecgs):
        told = "Both answers are right: here the answer follows the ECG."
    elif len(said) == 1:
        told = "The same answer twice, though the right answers differ: here the answer does not follow the ECG."
    else:
        told = "The answers differ, but they are not both right."
    paper = _paper(ecgs)
    return {
        "question": example["question"],
        "told": told,
        "ecgs": [{**ecg, "right": ", ".join(ecg["right"]), "strip": _strip(ecg, paper)} for ecg in ecgs],
    }


def _paper(ecgs: Sequence[Mapping[str, Any]]) -> list[tuple[int, int]]:
    """Paper above and below the baseline of each lead, in mm: the same for all ECGs of a pair, in whole large boxes."""
    rows = max(len(ecg["leads"]) for ecg in ecgs)
    room = []
    for row in range(rows):
        traces = [_trace(ecg, list(ecg["leads"])[row]) for ecg in ecgs if row < len(ecg["leads"])]
        above = max(float(trace.max()) for trace in traces) * MM_PER_MV
        below = -min(float(trace.min()) for trace in traces) * MM_PER_MV
        room.append((_boxes(above, LEAST_ABOVE), _boxes(below, LEAST_BELOW)))
    return room


def _boxes(length: float, least: int) -> int:
    return min(MOST, max(least, 5 * int(np.ceil((length + 1) / 5))))


def _trace(ecg: Mapping[str, Any], lead: str) -> np.ndarray[Any, np.dtype[np.float64]]:
    values = np.asarray(ecg["leads"][lead], dtype=np.float64)
    return values[: int(SECONDS * ecg["fs"]) + 1]


def _strip(ecg: Mapping[str, Any], room: Sequence[tuple[int, int]]) -> Markup:
    """The leads of one ECG one below the other, as SVG whose unit is a millimetre of paper."""
    width = MARGIN + int(SECONDS * MM_PER_SECOND)
    height = sum(above + below for above, below in room)
    small, large = (
        "".join(f"M{x} 0V{height}" for x in range(0, width + 1, step))
        + "".join(f"M0 {y}H{width}" for y in range(0, height + 1, step))
        for step in (1, 5)
    )
    drawn, top = [], 0
    for lead, (above, below) in zip(ecg["leads"], room):
        base = top + above
        trace = _trace(ecg, lead) * MM_PER_MV  # what is higher than its room runs into its neighbour's, as on paper
        x = MARGIN + np.arange(len(trace)) * MM_PER_SECOND / ecg["fs"]
        path = "M" + "L".join(f"{a:.2f} {base - b:.2f}" for a, b in zip(x, trace))
        pulse = f"M3 {base}h2v{-MM_PER_MV:g}h{PULSE:g}v{MM_PER_MV:g}h2"
        drawn.append(
            f'<path class="trace" d="{pulse}"/><path class="trace" d="{path}"/>'
            f'<text x="1" y="{base + 4.2:g}">{escape(lead)}</text>'
        )
        top += above + below
    leads = ", ".join(ecg["leads"])
    label = escape(f"ECG {ecg['record']}, leads {leads}, 25 mm/s, 10 mm/mV")
    return Markup(
        f'<svg class="strip" viewBox="0 0 {width} {height}" role="img" aria-label="{label}">'
        f'<rect class="paper" width="{width}" height="{height}"/>'
        f'<path class="small" d="{small}"/><path class="large" d="{large}"/>{"".join(drawn)}</svg>'
    )
