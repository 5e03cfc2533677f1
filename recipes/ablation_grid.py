r"""Train on real ECGs, zeros, no ECGs and shuffled ones; ask every model with each: what did training on ECGs bring?

    accelerate launch recipes/ablation_grid.py
    accelerate launch recipes/ablation_grid.py --config recipes/configs/grid_ecgbench.yaml
    accelerate launch recipes/ablation_grid.py --config recipes/configs/grid_ecgbench.yaml --dev
    accelerate launch recipes/ablation_grid.py --config recipes/configs/grid_inputs.yaml

Without --config it takes recipes/configs/grid_tiny.yaml: simulated ECGs, tiny models, twelve trainings on two CPU
cores. A config is one of recipes/sft_llava.py with the settings of a grid added; any field can be given as a flag.

Within a seed all trainings have the same data order, steps and LoRA, and only the ECGs differ. What is computed once
(tiny models, encoder outputs) is shared. Started again, it trains no finished model again and goes on with the ones it
was interrupted in. Writes grid.json, grid.md and grid.png. Research use only; not a medical device.

With `inputs` the rows are ways in which an ECG reaches the language model (MELP, HeartLang, patches of the signal,
ECG-Byte), all trained on real ECGs: right answers, tokens of an ECG and seconds of a step. Writes inputs.json,
inputs.md and inputs.png.
"""

import contextlib
import dataclasses
import multiprocessing
import os
import re
import sys
import threading
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

from trl import ModelConfig, SFTConfig, TrlParser

from elm.training import dev
from elm.training import run as training
from elm.training.settings import (
    TRAIN_CONDITIONS,
    ElmArguments,
    as_mapping,
    check_launch,
    check_settings,
    claim_folder,
    for_dev,
    settings_of_a_run,
)
from eval.audit.run import run as audit
from eval.audit.settings import AuditSettings
from eval.grids import conditions as grid
from eval.grids import inputs
from eval.scoring.lines import read
from recipes.sft_llava import train

DEFAULT_CONFIG = Path(__file__).parent / "configs" / "grid_tiny.yaml"
DEV = "--seeds 0 --jobs 1"  # beside what --dev means for one training
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
    limit: int | None = field(default=None, metadata={"help": "Ask only so many questions, evenly over templates."})
    jobs: int = field(default=1, metadata={"help": "Models at a time, each in a process of its own, on CPUs."})
    published: str = field(
        default="", metadata={"help": f"Show the published grid of this protocol: {', '.join(grid.PUBLISHED)}."}
    )
    inputs: dict[str, Any] | str | None = field(
        default=None,
        metadata={
            "help": "Compare these inputs in place of train conditions, as JSON (a mapping in YAML): the name of a row "
            f"to what it changes of {', '.join(INPUT_FIELDS)}."
        },
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
        if self.published and self.published not in grid.PUBLISHED:
            raise ValueError(f"published must be one of {', '.join(grid.PUBLISHED)}, got {self.published!r}")


@dataclass(frozen=True)
class Cell:
    """One model of the grid: what is trained and where."""

    arguments: ElmArguments
    training_args: SFTConfig
    model_args: ModelConfig
    limit: int | None

    def run(self) -> str:
        """Train the model, if it is not there yet, and ask it, if it was not asked; the name of its folder."""
        folder = Path(self.training_args.output_dir)
        if not (folder / "ablation" / "report.json").exists():
            questions = training.questions_for(self.arguments)
            if not (folder / "config.json").exists():
                train(self.arguments, self.training_args, self.model_args, questions)
            if self.training_args.process_index == 0:
                settings = AuditSettings(
                    model=folder, conditions=grid.INFER_CONDITIONS, limit=self.limit, batch_size=256
                )
                audit(settings, questions=questions)
        return folder.name

    def run_aside(self) -> str:
        """The same in a process of its own, which writes what it has to say to a file beside the folder."""
        log = Path(f"{self.training_args.output_dir}.log")
        with log.open("a") as file, contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
            return self.run()


def main(grid_args: GridArguments, arguments: ElmArguments, training_args: SFTConfig, model_args: ModelConfig) -> None:
    """Trains and asks every model, then puts them side by side."""
    check_launch()
    check_settings(arguments, training_args, model_args)
    if arguments.dev:
        arguments, training_args = for_dev(arguments, training_args)
    if arguments.train_condition != "real":
        raise ValueError("a grid sets train_condition itself: give --train_conditions, which names several")
    if grid_args.jobs > 1 and training_args.world_size > 1:
        raise ValueError(f"{training_args.world_size} processes train one model together: give --jobs 1")
    out, main_process = Path(training_args.output_dir), training_args.process_index == 0
    if arguments.tiny_seed is None:  # one language model and one encoder for all seeds
        arguments = dataclasses.replace(arguments, tiny_seed=training_args.seed)
    by_input = as_mapping("inputs", grid_args.inputs)
    rows = {name: dataclasses.replace(arguments, **changes) for name, changes in by_input.items()} or {
        condition: dataclasses.replace(arguments, train_condition=condition) for condition in grid_args.train_conditions
    }
    cells = {
        (row, seed): Cell(
            of_row,
            dataclasses.replace(training_args, output_dir=str(out / "cells" / f"{row}-{seed}"), seed=seed),
            model_args,
            grid_args.limit,
        )
        for seed in grid_args.seeds
        for row, of_row in rows.items()
    }
    settings = settings_of_a_run(arguments, training_args, model_args) | {"limit": grid_args.limit}
    settings |= {"inputs": by_input} if by_input else {}
    claim_folder(out / "cells", settings, resume=arguments.resume, write=main_process)

    # What all models share
    with training_args.main_process_first(desc="data and shared parts"):
        questions = training.questions_for(arguments)
        for shared in rows.values() if by_input else [arguments]:
            training.share(shared, training_args, model_args, questions)

    # Training and asking
    if grid_args.jobs == 1:
        for number, cell in enumerate(cells.values(), start=1):
            name = cell.run()
            if main_process:
                print(f"{name} is trained and asked ({number} of {len(cells)})")
    else:
        print(f"{len(cells)} models, {grid_args.jobs} at a time; what they are doing: {out}/cells/*.log")
        spawn = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(grid_args.jobs, mp_context=spawn, initializer=_end_with_parent) as pool:
            for number, name in enumerate(pool.map(Cell.run_aside, cells.values()), start=1):
                print(f"{name} is trained and asked ({number} of {len(cells)})", flush=True)

    # Side by side
    if not main_process:
        return
    folders = {key: Path(cell.training_args.output_dir) for key, cell in cells.items()}
    answers = {key: read(folder / "ablation" / "predictions.jsonl") for key, folder in folders.items()}
    told = {"dev": arguments.dev, "settings": settings}
    if not by_input:
        numbers = grid.summarise(answers, questions) | told | {"published": grid_args.published}
        grid.write(out, numbers)
        print(f"\n{grid.summary(numbers)}\n\nTables, picture and all numbers: {out}/grid.*")
        return
    asked = {line.id for lines in answers.values() for line in lines}
    records = sorted({record for row in questions.test if row["id"] in asked for record in row["ecgs"]})
    costs = {
        name: inputs.cost_of({seed: folders[name, seed] for seed in grid_args.seeds}, questions.source, records)
        for name in rows
    }
    numbers = inputs.summarise(answers, costs, questions) | told
    numbers |= {"records": len(records), "jobs": grid_args.jobs}
    inputs.write(out, numbers)
    print(f"\n{inputs.summary(numbers)}\n\nTable, picture and all numbers: {out}/inputs.*")


def parse(argv: list[str]) -> tuple[GridArguments, ElmArguments, SFTConfig, ModelConfig]:
    """The settings on a command line."""
    argv = argv if "--config" in argv else ["--config", str(DEFAULT_CONFIG), *argv]
    parser = TrlParser((GridArguments, ElmArguments, SFTConfig, ModelConfig))
    return parser.parse_args_and_config(dev.with_flags(argv, DEV))


def _end_with_parent() -> None:
    """Else a process whose parent was killed trains on, and a grid that is started again trains beside it."""
    parent = multiprocessing.parent_process()
    threading.Thread(target=lambda: (wait([parent.sentinel]), os._exit(1)), daemon=True).start()


if __name__ == "__main__":
    main(*parse(sys.argv[1:]))
