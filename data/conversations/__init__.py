"""Question and instruction sets, each as a `QuestionSet`; `load_questions(name, **settings)` finds one by name."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from data.conversations import ecg_qa, synthetic
from data.conversations.rows import QuestionSet

_SETS: dict[str, Callable[..., QuestionSet]] = {"synthetic": synthetic.load, "ecg_qa": ecg_qa.load}


def load_questions(name: str, **settings: Any) -> QuestionSet:
    """The named question set.

    Args:
        name: `"synthetic"` or `"ecg_qa"`.
        **settings: The arguments of its `load` function.

    Raises:
        ValueError: An unknown name or setting.
    """
    if name not in _SETS:
        raise ValueError(f"unknown dataset {name!r}: one of {', '.join(_SETS)}")
    known = inspect.signature(_SETS[name]).parameters
    unknown = settings.keys() - known.keys()
    if unknown:
        raise ValueError(f"dataset {name!r} has no setting {', '.join(sorted(unknown))}: it has {', '.join(known)}")
    return _SETS[name](**settings)
