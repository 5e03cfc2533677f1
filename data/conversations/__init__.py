"""Question and instruction sets, each as a `QuestionSet`; `load_questions(name, **settings)` finds one by name."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from data.conversations import ecg_qa, synthetic
from data.conversations.contract import check_questions, consistent
from data.conversations.readable import check_policy, records_of, without_unreadable
from data.conversations.rows import QuestionSet
from data.corpora.verdicts import damaged_files
from data.support import plugins

_SETS: dict[str, Callable[..., QuestionSet]] = {"synthetic": synthetic.load, "ecg_qa": ecg_qa.load}
GROUP = "ecg_elm.questions"

__all__ = ["check_arguments", "check_questions", "load_questions", "question_sets"]


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
    questions = check_arguments(name, settings)(**settings)
    if not isinstance(questions, QuestionSet):
        kind = type(questions).__name__
        raise ValueError(f"dataset {name!r} gives a {kind}, not a data.conversations.rows.QuestionSet")
    check_questions(questions)
    questions = consistent(questions)
    if unreadable is None:
        return questions
    return without_unreadable(questions, damaged_files(questions.source, records_of(questions)), unreadable)
