"""How long things take.

    python -m eval.speed PART [options of the part]

Every file in this folder is a part: the first line of its docstring says what it times, its `main` does so. It takes
its settings, which are in `__init__.py` so that `--help` need not wait for torch, or else the command line's words.
"""

import argparse
import ast
import importlib
from collections.abc import Sequence
from pathlib import Path

from data.support.commands import parse
from data.support.status import command, mention_traceback
from eval.speed import SETTINGS


def parts() -> dict[str, str]:
    """The names of the parts and what each one times, read without importing them: some need what others do not."""
    files = sorted(path for path in Path(__file__).parent.glob("*.py") if not path.name.startswith("_"))
    return {path.stem: (ast.get_docstring(ast.parse(path.read_bytes())) or "").split("\n")[0] for path in files}


@command()
def main(argv: Sequence[str] | None = None) -> None:
    """Hand the options to a part."""
    lines = parts()
    parser = argparse.ArgumentParser(
        prog="python -m eval.speed",
        description="How long things take, a part at a time.",
        epilog="parts:\n" + "\n".join(f"  {name:<12}{line}" for name, line in lines.items()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    mention_traceback(parser)
    parser.add_argument("part", choices=lines, metavar="PART", help="what to time, from the list below")
    parser.add_argument("options", nargs=argparse.REMAINDER, help="options of the part; --help after it lists them")
    args = parser.parse_args(argv)
    settings = args.options
    if args.part in SETTINGS:
        settings = parse(SETTINGS[args.part], f"eval.speed {args.part}", lines[args.part], args.options)
    importlib.import_module(f"eval.speed.{args.part}").main(settings)


if __name__ == "__main__":
    main()
