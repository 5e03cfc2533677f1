"""Question and instruction sets, each as a `QuestionSet`; `load_questions(name, **settings)` finds one by name."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from data.conversations import ecg_qa, synthetic
from data.conversations.contract import check_questions
from data.conversations.rows import QuestionSet
from data.support import plugins

_SETS: dict[str, Callable[..., QuestionSet]] = {"synthetic": synthetic.load, "ecg_qa": ecg_qa.load}
GROUP = "ecg_elm.questions"

__all__ = ["check_arguments", "check_questions", "load_questions"]


def check_arguments(name: str, settings: Mapping[str, Any]) -> Callable[..., QuestionSet]:
    """The function that loads a question set, which takes these settings and needs no others. Nothing is read.

    Raises:
        ImportError: An installed package provides the set, but cannot be imported.
        ValueError: An unknown name or setting, one without which it cannot be loaded, or a name that two packages
            provide.
    """
    load = plugins.find("dataset", name, GROUP, _SETS)
    taken = inspect.signature(load).parameters
    names = [each.name for each in taken.values() if each.kind not in (each.VAR_POSITIONAL, each.VAR_KEYWORD)]
    takes_any = any(each.kind == each.VAR_KEYWORD for each in taken.values())
    if (unknown := sorted(settings.keys() - set(names))) and not takes_any:
        raise ValueError(f"dataset {name!r} has no setting {', '.join(unknown)}: it has {', '.join(names)}")
    if missing := [each for each in names if taken[each].default is inspect.Parameter.empty and each not in settings]:
        raise ValueError(f"dataset {name!r} needs the setting {', '.join(missing)}: give it in dataset_args")
    return load


def load_questions(name: str, **settings: Any) -> QuestionSet:
    """The named question set, checked (`check_questions`).

    It is `"synthetic"`, `"ecg_qa"`, or one that an installed package provides (docs/extending.md); settings are the
    arguments of its `load` function.

    Raises:
        ImportError: An installed package provides it, but cannot be imported.
        ValueError: An unknown name or setting, a name that two packages provide, or questions that would be trained or
            counted wrongly.
    """
    questions = check_arguments(name, settings)(**settings)
    if not isinstance(questions, QuestionSet):
        kind = type(questions).__name__
        raise ValueError(f"dataset {name!r} gives a {kind}, not a data.conversations.rows.QuestionSet")
    check_questions(questions)
    return questions
