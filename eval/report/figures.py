"""The pictures of a report, as PNG: swap-flip gap, right answers, dose-response, ladder.

The same report gives the same bytes: no dates, no versions, the font that comes with matplotlib.
"""

import io
import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure  # no pyplot: no global state, no window
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke

from data.experiment.conditions import CONDITIONS, FAST
from eval.report.headline import model_name
from eval.report.instruments import dose_name
from eval.report.parts import signed
from eval.report.tables import labels_of
from eval.scoring.results import NOISE, Block, Report
from eval.scoring.verdict import LEAST_GAP
from eval.statistics import Interval

FIGURES = ("gap.png", "conditions.png", "dose.png", "ladder.png")

# Okabe and Ito's colours keep apart for every kind of colour vision; markers keep apart in grey.
BLUE, ORANGE, GREEN, GREY, INK = "#0072B2", "#D55E00", "#009E73", "#6E6E6E", "#222222"
STYLE = {
    "real": (BLUE, "o"),
    "swap": (ORANGE, "D"),
    "swap-flip": ("#E69F00", "v"),
    "zero": (GREEN, "s"),
    "none": ("#CC79A7", "^"),
}
OTHER = (GREY, "o")
RUNGS = {"encoder": "encoder", "projected": "projected\ntokens", "state": "language model's\nstate", "answer": "answer"}
DASHED = (0, (4, 3))
WIDTH = 8.0  # inches


def draw(report: Report) -> dict[str, bytes]:
    """The figures there is something to show in, by the names of their files."""
    # Not what a user has set for figures of his own; and a dollar in a name begins no formula.
    with style.context({"text.parse_math": False}, after_reset=True):
        figures = zip(FIGURES, (_gap(report), _conditions(report), _dose(report), _ladder(report)))
        return {name: _png(figure) for name, figure in figures if figure is not None}


class _GapRow(NamedTuple):
    """One interval of the figure of gaps, and what stands beside it."""

    label: str
    pairs: int
    gap: float
    interval: Interval
    verdict: str = ""
    counts: bool = True


def _gap_rows(report: Report) -> list[tuple[str, str, str, list[_GapRow]]]:
    """Head, colour, marker and rows: all questions, each group, and each kind of question."""
    verdict = report.verdict
    if verdict is None or (evidence := verdict.evidence).gap is None:
        return []
    name = "all questions but noise" if NOISE in verdict.groups else "all questions"
    groups = [
        _GapRow(name, g.evidence.pairs, g.evidence.gap, g.evidence.gap_interval, g.verdict, g.counts)
        for name, g in verdict.groups.items()
        if g.evidence.gap is not None
    ]
    by_kind = {name: block.flips for name, block in report.by_type.items() if block.flips}
    kinds = [_GapRow(name, flips.n, flips.gap, flips.gap_interval) for name, flips in by_kind.items()]
    return [
        ("", BLUE, "o", [_GapRow(name, evidence.pairs, evidence.gap, evidence.gap_interval, verdict.verdict)]),
        ("groups of findings", ORANGE, "D", groups),
        ("kinds of question", GREY, "s", kinds if len(kinds) > 1 else []),
    ]


def _gap(report: Report) -> Figure | None:
    """The swap-flip gap of all questions, of each group and of each kind of question."""
    if report.verdict is None or not (parts := _gap_rows(report)):
        return None
    figure = _canvas(1.5 + 0.32 * sum(len(rows) + bool(head and rows) for head, _, _, rows in parts))
    axes = figure.add_subplot()
    labels: dict[int, str] = {}
    y = 0
    for head, colour, marker, rows in parts:
        if head and rows:
            _head(axes, head, y + 0.15)
            y += 1
        for row in rows:
            _interval(axes, row.gap, row.interval, y, _Mark(colour, marker, hollow=not row.counts))
            verdict = row.verdict + ("" if row.counts else " (not counted)")
            axes.annotate(verdict, (1.01, y), xycoords=("axes fraction", "data"), va="center", fontsize=9, color=INK)
            labels[y] = f"{row.label}, {row.pairs:,} pairs"
            y += 1
    for at_gap, line in ((0, "solid"), (LEAST_GAP, DASHED)):
        axes.axvline(at_gap, color=INK, linewidth=1.1, linestyle=line, zorder=2)
    axes.set_yticks(list(labels), list(labels.values()))
    axes.set_ylim(y - 0.4, -0.6)
    lowest = float(np.nanmin([0.0, *(row.interval.low for _, _, _, rows in parts for row in rows)]))
    axes.set_xlim(lowest - 0.06, 1.04)
    _plain(axes)
    ticks = [20 * i for i in range(-5, 6) if i / 5 >= lowest - 0.06]
    axes.set_xticks([at / 100 for at in ticks], [str(at).replace("-", "−") for at in ticks])
    axes.set_xlabel(f"swap-flip gap in points, 95 % intervals by patient; dashed: {100 * LEAST_GAP:.0f} points")
    _title(figure, f"Does {model_name(report)} read the ECG?  Verdict: {report.verdict.verdict}")
    return figure


def _conditions(report: Report) -> Figure:
    """Right answers under every condition for all questions, and under the core ones for each kind."""
    overall = report.overall
    shown = labels_of(overall)
    core = [name for name in FAST if name in shown]
    kinds = report.by_type if len(report.by_type) > 1 and core else {}
    heights = [0.28 * len(shown) + 0.1, *([(0.17 * len(core) + 0.15) * len(kinds)] if kinds else [])]
    figure = _canvas(1.6 + 0.45 * len(heights) + sum(heights))
    panels = figure.subplots(len(heights), 1, squeeze=False, height_ratios=heights).ravel()
    _all_questions(panels[0], overall, shown)
    if kinds:
        _by_kind(panels[1], kinds, core)
    for axes in panels:
        axes.set_xlim(-0.03, 1.08)
        _plain(axes)
        axes.set_xticks([i / 5 for i in range(6)], ["0", "20", "40", "60", "80", "100 %"])
    panels[-1].set_xlabel("right answers, 95 % intervals by patient")
    _legend(figure, core if kinds else [])
    _title(figure, f"What {model_name(report)} was given, and how often it was right")
    return figure


def _all_questions(axes: Axes, overall: Block, shown: Mapping[str, str]) -> None:
    labels = []
    for y, (name, label) in enumerate(shown.items()):
        result = overall.conditions[name]
        _share(axes, result.accuracy, result.interval, y, _Mark(*STYLE.get(name, OTHER)))
        labels.append(label if result.n == overall.n else f"{label}, {result.n:,}")
    axes.axvline(overall.majority_by_question, color=INK, linewidth=1.4, linestyle=DASHED, zorder=2)
    axes.set_yticks(range(len(shown)), labels)
    axes.set_ylim(len(shown) - 0.5, -0.5)
    axes.set_title(f"all {overall.n:,} questions, {overall.patients:,} patients", loc="left", fontsize=10)


def _by_kind(axes: Axes, kinds: Mapping[str, Block], core: Sequence[str]) -> None:
    for place, block in enumerate(kinds.values()):
        if place % 2 == 0:
            axes.axhspan(place - 0.5, place + 0.5, color="#f3f3f3", zorder=0, linewidth=0)
        always = [block.majority_by_question] * 2
        axes.plot(always, [place - 0.44, place + 0.44], linestyle=DASHED, color=INK, linewidth=1.4, zorder=2)
        for row, name in enumerate(core):
            if result := block.conditions.get(name):
                at = place + ((row + 0.5) / len(core) - 0.5) * 0.84
                _share(axes, result.accuracy, result.interval, at, _Mark(*STYLE.get(name, OTHER), size=6))
    names = [f"{name}\n{block.n:,} questions, {block.patients:,} patients" for name, block in kinds.items()]
    axes.set_yticks(range(len(kinds)), names)
    axes.set_ylim(len(kinds) - 0.5, -0.5)
    axes.set_title("by kind of question", loc="left", fontsize=10)


def _dose(report: Report) -> Figure | None:
    """Probability of yes over what was planted, one panel each."""
    if not (curves := report.dose_response):
        return None
    rows, columns = math.ceil(len(curves) / 3), min(3, len(curves))
    figure = _canvas(0.7 + 2.5 * rows, max(5.0, 2.9 * columns))
    grid = figure.subplots(rows, columns, squeeze=False, sharey=True).ravel()
    for axes, (name, response) in zip(grid, curves.items()):
        parameter, unit, question = dose_name(name)
        doses = [point.dose for point in response.curve]
        yes = [point.right_answer == "yes" for point in response.curve]
        edges = [doses[0], *((a + b) / 2 for a, b in zip(doses, doses[1:])), doses[-1]]
        for left, right, inside, after in zip(edges, edges[1:], yes, [*yes[1:], yes[-1]]):
            if inside:
                axes.axvspan(left, right, color="#dbe8f2", linewidth=0, zorder=0)
            if inside != after:
                axes.axvline(right, color=INK, linewidth=1.1, linestyle=DASHED, zorder=1)
        axes.plot(doses, [point.p_yes for point in response.curve], "-o", color=BLUE, markersize=5, zorder=3)
        beneath = f"correlation {signed(response.correlation)}, {response.patients:,} patients"
        axes.set_title("\n".join([*textwrap.wrap(question, 32), beneath]), fontsize=9)
        axes.set_xlabel(f"{parameter} ({unit})" if unit else parameter, fontsize=9)
        axes.set_ylim(-0.03, 1.03)
        axes.set_yticks([0, 0.25, 0.5, 0.75, 1], ["0", "25", "50", "75", "100 %"])
        axes.tick_params(labelsize=8)
        axes.grid(color="#dddddd", linewidth=0.7)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    for axes in grid[::columns]:
        axes.set_ylabel("probability of yes", fontsize=9)
    for axes in grid[len(curves) :]:
        axes.set_visible(False)
    _title(figure, "Does the answer follow what was planted?")
    return figure


def _ladder(report: Report) -> Figure | None:
    """AUROC at each rung: the mean, and single findings."""
    if (ladder := report.ladder) is None:
        return None
    figure = _canvas(4.2)
    axes = figure.add_subplot()
    rungs = ladder.rungs
    lines = [[finding.auroc[name] for name in rungs] for finding in ladder.findings.values() if finding.headline]
    for line in lines:
        axes.plot(range(len(rungs)), line, color="#b5b5b5", linewidth=1, zorder=2)
    for place, rung in enumerate(rungs.values()):
        limits = _limits(rung.auroc, rung.interval)
        axes.plot([place] * 2, limits, color=BLUE, linewidth=3, solid_capstyle="round", zorder=3)
        _number(axes, f"{rung.auroc:.2f}", (place, limits[0]), (0, -11), ha="center")
    means = [rung.auroc for rung in rungs.values()]
    axes.plot(range(len(rungs)), means, "-o", color=BLUE, markersize=8, markeredgecolor="white", linewidth=2, zorder=4)
    axes.axhline(0.5, color=INK, linewidth=1.1, linestyle=DASHED, zorder=2)
    _number(axes, "chance", (len(rungs) - 0.62, 0.5), (0, 8), ha="right")
    axes.set_xticks(range(len(rungs)), [RUNGS[name] for name in rungs])
    axes.set_xlim(-0.4, len(rungs) - 0.6)
    axes.set_ylim(min([0.5, *(value for line in lines for value in line)]) - 0.03, 1.02)
    axes.set_ylabel("AUROC, 95 % intervals by patient")
    axes.grid(axis="y", color="#dddddd", linewidth=0.8, zorder=0)
    axes.spines[["top", "right", "left", "bottom"]].set_visible(False)
    axes.tick_params(length=0)
    _title(figure, f"How well {ladder.findings_in_headline} findings can be told, from encoder to answer")
    return figure


def _canvas(height: float, width: float = WIDTH) -> Figure:
    return Figure(figsize=(width, height), dpi=150, layout="constrained")


def _title(figure: Figure, text: str) -> None:
    lines = textwrap.wrap(text, int(9.5 * figure.get_figwidth()))  # a model may have a long name
    figure.suptitle("\n".join(lines), x=0.01, ha="left", fontsize=12, fontweight="bold")


def _head(axes: Axes, text: str, y: float) -> None:
    words = axes.annotate(text, (0, y), xycoords=("axes fraction", "data"), xytext=(-6, 0), textcoords="offset points")
    words.set(ha="right", va="center", fontsize=9, fontweight="bold", color=INK)


def _plain(axes: Axes) -> None:
    """Only lines to read values off."""
    axes.grid(axis="x", color="#dddddd", linewidth=0.8, zorder=1)
    axes.set_axisbelow(True)
    axes.tick_params(length=0)
    axes.spines[["top", "right", "left", "bottom"]].set_visible(False)


class _Mark(NamedTuple):
    """A point of an interval; hollow where it does not count."""

    colour: str
    shape: str
    size: float = 7
    hollow: bool = False


def _interval(axes: Axes, value: float, limits: Interval, y: float, mark: _Mark) -> float:
    """Draw a value with its interval on one line; returns where it ends on the right."""
    low, high = _limits(value, limits)
    axes.plot([low, high], [y, y], color=mark.colour, linewidth=2.2, solid_capstyle="round", zorder=3)
    face, edge, width = ("white", mark.colour, 1.4) if mark.hollow else (mark.colour, "white", 0.8)
    (point,) = axes.plot(value, y, mark.shape, markersize=mark.size, zorder=4)
    point.set(markerfacecolor=face, markeredgecolor=edge, markeredgewidth=width)
    return max(high, value)


def _share(axes: Axes, value: float, limits: Interval, y: float, mark: _Mark) -> None:
    """Draw a share with its interval and its number in percent."""
    end = _interval(axes, value, limits, y, mark)
    _number(axes, f"{100 * value:.0f}", (end, y), (7, 0))


def _number(axes: Axes, text: str, at: tuple[float, float], offset: tuple[float, float], ha: str = "left") -> None:
    words = axes.annotate(text, at, xytext=offset, textcoords="offset points", ha=ha, va="center", fontsize=8)
    words.set(color=INK, zorder=5, path_effects=[withStroke(linewidth=2.5, foreground="white")])


def _legend(figure: Figure, names: Sequence[str]) -> None:
    handles = [
        Line2D([], [], color=colour, marker=marker, linestyle="none", markersize=7, label=CONDITIONS[name].label)
        for name, (colour, marker) in ((name, STYLE.get(name, OTHER)) for name in names)
    ]
    majority = Line2D([], [], color=INK, linewidth=1.4, linestyle=DASHED, label="most common answer (no ECG, no model)")
    figure.legend(handles=[*handles, majority], loc="outside lower left", ncols=2, frameon=False, fontsize=9)


def _limits(value: float, limits: Interval | None) -> list[float]:
    """Limits of an interval; the value itself where there are none."""
    return [value if math.isnan(limit) else limit for limit in limits or (value, value)]


def _png(figure: Figure) -> bytes:
    file = io.BytesIO()
    figure.savefig(file, format="png", metadata={"Software": None})
    return file.getvalue()
