"""Zero-shot classification: which words does a MELP with its text side find a recording to be like?

    python -m eval.zero_shot --model out/melp-tiny --task synthetic
    python -m eval.zero_shot --model out/melp/pretraining --task ptbxl-super --ptbxl data/ptbxl
    python -m eval.zero_shot --model melp.ckpt --tokenizer ncbi/MedCPT-Query-Encoder --task cpsc2018 \
--cpsc2018 data/cpsc_2018 --splits data/splits --prompts CKEPE_prompt.json
    python -m eval.zero_shot --model out/melp --prompt "atrial fibrillation" --prompt "sinus rhythm" --ecg a.hea b.hea
    python -m eval.zero_shot --model out/melp --prompt "atrial fibrillation" --task ptbxl-super --ptbxl data/ptbxl

Tasks are those of eval.probe (ptbxl-super, ptbxl-sub, ptbxl-form, ptbxl-rhythm, cpsc2018, csn, ptbxl-all, csn-stated)
and synthetic: findings of the simulated cohort's held-out patients.

Nothing is fitted: the score of a class is the cosine of the recording and of the class's prompt in lower case, and each
class is ranked by itself. The number is the macro AUROC on the test records. docs/zero_shot.md says it all.

What is published of MELP, fuyingw/MELP_Encoder, is the ECG tower alone and cannot do this.

Writes zero_shot.json and zero_shot.md. Research use only; not a medical device.
"""

import logging
from collections.abc import Sequence

from data.readers.options import join_lead_names
from data.support.commands import parse
from data.support.status import command
from eval.probing.settings import ZeroShotSettings


@command()
def main(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    settings = parse(ZeroShotSettings, "eval.zero_shot", __doc__, join_lead_names(argv))

    from eval.probing.text import score_text, write, zero_shot_text
    from eval.probing.zero_shot import run

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    numbers = run(settings)
    words = score_text(numbers) if settings.prompt else zero_shot_text(numbers)
    write(settings.output, "zero_shot", numbers, words)


if __name__ == "__main__":
    main()
