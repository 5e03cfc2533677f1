"""The linear-probe protocol of ECG encoder papers, for any encoder: six tasks, 1, 10 and 100 % of the training data.

    python -m eval.probe --task ptbxl-super --ptbxl data/ptbxl --encoder fuyingw/MELP_Encoder
    python -m eval.probe --task ptbxl-rhythm --ptbxl data/ptbxl --rate 100 --encoder out/heartlang --encoder ecg_cnn
    python -m eval.probe --task cpsc2018 --cpsc2018 data/cpsc_2018 --splits data/splits --encoder out/heartlang
    python -m eval.probe --train_task ptbxl-all --test_task cpsc2018 --ptbxl data/ptbxl --cpsc2018 data/cpsc_2018 \
--splits data/splits --encoder fuyingw/MELP_Encoder
    python -m eval.probe --task ptbxl-super --ptbxl data/ptbxl --encoder out/heartlang --finetune

Tasks: ptbxl-super, ptbxl-sub, ptbxl-form, ptbxl-rhythm, cpsc2018, csn; and, for transfer, ptbxl-all (every statement)
and csn-stated (labels by the diagnoses, as the published columns have some too many).

The encoder is frozen; each recording becomes one vector; a penalised logistic regression per class is fitted to the
training records, its strength chosen on the validation split. Beside each encoder stands the same architecture with
random weights, which is a strong baseline, and the difference in the same resamples of test patients. With --finetune
the whole encoder is trained instead, and so is the one with random weights. docs/probe.md says it all.

Writes probe.json and probe.md. Research use only; not a medical device.
"""

import logging
from collections.abc import Sequence

from data.support.commands import parse
from data.support.status import command
from eval.probing.settings import ProbeSettings


@command(smaller="lower --batch_size, which goes with --finetune")
def main(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    settings = parse(ProbeSettings, "eval.probe", __doc__, argv)

    from eval.probing.probe import run
    from eval.probing.text import probe_text, write

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    numbers = run(settings)
    write(settings.output, "probe", numbers, probe_text(numbers))


if __name__ == "__main__":
    main()
