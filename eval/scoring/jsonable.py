"""Frozen dataclasses as JSON objects and back: the fields are the keys, in their order."""

import dataclasses
import math
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, Field, dataclass
from typing import Any, ClassVar, Self, Union, cast, dataclass_transform, get_args, get_origin, get_type_hints

from eval.statistics import Interval, rounded

# Metadata of a field: `field(metadata=INLINE)`.
INLINE = {"json": "inline"}  # the keys of the dataclass it holds stand among those of the outer one; none for None
OPTIONAL = {"json": "optional"}  # left out where it is None
EXACT = {"exact": True}  # not rounded by `rounded`


@dataclass_transform(frozen_default=True, field_specifiers=(dataclasses.field,))
class Json:
    """A JSON object: each subclass is a frozen dataclass. An interval is two numbers, each null where there is none."""

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]

    def __init_subclass__(cls, *, kw_only: bool = False) -> None:
        dataclass(frozen=True, kw_only=kw_only)(cls)

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
        for field, kind, may_be_none in _typed_fields(cls):
            how = field.metadata.get("json")
            if how == "inline":
                first = dataclasses.fields(cast(type[Json], kind))[0].name
                values[field.name] = None if may_be_none and first not in data else _read(kind, data)
            elif field.name in data:
                values[field.name] = _read(kind, data[field.name])
            elif how == "optional":
                values[field.name] = None
            elif field.default is MISSING:
                raise ValueError(f"no field {field.name!r}")
        make: Callable[..., Self] = cls
        return make(**values)

    def rounded(self) -> Self:
        """A copy with every number rounded as a report keeps it; NaN, which JSON cannot hold, as None."""
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


_FIELDS: dict[type[Json], list[tuple[Field[object], object, bool]]] = {}


def _typed_fields(cls: type[Json]) -> list[tuple[Field[object], object, bool]]:
    """Each field with its type and whether it may be None."""
    if cls not in _FIELDS:
        hints = get_type_hints(cls)
        _FIELDS[cls] = [(field, *_without_none(hints[field.name])) for field in dataclasses.fields(cls)]
    return _FIELDS[cls]


def _without_none(hint: object) -> tuple[object, bool]:
    kinds = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    parts = [kind for kind in kinds if kind is not types.NoneType]
    return parts[0] if len(parts) == 1 else object, len(parts) < len(kinds)


def _read(kind: object, data: object) -> object:
    """JSON as a value of this type."""
    if kind in (str, int, float, bool) or data is None:
        return data
    if kind is Interval:
        return Interval(*(math.nan if limit is None else limit for limit in cast(Sequence[float | None], data)))
    if isinstance(kind, type) and issubclass(kind, Json):
        return kind.from_json(cast(Mapping[str, object], data))
    match get_origin(kind), data:
        case origin, Mapping() if origin is Mapping:
            return {key: _read(get_args(kind)[1], item) for key, item in data.items()}
        case origin, list() if origin is Sequence and get_args(kind)[0] not in (str, int, float):
            return [_read(get_args(kind)[0], item) for item in data]
    return data
