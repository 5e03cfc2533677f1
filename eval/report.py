"""The audit as people read it: `report.md` with a table, `ablation.png`, `report.json`, `predictions.jsonl`."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from data.conditions import CONDITIONS
from data.files import written_whole

Report = Mapping[str, Any]

MAJORITY = "most common answer to the question"
# Okabe and Ito's colours keep apart for every kind of colour vision; markers keep apart in grey.
STYLE = {"real": ("#0072B2", "o"), "swap": ("#D55E00", "D"), "zero": ("#009E73", "s"), "none": ("#CC79A7", "^")}
FEW_PATIENTS = 20

HOW_TO_READ = """\
**How to read this.** A model that is as often right with *another patient's ECG* as with the real one does not read the
ECG, however high its accuracy: compare the two first rows, and look whether the interval of their difference lies above
zero. Accuracy with another patient's ECG is not expected to be zero, since that ECG often has the same finding. *Zeros*
and *no ECG* are inputs the model may never have seen: a drop there may be confusion. The last row needs no ECG and no
model: it gives each question its most common answer among the training questions."""


def write(out: Path, report: Report, predictions: Iterable[Mapping[str, Any]]) -> list[Path]:
    """Write the four files into a folder; each appears whole or not at all, `report.json` last.

    Returns:
        Their paths.
    """
    paths = [out / name for name in ("predictions.jsonl", "ablation.png", "report.md", "report.json")]
    with written_whole(paths[0], "w") as file:
        file.writelines(json.dumps(line, ensure_ascii=False) + "\n" for line in predictions)
    draw(report, paths[1])
    with written_whole(paths[2], "w") as file:
        file.write(markdown(report))
    with written_whole(paths[3], "w") as file:
        file.write(json.dumps(report, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
    return paths


def table(block: Report) -> str:
    """The main table of a report, or of one of its groups, in Markdown."""
    lines = [
        [
            "the model is given",
            "right answers",
            "95 % interval",
            "real ECG minus this",
            "95 % interval",
            "no valid answer",
        ]
    ]
    for name in _ordered(block):
        told = block["conditions"][name]
        unread = f"{told['unparsed']} ({told['empty']} empty)" if told["unparsed"] else "0"
        label = f"**{CONDITIONS[name].label}**" if name == "real" else CONDITIONS[name].label
        lines.append([label, _percent(told["accuracy"]), _interval(told["interval"]), *_gap(block, name), unread])
    lines.append(
        [
            f"({MAJORITY})",
            _percent(block["majority_by_question"]),
            _interval(block["majority_interval"]),
            *_gap(block, "majority_by_question"),
            "",
        ]
    )
    return _markdown_table(lines, numbers_from=1)


def finding(report: Report) -> str:
    """What the difference between the real ECG and another patient's says, in a sentence or two."""
    if "swap" not in report["real_minus"]:
        return "Asked without `real` or without `swap`, this report cannot say whether the ECG is read."
    gap = report["real_minus"]["swap"]
    low, high = gap["interval"]
    if low is None:
        return "All questions are about one patient: nothing can be said about others."
    size = f"{_points(gap['difference'])} points, 95 % interval {_points(low)} to {_points(high)}"
    if low > 0:
        text = f"The model is more often right with the real ECG than with another patient's: {size}."
    elif high < 0:
        text = f"The model is **less** often right with the real ECG than with another patient's: {size}."
    else:
        text = f"No difference between the real ECG and another patient's is shown: {size}."
    if report["patients"] < FEW_PATIENTS:
        text += f" With {report['patients']} patients the interval is too narrow to be trusted."
    return text


def markdown(report: Report) -> str:
    """`report.md`."""
    asked = f"{report['n']:,} held-out questions about {report['patients']:,} patients of {report['dataset']}"
    if report["limit"] is not None and report["limit"] < report["available"]:
        asked += (
            f" (a sample of {report['limit']:,} of {report['available']:,}, evenly over templates, controls included: "
            "another mixture of questions than the whole set)"
        )
    parts = [
        f"# Does {Path(report['model']).name or report['model']} read the ECG?",
        f"{finding(report)} Asked: {asked}.",
        table(report),
        "![Accuracy under each condition](ablation.png)",
        HOW_TO_READ,
        "An answer is right if it is exactly the set of terms asked for, in any order. Answers that are empty, or hold "
        "a term that answers no question of the set, count as wrong and are listed as *no valid answer*. Intervals "
        f"resample patients ({report['draws']:,} draws), since questions about one patient go together.",
        "## By kind of question",
        _groups(report, report["by_type"], "question type"),
    ]
    if report["by_attribute"]:
        parts += ["## By attribute", _groups(report, report["by_attribute"], "attribute")]
    if report["controls"]:
        parts += [
            "## Controls",
            "These questions are kept out of every number above (in `report.json`: `excluded_controls`). They check "
            "the questions, not the model: where the encoder cannot see what is asked for, as one blind to gain cannot "
            "see voltage, more right answers than in the last column would mean that something else gives them away.",
            _groups(report, report["controls"], "control"),
        ]
    if report["notes"]:
        parts += ["## Notes on the questions", "\n".join(f"* {note}" for note in report["notes"])]
    parts += [
        "## Again",
        f"```\n{report['command']}\n```",
        "`report.json` has these numbers and those of every template; `predictions.jsonl` every answer.",
        "Research use only. Not a medical device.",
    ]
    return "\n\n".join(parts) + "\n"


def draw(report: Report, path: Path) -> None:
    """`ablation.png`: accuracy with its interval under every condition, for all questions and for each type."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # no pyplot: no global state, no window
    from matplotlib.figure import Figure
    from matplotlib.patheffects import withStroke

    names = _ordered(report)
    groups = {"all questions": report, **(report["by_type"] if len(report["by_type"]) > 1 else {})}
    height = 0.2 * (len(names) + 1.2)  # inches per group
    figure = Figure(figsize=(8, 1.6 + height * len(groups)), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for place, block in enumerate(groups.values()):
        if place % 2 == 0:
            axes.axhspan(place - 0.5, place + 0.5, color="#f4f4f4", zorder=0, linewidth=0)
        majority = block["majority_by_question"]
        axes.plot(
            [majority] * 2, [place - 0.4, place + 0.4], "--", color="#444444", linewidth=1.6, zorder=2,
            label="most common answer\n(no ECG, no model)" if place == 0 else None,
        )  # fmt: skip
        for row, name in enumerate(names):
            told, (colour, marker) = block["conditions"][name], STYLE[name]
            y = place + ((row + 0.5) / len(names) - 0.5) * 0.74
            accuracy = told["accuracy"]
            low, high = (accuracy if limit is None else limit for limit in told["interval"])
            axes.plot([low, high], [y, y], color=colour, linewidth=2.4, solid_capstyle="round", zorder=3)
            axes.plot(
                accuracy, y, marker, color=colour, markersize=7, markeredgecolor="white", markeredgewidth=0.8, zorder=4,
                label=CONDITIONS[name].label if place == 0 else None, linestyle="none",
            )  # fmt: skip
            axes.annotate(
                f"{100 * accuracy:.0f}", (max(high, accuracy), y), xytext=(7, 0), textcoords="offset points",
                va="center", fontsize=8, color="#222222", zorder=5,
                path_effects=[withStroke(linewidth=2.5, foreground="white")],
            )  # fmt: skip
    axes.set_yticks(
        range(len(groups)),
        [f"{name}\n{block['n']:,} questions, {block['patients']:,} patients" for name, block in groups.items()],
    )
    axes.set_ylim(len(groups) - 0.5, -0.5)  # the headline on top
    axes.set_xlim(-0.03, 1.06)
    axes.set_xticks([0, 0.2, 0.4, 0.6, 0.8, 1], ["0", "20", "40", "60", "80", "100 %"])
    axes.set_xlabel("right answers, with 95 % intervals by patient")
    axes.grid(axis="x", color="#dddddd", linewidth=0.8, zorder=1)
    axes.tick_params(length=0)
    axes.spines[["top", "right", "left", "bottom"]].set_visible(False)
    name = Path(report["model"]).name or report["model"]
    figure.legend(
        *_legend(axes, len(names)), loc="outside upper left", ncols=3, frameon=False, fontsize=9, alignment="left",
        title=f"Does {name} read the ECG?  {report['dataset']}",  # here, because a figure title overlaps the legend
        title_fontproperties={"size": 12, "weight": "bold"},
    )  # fmt: skip
    with written_whole(path) as file:
        figure.savefig(file, format="png")


def _legend(axes: Any, conditions: int) -> tuple[list[Any], list[str]]:
    """Conditions first, the dashed line last."""
    handles, labels = axes.get_legend_handles_labels()
    order = [*range(1, conditions + 1), 0]
    return [handles[i] for i in order], [labels[i] for i in order]


def _groups(report: Report, groups: Mapping[str, Report], heading: str) -> str:
    """One row per group: accuracy under every condition, beside the majority answer."""
    names = _ordered(report)
    compared = ["real - swap"] if "swap" in report["real_minus"] else []
    lines = [[heading, "questions", "patients", *(CONDITIONS[n].label for n in names), *compared, MAJORITY]]
    for group, block in groups.items():
        accuracies = [_percent(block["conditions"][n]["accuracy"]) for n in names]
        gap = ["{} ({})".format(*_gap(block, "swap"))] if compared else []
        counts = [f"{block['n']:,}", f"{block['patients']:,}"]
        lines.append([group, *counts, *accuracies, *gap, _percent(block["majority_by_question"])])
    return _markdown_table(lines, numbers_from=1)


def _ordered(block: Report) -> list[str]:
    """The conditions asked, in the order of `CONDITIONS`: what is to be compared first stands together."""
    return [name for name in CONDITIONS if name in block["conditions"]]


def _gap(block: Report, name: str) -> list[str]:
    if name not in block["real_minus"]:
        return ["", ""]
    gap = block["real_minus"][name]
    return [_points(gap["difference"]), _interval(gap["interval"], signed=True)]


def _markdown_table(lines: list[list[str]], numbers_from: int) -> str:
    # Aligned in the source too: it is also printed.
    cells = [[cell.replace("|", "\\|") for cell in line] for line in lines]
    widths = [max(3, *(len(line[i]) for line in cells)) for i in range(len(cells[0]))]
    cells.insert(1, ["-" * width if i < numbers_from else "-" * (width - 1) + ":" for i, width in enumerate(widths)])
    return "\n".join(
        "| "
        + " | ".join(
            cell.ljust(width) if i < numbers_from else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths))
        )
        + " |"
        for line in cells
    )


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %"


def _points(value: float) -> str:
    return f"{100 * value:+.1f}"


def _interval(limits: list[float | None], signed: bool = False) -> str:
    low, high = limits
    if low is None or high is None:
        return "unknown"
    return f"{_points(low)} to {_points(high)}" if signed else f"{100 * low:.1f} to {100 * high:.1f}"
