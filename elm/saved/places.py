"""Places of this machine in what is published: files and folders are named by their last part alone."""

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

# Settings that name a folder, and those that name a folder or a hub id.
_FOLDERS = {"root", "recordings", "cache", "cache_dir", "output_dir", "logging_dir", "model", "text_only"}
_PARTS = {"_name_or_path", "name_or_path", "base_model_name_or_path", "language_model", "encoder", "translator"}
_PLACE = r"""(?:~|[A-Za-z]:)?(?:[/\\][^/\\\s"'<>|;,&()]+){2,}[/\\]?"""
_IN_TEXT = re.compile(rf"""(?<![\w/\\.:<+~-]){_PLACE}""")
_PICTURE = re.compile(r"(data:image/[a-z+]+;base64,[A-Za-z0-9+/=]+)")


def places_in(tree: object, key: str = "") -> Iterator[str]:
    """Values that name a file or a folder, in a tree of settings."""
    if isinstance(tree, Mapping):
        for name, value in tree.items():
            yield from places_in(value, name)
    elif isinstance(tree, list):
        for value in tree:
            yield from places_in(value, key)
    elif isinstance(tree, str) and (
        key in _FOLDERS
        or (key in _PARTS and _is_place(tree))
        or re.fullmatch(r"(?:~|[A-Za-z]:)?[/\\][^\n]*[/\\][^\n]*", tree)
    ):
        yield tree


def _is_place(name: str) -> bool:
    """A folder and not a hub id: one that is here was read in the hub's place."""
    parts = re.split(r"[/\\]", name)
    return len(parts) > 2 or (len(parts) == 2 and (parts[0] in ("", ".", "..", "~") or Path(name).exists()))


def pattern_of(places: Iterable[str]) -> re.Pattern[str]:
    """A pattern of these places in text, longer ones first, and not where their letters are part of another name."""
    longest = sorted({place.rstrip("/\\") for place in places}, key=len, reverse=True)
    escaped = [re.escape(place) for place in longest if re.search(r"[/\\]", place)]
    return re.compile(rf"(?<![\w/\\.-])(?:{'|'.join(escaped)})(?![\w-])")


def without_places(tree: Any, places: re.Pattern[str]) -> Any:
    """A tree of settings in which places are named by their last part."""
    if isinstance(tree, Mapping):
        return {name: without_places(value, places) for name, value in tree.items()}
    if isinstance(tree, list):
        return [without_places(value, places) for value in tree]
    return last_parts(tree, places) if isinstance(tree, str) else tree


def last_parts(text: str, places: re.Pattern[str]) -> str:
    """Text in which places are named by their last part; pictures in it, whose letters mean nothing, stay."""
    pieces = _PICTURE.split(text)
    for i in range(0, len(pieces), 2):
        for pattern in (places, _IN_TEXT):
            pieces[i] = pattern.sub(lambda match: _last_part(match[0]), pieces[i])
    return "".join(pieces)


def _last_part(place: str) -> str:
    return re.split(r"[/\\]", place.rstrip("/\\"))[-1]
