"""PTB-XL's five super-classes: yes/no answers as a classifier's scores, beside a plain CNN on the same items.

    python -m eval.super_classes --model out/ecg-qa-ptbxl
    python -m eval.super_classes --model out/ecg-qa-ptbxl --ptbxl other/ptbxl --folds 10

All five questions are asked of every held-out record whose labels are known, and scored by log p(yes) − log p(no): no
question is easier for its usual answer, as it would be by accuracy. The CNN learns from the labels of the records that
the model was trained on. The same is asked about another patient's ECG, drawn without regard to age and sex, and in
flip pairs.

The audit of a model trained on PTB-XL's folds does this by itself; the command repeats it, on other recordings if need
be, and writes `super-classes.json` into `MODEL/ablation`. Research use only; not a medical device.
"""

import json
import logging
from collections.abc import Sequence

from data.support.commands import parse
from data.support.files import written_whole
from data.support.status import command
from eval.audit.settings import SuperClassSettings


@command()
def main(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    settings = parse(SuperClassSettings, "eval.super_classes", __doc__, argv)

    from eval.audit.super_classes import run
    from eval.report.write import super_classes_text

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    recordings, numbers = run(settings)
    with written_whole(settings.file, "w") as file:
        json.dump({"model": str(settings.model), "recordings": recordings, **numbers.to_json()}, file, indent=2)
    print(f"\n{super_classes_text(numbers)}\n\nWritten to {settings.file}")


if __name__ == "__main__":
    main()
