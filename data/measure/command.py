"""Measured features of a recording: heart rate, PR, QRS, QT and QTc, frontal axis, QRS amplitude of every lead.

    python -m data.measure RECORD...

prints what is measured beside the labels of each record (WFDB, with SNOMED codes in `#Dx` comments or none). What
cannot be read is named on stderr, and the status is 2 then; the others are measured all the same.
"""

import csv
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from data.ecg import Ecg
from data.measure.values import Measurements, as_text
from data.measure.worker import measure_many
from data.readers.options import ReadOptions, join_lead_names
from data.support.commands import add_options, command_line, home_expanded, settings_from
from data.support.sentences import sentence_of
from data.support.status import command


@command()
def main(argv: Sequence[str] | None = None) -> None:
    """Print what is measured."""
    parser = command_line("data.measure", __doc__)
    parser.add_argument("record", nargs="+", help="recordings: WFDB records, or .npy and .csv files")
    add_options(parser, ReadOptions)
    parser.add_argument("--names", type=home_expanded, help="CSV table (SNOMEDCTCode, Dx) to print labels by name")
    args = parser.parse_intermixed_args(join_lead_names(argv))
    names = _names(args.names) if args.names else {}
    ecgs, unreadable = _read(args.record, settings_from(ReadOptions, args))
    for ecg, measured in zip(ecgs.values(), measure_many(ecgs, ecgs)):
        sys.stdout.write(_entry(ecg, measured, names))
    if unreadable:
        raise ValueError(f"{unreadable} of {len(args.record)} recordings cannot be read")


def _names(table: Path) -> dict[str, str]:
    """Names of codes.

    Raises:
        ValueError: The table lacks a column.
    """
    with table.open(encoding="utf-8-sig", newline="") as file:
        rows = csv.DictReader(file)
        if missing := [column for column in ("SNOMEDCTCode", "Dx") if column not in (rows.fieldnames or ())]:
            raise ValueError(f"{table} has no column {', '.join(missing)}: --names wants SNOMEDCTCode and Dx")
        return {row["SNOMEDCTCode"]: row["Dx"] for row in rows}


def _read(paths: Sequence[str], options: ReadOptions) -> tuple[dict[str, Ecg], int]:
    """The recordings that can be read, each once, by path; and how many cannot, which are named on stderr."""
    ecgs: dict[str, Ecg] = {}
    path_of: dict[Path, str] = {}
    unreadable = 0
    for path in paths:
        try:
            ecg = options.read(path)
        except (ValueError, OSError) as error:
            unreadable += 1
            sys.stderr.write(f"error: {sentence_of(error)}\n")
            continue
        first = path_of.setdefault(Path(ecg.meta["file"]).resolve(), path)
        if first in ecgs:
            sys.stderr.write(f"{path}: the same file as {first}: measured once\n")
        else:
            ecgs[path] = ecg
    return ecgs, unreadable


def _entry(ecg: Ecg, measured: Measurements, names: Mapping[str, str]) -> str:
    """What is printed about a recording."""
    labels = ", ".join(names.get(code, code) for code in ecg.meta.get("dx", ()))
    quality = measured.quality + (f" ({measured.reason})" if measured.reason else "")
    return f"{ecg.record_id}\n  {as_text(measured)}\n  quality: {quality}; labels: {labels or 'none'}\n"
