"""Parts of a report, whoever sets it (Markdown, HTML): tables, pictures, lists; and numbers in words.

Shares are given in percent and their differences in points, a hundredth each: docs/audit.md's gap of 0.10 is 10 points.
In texts, `this` is code; everything else is plain text, which whoever sets it must escape: names, questions and notes
come from data.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple, cast

import yaml

Limits = Sequence[float | None] | None  # of an interval, None or NaN where there are none


class Table(NamedTuple):
    """Rows of cells under a head; the first `words` columns are words, the others numbers."""

    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    words: int = 1


class Picture(NamedTuple):
    """A figure, by the name of its file."""

    name: str
    alt: str
    caption: str


class Fact(NamedTuple):
    """One of the numbers of the rule: its name and value, what `reads` asks of it, and whether it is so."""

    name: str
    value: str
    detail: str
    needed: str
    holds: bool
    meaning: str


class Facts(NamedTuple):
    """The numbers of the rule."""

    facts: Sequence[Fact]


class Terms(NamedTuple):
    """Words and what they mean."""

    terms: Mapping[str, str]


class Items(NamedTuple):
    """A list of sentences."""

    items: Sequence[str]


class Command(NamedTuple):
    """A command line."""

    text: str


Part = str | Table | Picture | Facts | Terms | Items | Command


class Section(NamedTuple):
    """A part of the report; `key` is its name in links."""

    key: str
    title: str
    parts: Sequence[Part]


@cache
def _texts() -> Mapping[str, str]:
    path = Path(__file__).with_name("words.yaml")
    return cast(Mapping[str, str], yaml.safe_load(path.read_text(encoding="utf-8")))


def words(key: str, **values: object) -> str:
    """A text of `words.yaml`, with these values in its braces."""
    return _texts()[key].format(**values)


def picture(name: str, **values: object) -> Picture:
    """A figure with its words."""
    return Picture(f"{name}.png", words(f"{name} alt"), words(f"{name} caption", **values))


def percent(value: float, places: int = 1) -> str:
    """A share."""
    return f"{100 * value:.{places}f} %"


def points(value: float, places: int = 1) -> str:
    """A difference of shares."""
    return signed(100 * value, places)


def signed(value: float, places: int = 2) -> str:
    """A difference."""
    return f"{value:+.{places}f}".replace("-", "−")


def span(limits: Limits, words: Callable[[float], str]) -> str:
    """An interval, each limit in the words of a function."""
    present = [limit for limit in limits or () if limit is not None and not math.isnan(limit)]
    return " to ".join(map(words, present)) if len(present) == 2 else "interval unknown"


def percent_span(value: float, limits: Limits) -> str:
    """A share and its interval."""
    return f"{percent(value)} ({span(limits, lambda limit: f'{100 * limit:.1f}')})"


def points_span(value: float, limits: Limits) -> str:
    """A difference of shares and its interval."""
    return f"{points(value)} ({span(limits, points)})"


def signed_span(value: float, limits: Limits, places: int = 2) -> str:
    """A difference and its interval."""
    return f"{signed(value, places)} ({span(limits, lambda limit: signed(limit, places))})"


def auroc_span(value: float, limits: Limits) -> str:
    """An AUROC and its interval."""
    return f"{value:.3f} ({span(limits, lambda limit: f'{limit:.3f}')})"


def p_value(p: float | None) -> str:
    """A p-value, as a table has it."""
    return "–" if p is None else "< 0.001" if p < 0.001 else f"{p:.3f}"


def markdown_table(rows: Sequence[Sequence[str]], words: int = 1) -> str:
    """A table in Markdown, its first row the head; the first `words` columns are words, the others numbers."""
    widths = [max(3, *(len(row[i]) for row in rows)) for i in range(len(rows[0]))]  # aligned: it is also printed
    rule = ["-" * width if i < words else "-" * (width - 1) + ":" for i, width in enumerate(widths)]
    lines = []
    for row in (rows[0], rule, *rows[1:]):
        cells = [cell.ljust(widths[i]) if i < words else cell.rjust(widths[i]) for i, cell in enumerate(row)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)
