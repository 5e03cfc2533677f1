"""A grid of inputs: how an ECG reaches the language model, what that reads of it, and what it costs.

Models that differ in their input alone (tokens of MELP, of HeartLang, patches of the signal, ECG-Byte's words) learn
from the same questions, for as many steps, with the same LoRA and seeds (`recipes/ablation_grid.py` trains and asks;
nothing here does). One table: right answers by what is asked with, tokens of an ECG, seconds of a training step.
"""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from safetensors import safe_open

from data.conversations.rows import QuestionSet
from data.ecg import EcgSource
from data.support.files import read_json
from elm import ElmConfig, ElmProcessor
from elm.training.checkpoints import STATE, newest_whole_checkpoint
from eval.grids import numbers as grid
from eval.grids.numbers import ASKED, Answers, Numbers
from eval.report.parts import markdown_table
from eval.statistics import rounded

_READ_AT_ONCE = 64  # recordings
_COLOURS = {"real": "#0072B2", "zero": "#999999", "swap": "#D55E00", "none": "#CCCCCC"}


@dataclass(frozen=True)
class Cost:
    """What an input costs."""

    tokens: (
        float  # of an ECG, as the language model sees them: the mean over recordings, beside the fewest and the most
    )
    fewest: int
    most: int
    trained: int  # parameters that are trained: LoRA, projector, and the encoder where it is
    seconds: Mapping[str, float | None]  # median step of the sft stage, by seed (s); None where no step was timed
    measured_on: Sequence[str]  # device and threads of these


def cost_of(folders: Mapping[int, Path], source: EcgSource, records: Iterable[str]) -> Cost:
    """What an input costs, from the saved models that have it (by seed), with their checkpoints."""
    tokens = tokens_of(next(iter(folders.values())), source, records)
    times = {str(seed): _step_times(folder) for seed, folder in folders.items()}
    seconds = {
        seed: rounded(np.median([entry["seconds_per_step"] for entry in entries])) if entries else None
        for seed, entries in times.items()
    }
    devices = sorted({entry["measured_on"] for entries in times.values() for entry in entries})
    trained = trained_in(next(iter(folders.values())))
    return Cost(rounded(np.mean(tokens)), min(tokens), max(tokens), trained, seconds, devices)


def tokens_of(folder: Path, source: EcgSource, records: Iterable[str]) -> list[int]:
    """Language-model tokens of each recording, by the extractor and the configuration of a saved model."""
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


def _step_times(folder: Path) -> list[Numbers]:
    checkpoint = newest_whole_checkpoint(folder / "checkpoints" / "sft")
    if checkpoint is None:
        return []
    history = read_json(Path(checkpoint) / STATE)["log_history"]
    return [entry for entry in history if "seconds_per_step" in entry]


def summarise(
    answers: Answers, costs: Mapping[str, Cost], questions: QuestionSet, draws: int = 2000, seed: int = 0
) -> Numbers:
    """All numbers of a grid of inputs. Controls are left out.

    Arguments and errors as `eval.grids.conditions.summarise`, with inputs in place of train conditions; the order of
    their `costs` is that of the table.
    """
    lines, shared = grid.compared(answers, list(costs), questions)
    seeds, by_input = shared["seeds"], {}
    for name, cost in costs.items():
        # All are trained on real ECGs: to be asked with anything else is a shift for each of them.
        right = {i: grid.cell("real", i, {s: grid.accuracy(lines[name, s][i]) for s in seeds}) for i in ASKED}
        differences = {str(s): grid.gap(lines[name, s], draws, seed) for s in seeds}
        by_input[name] = {"accuracy": right, "real_minus_swap": differences, **asdict(cost)}
    return {**shared, "draws": draws, "inputs": by_input}


def write(out: Path, numbers: Numbers) -> list[Path]:
    """Write `inputs.png`, `inputs.md` and `inputs.json` into a folder; each appears whole or not at all."""
    return grid.write(out, "inputs", numbers, draw(numbers), markdown(numbers))


def table(numbers: Numbers) -> str:
    """A row per input: right answers in per cent (mean over seeds, lowest and highest), tokens, seconds, parameters."""
    conditions = numbers["infer_conditions"]
    head = ["input", *(ASKED[infer] for infer in conditions), "most common answer"]
    lines = [[*head, "tokens per ECG", "seconds per step", "trained parameters"]]
    majority = f"{100 * numbers['majority_by_question']:.1f}"
    for name, row in numbers["inputs"].items():
        cells = [" ".join(grid.cell_parts(row["accuracy"][infer])) for infer in conditions]
        costs = [_tokens_text(row), _seconds_text(row["seconds"]), f"{row['trained']:,}"]
        lines.append([name, *cells, majority, *costs])
    return markdown_table(lines)


def gaps(numbers: Numbers) -> str:
    """Real minus swap, in points, of every training: its difference and its interval over patients."""
    of_rows = {name: row["real_minus_swap"] for name, row in numbers["inputs"].items()}
    return grid.gap_table(of_rows, numbers["seeds"], "real minus another patient's ECG")


def summary(numbers: Numbers) -> str:
    """What is printed at the end."""
    dev = [grid.DEV] if numbers.get("dev") else []
    return "\n\n".join([*dev, table(numbers), f"† {grid.SHIFT}", gaps(numbers)])


def markdown(numbers: Numbers) -> str:
    """`inputs.md`."""
    rows = {name: json.dumps(changes, ensure_ascii=False) for name, changes in numbers["settings"]["inputs"].items()}
    devices = sorted({device for row in numbers["inputs"].values() for device in row["measured_on"]})
    at_a_time = f"{numbers['jobs']} trainings at a time" if numbers["jobs"] > 1 else "one training at a time"
    measured_on = f"on {'; '.join(devices) or 'nothing that was timed'}, {at_a_time}"
    return grid.page("inputs", numbers, rows=rows, table=table(numbers), gaps=gaps(numbers), measured_on=measured_on)


def draw(numbers: Numbers) -> Figure:
    """`inputs.png`: a group of bars per input, each the mean over seeds, with a dot for every seed."""
    inputs, shown = numbers["inputs"], list(_COLOURS)
    figure = Figure(figsize=(1.6 + 1.9 * len(inputs), 4.5), dpi=150, layout="constrained")
    axes = figure.subplots()
    width = 0.8 / len(shown)
    for place, infer in enumerate(shown):
        x = np.arange(len(inputs)) + (place - (len(shown) - 1) / 2) * width
        cells = [row["accuracy"][infer] for row in inputs.values()]
        axes.bar(x, [100 * one["mean"] for one in cells], width, color=_COLOURS[infer], label=ASKED[infer])
        for at, one in zip(x, cells, strict=True):
            values = [100 * value for value in one["by_seed"].values()]
            axes.plot([at] * len(values), values, "o", color="#222222", markersize=2.5)
    majority = 100 * numbers["majority_by_question"]
    axes.axhline(majority, color="#222222", linestyle="--", linewidth=1, label="most common answer")
    axes.set_xticks(range(len(inputs)), [f"{name}\n{_tokens_text(row)} tokens" for name, row in inputs.items()])
    axes.set(ylim=(0, 100), ylabel="right answers, per cent")
    axes.tick_params(axis="x", length=0)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside upper center", ncols=3, frameon=False, fontsize=8)
    return figure


def _tokens_text(row: Numbers) -> str:
    fewest, most = row["fewest"], row["most"]
    return f"{most}" if fewest == most else f"{row['tokens']:.1f} ({fewest} to {most})"


def _seconds_text(by_seed: Mapping[str, float | None]) -> str:
    values = [value for value in by_seed.values() if value is not None]
    if not values:
        return "not timed"
    spread = f" ({min(values):.3f} to {max(values):.3f})" if len(values) > 1 else ""
    return f"{np.mean(values):.3f}{spread}"
