"""Cells of a grid: models that were asked the same with several inputs, a number per seed of the training.

Training has luck of its own, which the seeds show. It is another axis than the luck of which patients were asked: the
spread over seeds is mean, lowest and highest, intervals over patients are of each seed by itself, and the two are never
pooled into one interval.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NotRequired, TypedDict

import numpy as np
from matplotlib.figure import Figure  # no pyplot: no global state, no window

from data.conversations.rows import QuestionSet
from data.support.files import written_whole
from eval.report.parts import markdown_table
from eval.report.templates import filled_in
from eval.scoring.answers import answer_set, majority_by_question
from eval.scoring.lines import Line
from eval.statistics import paired_interval, rounded

Lines = Mapping[str, Line]  # by question
Answers = Mapping[tuple[str, int], Sequence[Line]]  # by row of the table and seed of the training
Numbers = dict[str, Any]  # what JSON can hold

TRAINED = {"real": "real ECGs", "zero": "zeros", "none": "no ECGs", "shuffled": "shuffled ECGs"}
ASKED = {"real": "the real ECG", "zero": "zeros", "none": "no ECG", "swap": "another patient's ECG"}
INFER_CONDITIONS = tuple(ASKED)
MATCHED = {"real": "real", "zero": "zero", "none": "none", "shuffled": "swap"}  # asked with what it was trained on
SHIFT = (
    "trained on one kind of input and asked with another: the number mixes what the change of input does to the model "
    "(distribution shift) with what the model reads from the ECG"
)
DEV = "**A `--dev` run: a tiny language model, few steps, few questions. It shows that the grid runs, and no more.**"


class Cell(TypedDict):
    """A number per seed, their mean and their ends; off the diagonal with its warning."""

    by_seed: dict[str, float | None]
    n: dict[str, int]
    mean: float | None
    lowest: float | None
    highest: float | None
    warning: NotRequired[str]


class Gap(TypedDict):
    """Real minus swap of one training, and its interval over patients."""

    difference: float
    interval: list[float | None]
    n: int


def compared(
    answers: Answers, trained: Sequence[str], questions: QuestionSet
) -> tuple[dict[tuple[str, int], dict[str, Lines]], Numbers]:
    """Answers of models that were asked the same, by row and seed, then by condition and question, without controls.

    Also the numbers that all models share. The training rows of `questions` give the most common answers.

    Raises:
        ValueError: A cell is missing or was asked other questions than the others; names the cell.
    """
    if not answers:
        raise ValueError("a grid needs the answers of at least one model")
    seeds = sorted({number for _, number in answers})
    lines = {(train, number): _by_condition(answers, train, number) for train in trained for number in seeds}
    first = lines[trained[0], seeds[0]]["real"]
    for (train, number), by_condition in lines.items():
        if by_condition["real"].keys() != first.keys():
            other = f"{trained[0]}, seed {seeds[0]}"
            raise ValueError(f"{train}, seed {number} was asked other questions than {other}: ask both again")
    rows = {row["id"]: row for row in questions.test}
    if unknown := sorted(first.keys() - rows.keys()):
        raise ValueError(f"question {unknown[0]!r} was asked, but {questions.name} has no such held-out question")
    majority = majority_by_question(questions.train)
    rows_asked = [rows[name] for name in first]
    return lines, {
        "dataset": questions.name,
        "notes": list(questions.notes),
        "infer_conditions": list(ASKED),
        "seeds": seeds,
        "questions": len(rows_asked),
        "patients": len({patient for row in rows_asked for patient in row["patient_ids"]}),
        "majority_by_question": rounded(np.mean([majority(row) == answer_set(row["answer"]) for row in rows_asked])),
    }


def _by_condition(answers: Answers, train: str, seed: int) -> dict[str, Lines]:
    """Answers of one model to ordinary questions, by condition and question."""
    if (train, seed) not in answers:
        raise ValueError(f"the grid has no answers of the model trained on {train}, seed {seed}: train and ask it")
    lines: dict[str, dict[str, Line]] = {infer: {} for infer in INFER_CONDITIONS}
    for line in answers[train, seed]:
        if line.condition in lines and not line.control:
            lines[line.condition][line.id] = line
    for infer, of_condition in lines.items():
        if not of_condition:
            raise ValueError(f"the model trained on {train}, seed {seed} was not asked under {infer!r}: ask it again")
    return dict(lines)


def cell(train: str, infer: str, by_seed: Mapping[int, tuple[float | None, int]]) -> Cell:
    """One cell from a number per seed and how many answers it is of."""
    values = [value for value, _ in by_seed.values() if value is not None]
    mean, lowest, highest = (rounded(of(values)) if values else None for of in (np.mean, np.min, np.max))
    of_seeds = {str(s): None if value is None else rounded(value) for s, (value, _) in by_seed.items()}
    numbers = {str(s): n for s, (_, n) in by_seed.items()}
    result: Cell = {"by_seed": of_seeds, "n": numbers, "mean": mean, "lowest": lowest, "highest": highest}
    return result if MATCHED[train] == infer else {**result, "warning": SHIFT}


def accuracy(lines: Lines) -> tuple[float | None, int]:
    """The share of right answers, and how many there are."""
    return float(np.mean([line.correct for line in lines.values()])), len(lines)


def gap(lines: Mapping[str, Lines], draws: int, seed: int) -> Gap:
    """Real minus swap of one model, over the questions that were asked under both."""
    both = [name for name in lines["real"] if name in lines["swap"]]
    real, swap = (np.array([lines[infer][name].correct for name in both], float) for infer in ("real", "swap"))
    interval = paired_interval(real, swap, [lines["real"][name].patient_ids for name in both], draws, seed)
    limits = [None if np.isnan(limit) else rounded(limit) for limit in interval]
    return {"difference": rounded(np.mean(real - swap)), "interval": limits, "n": len(both)}


def write(out: Path, name: str, numbers: Numbers, figure: Figure, markdown: str) -> list[Path]:
    """Write numbers into a folder as `name.png`, `name.md` and `name.json`; each appears whole or not at all."""
    paths = [out / f"{name}.{kind}" for kind in ("png", "md", "json")]
    with written_whole(paths[0]) as file:
        figure.savefig(file, format="png", metadata={"Software": None})
    data = json.dumps(numbers, indent=2, ensure_ascii=False, allow_nan=False)
    for path, text in zip(paths[1:], (markdown, data + "\n")):
        with written_whole(path, "w") as file:
            file.write(text)
    return paths


def cell_parts(cell: Cell) -> list[str]:
    """A cell's mean and, of several seeds, its spread over them, per cent."""
    dagger = " †" if "warning" in cell else ""
    if cell["mean"] is None or cell["lowest"] is None or cell["highest"] is None:
        return [f"says nothing{dagger}"]
    spread = [f"({100 * cell['lowest']:.1f} to {100 * cell['highest']:.1f})"] if len(cell["by_seed"]) > 1 else []
    return [f"{100 * cell['mean']:.1f}{dagger}", *spread]


def gap_table(of_rows: Mapping[str, Mapping[str, Gap]], seeds: Sequence[int], head: str) -> str:
    """Real minus swap, in points, of every training: its difference and its interval over patients."""
    lines = [[head, *(f"seed {seed}" for seed in seeds)]]
    lines += [[name, *(_gap_text(by_seed[str(seed)]) for seed in seeds)] for name, by_seed in of_rows.items()]
    return markdown_table(lines)


def _gap_text(gap: Gap) -> str:
    low, high = gap["interval"]
    limits = "unknown" if low is None or high is None else f"{100 * low:+.1f} to {100 * high:+.1f}"
    return f"{100 * gap['difference']:+.1f} ({limits})"


def page(name: str, numbers: Numbers, **words: object) -> str:
    """The page of a grid: the template `name.md.jinja` of this folder, filled in."""
    seeds = f"{'seeds' if len(numbers['seeds']) > 1 else 'seed'} {', '.join(map(str, numbers['seeds']))}"
    shared = {"DEV": DEV, "SHIFT": SHIFT, "dev": False, **numbers, "seeds": seeds}
    return filled_in(Path(__file__).with_name(f"{name}.md.jinja"), shared | words)
