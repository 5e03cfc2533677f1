"""Pages in Markdown from templates that lie beside the code which fills them in."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined


def filled_in(template: Path, values: Mapping[str, object]) -> str:
    """A template with its values; numbers may be written `{{ number|thousands }}`, with commas."""
    environment = Environment(
        loader=FileSystemLoader(template.parent),
        undefined=StrictUndefined,
        keep_trailing_newline=True,
        trim_blocks=True,
        autoescape=False,
    )
    environment.filters["thousands"] = "{:,}".format
    return environment.get_template(template.name).render(values)
