"""The numbers of a grid: models trained on several inputs, each asked with several inputs. Table and heat map.

A model trained on real ECGs may score no better than one trained without any. Only a grid of trainings shows it:
every model learns from the same questions in the same order, and only the ECGs differ (`recipes/ablation_grid.py`
trains and asks; nothing here does).

Training has luck of its own, told by the seeds. It is another axis than the luck of which patients were asked: the
spread over seeds is given as mean, lowest and highest, the intervals over patients for each seed by itself, and the two
are never pooled into one interval.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from data.support.files import written_whole
from eval.report.parts import markdown_table
from eval.scoring.answers import answer_set, majority_by_question, upstream_accuracy
from eval.scoring.lines import Line
from eval.statistics import paired_interval, rounded

if TYPE_CHECKING:
    from data.conversations.rows import QuestionSet

Numbers = dict[str, Any]

TRAINED = {"real": "real ECGs", "zero": "zeros", "none": "no ECGs", "shuffled": "shuffled ECGs"}
ASKED = {"real": "the real ECG", "zero": "zeros", "none": "no ECG", "swap": "another patient's ECG"}
INFER_CONDITIONS = tuple(ASKED)
MATCHED = {"real": "real", "zero": "zero", "none": "none", "shuffled": "swap"}  # asked with what it was trained on
SHIFT = (
    "trained on one kind of input and asked with another: the number mixes what the change of input does to the model "
    "(distribution shift) with what the model reads from the ECG"
)


DEV = "**A `--dev` run: a tiny language model, few steps, few questions. It shows that the grid runs, and no more.**"


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


def summarise(
    answers: Mapping[tuple[str, int], Sequence[Line]], questions: QuestionSet, draws: int = 2000, seed: int = 0
) -> Numbers:
    """All numbers of a grid. Controls are left out.

    Args:
        answers: By train condition and seed of the training, the model's scored answers under `INFER_CONDITIONS`.
        questions: What was asked; its training rows give the most common answers.
        draws: Resamples of the intervals over patients.
        seed: Of the resamples.

    Raises:
        ValueError: A cell is missing or was asked other questions than the rest; names the cell.
    """
    trained = [name for name in TRAINED if any(name == train for train, _ in answers)]
    told, asked = compared(answers, trained, questions)
    seeds = asked["seeds"]

    def cells(number: Any) -> dict[str, dict[str, Numbers]]:
        return {
            train: {infer: cell(train, infer, {s: number(told[train, s][infer]) for s in seeds}) for infer in ASKED}
            for train in trained
        }

    return {
        "train_conditions": trained,
        **asked,
        "draws": draws,
        "accuracy": cells(accuracy),
        "upstream_accuracy": cells(_upstream),
        "real_minus_swap": {train: {str(s): gap(told[train, s], draws, seed) for s in seeds} for train in trained},
    }


def compared(
    answers: Mapping[tuple[str, int], Sequence[Line]], trained: Sequence[str], questions: QuestionSet
) -> tuple[dict[tuple[str, int], dict[str, dict[str, Line]]], Numbers]:
    """Answers of models that were asked the same, and what they were asked. Controls are left out.

    Args:
        answers: By row of the table and seed of the training, under `INFER_CONDITIONS`.
        trained: The rows of the table.
        questions: What was asked; its training rows give the most common answers.

    Returns:
        By row and seed, then by condition and question, the answers; and the numbers that all models share.

    Raises:
        ValueError: A cell is missing or was asked other questions than the rest; names the cell.
    """
    if not answers:
        raise ValueError("a grid needs the answers of at least one model")
    seeds = sorted({number for _, number in answers})
    told = {(train, number): _by_condition(answers, train, number) for train in trained for number in seeds}
    first = told[trained[0], seeds[0]]["real"]
    for (train, number), found in told.items():
        if found["real"].keys() != first.keys():
            raise ValueError(
                f"{train}, seed {number} was asked other questions than {trained[0]}, seed {seeds[0]}: ask both again"
            )
    rows = {row["id"]: row for row in questions.test}
    if unknown := sorted(first.keys() - rows.keys()):
        raise ValueError(f"question {unknown[0]!r} was asked, but {questions.name} has no such held-out question")
    majority = majority_by_question(questions.train)
    asked = [rows[name] for name in first]
    return told, {
        "dataset": questions.name,
        "notes": list(questions.notes),
        "infer_conditions": list(ASKED),
        "seeds": seeds,
        "questions": len(asked),
        "patients": len({patient for row in asked for patient in row["patient_ids"]}),
        "majority_by_question": rounded(np.mean([majority(row) == answer_set(row["answer"]) for row in asked])),
    }


def _by_condition(
    answers: Mapping[tuple[str, int], Sequence[Line]], train: str, seed: int
) -> dict[str, dict[str, Line]]:
    """Under each condition, the answers of one model to ordinary questions, by question."""
    if (train, seed) not in answers:
        raise ValueError(f"the grid has no answers of the model trained on {train}, seed {seed}: train and ask it")
    found: dict[str, dict[str, Line]] = {infer: {} for infer in INFER_CONDITIONS}
    for line in answers[train, seed]:
        if line.condition in found and not line.control:
            found[line.condition][line.id] = line
    for infer, lines in found.items():
        if not lines:
            raise ValueError(f"the model trained on {train}, seed {seed} was not asked under {infer!r}: ask it again")
    return found


def cell(train: str, infer: str, by_seed: Mapping[int, tuple[float | None, int]]) -> Numbers:
    """One cell: a number per seed, their mean and their ends; off the diagonal with its warning."""
    values = [value for value, _ in by_seed.values() if value is not None]
    found: Numbers = {
        "by_seed": {str(s): None if value is None else rounded(value) for s, (value, _) in by_seed.items()},
        "n": {str(s): n for s, (_, n) in by_seed.items()},
        **{name: rounded(of(values)) if values else None for name, of in _SPREAD.items()},
    }
    return {**found, "warning": SHIFT} if _mark(train, infer) else found


def _mark(train: str, infer: str) -> str:
    return "" if MATCHED[train] == infer else " †"


_SPREAD: Mapping[str, Any] = {"mean": np.mean, "lowest": np.min, "highest": np.max}


def accuracy(lines: Mapping[str, Line]) -> tuple[float | None, int]:
    """The share of right answers, and how many there are."""
    return float(np.mean([line.correct for line in lines.values()])), len(lines)


def _upstream(lines: Mapping[str, Line]) -> tuple[float | None, int]:
    return upstream_accuracy([line.prediction for line in lines.values()], [line.answer for line in lines.values()])


def gap(told: Mapping[str, Mapping[str, Line]], draws: int, seed: int) -> Numbers:
    """Real minus swap of one model, over the questions that were asked under both."""
    both = [name for name in told["real"] if name in told["swap"]]
    real, swap = (np.array([told[infer][name].correct for name in both], float) for infer in ("real", "swap"))
    interval = paired_interval(real, swap, [told["real"][name].patient_ids for name in both], draws, seed)
    limits = [None if np.isnan(limit) else rounded(limit) for limit in interval]
    return {"difference": rounded(np.mean(real - swap)), "interval": limits, "n": len(both)}


# --- what people read -------------------------------------------------------------------------------------------------


def write(out: Path, numbers: Numbers) -> list[Path]:
    """Write `grid.png`, `grid.md` and `grid.json` into a folder; each appears whole or not at all.

    Returns:
        Their paths.
    """
    return write_as(out, "grid", numbers, draw, markdown)


def write_as(
    out: Path,
    name: str,
    numbers: Numbers,
    draw: Callable[[Numbers, Path], None],
    markdown: Callable[[Numbers], str],
) -> list[Path]:
    """Write numbers into a folder as a picture, a page and themselves: `name.png`, `name.md` and `name.json`."""
    paths = [out / f"{name}.{kind}" for kind in ("png", "md", "json")]
    draw(numbers, paths[0])
    with written_whole(paths[1], "w") as file:
        file.write(markdown(numbers))
    with written_whole(paths[2], "w") as file:
        file.write(json.dumps(numbers, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
    return paths


def table(numbers: Numbers, kind: str = "accuracy") -> str:
    """Mean over seeds, lowest and highest, per cent: a row per train condition, a column per infer condition.

    Args:
        numbers: Of `summarise`.
        kind: `"accuracy"` or `"upstream_accuracy"`.
    """
    lines = [["trained on \\ asked with", *(ASKED[infer] for infer in numbers["infer_conditions"])]]
    for train, cells in numbers[kind].items():
        lines.append([TRAINED[train], *(written(cell) for cell in cells.values())])
    return markdown_table(lines)


def gaps(numbers: Numbers) -> str:
    """Real minus swap, in points, of every training: its difference and its interval over patients."""
    seeds = [str(seed) for seed in numbers["seeds"]]
    lines = [["real minus another patient's ECG, trained on", *(f"seed {seed}" for seed in seeds)]]
    for train, by_seed in numbers["real_minus_swap"].items():
        lines.append([TRAINED[train], *(gap_written(by_seed[seed]) for seed in seeds)])
    return markdown_table(lines)


def published_table(published: Published) -> str:
    """The published grid in the same form."""
    columns = list(next(iter(published.accuracy.values())))
    lines = [["trained on \\ asked with", *(ASKED[infer] for infer in columns)]]
    lines += [
        [TRAINED[train], *(f"{cells[infer]:.2f}{_mark(train, infer)}" for infer in columns)]
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
    seeds, published = numbers["seeds"], PUBLISHED.get(numbers.get("published", ""))
    parts = [
        "# What a model is trained on, and what it is asked with",
        f"Models trained on {', '.join(TRAINED[train] for train in numbers['train_conditions'])}, each with "
        f"{'seeds' if len(seeds) > 1 else 'seed'} {', '.join(map(str, seeds))}; every model is asked "
        f"{numbers['questions']:,} held-out questions about {numbers['patients']:,} patients of {numbers['dataset']} "
        "with each input. Within a seed all trainings see the same questions in the same order, for as many steps, "
        "with the same LoRA; only the ECGs differ.",
        *([DEV] if numbers.get("dev") else []),
        "## Right answers, per cent",
        table(numbers),
        f"Mean over seeds, then the lowest and the highest. Most common answer to each question, without any ECG or "
        f"model: {100 * numbers['majority_by_question']:.1f}. † {SHIFT[0].upper()}{SHIFT[1:]}. Least so where "
        "another patient's ECG is given: it is an ECG like any other.",
        "![Right answers](grid.png)",
        "## Does it read the ECG?",
        gaps(numbers),
        f"Points, with the 95 % interval over patients ({numbers['draws']:,} draws) of that one training. "
        "Models that were not trained on real ECGs never saw one that told its answer: theirs should hold zero. Seeds "
        "are another axis than patients and are not pooled with them.",
        "## The same answers by ECG-Bench's rule, per cent",
        table(numbers, "upstream_accuracy"),
        "Exact, case-sensitive text; empty answers are left out, so that a model which says nothing looks better. "
        "Several terms are joined by spaces there and by commas here, so such answers count as wrong. For comparison "
        "with numbers published by that rule, and for nothing else.",
    ]
    if published:
        parts += [
            "## Published",
            f"{published.source}: accuracy, per cent.",
            published_table(published),
            published.caveat,
        ]
    if numbers["notes"]:
        parts += ["## Notes on the questions", "\n".join(f"* {note}" for note in numbers["notes"])]
    parts.append("`grid.json` has the number of every seed. Research use only. Not a medical device.")
    return "\n\n".join(parts) + "\n"


def draw(numbers: Numbers, path: Path) -> None:
    """`grid.png`: the cells as a heat map; those asked with what they were trained on are framed."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # no pyplot: no global state, no window
    from matplotlib.figure import Figure

    published = PUBLISHED.get(numbers.get("published", ""))
    figure = Figure(figsize=(13 if published else 7.5, 5), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, 2 if published else 1, squeeze=False, width_ratios=[4, 3] if published else None)[0]
    cells = {
        train: {i: (cell["mean"], _lines(cell)) for i, cell in row.items()}
        for train, row in numbers["accuracy"].items()
    }
    one, several = "one training per cell", "mean, and lowest to highest of the seeds"
    _heat_map(panels[0], cells, f"Right answers, per cent\n{several if len(numbers['seeds']) > 1 else one}")
    if published:
        theirs = {
            t: {i: (v / 100, f"{v:.2f}{_mark(t, i)}") for i, v in row.items()} for t, row in published.accuracy.items()
        }
        _heat_map(panels[1], theirs, f"Published\n{published.source.partition(',')[0]}, one number per cell")
    figure.supxlabel(
        f"most common answer to each question: {100 * numbers['majority_by_question']:.1f}     "
        "framed: the input of training\n† another input: mixes distribution shift with reading",
        fontsize=9,
    )
    with written_whole(path) as file:
        figure.savefig(file, format="png", metadata={"Software": None})


def _heat_map(axes: Any, cells: Mapping[str, Mapping[str, tuple[float | None, str]]], title: str) -> None:
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


def _lines(cell: Numbers) -> str:
    """A cell of the heat map: its mean above its spread."""
    mean, spread = _parts(cell)
    return f"{mean}\n{spread}" if spread else mean


def written(cell: Numbers) -> str:
    """A cell of the table: its mean and its spread over seeds, per cent."""
    return " ".join(part for part in _parts(cell) if part)


def _parts(cell: Numbers) -> tuple[str, str]:
    mark = " †" if "warning" in cell else ""
    if cell["mean"] is None:
        return f"says nothing{mark}", ""
    spread = f"({100 * cell['lowest']:.1f} to {100 * cell['highest']:.1f})" if len(cell["by_seed"]) > 1 else ""
    return f"{100 * cell['mean']:.1f}{mark}", spread


def gap_written(found: Numbers) -> str:
    """Real minus swap of one training and its interval over patients, in points."""
    low, high = found["interval"]
    limits = "unknown" if low is None or high is None else f"{100 * low:+.1f} to {100 * high:+.1f}"
    return f"{100 * found['difference']:+.1f} ({limits})"
