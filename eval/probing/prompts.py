"""The prompt of each class: plain words, or those of a file."""

import json
from collections.abc import Mapping
from pathlib import Path

from eval.probing.tasks import SYNTHETIC, Task

# What classes are called where no file of prompts is given. No name means one thing in one corpus and another in
# another, but for what a label takes in: STE of PTB-XL is its non-specific ST elevation.
WORDS: Mapping[str, str] = json.loads(Path(__file__).with_name("prompts.json").read_text(encoding="utf-8"))


def read_prompts(path: Path | str) -> dict[str, str]:
    """Prompts by class name from a JSON file such as MELP's and MERL's CKEPE_prompt.json.

    Raises:
        ValueError: It is not an object of names and texts; names the file.
    """
    try:
        prompts = json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is no JSON: {error}") from error
    if not isinstance(prompts, dict) or not all(isinstance(text, str) and text.strip() for text in prompts.values()):
        raise ValueError(f'{path}: expected one text for each class, as in {{"AFIB": "atrial fibrillation"}}')
    return prompts


def prompts_of(task: Task, prompts: Mapping[str, str] | None = None) -> dict[str, str]:
    """The prompt of each class of a task: from `prompts`, else in plain words.

    Raises:
        ValueError: A class has none; names those.
    """
    if prompts is None:
        prompts = dict(zip(task.classes, task.classes)) if task.name == SYNTHETIC else WORDS  # findings are words
    if missing := [name for name in task.classes if name not in prompts]:
        raise ValueError(f"{task.name}: no prompt for {', '.join(missing)}: add them to the file of prompts")
    return {name: prompts[name] for name in task.classes}
