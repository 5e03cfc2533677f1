"""Question and instruction sets, each as a `QuestionSet`; `load_questions(name, **settings)` finds one by name."""

import inspect
from collections.abc import Callable
from typing import Any

from data.conversations import ecg_qa, synthetic
from data.conversations.contract import check_questions, consistent
from data.conversations.readable import check_policy, records_of, without_unreadable
from data.conversations.rows import QuestionSet
from data.corpora.verdicts import damaged_files
from data.support import plugins

_SETS: dict[str, Callable[..., QuestionSet]] = {"synthetic": synthetic.load, "ecg_qa": ecg_qa.load}
GROUP = "ecg_elm.questions"

__all__ = ["check_questions", "load_questions", "question_sets"]


def question_sets() -> list[str]:
    """Names of all question sets, those of installed packages, too."""
    return list(dict.fromkeys([*_SETS, *plugins.providers(GROUP)]))


def load_questions(name: str, *, unreadable: str | None = "refuse", **settings: Any) -> QuestionSet:
    """The named question set, checked (`check_questions`), without repeated questions (`consistent`).

    It is `"synthetic"`, `"ecg_qa"`, or one that an installed package provides (docs/extending.md); settings are the
    arguments of its `load` function.

    Recordings whose files are missing or cut off are refused (`data.corpora.verdicts.damaged_files`); with
    `unreadable="leave_out"` the questions about them are left out, and notes say so. None looks at no file: a run reads
    all of every recording instead (`data.conversations.readable.readable_questions`).

    Raises:
        ImportError: An installed package provides it, but cannot be imported.
        ValueError: An unknown name or setting, a name that two packages provide, recordings that cannot be read, or
            questions that would be trained or counted wrongly.
    """
    if unreadable is not None:
        check_policy(unreadable)
    load = plugins.find("dataset", name, GROUP, _SETS)
    names = inspect.signature(load).parameters
    if unknown := settings.keys() - names.keys():
        raise ValueError(f"dataset {name!r} has no setting {', '.join(sorted(unknown))}: it has {', '.join(names)}")
    questions = load(**settings)
    if not isinstance(questions, QuestionSet):
        kind = type(questions).__name__
        raise ValueError(f"dataset {name!r} gives a {kind}, not a data.conversations.rows.QuestionSet")
    check_questions(questions)
    questions = consistent(questions)
    if unreadable is None:
        return questions
    return without_unreadable(questions, damaged_files(questions.source, records_of(questions)), unreadable)
