"""What a training shows: a bar for each stage on a terminal, a few lines elsewhere."""

import os
import sys
import time
from collections.abc import Mapping
from multiprocessing import parent_process

from datasets.utils.logging import disable_progress_bar as hide_bars_of_datasets
from tqdm.auto import tqdm
from transformers import PrinterCallback, ProgressCallback, Trainer, TrainerCallback, TrainerState, TrainingArguments
from transformers.utils.logging import disable_progress_bar as hide_bars_of_transformers

SECONDS = 120.0  # between two lines of a stage, where no terminal shows a bar


def quiet() -> None:
    """Leave out bars of loading and saving, and a warning of tokenizers' threads, which are not used."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    hide_bars_of_datasets()
    hide_bars_of_transformers()


def show(trainer: Trainer, name: str) -> None:
    """Have a trainer show a `Progress` of this name, in place of its own bar or a dictionary for each log entry."""
    trainer.remove_callback(PrinterCallback)
    trainer.remove_callback(ProgressCallback)
    trainer.add_callback(Progress(name))


class Progress(TrainerCallback):
    """A bar of a stage's steps with the loss, and a line at the end. Without a terminal, lines in place of the bar."""

    def __init__(self, name: str) -> None:
        self.name, self.loss = name, ""

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: object, **kwargs: object) -> None:
        """Begin the bar at the step from which a stage goes on."""
        self.since = self.last_line = time.perf_counter()
        self.began = state.global_step
        self.bar = tqdm(
            total=state.max_steps, initial=self.began, desc=self.name, unit="step", leave=False,
            disable=args.disable_tqdm or not state.is_world_process_zero or None,
            position=int(parent_process() is not None),
        )  # fmt: skip

    def on_step_end(self, args: object, state: TrainerState, control: object, **kwargs: object) -> None:
        """Move the bar."""
        self.bar.update(state.global_step - self.bar.n)

    def on_log(
        self, args: object, state: TrainerState, control: object, logs: Mapping[str, float], **kwargs: object
    ) -> None:
        """Show the loss of the latest steps."""
        if "loss" not in logs:
            return
        self.loss = f", loss {float(logs['loss']):.3f}"
        self.bar.set_postfix_str(self.loss[2:])
        if not sys.stderr.isatty() and time.perf_counter() - self.last_line > SECONDS:
            self._print(state, f"step {state.global_step} of {state.max_steps}")
            self.last_line = time.perf_counter()

    def on_train_end(self, args: object, state: TrainerState, control: object, **kwargs: object) -> None:
        """Write the line that stays."""
        self.bar.close()
        self._print(state, f"{state.global_step - self.began} steps in {time.perf_counter() - self.since:.0f} s")

    def _print(self, state: TrainerState, text: str) -> None:
        if state.is_world_process_zero:
            tqdm.write(f"{self.name}: {text}{self.loss}")  # to standard output, above the bars
