"""Would this question set be trained on? All that would be refused, left out or noted, before anything is trained.

    python -m data.check ecg_qa --dataset_args '{"root": "data-root"}'
    python -m data.check ecg_qa --dataset_args '{"root": "data-root"}' --unreadable leave_out
    python -m data.check ptbxl --dataset_args '{"root": "data-root/ptbxl"}'      # a corpus, without questions
    python -m data.check FOLDER                                                  # WFDB records

Rows by split and type, records and patients, recordings that cannot be read and why, what else is wrong with signals,
questions that repeat or contradict each other, patients and recordings on both sides, hidden files. Every recording is
read, and a run with the same --cache_dir does not read it again.

Ends with status 0 where a training would start, with 2 where it would be refused.
"""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from data.support.commands import option, parse
from data.support.sentences import Refused
from data.support.status import command


@dataclass(frozen=True, kw_only=True)
class CheckSettings:
    """Settings of `python -m data.check`."""

    dataset: str = option("a question set, a corpus, or a folder of WFDB records", positional=True)
    dataset_args: str = option("its settings, as JSON", default="{}", metavar="JSON")
    unreadable: Literal["refuse", "leave_out"] = option("as in a training", default="refuse")
    cache_dir: Path = option("folder that remembers what was read, as in a training", default=Path("out/cache"))
    out: Path | None = option("JSON file for all of it", default=None, metavar="FILE")


@command()
def main(argv: Sequence[str] | None = None) -> None:
    """Look at everything, and say it."""
    settings = parse(CheckSettings, "data.check", __doc__, argv)

    from data.experiment.inspection import inspect
    from data.support.files import require_writable, written_whole

    if settings.out is not None:
        require_writable(settings.out.parent, "--out")
    inspection = inspect(settings.dataset, settings.dataset_args, settings.unreadable, settings.cache_dir)
    if settings.out is not None:
        with written_whole(settings.out, "w") as file:
            json.dump(inspection.to_json(), file, indent=2)
    sys.stdout.write(inspection.text + "\n")
    if inspection.refusals:
        raise Refused(f"a training would be refused: {inspection.refusals[0]}")


if __name__ == "__main__":
    main()
