"""Corpora by name. To add one, write a module here whose class derives from `Corpus` and is marked `@register`.

An installed package provides a corpus by an entry point of the group `ecg_elm.corpora` that names such a class.
"""

import inspect
from collections.abc import Callable, Mapping
from importlib import import_module
from pkgutil import iter_modules
from typing import TypeVar

from data.corpus import Corpus
from data.support import plugins
from data.synthetic import SyntheticCohort

GROUP = "ecg_elm.corpora"
_CORPORA: dict[str, type[Corpus]] = {}

Class = TypeVar("Class", bound=type[Corpus])


def register(corpus: Class) -> Class:
    """Make a class known by its `name`."""
    _CORPORA[corpus.name.replace("-", "_")] = corpus
    return corpus


register(SyntheticCohort)


def registered() -> dict[str, type[Corpus]]:
    """All corpora of this package, by their names in settings."""
    for module in iter_modules(__path__, f"{__name__}."):
        import_module(module.name)
    return dict(sorted(_CORPORA.items()))


def corpus_named(name: str) -> type[Corpus]:
    """The class of a corpus.

    Raises:
        ImportError: An installed package provides it, but cannot be imported.
        ValueError: There is no corpus of that name, or several packages provide it.
    """
    return plugins.find("corpus", name, GROUP, registered())


def check_corpus(name: str, settings: Mapping[str, object]) -> None:
    """Refuse settings that the class of a corpus does not take, or lacks. Nothing is read.

    Raises:
        ValueError: There is no such corpus, or its class has no such setting.
    """
    try:
        inspect.signature(corpus_named(name)).bind(**settings)
    except TypeError as error:
        raise ValueError(f"settings of the corpus {name!r}: {error}") from error


def load_corpus(name: str, **settings: object) -> Corpus:
    """The corpus of that name, with the settings of its class.

    Raises:
        ValueError: There is no such corpus, or its class has no such setting.
    """
    corpus: Callable[..., Corpus] = corpus_named(name)
    try:
        return corpus(**settings)
    except TypeError as error:
        raise ValueError(f"settings of the corpus {name!r}: {error}") from error
