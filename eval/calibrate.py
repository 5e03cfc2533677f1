"""How often is the audit's verdict wrong? Judges answerers whose reading is known, in many simulated audits.

    python -m eval.calibrate
    python -m eval.calibrate --audits 1000 --sizes 2000x200

Each audit draws yes/no questions in groups of attributes, patients (with several questions each), right answers, and
flip pairs; then every answerer of `eval/audit/calibrate.py` answers, and `eval.scoring.verdict` judges. The questions
are unbalanced: of some, 90 % have one answer, so that a guesser is right as often as a middling reader.

Prints the share of audits that end in each verdict. docs/audit.md shows the table and states the rule.
"""

from collections.abc import Sequence

from data.support.commands import parse
from data.support.status import command
from eval.audit.settings import CalibrateSettings


@command()
def main(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    settings = parse(CalibrateSettings, "eval.calibrate", __doc__, argv)

    from eval.audit.calibrate import calibrate, table

    print(table(calibrate(settings)))
    print(f"\nPer cent of {settings.audits} simulated audits of each size.")


if __name__ == "__main__":
    main()
