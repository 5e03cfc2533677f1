"""Ask a saved model one question about one recording, or about several to compare.

    python -m elm.ask out/sft-llava out/sft-llava/examples/s02000-1 "Is this a normal ECG?"
    python -m elm.ask out/sft-llava FIRST SECOND "Is there new atrial fibrillation in the second ECG?"

A recording is a WFDB record (the name its files share), or a .npy or .csv file with --fs, --units and --leads.
Research use only; not a medical device.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from data.support.commands import command_line
from data.support.status import command

if TYPE_CHECKING:  # torch and transformers take seconds to import, which --help need not wait for
    from data.ecg import Ecg
    from elm import ElmForConditionalGeneration, ElmProcessor


def ask(
    model: ElmForConditionalGeneration,
    processor: ElmProcessor,
    ecgs: Sequence[Ecg],
    question: str,
    max_new_tokens: int = 128,
) -> str:
    """The model's greedy answer to one question about recordings, which it speaks of in this order."""
    import torch

    from data.conversations.rows import user

    inputs = processor([user(len(ecgs), question)], ecgs or None, add_generation_prompt=True)
    inputs = inputs.to(model.device, model.dtype)  # casts the signal, not the ids
    with torch.inference_mode():
        tokens = model.generate(**inputs, do_sample=False, max_new_tokens=max_new_tokens)
    answer = tokens[0, inputs["input_ids"].shape[1] :]
    return str(processor.tokenizer.decode(answer, skip_special_tokens=True)).strip()


@command()
def main(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = command_line("elm.ask", __doc__)
    parser.add_argument("model", type=os.path.expanduser, help="folder of a trained model, or its hub id")
    parser.add_argument("record", nargs="+", help="recordings, in the order the question speaks of them")
    parser.add_argument("question", help="what to ask")
    parser.add_argument("--fs", type=float, help="sampling rate in Hz, where the file does not say")
    parser.add_argument("--units", help="units of the samples (mV, uV, ...), where the file does not say")
    parser.add_argument("--leads", nargs="+", help="names of the leads in order, where the file does not say")
    parser.add_argument("--max_new_tokens", type=int, default=128, help="where an answer is cut (default: 128)")
    args = parser.parse_args(argv)

    from data.readers import read_ecg

    ecgs = [read_ecg(path, fs=args.fs, units=args.units, leads=args.leads) for path in args.record]
    import elm

    model, processor = elm.load(args.model)
    answer = ask(model, processor, ecgs, args.question, args.max_new_tokens)
    sys.stdout.write(answer + "\n")


if __name__ == "__main__":
    main()
