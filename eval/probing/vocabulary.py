"""Are an ECG's tokens words that a language model can tell apart? Measures the rows that stand for them.

    python -m eval.vocabulary
    python -m eval.vocabulary --model meta-llama/Llama-3.2-1B-Instruct --tokenizer ecg_byte_tokenizer_10000.pkl
    python -m eval.vocabulary --model out/ecg-byte

The rows of ECG-Byte's tokens are compared as three kinds begin or end: as upstream makes them
(`resize_token_embeddings`, which draws copies of the mean row), as they begin here
(`elm.model.vocabulary.content_rows`) and, of a model that was trained here, as they were learned. The words beside them
say what is usual.

Cosines are of 20,000 random pairs of rows. Taken from the mean row they say nothing of how far off it the rows are:
`off mean` does, in units of the words' own distance. Then the language model reads the tokens of a recording between
random words, and the recording is exchanged for another patient's with as many tokens: by how much do the logits of the
next word move, in parts of their length? Random words in that place, exchanged for as many others, are the measure.

Without --model it is a small Llama with random weights, without --tokenizer tokens are learned from the simulated ECGs
that are exchanged. A model's own tokenizer, where it was trained here, need not be named.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from data.support.commands import command_line

if TYPE_CHECKING:  # torch and transformers take seconds to import, which `--help` need not wait for
    import torch
    from torch import Tensor

    from encoders.ecg_byte import EcgByteTokenizer

QUANTILES = (0.0, 0.05, 0.5, 0.95, 1.0)
FRAME = 16  # words before the exchanged tokens, and behind them
WORDS, HIDDEN, LAYERS = 4096, 256, 4  # of the small Llama
MERGES, RECORDINGS = 1000, 40  # of a tokenizer that is learned here


@dataclass(frozen=True)
class Measured:
    """What is found of a set of rows.

    Attributes:
        raw: Cosines of random pairs of rows, at `QUANTILES`.
        centred: The same with the mean row taken away.
        off_mean: Median distance of a row from their mean, in units of the words'.
        moved: Relative change of the last logits when what is read of these rows is exchanged, the median of pairs.
        least: The least of the pairs.
        most: The greatest.
    """

    raw: tuple[float, ...]
    centred: tuple[float, ...]
    off_mean: float
    moved: float
    least: float
    most: float


def relative_changes(language: Any, pairs: Sequence[tuple[Sequence[int], Sequence[int]]], words: int) -> list[float]:
    """How far the last logits of two readings are apart, in parts of the length of the first's.

    Args:
        language: A causal language model.
        pairs: Two sequences of ids of one length each; they are read between the same words.
        words: Ids below are words. Frame and logits are of them alone.
    """
    import torch

    generator = torch.Generator().manual_seed(1)
    before, behind = torch.randint(words, (2, FRAME), generator=generator)
    found = []
    for pair in pairs:
        ids = torch.stack([torch.cat([before, torch.as_tensor(body), behind]) for body in pair])
        with torch.no_grad():
            logits = language(input_ids=ids.to(language.device)).logits[:, -1, :words].double()
        found.append(float((logits[1] - logits[0]).norm() / logits[0].norm()))
    return found


def measure(rows: Tensor, words: Tensor, changes: Sequence[float]) -> Measured:
    """The numbers of one set of rows `[N, H]` beside those of the words `[V, H]`, and of what its exchange changes."""
    rows, words = rows.float().cpu(), words.float().cpu()

    def distance(some: Tensor) -> float:
        return float((some - some.mean(0)).norm(dim=1).median())

    raw, centred = (tuple(np.quantile(_cosines(some), QUANTILES).tolist()) for some in (rows, rows - rows.mean(0)))
    moved = statistics.median(changes)
    return Measured(raw, centred, distance(rows) / distance(words), moved, min(changes), max(changes))


def _cosines(rows: Tensor, pairs: int = 20_000) -> NDArray[np.float32]:
    """Of random pairs of different rows: what tells rows that mean something from copies of one."""
    import torch

    rng = np.random.default_rng(0)
    first = rng.integers(len(rows), size=pairs)
    second = (first + rng.integers(1, len(rows), size=pairs)) % len(rows)
    unit = torch.nn.functional.normalize(rows.float(), dim=1)
    cosines: NDArray[np.float32] = (unit[first] * unit[second]).sum(1).numpy()
    return cosines


def compare(
    language: Any,
    byte: EcgByteTokenizer,
    words: int,
    trained: Tensor | None = None,
    *,
    tokens: int = 256,
    exchanges: int = 8,
) -> dict[str, Measured]:
    """All kinds of rows in one language model, whose table becomes as long as words and tokens need.

    Args:
        language: A causal language model. Its rows from `words` on are overwritten.
        byte: The tokenizer.
        words: How many rows are words.
        trained: Rows of the tokens as they were learned, in the order of the tokenizer's table.
        tokens: How many tokens of a recording are read; fewer where one of them has fewer.
        exchanges: How often a recording is exchanged.
    """
    import torch

    from data.synthetic import SyntheticCohort
    from elm.model.vocabulary import content_rows

    cohort = SyntheticCohort(2 * exchanges, records_per_patient=1, seed=1)
    number = {token: n for n, token in enumerate(byte.table.llm_order)}
    settings = byte.settings
    shown = [cohort.render(record, settings.sampling_rate) for record in cohort.records]
    read = [[words + number[token] for token in byte.encode(ecg)] for ecg in shown]
    length = min(tokens, *map(len, read))
    ecgs = [(a[:length], b[:length]) for a, b in zip(read[::2], read[1::2])]
    drawn = torch.randint(words, (exchanges, 2, length), generator=torch.Generator().manual_seed(0)).tolist()

    torch.manual_seed(0)  # upstream's rows are drawn
    language.resize_token_embeddings(words)  # rows without a token (padding) are none of anybody's words
    language.resize_token_embeddings(words + len(number))
    table = language.get_input_embeddings().weight.data
    known = table[:words].clone()
    kinds = {"upstream": table[words:].clone(), "content": content_rows(byte, known.cpu())}
    if trained is not None:
        kinds["trained"] = trained
    found = {"words": measure(known, known, relative_changes(language, [(a, b) for a, b in drawn], words))}
    for kind, rows in kinds.items():
        table[words:] = rows.to(table.device, table.dtype)
        found[kind] = measure(table[words:], known, relative_changes(language, ecgs, words))
    return found


LABELS = {
    "words": "words",
    "upstream": "upstream's rows",
    "content": "rows by content",
    "trained": "trained rows",
}


def table(found: dict[str, Measured]) -> list[str]:
    """Lines to print: two tables, and what they mean."""
    heads = "".join(f"{name:>9}" for name in ("min", "5 %", "median", "95 %", "max"))
    lines = [f"{'cosines of pairs':<34}{heads}{'off mean':>10}"]
    for kind, one in found.items():
        lines.append(f"{LABELS[kind]:<34}{''.join(f'{value:>9.4f}' for value in one.raw)}{one.off_mean:>10.2g}")
    for kind, one in found.items():
        lines.append(f"{LABELS[kind] + ', less their mean':<34}{''.join(f'{value:>9.4f}' for value in one.centred)}")
    usual = found["words"].moved
    lines += ["", f"{'logits moved by an exchange':<34}{'median':>9}{'least':>9}{'most':>9}{'of words':>10}"]
    for kind, one in found.items():
        numbers = "".join(f"{value:>9.2%}" for value in (one.moved, one.least, one.most))
        lines.append(f"{LABELS[kind]:<34}{numbers}{one.moved / usual:>10.2g}")
    ratios = [f"{one.moved / usual:.2g} with {LABELS[kind]}" for kind, one in found.items() if kind != "words"]
    lines += [
        "",
        f"Another patient's ECG moves the next word, in parts of what other words do: {', '.join(ratios)}.",
        "The smaller it is, the less is told of an ECG beside how many tokens it has.",
    ]
    return lines


# --- the command ------------------------------------------------------------------------------------------------------


def _tokenizer(path: Path | None) -> EcgByteTokenizer:
    """One that was saved here, a published table, or one that is learned from simulated ECGs."""
    import json

    from data.synthetic import SyntheticCohort
    from encoders.ecg_byte import EcgByteTokenizer

    if path is None:
        cohort = SyntheticCohort(RECORDINGS, records_per_patient=1)
        return EcgByteTokenizer.train([cohort[record] for record in cohort.records], MERGES, progress=False)
    ours = path.suffix == ".json" and "settings" in json.loads(path.read_text(encoding="utf-8"))
    return EcgByteTokenizer.load(path) if ours else EcgByteTokenizer.from_upstream(path)


def _small_llama(dtype: torch.dtype) -> Any:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=WORDS, hidden_size=HIDDEN, intermediate_size=2 * HIDDEN, num_hidden_layers=LAYERS,
        num_attention_heads=4, max_position_embeddings=4096, initializer_range=0.06, tie_word_embeddings=False,
    )  # fmt: skip
    return LlamaForCausalLM(config).to(dtype)


def main(argv: Sequence[str] | None = None) -> None:
    """Print the tables.

    Raises:
        ValueError: A tokenizer is named for a model that has its own, or there is none in the file.
    """
    parser = command_line("eval.vocabulary", __doc__)
    parser.add_argument("--model", help="a language model's folder or hub id, of words alone or trained here")
    parser.add_argument("--tokenizer", type=Path, help="what EcgByteTokenizer.save wrote, or a published table")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="(default %(default)s)")
    parser.add_argument("--tokens", type=_positive, default=256, help="of a recording (default %(default)s)")
    parser.add_argument("--exchanges", type=_positive, default=8, help="of a recording (default %(default)s)")
    args = parser.parse_args(argv)

    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from elm.inputs.processing import ElmProcessor
    from elm.model.configuration import ECG_VOCABULARY

    dtype, trained = getattr(torch, args.dtype), None
    if args.model is None:
        language, words, byte = _small_llama(dtype), WORDS, _tokenizer(args.tokenizer)
    else:
        language = AutoModelForCausalLM.from_pretrained(args.model, dtype=dtype)
        if (told := vars(language.config).get(ECG_VOCABULARY)) is None:
            words, byte = len(AutoTokenizer.from_pretrained(args.model)), _tokenizer(args.tokenizer)
        elif args.tokenizer is not None:
            raise ValueError(f"{args.model} has a tokenizer of its own: leave --tokenizer out")
        else:
            byte, words = ElmProcessor.from_pretrained(args.model).feature_extractor.byte, told["vocabulary_start"]
            count = len(byte.table.llm_order)
            trained = language.get_input_embeddings().weight.data[words : words + count].clone()
    language.eval().to("cuda" if torch.cuda.is_available() else "cpu")
    found = compare(language, byte, words, trained, tokens=args.tokens, exchanges=args.exchanges)
    who = args.model or f"a small Llama with random weights ({LAYERS} layers, hidden size {HIDDEN})"
    print(f"{who}, {args.dtype}: {words:,} words, {len(byte.table.llm_order):,} ECG tokens.\n")
    print("\n".join(table(found)))


def _positive(text: str) -> int:
    if (value := int(text)) < 1:
        raise argparse.ArgumentTypeError("must be 1 or more")
    return value


if __name__ == "__main__":
    main()
