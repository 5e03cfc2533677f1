"""Ask a saved model one question about one recording, or about several to compare.

    python -m elm.ask out/sft-llava out/sft-llava/examples/s02000-1 "Is this a normal ECG?"
    python -m elm.ask out/sft-llava FIRST SECOND "Is there new atrial fibrillation in the second ECG?"

A recording is a WFDB record (the name its files share), or a .npy or .csv file with --fs, --units and --leads.
What is wrong with it, and which seconds of it are read, is said on stderr; the answer alone is on stdout.
Research use only; not a medical device.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from data.quality import require_readable
from data.readers.options import ReadOptions, join_lead_names, numbers
from data.support.commands import add_options, command_line, settings_from
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
    """The model's greedy answer to one question about recordings, which it speaks of in this order.

    Raises:
        ValueError: Nothing can be read in a recording, or it lacks leads that the encoder needs; names it.
    """
    import torch

    from data.conversations.rows import user

    for ecg in ecgs:
        require_readable(ecg)
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
    add_options(parser, ReadOptions)
    parser.add_argument("--start", type=numbers, metavar="S", default=(), help="first second to read, or of each: 0,20")
    parser.add_argument("--max_new_tokens", type=int, default=128, help="where an answer is cut (default: 128)")
    args = parser.parse_intermixed_args(join_lead_names(argv))
    if not args.question.strip():
        parser.error("the question is empty")

    ecgs = [settings_from(ReadOptions, args).read(path) for path in args.record]
    import elm
    from elm.inputs.recordings import as_read

    model, processor = elm.load(args.model)
    ecgs, remarks = as_read(ecgs, processor, args.start, "--start chooses others")
    sys.stderr.writelines(f"{remark}\n" for remark in remarks)
    answer = ask(model, processor, ecgs, args.question, args.max_new_tokens)
    sys.stdout.write(answer + "\n")


if __name__ == "__main__":
    main()
