"""What other installed packages add, found by their entry points. Nothing is imported before it is asked for.

A package that declares in its pyproject.toml

    [project.entry-points."ecg_elm.questions"]
    my_set = "my_package:load"

provides the question set `my_set` (docs/extending.md). To install a package is to trust it; no file of a model and no
setting can name code to import, only what an installed package has declared.
"""

from collections.abc import Mapping, Sequence
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import Any, TypeVar

OURS = "ecg-elm"
T = TypeVar("T")


def providers(group: str) -> dict[str, list[EntryPoint]]:
    """The entry points of a group, by name. A sound installation has one of each name."""
    entries = entry_points(group=group)
    return {name: list(entries.select(name=name)) for name in sorted(entries.names)}


def find(what: str, name: str, group: str, ours: Mapping[str, T]) -> T:
    """What is provided by that name, by us or by an installed package; messages call it a `what`.

    Raises:
        ImportError: An installed package provides it, but cannot be imported.
        ValueError: Nobody provides it, or several packages do.
    """
    installed = providers(group)
    entries = installed.get(name, [])
    refuse_several(what, name, entries, ours=name in ours)
    if name in ours:
        return ours[name]
    if not entries:
        names = ", ".join([*ours, *sorted(installed)])
        raise ValueError(f"unknown {what} {name!r}: one of {names}; is the package that provides it installed?")
    thing: T = load(what, entries[0])
    return thing


def refuse_several(what: str, name: str, entries: Sequence[EntryPoint], *, ours: bool) -> None:
    """Raises `ValueError`, with all their names, where several packages, or `ours` and another, provide one name."""
    packages = [OURS] * ours + [_provider(entry) for entry in entries]
    if len(packages) > 1:
        raise ValueError(
            f"{what} {name!r} is provided by {' and by '.join(packages)}: which one is meant cannot be told, "
            "so uninstall all but one"
        )


def load(what: str, entry: EntryPoint) -> Any:
    """The object that an entry point names, or the module where it names no object in it.

    Raises `ImportError`, with the package and the module, where it cannot be imported.
    """
    try:
        return entry.load() if entry.attr else import_module(entry.module)
    except Exception as error:  # it is other people's code that runs here
        raise ImportError(
            f"{what} {entry.name!r} cannot be imported: {_provider(entry)} fails with {type(error).__name__}: {error}"
        ) from error


def _provider(entry: EntryPoint) -> str:
    package = f"{entry.dist.name} {entry.dist.version}" if entry.dist is not None else "a package without a name"
    return f"{package} ({entry.value})"
