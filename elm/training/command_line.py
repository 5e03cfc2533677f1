"""Command lines of the recipes: flags, and the YAML that `--config` names, of which a flag overrides any setting.

A name or a value that is wrong is an error that names the file and the setting, wherever it was given.
"""

import argparse
import difflib
import sys
from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any, Never

import yaml
from trl import TrlParser

from data.support.status import mention_traceback
from elm.training import dev

CONFIG = "--config"
# What a value must be, by the name of the function that makes it of a word.
_KINDS = {"int": "a whole number", "float": "a number", "string_to_bool": "true or false"}


def parse(
    argv: Sequence[str],
    kinds: Sequence[type],
    default_config: Path,
    *,
    stages: Collection[str] | None = None,
    more_for_dev: str = "",
) -> tuple[Any, ...]:
    """The settings on a command line, one dataclass of each of `kinds`.

    What no flag says is taken from the YAML of `--config`, or from `default_config`; what that does not say has its
    default. With `stages`, the YAML may hold a mapping `stages` with what belongs to one stage (`--stage`) alone.
    `more_for_dev` are flags that `--dev` stands for here, beside those for every recipe.

    Raises:
        FileNotFoundError: There is no such config.
        ValueError: The config is no YAML, names a setting twice or one that is unknown, or has a value of another kind;
            or a flag is unknown.
    """
    named, words = config_of(argv)
    path = named or default_config
    parser = _Parser(kinds)
    config = read_config(path)
    by_stage = config.pop("stages", None) or {} if stages is not None else {}
    parser.take(config, str(path))
    for stage, settings in _mapping(by_stage, f"{path}, stages").items():
        if stages is not None and stage not in stages:
            raise ValueError(f"{path}: there is no stage {stage!r}: {', '.join(stages) or 'this recipe has none'}")
        parser.checked(_mapping(settings, f"{path}, stage {stage}"), f"{path}, stage {stage}")
    flags = vars(parser.parse_known_args(words)[0])
    if flags.get("stage") in by_stage:
        parser.take(by_stage[flags["stage"]], f"{path}, stage {flags['stage']}")
    words = dev.flags(bool(flags.get("dev")), bool(flags.get("plan")), more_for_dev) + words
    *settings, unknown = parser.parse_args_into_dataclasses(
        words, return_remaining_strings=True, look_for_args_file=False
    )
    if unknown:
        flag = unknown[0].partition("=")[0]
        raise ValueError(f"unknown flag {flag}{parser.near(flag.lstrip('-').replace('-', '_'), '--')}")
    return tuple(settings)


def config_of(argv: Sequence[str]) -> tuple[Path | None, list[str]]:
    """The file that `--config FILE` or `--config=FILE` names, if any, and the other words; raises as `parse`."""
    files: list[str] = []
    others: list[str] = []
    words = iter(argv)
    for word in words:
        if word == CONFIG:
            files.append(next(words, ""))
        elif word.startswith(f"{CONFIG}="):
            files.append(word.partition("=")[2])
        else:
            others.append(word)
    if any(not file or file.startswith("--") for file in files):
        raise ValueError("--config needs the name of a file")
    if len(files) > 1:
        raise ValueError(f"--config is given {len(files)} times ({', '.join(files)}): a run has one")
    return (Path(files[0]).expanduser() if files else None), others


def read_config(path: Path) -> dict[str, Any]:
    """The settings in a YAML; raises as `parse`."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise FileNotFoundError(f"--config: there is no file {path}") from error
    except IsADirectoryError as error:
        raise ValueError(f"--config: {path} is a folder: name the YAML file in it") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"--config: {path} is no text in UTF-8 (byte {error.start + 1})") from error
    try:
        content = _Loader(text).get_single_data()
    except yaml.MarkedYAMLError as error:
        where = f" (line {error.problem_mark.line + 1})" if error.problem_mark else ""
        raise ValueError(f"--config: {path} is no YAML{where}: {error.problem}") from error
    except yaml.YAMLError as error:
        raise ValueError(f"--config: {path} is no YAML: {error}") from error
    return dict(_mapping(content, f"--config: {path}"))


def _mapping(content: object, where: str) -> Mapping[str, Any]:
    if not isinstance(content, Mapping):
        kind = "nothing" if content is None else "a list" if isinstance(content, list) else repr(content)
        raise ValueError(f"{where} holds {kind} in place of settings: each stands on a line, `name: value`")
    return content


class _Loader(yaml.SafeLoader):
    """A safe loader that refuses a key given twice, of which YAML would silently take the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        """A mapping, of keys that are all different."""
        lines: dict[str, int] = {}
        for key, _ in node.value:
            name, line = str(key.value), key.start_mark.line + 1
            if name in lines and key.tag != "tag:yaml.org,2002:merge":
                problem = f"{name} is there twice, in lines {lines[name]} and {line}"
                raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
            lines[name] = line
        mapping: dict[Hashable, Any] = super().construct_mapping(node, deep)
        return mapping


class _Parser(TrlParser):
    """TRL's parser, which takes checked defaults, and says in a line what is wrong."""

    def __init__(self, kinds: Sequence[type]) -> None:
        super().__init__(tuple(kinds))
        # The last of a setting's flags is made first here: `--no_bf16` is not to stand for `--bf16`.
        self.actions = {action.dest: action for action in reversed(self._actions) if action.dest != "help"}
        mention_traceback(self)

    def take(self, settings: Mapping[str, Any], where: str) -> None:
        """Make the settings of a YAML the defaults of the flags."""
        self.set_defaults_with_config(**self.checked(settings, where))

    def checked(self, settings: Mapping[str, Any], where: str) -> dict[str, Any]:
        """The settings, each of the kind of its flag; `where` names the file."""
        for name in settings:
            if name not in self.actions:
                raise ValueError(f"{where}: unknown setting {name}{self.near(str(name))}")
        return {name: _checked(self.actions[name], value, f"{where}: {name}") for name, value in settings.items()}

    def near(self, name: str, prefix: str = "") -> str:
        """The name that is most like this one, as the end of a sentence."""
        names = difflib.get_close_matches(name, [*self.actions, CONFIG.lstrip("-")], n=1)
        return f": is {prefix}{names[0]} meant?" if names else ": --help names all"

    def error(self, message: str) -> Never:
        """End the program; all of the flags, which argparse shows, would hide what is wrong."""
        sys.stderr.write(f"error: {message} (--help names all flags)\n")
        raise SystemExit(2)


def _checked(action: argparse.Action, value: Any, where: str) -> Any:
    """A value of a YAML, of the kind that the flag has."""
    kind: Callable[[str], Any] | None = action.type if callable(action.type) else None
    if value is None:
        if action.default is None or isinstance(action.default, list | dict):
            return None
        raise ValueError(f"{where} has no value: give one, or leave the line out")
    if action.nargs == "+":
        return [_of_kind(kind, each, where) for each in (value if isinstance(value, list) else [value])]
    if value is False and "no" in (action.choices or ()):
        return "no"  # which YAML reads as false
    if isinstance(value, bool) and kind is str:
        raise ValueError(f"{where} is {str(value).lower()}: put a word in quotes (YAML reads no as false)")
    value = _of_kind(kind, value, where)
    if action.choices and value not in action.choices:
        raise ValueError(f"{where} must be one of {', '.join(map(str, action.choices))}, got {value!r}")
    return value


def _of_kind(kind: Callable[[str], Any] | None, value: Any, where: str) -> Any:
    if kind is None or (must_be := _KINDS.get(getattr(kind, "__name__", ""))) is None:
        return value
    if kind is int and isinstance(value, float) and value.is_integer():
        return int(value)
    try:
        return kind(str(value))
    except (ValueError, TypeError, argparse.ArgumentTypeError) as error:
        raise ValueError(f"{where} must be {must_be}, got {value!r}") from error
