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

import dataclasses
from contextlib import nullcontext
from pathlib import Path

from trl import ModelConfig, SFTConfig

from data.support.parallel import beside
from data.support.status import training_command
from elm.saved.arguments import ElmArguments, as_mapping
from elm.saved.run import questions_for
from elm.training import command_line
from elm.training.base import explicit_settings, settled
from elm.training.claim import claim_folder, release
from elm.training.run import for_training, share
from elm.training.settings import check_folders, check_launch, check_settings, for_dev, settings_of_a_run
from elm.training.sources import check_sources
from elm.training.trainer_settings import check_seed
from eval.grids import conditions, inputs
from eval.grids.cells import GridArguments, cells_of, run_cells
from eval.scoring.lines import read
from recipes.sft_llava import companion

DEFAULT_CONFIG = Path(__file__).parent / "configs" / "grid_tiny.yaml"
DEV = "--seeds 0 --jobs 1"  # beside what --dev means for one training


def main(grid: GridArguments, arguments: ElmArguments, training_args: SFTConfig, model_args: ModelConfig) -> None:
    """Trains and asks every model, then puts them side by side."""
    arguments = settled(arguments, model_args)
    check_launch()
    check_settings(arguments, training_args, model_args)
    for seed in grid.seeds:
        check_seed("seeds", seed)
    if arguments.dev:
        arguments, training_args = for_dev(arguments, training_args)
    if arguments.train_condition != "real":
        raise ValueError("a grid sets train_condition itself: give --train_conditions, which names several")
    if grid.jobs > 1 and training_args.world_size > 1:
        raise ValueError(f"{training_args.world_size} processes train one model together: give --jobs 1")
    out, main_process = Path(training_args.output_dir), training_args.process_index == 0
    if arguments.tiny_seed is None:  # one language model and one encoder for all seeds
        arguments = dataclasses.replace(arguments, tiny_seed=training_args.seed)
    by_input = as_mapping("inputs", grid.inputs)
    rows = grid.rows(arguments)
    cells = cells_of(rows, training_args, model_args, grid)
    settings = settings_of_a_run(arguments, training_args, model_args) | {"limit": grid.limit}
    settings |= {"inputs": by_input} if by_input else {}
    for row in rows.values():
        check_sources(row, model_args)
    check_folders(training_args.output_dir, arguments.cache_dir)
    claim_folder(out / "cells", settings, resume=arguments.resume, write=main_process)

    # What all models share
    with training_args.main_process_first(desc="data and shared parts"):
        questions = for_training(arguments, questions_for(arguments))
        for shared in rows.values() if by_input else [arguments]:
            alone = dataclasses.replace(shared, text_only=False, ablation=False)
            with beside(companion, alone, training_args, model_args) if grid.jobs > 1 else nullcontext():
                share(shared, training_args, model_args, questions)

    # Training and asking
    if grid.jobs > 1:
        print(f"{len(cells)} models, {grid.jobs} at a time; what they are doing: {out}/cells/*.log")
    for number, name in enumerate(run_cells(list(cells.values()), grid.jobs), start=1):
        if main_process:
            print(f"{name} is trained and asked ({number} of {len(cells)})", flush=True)

    # Side by side
    if not main_process:
        return
    release(out / "cells")
    answers = {key: read(cell.folder / "ablation" / "predictions.jsonl") for key, cell in cells.items()}
    settings = {"dev": arguments.dev, "settings": settings}
    if not by_input:
        numbers = conditions.summarise(answers, questions) | settings | {"published": grid.published}
        conditions.write(out, numbers)
        print(f"\n{conditions.summary(numbers)}\n\nTables, picture and all numbers: {out}/grid.*")
        return
    ids = {line.id for lines in answers.values() for line in lines}
    records = sorted({record for row in questions.test if row["id"] in ids for record in row["ecgs"]})
    folders = {name: {seed: cells[name, seed].folder for seed in grid.seeds} for name in rows}
    costs = {name: inputs.cost_of(by_seed, questions.source, records) for name, by_seed in folders.items()}
    numbers = inputs.summarise(answers, costs, questions) | settings | {"records": len(records), "jobs": grid.jobs}
    inputs.write(out, numbers)
    print(f"\n{inputs.summary(numbers)}\n\nTable, picture and all numbers: {out}/inputs.*")


def parse(argv: list[str]) -> tuple[GridArguments, ElmArguments, SFTConfig, ModelConfig]:
    """The settings on a command line."""
    grid, arguments, training_args, model_args = command_line.parse(
        argv, (GridArguments, ElmArguments, SFTConfig, ModelConfig), DEFAULT_CONFIG, more_for_dev=DEV
    )
    return grid, settled(arguments, model_args, explicit_settings(argv)), training_args, model_args


if __name__ == "__main__":
    training_command(lambda argv: main(*parse(argv)))()
