"""The flags of every command that reads recordings from files: --fs, --units, --leads and --nan.

A command's settings derive from `ReadOptions`, or a parser gets them by `add_options`. Its words go through
`join_lead_names` first, because argparse takes `-aVR` for a flag and, after `--leads`, all words for names of leads.
"""

import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from data.ecg import Ecg
from data.readers import read_ecg
from data.readers.common import Nan, is_lead
from data.support.commands import option

_SEPARATORS = ",;"
_NOT_A_LEAD = "-"


class LeadNames(tuple[str, ...]):
    """Names of a file's signals, in order: one word of a command line. An empty one, or `-`, is no lead."""


def lead_names(words: str) -> LeadNames:
    """The names in `I,II,aVR`, `I; II; aVR` or `I II aVR`.

    Raises:
        ValueError: There is none.
    """
    pieces = [piece.strip() for piece in re.split(f"[{_SEPARATORS}]", words.strip().rstrip(_SEPARATORS))]
    names = [name for piece in pieces for name in ([piece] if is_lead(piece) else piece.split() or [""])]
    if not any(names):
        raise ValueError("no name of a lead")
    return LeadNames(names)


def numbers(words: str) -> tuple[float, ...]:
    """The numbers in `12` or `0,12.5`: one for all recordings, or one for each."""
    return tuple(float(word) for word in words.split(","))


def join_lead_names(argv: Sequence[str] | None = None) -> list[str]:
    """A command's words (`sys.argv` without any), in which the names after `--leads` are one word.

    The first word after it is taken whatever it is, and then words as long as they are names of leads and of no file;
    behind a list with commas none is, unless the list ends with one. So record and question may stand behind it.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    joined: list[str] = []
    while words:
        word = words.pop(0)
        if word == "--":
            return [*joined, word, *words]
        flag, equals, value = word.partition("=")
        if flag != "--leads":
            joined.append(word)
            continue
        names = [value] if equals else []
        while words and _goes_on(names, words[0]):
            names.append(words.pop(0))
        bare = [name.strip(_SEPARATORS + " ") for name in names]
        joined.append(f"--leads={','.join(name for name in bare if name)}" if names else flag)
    return joined


def _goes_on(names: Sequence[str], word: str) -> bool:
    """Whether a word belongs to the names of leads before it."""
    if not names:
        return not word.startswith("--")
    if not word.strip(_SEPARATORS + " "):
        return word != ""  # a comma by itself
    if any(mark in name for name in names for mark in _SEPARATORS):
        open_ended = names[-1].rstrip().endswith(tuple(_SEPARATORS))
    else:
        open_ended = not (Path(word).is_file() or Path(f"{word}.hea").is_file())  # a record called V1
    return open_ended and all(is_lead(name) or name == _NOT_A_LEAD for name in lead_names(word))


@dataclass(frozen=True, kw_only=True)
class ReadOptions:
    """How recordings are read from files, as a command's flags."""

    fs: float | None = option("sampling rate in Hz, where the file does not say", default=None, metavar="HZ")
    units: str | None = option("units of the samples (mV, uV, ...), where the file does not say", default=None)
    leads: LeadNames | None = option(
        "names of the file's signals in order, where it does not say (I,II,...; - for one that is no lead)",
        default=None,
        metavar="NAMES",
        parse=lead_names,
    )
    nan: Nan = option(
        "missing samples: bridge gaps and leave out leads that are mostly missing, or refuse", default="interpolate"
    )

    def read(self, path: Path | str) -> Ecg:
        """The recording of a file, called as the command's user calls it.

        Raises:
            ValueError: As `read_ecg`, whose keywords are this command's flags.
        """
        try:
            ecg = read_ecg(path, fs=self.fs, units=self.units, leads=self.leads, nan=self.nan)
        except ValueError as error:
            raise ValueError(_with_flags(str(error))) from error
        return replace(ecg, record_id=str(path))


def _with_flags(message: str) -> str:
    """A message of `read_ecg` that names flags in place of keywords: `--fs ...` for `fs=...`."""
    keyword = r"\b(?:fs|units|leads|nan)=\S*"
    message = re.sub(rf"{keyword}(?: {keyword})* \(commands: ([^)]*)\)", r"\1", message)
    alone = r"(?<![\w/\\-])(fs|units|leads|nan)=(['\"]?)([\w.]*)\2"
    return re.sub(alone, lambda match: f"--{match[1]} {match[3]}".rstrip(), message)
