"""`report.html`: the whole report on one page that needs no network, with flip pairs drawn as ECG strips on paper.

Written for a reader who knows ECGs and not this project. Everything that comes from data is escaped by the template.
"""

import base64
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup, escape

from eval.report.headline import DISCLAIMER, VERDICTS, headline, model_name, purpose, question_count, reasons
from eval.report.parts import Section
from eval.report.strips import Example, strips
from eval.scoring.results import Report

PIXEL = 0.72  # of a figure on the page: sharp on fine screens, its letters a little smaller than the text's


def page(
    report: Report, sections: Sequence[Section], pictures: Mapping[str, bytes], examples: Sequence[Example]
) -> str:
    """The page of these sections, with PNG files by name (`eval.report.figures.draw`) and flip pairs to be shown."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters.update(code=_code, together=_together)
    template = environment.from_string(Path(__file__).with_name("page.html.jinja").read_text(encoding="utf-8"))
    first, *others = sections if sections and sections[0].key == "verdict" else (None, *sections)
    return template.render(
        model=model_name(report),
        verdict=None if report.verdict is None else report.verdict.verdict,
        verdicts=VERDICTS,
        headline=headline(report),
        reasons=reasons(report),
        purpose=purpose(report),
        question_count=question_count(report),
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


def _picture(png: bytes) -> dict[str, str | int]:
    pixels = int.from_bytes(png[16:20])  # of the header: its width
    return {"data": base64.b64encode(png).decode(), "width": round(PIXEL * pixels)}


def _example(example: Example) -> dict[str, object]:
    """The values the template shows of a flip pair."""
    if all(ecg.correct for ecg in example.ecgs):
        follows = "Both answers are right: here the answer follows the ECG."
    elif len({" ".join(ecg.said.lower().split()) for ecg in example.ecgs}) == 1:
        follows = "The same answer twice, though the right answers differ: here the answer does not follow the ECG."
    else:
        follows = "The answers differ, but they are not both right."
    ecgs = [
        {**ecg.to_json(), "right": ", ".join(ecg.right), "strip": Markup(strip.svg(css_class="strip"))}
        for ecg, strip in zip(example.ecgs, strips(example.ecgs))
    ]
    return {"question": example.question, "follows": follows, "ecgs": ecgs}
