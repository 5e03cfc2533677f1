"""The picture of a grid: a heat map, in which cells asked with what they were trained on are framed."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg  # no pyplot: no global state, no window
from matplotlib.figure import Figure

from data.support.files import written_whole
from eval.grids.numbers import ASKED, MATCHED, TRAINED, Numbers, cell_parts, mark

Panel = Mapping[str, Mapping[str, tuple[float | None, str]]]  # by train and infer condition: share, and its words


def draw_cells(
    numbers: Numbers, path: Path, published: tuple[str, Mapping[str, Mapping[str, float]]] | None = None
) -> None:
    """Draw the cells, and beside them the source and the per cents of a published grid."""
    figure = Figure(figsize=(13 if published else 7.5, 5), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, 2 if published else 1, squeeze=False, width_ratios=[4, 3] if published else None)[0]
    cells = {
        train: {i: (cell["mean"], "\n".join(part for part in cell_parts(cell) if part)) for i, cell in row.items()}
        for train, row in numbers["accuracy"].items()
    }
    one, several = "one training per cell", "mean, and lowest to highest of the seeds"
    _heat_map(panels[0], cells, f"Right answers, per cent\n{several if len(numbers['seeds']) > 1 else one}")
    if published:
        source, accuracy = published
        shares = {t: {i: (v / 100, f"{v:.2f}{mark(t, i)}") for i, v in row.items()} for t, row in accuracy.items()}
        _heat_map(panels[1], shares, f"Published\n{source}, one number per cell")
    figure.supxlabel(
        f"most common answer to each question: {100 * numbers['majority_by_question']:.1f}     "
        "framed: the input of training\n† another input: mixes distribution shift with reading",
        fontsize=9,
    )
    with written_whole(path) as file:
        figure.savefig(file, format="png", metadata={"Software": None})


def _heat_map(axes: Axes, cells: Panel, title: str) -> None:
    columns = list(next(iter(cells.values())))
    values = np.array([[np.nan if row[i][0] is None else row[i][0] for i in columns] for row in cells.values()], float)
    axes.imshow(values, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    for y, (train, row) in enumerate(cells.items()):
        for x, infer in enumerate(columns):
            dark = values[y, x] > 0.55
            axes.text(x, y, row[infer][1], ha="center", va="center", fontsize=10, color="white" if dark else "#222222")
            if MATCHED[train] == infer:
                frame = (
                    [x - 0.47, x + 0.47, x + 0.47, x - 0.47, x - 0.47],
                    [y - 0.47, y - 0.47, y + 0.47, y + 0.47, y - 0.47],
                )
                axes.plot(*frame, color="#D55E00", linewidth=2)
    axes.set_xticks(range(len(columns)), [ASKED[infer].replace(" ECG", "\nECG") for infer in columns])
    axes.set_yticks(range(len(cells)), [TRAINED[train].replace(" ECGs", "\nECGs") for train in cells])
    axes.set_xlabel("asked with")
    axes.set_ylabel("trained on")
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_title(title, fontsize=11)
