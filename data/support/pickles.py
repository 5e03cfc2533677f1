"""The one place where pickles are read: containers, numbers and text, and nothing is ever called.

Two published formats are pickles: ECG-Byte's token tables (`load_builtins`) and the recordings that ECG-Bench prepares
(`load_npy`, a dictionary in an `.npy` file). A pickle is a program for Python's unpickler, which builds and calls what
it names. So that unpickler is not used: the few instructions that make plain values are carried out here, any other one
is refused, and the names under which numpy writes arrays lead to functions of this file. `pickletools` of the standard
library, which only disassembles, refuses values that claim to be longer than the file.
"""

import io
import math
import pickletools
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, TypeVar

import numpy as np
from numpy.lib import format as npy

T = TypeVar("T")
_LIMIT = 256 * 2**20  # bytes of a file
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_VALUES = (
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
    *("UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8", "SHORT_BINBYTES", "BINBYTES", "BINBYTES8"),
)
_TUPLES = {"EMPTY_TUPLE": 0, "TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


def load_builtins(path: Path | str) -> Any:
    """The content of a pickle of plain values: dict, list, tuple, str, bytes, int, float, bool, None.

    Raises:
        ValueError: It holds anything else, is no pickle or a damaged one, or has more than 256 MB; the file is named.
    """
    return _load(Path(path), _read(Path(path)), {})


def load_npy(path: Path | str) -> dict[str, Any]:
    """The dictionary that `np.save(path, {...})` wrote: a recording of ECG-Bench.

    Returns:
        Values as in `load_builtins`; numpy's arrays and scalars of integers, floats and booleans.

    Raises:
        ValueError: It holds anything else, is another kind of `.npy` file, or has more than 256 MB; the file is named.
    """
    path = Path(path)
    content = io.BytesIO(_read(path))
    try:
        version = npy.read_magic(content)
        header = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        shape, _, dtype = header(content)
    except ValueError as error:
        raise ValueError(f"{path}: not an .npy file: {error}") from error
    if shape != () or dtype != np.dtype(object):
        raise ValueError(f"{path}: holds an array {shape} of {dtype}, not a dictionary: read it with numpy.load")
    value = _load(path, content.read(), _NUMPY)
    if not isinstance(value, dict):
        raise ValueError(f"{path}: holds a {type(value).__name__}, not a dictionary")
    return value


def _read(path: Path) -> bytes:
    if (size := path.stat().st_size) > _LIMIT:
        raise ValueError(f"{path}: has {size:,} bytes; a table or a recording has no more than {_LIMIT:,}")
    return path.read_bytes()


def _load(path: Path, content: bytes, names: Mapping[str, Callable[..., object]]) -> object:
    try:
        return _run(content, names)
    # IndexError, KeyError: instructions that take what was never put; OverflowError: a size beyond all
    except (ValueError, IndexError, KeyError, TypeError, OverflowError) as error:
        raise ValueError(f"{path}: not a pickle of plain values: {error}") from error


def _run(content: bytes, names: Mapping[str, Callable[..., object]]) -> object:
    """Carry out a pickle's instructions; `names` has what it may name and call, by "module name"."""
    stack: list[object] = []
    marks: list[int] = []  # heights of the stack
    memo: dict[object, object] = {}

    def since_mark() -> list[object]:
        at = marks.pop()
        items = stack[at:]
        del stack[at:]
        return items

    for opcode, argument, _ in pickletools.genops(content):
        name = opcode.name
        if name in _VALUES:
            stack.append(argument)
        elif name in _CONSTANTS:
            stack.append(_CONSTANTS[name])
        elif name in _TUPLES:
            if (at := len(stack) - _TUPLES[name]) < 0:
                raise IndexError("a tuple of more than there is")
            stack[at:] = [tuple(stack[at:])]
        elif name == "TUPLE":
            stack.append(tuple(since_mark()))
        elif name in ("EMPTY_LIST", "EMPTY_DICT"):
            stack.append([] if name == "EMPTY_LIST" else {})
        elif name == "MARK":
            marks.append(len(stack))
        elif name in ("APPEND", "APPENDS"):
            items = [stack.pop()] if name == "APPEND" else since_mark()
            _of(list, stack[-1]).extend(items)
        elif name in ("SETITEM", "SETITEMS"):
            items = [stack.pop(-2), stack.pop()] if name == "SETITEM" else since_mark()
            if not all(isinstance(key, str | int) for key in items[::2]):  # the hash of a tuple of tuples takes forever
                raise ValueError("a key is neither text nor a number")
            _of(dict, stack[-1]).update(zip(items[::2], items[1::2], strict=True))
        elif name == "MEMOIZE":
            memo[len(memo)] = stack[-1]
        elif name in ("PUT", "BINPUT", "LONG_BINPUT"):
            memo[argument] = stack[-1]
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            value = memo[argument]
            stack.append(value.array if isinstance(value, _Array) else value)
        elif name in ("GLOBAL", "STACK_GLOBAL"):
            path = str(argument) if name == "GLOBAL" else f"{stack.pop(-2)} {stack.pop()}"
            if path not in names:
                raise ValueError(f"it names {path.replace(' ', '.')!r}, and nothing that a file names is looked for")
            stack.append(_Named(names[path]))
        elif name == "REDUCE":
            arguments = _of(tuple, stack.pop())
            stack.append(_of(_Named, stack.pop()).stands_for(*arguments))
        elif name == "BUILD":
            state = stack.pop()
            stack.append(_of(_Unfilled, stack.pop()).filled(state))
        elif name == "STOP":
            return stack.pop()
        elif name not in ("PROTO", "FRAME"):
            raise ValueError(f"it has the instruction {name}")
    raise ValueError("it does not end")


def _of(kind: type[T], value: object) -> T:
    if not isinstance(value, kind):
        raise ValueError(f"an instruction for another type than {type(value).__name__}")
    return value


# --- numpy ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Named:
    """A name in a file; it can be called by REDUCE, and nothing else can."""

    stands_for: Callable[..., object]


class _Unfilled:
    """An object whose state comes later, by BUILD."""

    def filled(self, state: object) -> object:
        raise NotImplementedError


class _Dtype(_Unfilled):
    """`numpy.dtype(code, align, copy)`; its state says the order of the bytes."""

    def __init__(self, code: object, *_: object) -> None:
        if not isinstance(code, str) or not re.fullmatch("O8|b1|[iu][1248]|f[248]", code):
            raise ValueError(f"an array of {code!r}")
        self.dtype = np.dtype(code)

    def filled(self, state: object) -> Self:
        _, order, *_ = _of(tuple, state)
        self.dtype = self.dtype.newbyteorder(order)
        return self


class _Array(_Unfilled):
    """`_reconstruct(numpy.ndarray, (0,), b"b")`: the array is made when its state comes, which holds all of it."""

    def __init__(self, *_: object) -> None:
        self.array: object = None

    def filled(self, state: object) -> object:
        _, shape, kind, fortran, data = _of(tuple, state)
        dtype = _of(_Dtype, kind).dtype
        if dtype.hasobject:  # the dictionary itself
            if shape != () or len(_of(list, data)) != 1:
                raise ValueError("an array of objects")
            self.array = data[0]
        else:
            if math.prod(_of(tuple, shape)) * dtype.itemsize != len(_of(bytes, data)):
                raise ValueError(f"an array {shape} of {dtype} in {len(data)} bytes")
            self.array = np.frombuffer(data, dtype).reshape(shape, order="F" if fortran else "C").copy()
        return self.array


def _scalar(kind: object, data: object) -> object:
    dtype = _of(_Dtype, kind).dtype
    content = _of(bytes, data)
    if dtype.hasobject or len(content) != dtype.itemsize:
        raise ValueError(f"a number of the type {dtype} in {len(content)} bytes")
    return np.frombuffer(content, dtype)[0]


_NUMPY: dict[str, Callable[..., object]] = {"numpy dtype": _Dtype, "numpy ndarray": _Array}
for _module in ("numpy.core.multiarray", "numpy._core.multiarray"):  # numpy 2 renamed it
    _NUMPY |= {f"{_module} _reconstruct": _Array, f"{_module} scalar": _scalar}
