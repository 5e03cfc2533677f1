"""Command lines: a parser whose help is a docstring, and one dataclass of settings for parser, call and repetition.

A command states each flag once, as a field of a frozen dataclass:

    @dataclass(frozen=True, kw_only=True)
    class Settings:
        model: Path = option("folder of a trained model", metavar="DIR")
        seed: int = option("of the resamples", default=0)
        full: bool = option("everything", default=False)

    settings = parse(Settings, "eval.something", __doc__)   # from sys.argv
    command_of("eval.something", settings)                  # "python -m eval.something --model out/x"

`bool` fields become switches, sequences take one or more values, `Literal` and `choices` restrict them, and
`X | None` is a flag that may be left out. Fields made without `option` are settings of the call alone.
"""

import argparse
import dataclasses
import shlex
import sys
import types
from collections.abc import Callable, Collection, Sequence
from dataclasses import MISSING, Field, dataclass
from typing import Any, ClassVar, Literal, NoReturn, Protocol, TypeVar, Union, get_args, get_origin, get_type_hints


class Settings(Protocol):
    """A dataclass of settings."""

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]


S = TypeVar("S", bound=Settings)


@dataclass(frozen=True)
class _Option:
    help: str  # what `--help` says; `(default: ...)` is added where the default is a number or text
    metavar: str | None = None  # what `--help` calls the value
    choices: Collection[object] | None = None  # allowed values
    parse: Callable[[str], object] | None = None  # makes the value of a word; the field's type if not given
    # Whether `command_of` writes it: always, where it differs from its default, or never.
    repeated: Literal["always", "changed", "never"] = "changed"
    positional: bool = False  # an argument without a flag
    append: bool = False  # the flag takes one value and may be given several times


def option(help: str, *, default: Any = MISSING, **about: Any) -> Any:
    """Field of a settings dataclass that is a flag of the command line, required without a default.

    `about` are the other fields of `_Option`.
    """
    return dataclasses.field(default=default, metadata={"option": _Option(help, **about)})


def command_line(name: str, doc: str | None) -> argparse.ArgumentParser:
    """A parser for `python -m name` whose help is its module's docstring: the first paragraph above, the rest below."""
    summary, _, rest = (doc or "").partition("\n\n")
    form = argparse.RawDescriptionHelpFormatter
    return argparse.ArgumentParser(f"python -m {name}", description=summary, epilog=rest, formatter_class=form)


def add_options(parser: argparse.ArgumentParser, settings: type[Settings]) -> None:
    """Give a parser the flags of a settings dataclass."""
    hints = get_type_hints(settings)
    for field in dataclasses.fields(settings):
        if (about := field.metadata.get("option")) is None:
            continue
        kind, several = _value_type(hints[field.name])
        shown = about.help
        if isinstance(field.default, int | float | str) and field.default != "" and kind is not bool:
            shown += "" if "(default:" in shown else f" (default: {field.default})"
        words: dict[str, Any] = {"help": shown.replace("%", "%%")}
        if field.default is not MISSING:
            words["default"] = field.default
        elif not about.positional:
            words["required"] = True
        if kind is bool:
            words["action"] = "store_true"
        else:
            literals = get_args(kind) if get_origin(kind) is Literal else None
            words |= {"type": about.parse or (str if literals else kind), "metavar": about.metavar}
            words["choices"] = about.choices or literals
            if about.append:
                words["action"] = "append"
                words |= {"default": list(field.default)} if field.default is not MISSING else {}
            elif several or (about.positional and "default" in words):
                words["nargs"] = "+" if not about.positional else "*" if several else "?"
        parser.add_argument(field.name if about.positional else f"--{field.name}", **words)


def settings_from(settings: type[S], args: argparse.Namespace) -> S:
    """The settings in parsed arguments; lists become tuples."""
    names = [field.name for field in dataclasses.fields(settings) if "option" in field.metadata]
    values = {name: getattr(args, name) for name in names}
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
    for field in dataclasses.fields(settings):
        about, value = field.metadata.get("option"), getattr(settings, field.name)
        if about is None or about.repeated == "never" or (about.repeated == "changed" and value == field.default):
            continue
        values = [str(v) for v in value] if isinstance(value, Sequence) and not isinstance(value, str) else [str(value)]
        if about.append:
            words += [word for v in values for word in (f"--{field.name}", v)]
            continue
        words += [] if about.positional else [f"--{field.name}"]
        words += [] if isinstance(value, bool) else values
    return shlex.join(words)


def refuse(reason: BaseException | str, status: int = 2) -> NoReturn:
    """End the program with a message; exit status 2 is that of a wrong flag."""
    sys.stderr.write(f"error: {reason}\n" if status == 2 else f"{reason}\n")
    raise SystemExit(status)


def _value_type(hint: Any) -> tuple[Any, bool]:
    """Type of one value of a field, and whether it takes several."""
    if get_origin(hint) in (Union, types.UnionType):
        (hint,) = (part for part in get_args(hint) if part is not type(None))
    if get_origin(hint) in (list, tuple, Sequence):
        return next(part for part in get_args(hint) if part is not Ellipsis), True
    return hint, False
