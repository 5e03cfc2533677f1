"""The numbers of a grid: models trained on several inputs, each asked with several inputs.

A model trained on real ECGs may score no better than one trained without any. Only a grid of trainings shows it:
every model learns from the same questions in the same order, and only the ECGs differ (`recipes/ablation_grid.py`
trains and asks; nothing here does).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from data.conversations.rows import QuestionSet
from eval.grids.heat_map import draw_cells
from eval.grids.numbers import (
    ASKED,
    DEV,
    INFER_CONDITIONS,
    SHIFT,
    TRAINED,
    Answers,
    Cell,
    Lines,
    Numbers,
    accuracy,
    cell,
    cell_text,
    compared,
    gap,
    gap_table,
    mark,
    page,
)
from eval.grids.numbers import write as write_whole
from eval.report.parts import markdown_table
from eval.scoring.answers import upstream_accuracy


@dataclass(frozen=True)
class Published:
    """A grid somebody else published: accuracies in per cent, by what was trained on and what was asked with."""

    source: str
    accuracy: Mapping[str, Mapping[str, float]]
    caveat: str


PUBLISHED = {
    "ecg_bench": Published(
        "ECG-Bench, assets/acc_heatmap.png of github.com/willxxy/ECG-Bench",
        {
            "real": {"real": 30.55, "zero": 0.00, "none": 0.00},
            "zero": {"real": 31.16, "zero": 28.05, "none": 17.93},
            "none": {"real": 37.09, "zero": 28.75, "none": 30.05},
        },
        "One number per cell, without a seed or an interval; data set, fold, language model and number of questions "
        "are not stated in the picture. Their answers were sampled, not greedy, and scored by their own rule: compare "
        "with the table by that rule, and in pattern rather than in height.",
    )
}


def summarise(answers: Answers, questions: QuestionSet, draws: int = 2000, seed: int = 0) -> Numbers:
    """All numbers of a grid. Controls are left out.

    Args:
        answers: By train condition and seed of the training, the model's scored answers under `INFER_CONDITIONS`.
        questions: What was asked; its training rows give the most common answers.
        draws: Resamples of the intervals over patients.
        seed: Seed of the resamples.

    Raises:
        ValueError: A cell is missing or was asked other questions than the others; names the cell.
    """
    trained = [name for name in TRAINED if any(name == train for train, _ in answers)]
    lines, shared = compared(answers, trained, questions)
    seeds = shared["seeds"]

    def cells(number: Callable[[Lines], tuple[float | None, int]]) -> dict[str, dict[str, Cell]]:
        return {
            train: {
                infer: cell(train, infer, {s: number(lines[train, s][infer]) for s in seeds})
                for infer in INFER_CONDITIONS
            }
            for train in trained
        }

    return {
        "train_conditions": trained,
        **shared,
        "draws": draws,
        "accuracy": cells(accuracy),
        "upstream_accuracy": cells(_upstream),
        "real_minus_swap": {train: {str(s): gap(lines[train, s], draws, seed) for s in seeds} for train in trained},
    }


def _upstream(lines: Lines) -> tuple[float | None, int]:
    return upstream_accuracy([line.prediction for line in lines.values()], [line.answer for line in lines.values()])


# --- what people read -------------------------------------------------------------------------------------------------


def write(out: Path, numbers: Numbers) -> list[Path]:
    """Write `grid.png`, `grid.md` and `grid.json` into a folder; each appears whole or not at all."""
    return write_whole(out, "grid", numbers, draw, markdown(numbers))


def draw(numbers: Numbers, path: Path) -> None:
    """`grid.png`, with the published grid of the same protocol beside it."""
    published = PUBLISHED.get(numbers.get("published", ""))
    draw_cells(numbers, path, (published.source.partition(",")[0], published.accuracy) if published else None)


def table(numbers: Numbers, kind: str = "accuracy") -> str:
    """Mean over seeds, lowest and highest, per cent: a row per train condition, a column per infer condition.

    Args:
        numbers: As `summarise` gives them.
        kind: `"accuracy"` or `"upstream_accuracy"`.
    """
    lines = [["trained on \\ asked with", *(ASKED[infer] for infer in numbers["infer_conditions"])]]
    lines += [[TRAINED[train], *(cell_text(cell) for cell in row.values())] for train, row in numbers[kind].items()]
    return markdown_table(lines)


def gaps(numbers: Numbers) -> str:
    """Real minus swap, in points, of every training: its difference and its interval over patients."""
    of_rows = {TRAINED[train]: by_seed for train, by_seed in numbers["real_minus_swap"].items()}
    return gap_table(of_rows, numbers["seeds"], "real minus another patient's ECG, trained on")


def published_table(published: Published) -> str:
    """The published grid in the same form."""
    columns = list(next(iter(published.accuracy.values())))
    lines = [["trained on \\ asked with", *(ASKED[infer] for infer in columns)]]
    lines += [
        [TRAINED[train], *(f"{cells[infer]:.2f}{mark(train, infer)}" for infer in columns)]
        for train, cells in published.accuracy.items()
    ]
    return markdown_table(lines)


def summary(numbers: Numbers) -> str:
    """What is printed at the end: both tables, and the published grid of the same protocol beside them."""
    published = PUBLISHED.get(numbers.get("published", ""))
    parts = [table(numbers), f"† {SHIFT}", gaps(numbers)]
    if published:
        parts += ["By ECG-Bench's rule:", table(numbers, "upstream_accuracy")]
        parts += [f"{published.source}:", published_table(published), published.caveat]
    return "\n\n".join([*([DEV] if numbers.get("dev") else []), *parts])


def markdown(numbers: Numbers) -> str:
    """`grid.md`."""
    published = PUBLISHED.get(numbers.get("published", ""))
    return page(
        "conditions",
        numbers,
        trained=", ".join(TRAINED[train] for train in numbers["train_conditions"]),
        table=table(numbers),
        gaps=gaps(numbers),
        upstream_table=table(numbers, "upstream_accuracy"),
        source=published,
        published_table=published_table(published) if published else "",
    )
