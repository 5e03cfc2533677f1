"""Measured features of a recording: heart rate, PR, QRS, QT and QTc, frontal axis, QRS amplitude of every lead.

    python -m data.measure RECORD...

prints what is measured beside the labels of each record (WFDB, with SNOMED codes in `#Dx` comments or none).
"""

import csv
import sys
from collections.abc import Sequence

from data.support.commands import command_line, home_expanded
from data.support.status import command


@command()
def main(argv: Sequence[str] | None = None) -> None:
    """Print what is measured."""
    parser = command_line("data.measure", __doc__)
    parser.add_argument("record", nargs="+", help="recordings: WFDB records")
    parser.add_argument("--names", type=home_expanded, help="CSV table (SNOMEDCTCode, Dx) to print labels by name")
    args = parser.parse_args(argv)

    from data.measure import as_text, measure_many
    from data.readers import read_ecg

    names: dict[str, str] = {}
    if args.names:
        with args.names.open(encoding="utf-8-sig", newline="") as table:
            rows = csv.DictReader(table)
            if missing := {"SNOMEDCTCode", "Dx"} - set(rows.fieldnames or ()):
                raise ValueError(f"{args.names} has no column {min(missing)}: --names wants SNOMEDCTCode and Dx")
            names = {row["SNOMEDCTCode"]: row["Dx"] for row in rows}
    ecgs = {path: read_ecg(path, nan="interpolate") for path in dict.fromkeys(args.record)}
    for (path, ecg), measured in zip(ecgs.items(), measure_many(ecgs, ecgs)):
        labels = ", ".join(names.get(code, code) for code in ecg.meta.get("dx", ()))
        quality = measured.quality + (f" ({measured.reason})" if measured.reason else "")
        sys.stdout.write(f"{path}\n  {as_text(measured)}\n  quality: {quality}; labels: {labels or 'none'}\n")


if __name__ == "__main__":
    main()
