"""How a command ends: with a status, and with one sentence on standard error about what stands in its way.

0    done
1    the gate's "no" (`eval.ablation --gate`) and nothing else
2    cannot: a sentence says why; with --traceback, and for a mistake of the program, the code is shown, too
130  interrupted (Ctrl-C)
141  nobody reads its output any more (`| head`)
"""

import argparse
import functools
import io
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Never, Protocol, TypeVar

from data.support.sentences import sentence_of

CANNOT, INTERRUPTED, BROKEN_PIPE = 2, 130, 141
FLAG = "--traceback"
_MISTAKE = "this is a mistake of the program, not of yours: please report it, with the lines above"

P = TypeVar("P", bound=argparse.ArgumentParser)


class Command(Protocol):
    """A command: called with words in place of those of the command line, or without."""

    def __call__(self, argv: Sequence[str] | None = None) -> None:
        """Run it, and end the program where it does not come to its end."""


def command(*, smaller: str = "", resumes: bool = False) -> Callable[[Callable[[list[str]], None]], Command]:
    """Make a function of words a command, which ends as this module says.

    `smaller` is what a user is told who runs out of memory; `resumes` says that the same command goes on where it was
    interrupted.
    """

    def decorate(main: Callable[[list[str]], None]) -> Command:
        @functools.wraps(main)
        def run(argv: Sequence[str] | None = None) -> None:
            words, shown = _without_flag(sys.argv[1:] if argv is None else argv)
            _make_printable()
            try:
                _run(main, words)
            except SystemExit as end:
                if not isinstance(end.code, str):
                    raise
                _end(CANNOT, end.code.removeprefix("error: "))
            except KeyboardInterrupt as error:
                _show(error, shown)
                again = ": started again with the same words, it goes on where it stopped" if resumes else ""
                _end(INTERRUPTED, f"interrupted{again}")
            except Exception as error:
                if isinstance(error, BrokenPipeError) and _nobody_reads():
                    _end(BROKEN_PIPE)
                sentence = sentence_of(error, smaller)
                _show(error, shown or sentence is None)
                _end(CANNOT, sentence or f"{_of(error)}: {_MISTAKE}")

        return run

    return decorate


# Of recipes, which train with the trainer's settings.
training_command = command(
    smaller="lower --per_device_train_batch_size, and raise --gradient_accumulation_steps as much", resumes=True
)


def mention_traceback(parser: P) -> P:
    """A parser whose `--help` says that there is `--traceback`, which `command` takes off the words."""
    shown = "show where in the program an error arose"
    parser.add_argument(FLAG, action="store_true", default=argparse.SUPPRESS, help=shown)
    return parser


def _without_flag(argv: Sequence[str]) -> tuple[list[str], bool]:
    """The words without `--traceback`, and whether it was among them; what stands behind `--` is for others."""
    words = list(argv)
    end = words.index("--") if "--" in words else len(words)
    return [word for word in words[:end] if word != FLAG] + words[end:], FLAG in words[:end]


def _make_printable() -> None:
    """Have output survive where it can go: an ASCII terminal gets escapes, and a closed one nothing."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115 (open as long as the program is)
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _run(main: Callable[[list[str]], None], words: list[str]) -> None:
    """Call a command and write out what it printed, which the interpreter would else do too late for a sentence."""
    end: SystemExit | None = None
    try:
        main(words)
    except SystemExit as error:
        if error.code:
            raise
        end = error  # after --help
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        _silence()
        raise OSError(error.errno, error.strerror, "standard output") from error
    if end is not None:
        raise end


def _nobody_reads() -> bool:
    """Whether a broken pipe is that of standard output, which is then written no more."""
    try:
        sys.stdout.flush()
    except OSError:
        _silence()
        return True
    return False


def _silence() -> None:
    """Send what is left to print nowhere: the interpreter would complain about it at its end."""
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _of(error: BaseException) -> str:
    """An error as the last line of a traceback has it, in one line."""
    return " ".join("".join(traceback.format_exception_only(error)).split())


def _show(error: BaseException, shown: bool) -> None:
    if shown:
        with suppress(OSError):
            sys.stderr.write("".join(traceback.format_exception(error)))


def _end(status: int, sentence: str = "") -> Never:
    """End the program. The sentence is its last line; of several processes, the first speaks for none but itself."""
    with suppress(OSError):
        sys.stdout.flush()
    rank = os.environ.get("RANK", "0")
    if sentence:
        who = "" if rank == "0" else f"process {rank}: "
        with suppress(OSError):
            sys.stderr.write(f"{'' if status == INTERRUPTED else 'error: '}{who}{sentence}\n")
            sys.stderr.flush()
    raise SystemExit(status)
