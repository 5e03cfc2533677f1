"""What corpora call their classes: transfer from one to another, the ones an encoder has seen, and prompts in words."""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from eval.probing.tasks import SYNTHETIC, Task

logger = logging.getLogger(__name__)

# By which names `pretrained_on` may mention a corpus, in small letters and figures.
_ALIASES = {
    "ptbxl": ("ptbxl",),
    "cpsc2018": ("cpsc2018", "icbeb"),
    "csn": ("csn", "chapman", "ningbo", "ecgarrhythmia"),
}

# Findings that corpora name differently, by what each calls them. Rarer labels that mean no more than one of another
# corpus are left out, and so is CPSC2018's normal ECG beside CSN, which has sinus rhythm but no label for a normal ECG.
_HERE = Path(__file__).parent
FINDINGS: Mapping[str, Mapping[str, Sequence[str]]] = json.loads((_HERE / "findings.json").read_text(encoding="utf-8"))

# What classes are called where no file of prompts is given. No name means one thing in one corpus and another in
# another, but for what a label takes in: STE of PTB-XL is its non-specific ST elevation.
WORDS: Mapping[str, str] = json.loads((_HERE / "prompts.json").read_text(encoding="utf-8"))


def transferred(train: Task, test: Task) -> tuple[Task, Task, list[str]]:
    """Two tasks of different corpora with the findings of `FINDINGS` that both have for classes.

    And sentences: which label of one is which of the other, and which have no counterpart.

    Raises:
        ValueError: They are of one corpus, or have no finding in common.
    """
    if train.corpus == test.corpus:
        raise ValueError(f"{train.name} and {test.name} are of one corpus: transfer is from one to another")
    labels_of: list[dict[str, tuple[str, ...]]] = []  # by finding, in each task
    for task in (train, test):
        of_finding = {
            finding: tuple(label for label in labels.get(task.corpus, ()) if label in task.classes)
            for finding, labels in FINDINGS.items()
        }
        labels_of.append({finding: labels for finding, labels in of_finding.items() if labels})
    shared = tuple(finding for finding in FINDINGS if all(finding in labels for labels in labels_of))
    if not shared:
        hint = "; ptbxl-all has the statements of all kinds" if "ptbxl" in (train.corpus, test.corpus) else ""
        raise ValueError(f"{train.name} and {test.name} have no finding in common{hint}")
    notes = [
        f"{name}: {'/'.join(labels_of[0][name])} of {train.name} is {'/'.join(labels_of[1][name])} of {test.name}."
        for name in shared
    ]
    tasks = []
    for task, other, names in zip((train, test), (test, train), labels_of):
        used = {label for finding in shared for label in names[finding]}
        if unused := [label for label in task.classes if label not in used]:
            notes.append(f"Labels of {task.name} that {other.name} lacks: {', '.join(unused)}.")
        labels = {
            record: frozenset(finding for finding in shared if not of_record.isdisjoint(names[finding]))
            for record, of_record in task.labels.items()
        }
        tasks.append(replace(task, classes=shared, labels=labels))
    return tasks[0], tasks[1], notes


def seen_corpora(pretrained_on: str, tasks: Sequence[Task]) -> list[str]:
    """The tasks' corpora that `pretrained_on` names."""
    letters = "".join(letter for letter in pretrained_on.casefold() if letter.isalnum())
    corpora = dict.fromkeys(task.corpus for task in tasks)
    return [corpus for corpus in corpora if any(alias in letters for alias in _ALIASES[corpus])]


def seen_notes(who: str, pretrained_on: str, tasks: Sequence[Task]) -> list[str]:
    """A warning, logged too, for each corpus of the tasks that an encoder may have seen."""
    notes = [
        f"{who} was pretrained on: {pretrained_on}. That names {corpus}: it may have seen the test records, or other "
        "records of their patients."
        for corpus in seen_corpora(pretrained_on, tasks)
    ]
    for note in notes:
        logger.warning("%s", note)
    return notes


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
