"""The numbers of a grid: models trained on several inputs, each asked with several inputs.

A model trained on real ECGs may score no better than one trained without any. Only a grid of trainings shows it:
every model learns from the same questions in the same order, and only the ECGs differ (`recipes/ablation_grid.py`
trains and asks; nothing here does).
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from data.conversations.rows import QuestionSet
from eval.grids import numbers as grid
from eval.grids.numbers import ASKED, MATCHED, TRAINED, Answers, Cell, Lines, Numbers
from eval.report.parts import markdown_table
from eval.scoring.answers import upstream_accuracy

Panel = Mapping[str, Mapping[str, tuple[float | None, str]]]  # by train and infer condition: share, and its words


@dataclass(frozen=True)
class Published:
    """A grid somebody else published: accuracies in per cent, by what was trained on and what was asked with."""

    source: str
    accuracy: Mapping[str, Mapping[str, float]]
    caveat: str


_TABLES: Mapping[str, Any] = json.loads(Path(__file__).with_name("published.json").read_text(encoding="utf-8"))
PUBLISHED = {name: Published(**table) for name, table in _TABLES.items()}


def summarise(answers: Answers, questions: QuestionSet, draws: int = 2000, seed: int = 0) -> Numbers:
    """All numbers of a grid. Controls are left out.

    Answers are scored, by train condition and seed of the training, each model's under `INFER_CONDITIONS`; the training
    rows of `questions` give the most common answers; `draws` and `seed` are of the intervals over patients.

    Raises:
        ValueError: A cell is missing or was asked other questions than the others; names the cell.
    """
    trained = [name for name in TRAINED if any(name == train for train, _ in answers)]
    lines, shared = grid.compared(answers, trained, questions)
    seeds = shared["seeds"]

    def cells(number: Callable[[Lines], tuple[float | None, int]]) -> dict[str, dict[str, Cell]]:
        return {
            train: {
                infer: grid.cell(train, infer, {s: number(lines[train, s][infer]) for s in seeds}) for infer in ASKED
            }
            for train in trained
        }

    return {
        "train_conditions": trained,
        **shared,
        "draws": draws,
        "accuracy": cells(grid.accuracy),
        "upstream_accuracy": cells(_upstream),
        "real_minus_swap": {name: {str(s): grid.gap(lines[name, s], draws, seed) for s in seeds} for name in trained},
    }


def _upstream(lines: Lines) -> tuple[float | None, int]:
    return upstream_accuracy([line.prediction for line in lines.values()], [line.answer for line in lines.values()])


def write(out: Path, numbers: Numbers) -> list[Path]:
    """Write `grid.png`, `grid.md` and `grid.json` into a folder; each appears whole or not at all."""
    return grid.write(out, "grid", numbers, draw(numbers), markdown(numbers))


def table(numbers: Numbers, kind: str = "accuracy") -> str:
    """Mean over seeds, lowest and highest, per cent: a row per train condition, a column per infer condition.

    `kind` is `"accuracy"` or `"upstream_accuracy"`.
    """
    return _by_training(
        {name: {i: " ".join(grid.cell_parts(one)) for i, one in row.items()} for name, row in numbers[kind].items()}
    )


def published_table(published: Published) -> str:
    """The published grid in the same form."""
    return _by_training(
        {t: {i: text for i, (_, text) in row.items()} for t, row in _published_cells(published).items()}
    )


def _by_training(cells: Mapping[str, Mapping[str, str]]) -> str:
    head = ["trained on \\ asked with", *(ASKED[infer] for infer in next(iter(cells.values())))]
    return markdown_table([head, *([TRAINED[train], *row.values()] for train, row in cells.items())])


def _published_cells(published: Published) -> Panel:
    def text(train: str, infer: str, share: float) -> str:
        return f"{share:.2f}" if MATCHED[train] == infer else f"{share:.2f} †"

    rows = published.accuracy.items()
    return {train: {i: (share / 100, text(train, i, share)) for i, share in row.items()} for train, row in rows}


def gaps(numbers: Numbers) -> str:
    """Real minus swap, in points, of every training: its difference and its interval over patients."""
    of_rows = {TRAINED[train]: by_seed for train, by_seed in numbers["real_minus_swap"].items()}
    return grid.gap_table(of_rows, numbers["seeds"], "real minus another patient's ECG, trained on")


def summary(numbers: Numbers) -> str:
    """What is printed at the end: both tables, and the published grid of the same protocol beside them."""
    parts = [*([grid.DEV] if numbers.get("dev") else []), table(numbers), f"† {grid.SHIFT}", gaps(numbers)]
    if published := PUBLISHED.get(numbers.get("published", "")):
        parts += ["By ECG-Bench's rule:", table(numbers, "upstream_accuracy")]
        parts += [f"{published.source}:", published_table(published), published.caveat]
    return "\n\n".join(parts)


def markdown(numbers: Numbers) -> str:
    """`grid.md`."""
    published = PUBLISHED.get(numbers.get("published", ""))
    return grid.page(
        "conditions",
        numbers,
        trained=", ".join(TRAINED[train] for train in numbers["train_conditions"]),
        table=table(numbers),
        gaps=gaps(numbers),
        upstream_table=table(numbers, "upstream_accuracy"),
        source=published,
        published_table=published_table(published) if published else "",
    )


def draw(numbers: Numbers) -> Figure:
    """`grid.png`: a heat map, and beside it the published grid of the same protocol.

    Cells that were asked with what they were trained on are framed.
    """
    published = PUBLISHED.get(numbers.get("published", ""))
    figure = Figure(figsize=(13 if published else 7.5, 5), dpi=150, layout="constrained")
    panels = figure.subplots(1, 2 if published else 1, squeeze=False, width_ratios=[4, 3] if published else None)[0]
    cells = {
        train: {i: (one["mean"], "\n".join(grid.cell_parts(one))) for i, one in row.items()}
        for train, row in numbers["accuracy"].items()
    }
    spread = "mean, and lowest to highest of the seeds" if len(numbers["seeds"]) > 1 else "one training per cell"
    _heat_map(panels[0], cells, f"Right answers, per cent\n{spread}")
    if published:
        title = f"Published\n{published.source.partition(',')[0]}, one number per cell"
        _heat_map(panels[1], _published_cells(published), title)
    figure.supxlabel(
        f"most common answer to each question: {100 * numbers['majority_by_question']:.1f}     "
        "framed: the input of training\n† another input: mixes distribution shift with reading",
        fontsize=9,
    )
    return figure


def _heat_map(axes: Axes, cells: Panel, title: str) -> None:
    columns = list(next(iter(cells.values())))
    values = np.array([[np.nan if row[i][0] is None else row[i][0] for i in columns] for row in cells.values()], float)
    axes.imshow(values, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    for y, (train, row) in enumerate(cells.items()):
        for x, infer in enumerate(columns):
            dark = values[y, x] > 0.55
            axes.text(x, y, row[infer][1], ha="center", va="center", fontsize=10, color="white" if dark else "#222222")
            if MATCHED[train] == infer:
                left, right, low, high = x - 0.47, x + 0.47, y - 0.47, y + 0.47
                corners = [left, right, right, left, left], [low, low, high, high, low]
                axes.plot(*corners, color="#D55E00", linewidth=2)
    axes.set_xticks(range(len(columns)), [ASKED[infer].replace(" ECG", "\nECG") for infer in columns])
    axes.set_yticks(range(len(cells)), [TRAINED[train].replace(" ECGs", "\nECGs") for train in cells])
    axes.set(xlabel="asked with", ylabel="trained on")
    axes.set_title(title, fontsize=11)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
