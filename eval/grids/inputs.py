"""A grid of inputs: how an ECG reaches the language model, what that reads of it, and what it costs.

Models that differ in their input alone (tokens of MELP, of HeartLang, patches of the signal, ECG-Byte's words) learn
from the same questions, for as many steps, with the same LoRA and seeds (`recipes/ablation_grid.py` trains and asks;
nothing here does). One table: right answers by what is asked with, tokens of an ECG, seconds of a training step.

Seeds and patients are told apart as in `eval.grids.conditions`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors import safe_open

from data.support.files import written_whole
from eval.grids.conditions import (
    ASKED,
    DEV,
    SHIFT,
    Numbers,
    accuracy,
    cell,
    compared,
    gap,
    gap_written,
    write_as,
    written,
)
from eval.report.parts import markdown_table
from eval.scoring.lines import Line
from eval.statistics import rounded

if TYPE_CHECKING:
    from data.conversations.rows import QuestionSet
    from data.ecg import EcgSource

_READ_AT_ONCE = 64  # recordings
_COLOURS = {"real": "#0072B2", "zero": "#999999", "swap": "#D55E00", "none": "#CCCCCC"}


@dataclass(frozen=True)
class Cost:
    """What an input costs.

    Attributes:
        tokens: Of an ECG, as the language model sees them: mean over recordings.
        fewest: The least of any of them.
        most: The most of any of them.
        trained: Parameters that are trained: LoRA, projector, and the encoder where it is.
        seconds: Of a training step of the sft stage, by seed: half of the steps took less. `None` where no step was
            timed.
        measured_on: Device and threads these were measured on.
    """

    tokens: float
    fewest: int
    most: int
    trained: int
    seconds: Mapping[str, float | None]
    measured_on: Sequence[str]


def cost_of(folders: Mapping[int, Path], source: EcgSource, records: Iterable[str]) -> Cost:
    """What an input costs.

    Args:
        folders: By seed, the saved models that have it, with their checkpoints.
        source: The recordings.
        records: Whose tokens are counted.
    """
    tokens = tokens_of(next(iter(folders.values())), source, records)
    times = {str(seed): _step_times(folder) for seed, folder in folders.items()}
    return Cost(
        tokens=rounded(np.mean(tokens)),
        fewest=min(tokens),
        most=max(tokens),
        trained=trained_in(next(iter(folders.values()))),
        seconds={
            seed: rounded(np.median([entry["seconds_per_step"] for entry in found])) if found else None
            for seed, found in times.items()
        },
        measured_on=sorted({entry["measured_on"] for found in times.values() for entry in found}),
    )


def tokens_of(folder: Path, source: EcgSource, records: Iterable[str]) -> list[int]:
    """Language-model tokens of each recording, by the extractor and the configuration of a saved model."""
    from elm import ElmConfig, ElmProcessor

    config, extractor = ElmConfig.of_folder(folder), ElmProcessor.from_pretrained(folder).feature_extractor
    names, counts = list(dict.fromkeys(records)), []
    for start in range(0, len(names), _READ_AT_ONCE):
        batch = extractor([source[name] for name in names[start : start + _READ_AT_ONCE]])
        counts += config.tokens_per_ecg(batch["token_mask"])
    return counts


def trained_in(folder: Path) -> int:
    """Number of parameters that were trained: those of the adapter beside a saved model."""
    with safe_open(folder / "adapter" / "adapter_model.safetensors", "np") as tensors:
        return sum(math.prod(tensors.get_slice(name).get_shape()) for name in tensors.keys())  # noqa: SIM118


def _step_times(folder: Path) -> list[dict[str, Any]]:
    """What the log of the sft stage says of time."""
    from elm.training.resume import newest_whole_checkpoint

    checkpoint = newest_whole_checkpoint(folder / "checkpoints" / "sft")
    if checkpoint is None:
        return []
    history = json.loads((Path(checkpoint) / "trainer_state.json").read_text())["log_history"]
    return [entry for entry in history if "seconds_per_step" in entry]


def summarise(
    answers: Mapping[tuple[str, int], Sequence[Line]],
    costs: Mapping[str, Cost],
    questions: QuestionSet,
    draws: int = 2000,
    seed: int = 0,
) -> Numbers:
    """All numbers of a grid of inputs. Controls are left out.

    Args:
        answers: By input and seed of the training, the model's scored answers under
        `eval.grids.conditions.INFER_CONDITIONS`.
        costs: Of every input; their order is that of the table.
        questions: What was asked; its training rows give the most common answers.
        draws: Resamples of the intervals over patients.
        seed: Of the resamples.

    Raises:
        ValueError: A cell is missing or was asked other questions than the rest; names the cell.
    """
    told, asked = compared(answers, list(costs), questions)
    seeds = asked["seeds"]
    return {
        **asked,
        "draws": draws,
        "inputs": {
            name: {
                # All are trained on real ECGs: to be asked with anything else is a shift for each of them.
                "accuracy": {
                    infer: cell("real", infer, {s: accuracy(told[name, s][infer]) for s in seeds}) for infer in ASKED
                },
                "real_minus_swap": {str(s): gap(told[name, s], draws, seed) for s in seeds},
                **asdict(cost),
            }
            for name, cost in costs.items()
        },
    }


# --- what people read -------------------------------------------------------------------------------------------------


def write(out: Path, numbers: Numbers) -> list[Path]:
    """Write `inputs.png`, `inputs.md` and `inputs.json` into a folder; each appears whole or not at all.

    Returns:
        Their paths.
    """
    return write_as(out, "inputs", numbers, draw, markdown)


def table(numbers: Numbers) -> str:
    """A row per input: right answers in per cent (mean over seeds, lowest and highest), tokens, seconds, parameters."""
    asked = [ASKED[infer] for infer in numbers["infer_conditions"]]
    lines = [
        ["input", *asked, "most common answer", "tokens per ECG", "seconds per step", "trained parameters"],
    ]
    for name, found in numbers["inputs"].items():
        lines.append(
            [
                name,
                *(written(found["accuracy"][infer]) for infer in numbers["infer_conditions"]),
                f"{100 * numbers['majority_by_question']:.1f}",
                _tokens_written(found),
                _seconds_written(found["seconds"]),
                f"{found['trained']:,}",
            ]
        )
    return markdown_table(lines)


def gaps(numbers: Numbers) -> str:
    """Real minus swap, in points, of every training: its difference and its interval over patients."""
    seeds = [str(seed) for seed in numbers["seeds"]]
    lines = [["real minus another patient's ECG", *(f"seed {seed}" for seed in seeds)]]
    for name, found in numbers["inputs"].items():
        lines.append([name, *(gap_written(found["real_minus_swap"][seed]) for seed in seeds)])
    return markdown_table(lines)


def summary(numbers: Numbers) -> str:
    """What is printed at the end."""
    parts = [*([DEV] if numbers.get("dev") else []), table(numbers), f"† {SHIFT}", gaps(numbers)]
    return "\n\n".join(parts)


def markdown(numbers: Numbers) -> str:
    """`inputs.md`."""
    seeds, settings = numbers["seeds"], numbers["settings"]
    of_rows = {name: json.dumps(told, ensure_ascii=False) for name, told in settings["inputs"].items()}
    parts = [
        "# How an ECG reaches the language model",
        f"{len(of_rows)} inputs, {'seeds' if len(seeds) > 1 else 'seed'} {', '.join(map(str, seeds))}; every model is "
        f"asked {numbers['questions']:,} held-out questions about {numbers['patients']:,} patients of "
        f"{numbers['dataset']} with each kind of ECG. All are trained on real ECGs, within a seed on the same "
        f"questions for {settings['max_steps']:,} steps of {settings['batch_size']} rows with at most "
        f"{settings['questions_per_row']} questions about an ECG each, with the same LoRA (rank "
        f"{settings['lora_r']}) and learning rate; only the input differs.",
        *([DEV] if numbers.get("dev") else []),
        "## Right answers in per cent, and costs",
        table(numbers),
        f"Right answers: mean over seeds, then the lowest and the highest. † {SHIFT[0].upper()}{SHIFT[1:]}. Least so "
        "where another patient's ECG is given: it is an ECG like any other.",
        f"Tokens of an ECG as the language model sees them: mean over the {numbers['records']:,} recordings that were "
        "asked about, then the least and the most where these differ. Seconds of a training step of the sft stage, "
        "with reading what is not cached and without writing checkpoints: median of each training, mean over seeds, "
        f"then the least and the most, {_measured_on(numbers)}. A frozen encoder's output and ECG-Byte's words are "
        "cached before training, so that these seconds hold none of their time.",
        "![Right answers](inputs.png)",
        "## Does it read the ECG?",
        gaps(numbers),
        f"Points, with the 95 % interval over patients ({numbers['draws']:,} draws) of that one training. Seeds are "
        "another axis than patients and are not pooled with them.",
        "## The inputs",
        "\n".join(f"* {name}: `{told}`" for name, told in of_rows.items()),
    ]
    if numbers["notes"]:
        parts += ["## Notes on the questions", "\n".join(f"* {note}" for note in numbers["notes"])]
    parts.append("`inputs.json` has the number of every seed. Research use only. Not a medical device.")
    return "\n\n".join(parts) + "\n"


def draw(numbers: Numbers, path: Path) -> None:
    """`inputs.png`: a group of bars per input, each the mean over seeds, with a dot for every seed."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # no pyplot: no global state, no window
    from matplotlib.figure import Figure

    inputs, shown = numbers["inputs"], list(_COLOURS)
    figure = Figure(figsize=(1.6 + 1.9 * len(inputs), 4.5), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    width = 0.8 / len(shown)
    for place, infer in enumerate(shown):
        x = np.arange(len(inputs)) + (place - (len(shown) - 1) / 2) * width
        cells = [found["accuracy"][infer] for found in inputs.values()]
        axes.bar(x, [100 * one["mean"] for one in cells], width, color=_COLOURS[infer], label=ASKED[infer])
        for at, one in zip(x, cells, strict=True):
            values = [100 * value for value in one["by_seed"].values()]
            axes.plot([at] * len(values), values, "o", color="#222222", markersize=2.5)
    majority = 100 * numbers["majority_by_question"]
    axes.axhline(majority, color="#222222", linestyle="--", linewidth=1, label="most common answer")
    axes.set_xticks(range(len(inputs)), [f"{name}\n{_tokens_written(found)} tokens" for name, found in inputs.items()])
    axes.set_ylim(0, 100)
    axes.set_ylabel("right answers, per cent")
    axes.tick_params(axis="x", length=0)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside upper center", ncols=3, frameon=False, fontsize=8)
    with written_whole(path) as file:
        figure.savefig(file, format="png", metadata={"Software": None})


def _tokens_written(found: Numbers) -> str:
    if found["fewest"] == found["most"]:
        return f"{found['most']}"
    return f"{found['tokens']:.1f} ({found['fewest']} to {found['most']})"


def _seconds_written(by_seed: Mapping[str, float | None]) -> str:
    values = [value for value in by_seed.values() if value is not None]
    if not values:
        return "not timed"
    spread = f" ({min(values):.3f} to {max(values):.3f})" if len(values) > 1 else ""
    return f"{np.mean(values):.3f}{spread}"


def _measured_on(numbers: Numbers) -> str:
    devices = sorted({device for found in numbers["inputs"].values() for device in found["measured_on"]})
    at_a_time = f"{numbers['jobs']} trainings at a time" if numbers["jobs"] > 1 else "one training at a time"
    return f"on {'; '.join(devices) or 'nothing that was timed'}, {at_a_time}"
