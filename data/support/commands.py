"""Command lines: a parser whose help is a docstring, and one dataclass of settings for parser, call and repetition.

A command states each flag once, as a field of a frozen dataclass:

    @dataclass(frozen=True, kw_only=True)
    class Settings:
        model: Path = option("folder of a trained model", metavar="DIR")
        seed: int = option("seed of the resamples", default=0)
        full: bool = option("everything", default=False)

    settings = parse(Settings, "eval.something", __doc__)   # from sys.argv
    command_of("eval.something", settings)                  # "python -m eval.something --model out/x"

`bool` fields become switches, sequences take one or more values, `Literal` and `choices` restrict them, and
`X | None` is a flag that may be left out. Fields made without `option` are settings of the call alone.
"""

import argparse
import dataclasses
import os
import shlex
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import MISSING, Field
from pathlib import Path
from typing import (
    Any,
    ClassVar,
    Literal,
    Protocol,
    TypedDict,
    TypeVar,
    Unpack,
    get_args,
    get_origin,
    get_type_hints,
)

from data.support.status import mention_traceback


class Settings(Protocol):
    """A dataclass of settings."""

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]


S = TypeVar("S", bound=Settings)


class About(TypedDict, total=False):
    """What an option may say beside its help."""

    metavar: str | None  # what `--help` calls the value
    choices: Collection[object] | None  # allowed values
    parse: Callable[[str], object] | None  # makes the value of a word; the field's type if not given
    # Whether `command_of` writes it: where it differs from its default, if not given.
    repeated: Literal["always", "changed", "never"]
    positional: bool  # an argument without a flag
    append: bool  # the flag takes one value and may be given several times


def option(help: str, *, default: Any = MISSING, **about: Unpack[About]) -> Any:
    """Field of a settings dataclass that is a flag of the command line, required if it has no default.

    `help` is what `--help` says; `(default: ...)` is added where the default is a number or text.
    """
    return dataclasses.field(default=default, metadata={"option": about, "help": help})


def _options(settings: Settings | type[Settings]) -> Iterator[tuple[Field[Any], About]]:
    """The fields made by `option`, and what they say."""
    return ((field, field.metadata["option"]) for field in dataclasses.fields(settings) if "option" in field.metadata)


def command_line(name: str, doc: str | None) -> argparse.ArgumentParser:
    """A parser for `python -m name` whose help is its module's docstring: the first paragraph above, the rest below."""
    summary, _, details = (doc or "").partition("\n\n")
    layout = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(f"python -m {name}", description=summary, epilog=details, formatter_class=layout)
    return mention_traceback(parser)


def add_options(parser: argparse.ArgumentParser, settings: type[Settings]) -> None:
    """Give a parser the flags of a settings dataclass."""
    hints = get_type_hints(settings)
    for field, about in _options(settings):
        kind, several = _value_type(hints[field.name])
        positional, append, default = about.get("positional"), about.get("append"), field.default
        shown = field.metadata["help"]
        if isinstance(default, int | float | str) and default != "" and kind is not bool and "(default:" not in shown:
            shown += f" (default: {default})"
        words: dict[str, Any] = {"help": shown.replace("%", "%%")}
        if default is not MISSING:
            words["default"] = list(default) if append else default
        elif not positional:
            words["required"] = True
        if kind is bool:
            words["action"] = "store_true"
        else:
            literals = get_args(kind) if get_origin(kind) is Literal else None
            kind = str if literals else home_expanded if kind is Path else kind
            words |= {"type": about.get("parse") or kind, "metavar": about.get("metavar")}
            words["choices"] = about.get("choices") or literals
            if append:
                words["action"] = "append"
            elif several or (positional and "default" in words):
                words["nargs"] = "+" if not positional else "*" if several else "?"
        parser.add_argument(field.name if positional else f"--{field.name}", **words)


def home_expanded(word: str) -> Path:
    """A path on a command line, `~` read as the home folder: the shell leaves it in `--out=~/report`."""
    return Path(os.path.expanduser(word))


def settings_from(settings: type[S], args: argparse.Namespace) -> S:
    """The settings in parsed arguments; lists become tuples."""
    values = {field.name: getattr(args, field.name) for field, _ in _options(settings)}
    return settings(**{name: tuple(value) if isinstance(value, list) else value for name, value in values.items()})


def parse(settings: type[S], name: str, doc: str | None, argv: Sequence[str] | None = None) -> S:
    """The settings on a command line; a `ValueError` of the dataclass's `__post_init__` ends the program, explained."""
    parser = command_line(name, doc)
    add_options(parser, settings)
    args = parser.parse_args(argv)
    try:
        return settings_from(settings, args)
    except ValueError as error:
        parser.error(str(error))


def command_of(name: str, settings: Settings) -> str:
    """The command that runs with these settings."""
    words = ["python", "-m", name]
    for field, about in _options(settings):
        value, repeated = getattr(settings, field.name), about.get("repeated", "changed")
        if repeated == "never" or (repeated == "changed" and value == field.default):
            continue
        values = [str(v) for v in value] if isinstance(value, Sequence) and not isinstance(value, str) else [str(value)]
        flag = [] if about.get("positional") else [f"--{field.name}"]
        if about.get("append"):
            words += [word for v in values for word in (*flag, v)]
        else:
            words += flag if isinstance(value, bool) else flag + values
    return shlex.join(words)


def _value_type(hint: Any) -> tuple[Any, bool]:
    """Type of one value of a field, and whether it takes several."""
    if type(None) in get_args(hint):  # X | None
        (hint,) = (part for part in get_args(hint) if part is not type(None))
    if get_origin(hint) in (list, tuple, Sequence):
        return next(part for part in get_args(hint) if part is not Ellipsis), True
    return hint, False
