"""Frozen dataclasses as JSON objects and back: the fields are the keys, in their order."""

from __future__ import annotations

import dataclasses
import math
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, dataclass
from typing import Self, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from eval.statistics import Interval, rounded

# Metadata of a field: `field(metadata=INLINE)`.
INLINE = {"json": "inline"}  # the keys of the dataclass it holds stand among those of the outer one; none for None
OPTIONAL = {"json": "optional"}  # left out where it is None
EXACT = {"exact": True}  # not rounded by `rounded`

J = TypeVar("J", bound="Json")
Reader = Callable[[object], object]
_READERS: dict[type[Json], list[tuple[str, str | None, bool, Reader]]] = {}


@dataclass(frozen=True)
class Json:
    """A dataclass that is a JSON object. An interval is a list of two numbers, each null where there is none."""

    def to_json(self) -> dict[str, object]:
        """The object, of dicts, lists, text and numbers."""
        data: dict[str, object] = {}
        for field in dataclasses.fields(self):
            value, how = getattr(self, field.name), field.metadata.get("json")
            if how == "inline":
                data |= {} if value is None else value.to_json()
            elif value is not None or how != "optional":
                data[field.name] = _plain(value)
        return data

    @classmethod
    def from_json(cls, data: Mapping[str, object]) -> Self:
        """The dataclass that an object was made of. Keys that are no fields are ignored.

        Raises:
            ValueError: A field that has no default is missing; names it.
        """
        values = {}
        if cls not in _READERS:
            _READERS[cls] = _readers(cls)
        for name, how, default, read in _READERS[cls]:
            if how == "inline":
                values[name] = read(data)
            elif name in data:
                values[name] = read(data[name])
            elif how == "optional":
                values[name] = None
            elif not default:
                raise ValueError(f"no field {name!r}")
        make: Callable[..., Self] = cls
        return make(**values)

    def rounded(self) -> Self:
        """The same with every number rounded as a report keeps it; NaN, which JSON cannot hold, as None."""
        numbers = {
            field.name: _rounded(getattr(self, field.name))
            for field in dataclasses.fields(self)
            if "exact" not in field.metadata
        }
        return dataclasses.replace(self, **numbers)


def _plain(value: object) -> object:
    match value:
        case Json():
            return value.to_json()
        case Interval():
            return [None if math.isnan(limit) else limit for limit in value]
        case Mapping():
            return {key: _plain(item) for key, item in value.items()}
        case list() | tuple():
            return [_plain(item) for item in value]
    return value


def _rounded(value: object) -> object:
    match value:
        case Json():
            return value.rounded()
        case Interval():
            return Interval(*map(rounded, value))
        case Mapping():
            return {key: _rounded(item) for key, item in value.items()}
        case list() | tuple():
            return [_rounded(item) for item in value]
        case float():
            return None if math.isnan(value) else rounded(value)
    return value


def _readers(kind: type[Json]) -> list[tuple[str, str | None, bool, Reader]]:
    """Name, metadata, whether there is a default, and what makes a value of JSON: one tuple per field."""
    hints = get_type_hints(kind)
    return [
        (
            field.name,
            how := field.metadata.get("json"),
            field.default is not MISSING or field.default_factory is not MISSING,
            (_inline_reader if how == "inline" else _reader)(hints[field.name]),
        )
        for field in dataclasses.fields(kind)
    ]


def _inline_reader(hint: object) -> Reader:
    """Reads a dataclass from the object around it; None where that lacks the first field and it may be None."""
    value_type, may_be_none = _without_none(hint)
    kind = cast(type[Json], value_type)
    first = dataclasses.fields(kind)[0].name
    return lambda data: None if may_be_none and first not in cast(Mapping[str, object], data) else _object(kind, data)


def _reader(hint: object) -> Reader:
    kind, _ = _without_none(hint)
    origin, parts = get_origin(kind), get_args(kind)
    if origin is not None and isinstance(origin, type) and issubclass(origin, Mapping):
        item = _reader(parts[1])
        return lambda data: data and {key: item(value) for key, value in cast(Mapping[str, object], data).items()}
    if origin is not None and isinstance(origin, type) and issubclass(origin, Sequence):
        item = _reader(parts[0])
        if item is _same:
            return _same
        return lambda data: data and [item(value) for value in cast(Sequence[object], data)]
    if kind is Interval:
        return lambda data: None if data is None else _interval(cast(Sequence[float | None], data))
    if isinstance(kind, type) and issubclass(kind, Json):
        return lambda data: None if data is None else _object(kind, data)
    return _same


def _same(data: object) -> object:
    return data


def _object(kind: type[J], data: object) -> J:
    return kind.from_json(cast(Mapping[str, object], data))


def _interval(data: Sequence[float | None]) -> Interval:
    return Interval(*(math.nan if limit is None else limit for limit in data))


def _without_none(hint: object) -> tuple[object, bool]:
    if get_origin(hint) in (Union, types.UnionType):
        parts = [part for part in get_args(hint) if part is not types.NoneType]
        return (parts[0] if len(parts) == 1 else object), True
    return hint, False
