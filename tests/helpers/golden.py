"""Upstream's own numbers: small cuts of them in tests/golden, the whole files in ../shared where those are."""

import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest

SMALL = Path(__file__).parents[1] / "golden"
SHARED = Path(__file__).parents[2].parent / "shared" / "golden"


def golden_folder(name: str) -> Path:
    """The whole files of `name`; skips the test where they are absent."""
    if not (SHARED / name).is_dir():
        pytest.skip(f"upstream's fixtures are not at {SHARED / name}")
    return SHARED / name


def script(path: Path) -> SimpleNamespace:
    """What a script beside golden files defines, such as the recipe by which its weights are drawn."""
    return SimpleNamespace(**runpy.run_path(str(path)))
