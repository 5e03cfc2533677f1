"""What a user is told of an error: one sentence that says what is wrong and what to do.

Classes of other packages are recognised by their names, so that no command imports torch, httpx or safetensors for
this.
"""

import errno
import io
import os
import re
import traceback
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path


class Refused(RuntimeError):
    """What cannot be done although the settings are right; the message is a sentence for whoever runs the command."""


PACKAGES = ("data", "encoders", "elm", "eval", "serve", "recipes")  # ours
# Names of import that are not those of `pip install`.
_PIP = {"sklearn": "scikit-learn", "yaml": "PyYAML", "ahocorasick": "pyahocorasick", "PIL": "pillow"}

_DAMAGED = {
    *("SafetensorError", "zipfile.BadZipFile", "zlib.error", "builtins.EOFError", "_pickle.UnpicklingError"),
    *("json.decoder.JSONDecodeError", "BadGzipFile", "LZMAError", "tarfile.ReadError", "YAMLError"),
    *("pandas.errors.ParserError", "EmptyDataError", "struct.error"),
}
_MEMORY = {"OutOfMemoryError", "builtins.MemoryError", "BrokenProcessPool"}
_HTTP = {"httpx.HTTPError", "httpx.InvalidURL"}
# Errors that torch raises as `RuntimeError`, by their words.
TORCH_WRITES = ("PytorchStreamWriter failed", "unexpected pos", "basic_ios::clear")  # where `torch.save` fails
_TORCH = {
    **dict.fromkeys(TORCH_WRITES, "a file could not be written: is the disk full?"),
    "PytorchStreamReader failed": "a file of weights is damaged or cut off: copy or make it again",
    "Found no NVIDIA driver": "there is no NVIDIA driver here: run without a GPU, or install one",
}
_NO_MEMORY = ("can't allocate memory", "not enough memory", "CUDA out of memory")

_NO_FOLDER = ("a file is there where a folder must be", "name another place")
_OF_FILES = {  # what is said in place of the system's words about a path, and what to do
    errno.ENOENT: ("no such file or folder", ""),
    errno.EEXIST: _NO_FOLDER,
    errno.ENOTDIR: _NO_FOLDER,
    errno.EISDIR: ("a folder is there where a file must be", "name another place"),
    errno.ENAMETOOLONG: ("the name is too long", "give a shorter one"),
}
_ADVICE = {  # what is added to the system's own words
    errno.ENOSPC: "free some, or write elsewhere",
    errno.EDQUOT: "free some, or write elsewhere",
    errno.EFBIG: "write where larger files are allowed",
    errno.EROFS: "write elsewhere",
    errno.EACCES: "change who may use it, or name another place",
    errno.EPERM: "change who may use it, or name another place",
    errno.EADDRINUSE: "another program listens there: choose another port with --port",
    errno.EADDRNOTAVAIL: "this machine has no such address: choose another with --host",
    errno.ECONNREFUSED: "nobody listens there: is the server running, and the address right?",
    errno.EMFILE: "`ulimit -n` says how many files may be open",
}


def sentence_of(error: BaseException, smaller: str = "") -> str | None:
    """The sentence about an error that a user can do something about; None for a mistake of the program.

    `smaller` names what makes a command need less memory.
    """
    names = _names(error)
    words = " ".join(str(error).split()) or type(error).__name__
    if names & _MEMORY or (isinstance(error, RuntimeError) and any(phrase in words for phrase in _NO_MEMORY)):
        return f"not enough memory ({words}): {smaller or 'end other programs, or take a machine with more'}"
    if (rust := re.search(r"\(os error (\d+)\)", words)) and not isinstance(error, OSError):  # as safetensors has them
        return _of_system(OSError(int(rust[1]), os.strerror(int(rust[1])), _file_of(error)), words)
    if names & _DAMAGED or type(error) is Exception:  # as which `tokenizers` raises everything
        file = _file_of(error)
        return f"{file or 'a file'} is damaged, cut off, or not what its name says ({words}): copy or make it again"
    if isinstance(error, UnicodeError):
        return _of_encoding(error)
    if isinstance(error, ImportError):
        return _of_import(error, words)
    if names & _HTTP and not isinstance(error, OSError):  # the hub's errors are both, and explain themselves
        return f"{_url_of(error)}no answer ({words}): is the server running, and the address right?"
    if isinstance(error, OSError):
        return ": ".join([_of_system(error, words), *getattr(error, "__notes__", ())])
    if isinstance(error, Refused | ValueError):
        return words
    if isinstance(error, RuntimeError):
        return next((said for known, said in _TORCH.items() if known in words), None)
    return None


def _names(error: BaseException) -> set[str]:
    """Names of an error's classes, each alone and behind its module and behind its package."""
    kinds = type(error).__mro__
    return {
        name
        for kind in kinds
        for name in (
            kind.__name__,
            f"{kind.__module__}.{kind.__name__}",
            f"{kind.__module__.partition('.')[0]}.{kind.__name__}",
        )
    }


def _of_system(error: OSError, words: str) -> str:
    if error.errno is None or error.strerror is None:
        return words
    place, advised = error.filename2 or error.filename, hasattr(error, "__notes__")
    if place is not None and error.errno in _OF_FILES:
        problem, advice = _OF_FILES[error.errno]
    else:
        problem, advice = error.strerror, _ADVICE.get(error.errno, "")
    where = [] if place is None else [os.fsdecode(place) if isinstance(place, bytes) else str(place)]
    return ": ".join([*where, problem, *([advice] if advice and not advised else [])])


def _of_encoding(error: UnicodeError) -> str:
    if isinstance(error, UnicodeDecodeError):
        where = f"byte 0x{error.object[error.start]:02x} at {error.start}"
        return f"{_file_of(error) or 'a file'} is not text in {error.encoding} ({where}): save it as UTF-8"
    if isinstance(error, UnicodeEncodeError):
        character = error.object[error.start]
        return f"{character!a} cannot be written in {error.encoding}: set PYTHONUTF8=1 in the environment"
    return " ".join(str(error).split())


def _of_import(error: ImportError, words: str) -> str | None:
    """None where one of our own modules, or a name in it, is missing."""
    package = (error.name or "").partition(".")[0]
    if package in PACKAGES:
        return None
    if not words.startswith("No module named"):
        return words  # ours, which says what to install, or that of a package about its own
    return f"the package {package} is not installed: {_install(package)}"


def _install(package: str) -> str:
    """The command that installs a package: the extra that names it, where one does."""
    name = _PIP.get(package, package)
    with suppress(PackageNotFoundError):  # run from a checkout
        for line in requires("ecg-elm") or ():
            extra = re.match(r"([\w.-]+).*extra == ['\"]([\w-]+)['\"]", line)
            if extra and extra[1].lower().replace("-", "_") == name.lower().replace("-", "_"):
                return f'pip install "ecg-elm[{extra[2]}]"'
    return f"pip install {name}"


def _url_of(error: BaseException) -> str:
    try:
        return f"{error.request.url}: "  # type: ignore[attr-defined]
    except (AttributeError, RuntimeError):  # httpx raises the latter where there was no request
        return ""


def _file_of(error: BaseException) -> str | None:
    """The file that was read when an error was raised: the one that the innermost function knows of."""
    for frame, _ in reversed(list(traceback.walk_tb(error.__traceback__))):
        for value in frame.f_locals.values():
            name = value.name if isinstance(value, io.IOBase) and hasattr(value, "name") else value
            if isinstance(name, str | Path) and not str(name).endswith((".py", ".so")):
                with suppress(OSError, ValueError):  # other text: too long for a name, with a NUL in it
                    if Path(name).is_file():
                        return str(name)
    return None
