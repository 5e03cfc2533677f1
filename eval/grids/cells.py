"""The models of a grid: its settings, what is trained and where, and several of them at a time."""

import contextlib
import dataclasses
import itertools
import multiprocessing
import re
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trl import ModelConfig, SFTConfig

from data.support.parallel import end_with_parent
from elm.saved.arguments import TRAIN_CONDITIONS, ElmArguments, as_mapping, setting
from elm.saved.run import questions_for
from elm.training.run import Run, for_training
from eval.audit.run import run as audit
from eval.audit.settings import AuditSettings
from eval.grids.conditions import PUBLISHED
from eval.grids.numbers import INFER_CONDITIONS

# What makes an input; all else is the same for all of them.
INPUT_FIELDS = (
    *("encoder", "encoder_args", "train_encoder"),
    *("projector_type", "projector_norm", "projector_pool", "projector_pool_mode"),
)


@dataclass
class GridArguments:
    """What is added to the settings of one training to make them those of a grid."""

    seeds: list[int] = field(default_factory=lambda: [0, 1, 2], metadata={"help": "Seeds of the trainings."})
    train_conditions: list[str] = field(
        default_factory=lambda: list(TRAIN_CONDITIONS), metadata={"help": "ECGs given in training, a model for each."}
    )
    limit: int | None = setting(None, "Ask only so many questions, evenly over templates.")
    jobs: int = setting(1, "Models at a time, each in a process of its own, on CPUs.")
    published: str = setting("", f"Show the published grid of this protocol: {', '.join(PUBLISHED)}.")
    inputs: dict[str, Any] | str | None = setting(
        None,
        "Compare these inputs in place of train conditions, as JSON (a mapping in YAML): the name of a row to what it "
        f"changes of {', '.join(INPUT_FIELDS)}.",
    )

    def __post_init__(self) -> None:
        self.inputs = as_mapping("inputs", self.inputs)
        for name, changes in self.inputs.items():
            if not re.fullmatch(r"\w[\w.-]*", name):
                raise ValueError(f"inputs: {name!r} is to be the name of a folder: letters, digits, '-', '_' and '.'")
            if not isinstance(changes, dict):
                raise ValueError(f"inputs: {name!r} must be a mapping of settings, got {changes!r}")
            if unknown := sorted(changes.keys() - set(INPUT_FIELDS)):
                raise ValueError(
                    f"inputs: {name!r} sets {unknown[0]!r}, but inputs may differ in {', '.join(INPUT_FIELDS)} alone"
                )
        if self.inputs and self.train_conditions != ["real"]:
            raise ValueError(
                f"inputs are compared on real ECGs: give --train_conditions real, not {' '.join(self.train_conditions)}"
            )
        if self.inputs and self.published:
            raise ValueError("a published grid is one of train conditions: give inputs or published, not both")
        if self.published and self.published not in PUBLISHED:
            raise ValueError(f"published must be one of {', '.join(PUBLISHED)}, got {self.published!r}")

    def rows(self, arguments: ElmArguments) -> dict[str, ElmArguments]:
        """The arguments of each row, an input or a train condition."""
        conditions = {name: {"train_condition": name} for name in self.train_conditions}
        changes = as_mapping("inputs", self.inputs) or conditions
        return {name: dataclasses.replace(arguments, **change) for name, change in changes.items()}


@dataclass(frozen=True)
class Cell:
    """One model of the grid: what is trained and where."""

    arguments: ElmArguments
    training_args: SFTConfig
    model_args: ModelConfig
    limit: int | None

    @property
    def folder(self) -> Path:
        """Where the model goes."""
        return Path(self.training_args.output_dir)

    def run(self) -> str:
        """Train the model, if it is not there yet, and ask it, if it was not asked; the name of its folder."""
        if not (self.folder / "ablation" / "report.json").exists():
            questions = for_training(self.arguments, questions_for(self.arguments))
            if not (self.folder / "config.json").exists():
                run = Run.build(self.arguments, self.training_args, self.model_args, questions, log=print)
                run.align()
                run.sft()
                run.save()
            if self.training_args.process_index == 0:
                settings = AuditSettings(
                    model=self.folder, conditions=INFER_CONDITIONS, limit=self.limit, batch_size=256
                )
                audit(settings, questions=questions)
        return self.folder.name

    def run_logged(self) -> str:
        """Run in another process, with the output in a file beside the folder."""
        log = Path(f"{self.folder}.log")
        with log.open("a", encoding="utf-8") as out, contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
            return self.run()


def cells_of(
    rows: Mapping[str, ElmArguments], training_args: SFTConfig, model_args: ModelConfig, grid: GridArguments
) -> dict[tuple[str, int], Cell]:
    """The cells of a grid by row and seed."""
    cells: dict[tuple[str, int], Cell] = {}
    for seed, (row, arguments) in itertools.product(grid.seeds, rows.items()):
        folder = Path(training_args.output_dir) / "cells" / f"{row}-{seed}"
        seeded = dataclasses.replace(training_args, output_dir=str(folder), seed=seed)
        cells[row, seed] = Cell(arguments, seeded, model_args, grid.limit)
    return cells


def run_cells(cells: Sequence[Cell], jobs: int) -> Iterator[str]:
    """Train and ask all cells, `jobs` at a time; yields the name of each that is done, in order."""
    if jobs == 1:
        yield from map(Cell.run, cells)
        return
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, mp_context=spawn, initializer=end_with_parent) as pool:
        yield from pool.map(Cell.run_logged, cells)
