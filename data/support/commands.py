"""What every command line of the house begins with."""

from __future__ import annotations

import argparse


def command_line(name: str, doc: str | None) -> argparse.ArgumentParser:
    """A parser for `python -m name` whose help is its module's docstring: the first paragraph above, the rest below."""
    summary, _, rest = (doc or "").partition("\n\n")
    return argparse.ArgumentParser(
        prog=f"python -m {name}",
        description=summary,
        epilog=rest,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
