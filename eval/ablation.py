"""Does a model read the ECG, or does it guess from the question? Asks the same questions about other ECGs, and judges.

    python -m eval.ablation --model out/sft-llava
    python -m eval.ablation --model out/sft-llava --full --gate reads
    python -m eval.ablation --model out/sft-llava --server http://127.0.0.1:8000/v1 --served_name ecg
    python -m eval.ablation --model out/sft-llava --rescore

Every held-out question of the model's data set is asked about its own ECG (`real`), about another patient's (`swap`),
about one whose right answer differs (`swap-flip`), with zeros (`zero`) and with none (`none`); `--full` adds the other
conditions of `data/experiment/conditions.py`, a dose-response on simulated patients, and the ladder from encoder to
answer. The verdict follows the rule in docs/audit.md.

Writes `report.html` (one page, for reading), `report.md`, `report.json`, figures and `predictions.jsonl` (one line per
question and condition) into `MODEL/ablation`, and the verdict into the model's card. Interrupted, it goes on where it
stopped when started again. Research use only; not a medical device.
"""

import logging
import sys
from collections.abc import Sequence

from data.support.commands import parse
from data.support.status import command
from eval.audit.settings import GATES, AuditSettings


@command(smaller="lower --batch_size", resumes=True)
def main(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    settings = parse(AuditSettings, "eval.ablation", __doc__, argv)

    from eval.audit.run import run
    from eval.report.headline import finding
    from eval.report.write import table

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    report = run(settings)
    print(f"\n{table(report.overall)}\n\n{finding(report)}\n")
    print(f"To read: {settings.folder / 'report.html'}; all answers: {settings.folder / 'predictions.jsonl'}")
    if settings.gate and (report.verdict is None or report.verdict.verdict not in GATES[settings.gate]):
        sys.stdout.flush()
        sys.stderr.write(f"the verdict is not {settings.gate!r}\n")
        raise SystemExit(1)


if __name__ == "__main__":
    main()
