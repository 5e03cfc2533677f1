"""The rows of a language model's table that stand for ECG-Byte's tokens, beside those of words."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedModel

from data.support.files import read_json
from data.synthetic import SyntheticCohort
from elm.inputs.processing import ElmProcessor
from elm.model.configuration import ECG_VOCABULARY
from elm.model.vocabulary import content_rows
from encoders.ecg_byte import EcgByteTokenizer
from eval.probing.settings import VocabularySettings

QUANTILES = (0.0, 0.05, 0.5, 0.95, 1.0)
FRAME = 16  # words before the exchanged tokens, and behind them
WORDS, HIDDEN, LAYERS = 4096, 256, 4  # of the small Llama
MERGES, RECORDINGS = 1000, 40  # of a tokenizer that is learned here
LABELS = {"words": "words", "upstream": "upstream's rows", "content": "rows by content", "trained": "trained rows"}


@dataclass(frozen=True)
class Measured:
    """Numbers of a set of rows.

    `moved` is the relative change of the last logits when what is read of these rows is exchanged: the median of
    pairs, beside the least and the most.
    """

    raw: tuple[float, ...]  # cosines of random pairs of rows, at `QUANTILES`
    centred: tuple[float, ...]  # the same with the mean row taken away
    off_mean: float  # median distance of a row from their mean, in units of the words'
    moved: float
    least: float
    most: float


def run(settings: VocabularySettings) -> list[str]:
    """Lines to print about a language model and a tokenizer.

    Raises:
        ValueError: A tokenizer is named for a model that has its own, or there is none in the file.
    """
    dtype, trained, name = getattr(torch, settings.dtype), None, settings.model
    if name is None:
        language, words, byte = _small_llama(dtype), WORDS, _tokenizer(settings.tokenizer)
    else:
        language = AutoModelForCausalLM.from_pretrained(name, dtype=dtype)
        if (ours := vars(language.config).get(ECG_VOCABULARY)) is None:
            words, byte = len(AutoTokenizer.from_pretrained(name)), _tokenizer(settings.tokenizer)
        elif settings.tokenizer is not None:
            raise ValueError(f"{name} has a tokenizer of its own: leave --tokenizer out")
        else:
            byte, words = ElmProcessor.from_pretrained(name).feature_extractor.byte, ours["vocabulary_start"]
            trained = _table(language)[words : words + len(byte.table.llm_order)].clone()
    language.eval().to("cuda" if torch.cuda.is_available() else "cpu")
    measured = compare(language, byte, words, trained, tokens=settings.tokens, exchanges=settings.exchanges)
    who = name or f"a small Llama with random weights ({LAYERS} layers, hidden size {HIDDEN})"
    about = f"{who}, {settings.dtype}: {words:,} words, {len(byte.table.llm_order):,} ECG tokens.\n"
    return [about, *table(measured)]


def _tokenizer(path: Path | None) -> EcgByteTokenizer:
    """One that was saved here, a published table, or one that is learned from simulated ECGs."""
    if path is None:
        cohort = SyntheticCohort(RECORDINGS, records_per_patient=1)
        return EcgByteTokenizer.train([cohort[record] for record in cohort.records], MERGES, progress=False)
    ours = path.suffix == ".json" and "settings" in read_json(path)
    return EcgByteTokenizer.load(path) if ours else EcgByteTokenizer.from_upstream(path)


def _small_llama(dtype: torch.dtype) -> PreTrainedModel:
    torch.manual_seed(0)
    sizes = {"vocab_size": WORDS, "hidden_size": HIDDEN, "intermediate_size": 2 * HIDDEN, "num_hidden_layers": LAYERS}
    layout = {"num_attention_heads": 4, "max_position_embeddings": 4096, "tie_word_embeddings": False}
    return LlamaForCausalLM(LlamaConfig(**sizes, **layout, initializer_range=0.06)).to(dtype)


def compare(
    language: PreTrainedModel,
    byte: EcgByteTokenizer,
    words: int,
    trained: Tensor | None = None,
    *,
    tokens: int = 256,
    exchanges: int = 8,
) -> dict[str, Measured]:
    """All kinds of rows in one language model, whose table becomes as long as words and tokens need.

    The first `words` rows are words; those behind them are overwritten. `trained` are rows of the tokens as they were
    learned, in the order of the tokenizer's table. So many `tokens` of a recording are read, fewer where one has fewer.
    """
    cohort = SyntheticCohort(2 * exchanges, records_per_patient=1, seed=1)
    number = {token: n for n, token in enumerate(byte.table.llm_order)}
    ecgs = [cohort.render(record, byte.settings.sampling_rate) for record in cohort.records]
    read = [[words + number[token] for token in byte.encode(ecg)] for ecg in ecgs]
    length = min(tokens, *map(len, read))
    ecg_pairs = [(a[:length], b[:length]) for a, b in zip(read[::2], read[1::2])]
    word_pairs = torch.randint(words, (exchanges, 2, length), generator=torch.Generator().manual_seed(0)).tolist()

    torch.manual_seed(0)  # upstream's rows are drawn
    language.resize_token_embeddings(words)  # rows without a token (padding) are none of anybody's words
    language.resize_token_embeddings(words + len(number))
    rows_of = _table(language)
    word_rows = rows_of[:words].clone()
    kinds = {"upstream": rows_of[words:].clone(), "content": content_rows(byte, word_rows.cpu())}
    kinds |= {} if trained is None else {"trained": trained}
    measured = {"words": measure(word_rows, word_rows, relative_changes(language, word_pairs, words))}
    for kind, rows in kinds.items():
        rows_of[words:] = rows.to(rows_of.device, rows_of.dtype)
        measured[kind] = measure(rows_of[words:], word_rows, relative_changes(language, ecg_pairs, words))
    return measured


def _table(language: PreTrainedModel) -> Tensor:
    """Rows of all ids `[V, H]`; what is written into them is the model's."""
    return cast(nn.Embedding, language.get_input_embeddings()).weight.data


def relative_changes(
    language: PreTrainedModel, pairs: Sequence[tuple[Sequence[int], Sequence[int]]], words: int
) -> list[float]:
    """How far the last logits of two readings are apart, in parts of the length of the first's.

    Each pair are two sequences of ids of one length, read between the same words. Ids below `words` are words; frame
    and logits are of them alone.
    """
    before, behind = torch.randint(words, (2, FRAME), generator=torch.Generator().manual_seed(1))
    changes = []
    for pair in pairs:
        ids = torch.stack([torch.cat([before, torch.as_tensor(body), behind]) for body in pair])
        with torch.no_grad():
            logits = language(input_ids=ids.to(language.device)).logits[:, -1, :words].double()
        changes.append(float((logits[1] - logits[0]).norm() / logits[0].norm()))
    return changes


def measure(rows: Tensor, words: Tensor, changes: Sequence[float]) -> Measured:
    """Numbers of one set of rows `[N, H]` beside the words `[V, H]`, and of what its exchange changes."""
    rows, words = rows.float().cpu(), words.float().cpu()
    raw, centred = (tuple(np.quantile(_cosines(some), QUANTILES).tolist()) for some in (rows, rows - rows.mean(0)))
    distance, usual = (float((some - some.mean(0)).norm(dim=1).median()) for some in (rows, words))
    return Measured(raw, centred, distance / usual, statistics.median(changes), min(changes), max(changes))


def _cosines(rows: Tensor, pairs: int = 20_000) -> NDArray[np.float32]:
    """Cosines of random pairs of different rows: what tells rows that mean something from copies of one."""
    rng = np.random.default_rng(0)
    first = rng.integers(len(rows), size=pairs)
    second = (first + rng.integers(1, len(rows), size=pairs)) % len(rows)
    unit = nn.functional.normalize(rows.float(), dim=1)
    return np.asarray((unit[first] * unit[second]).sum(1).numpy(), dtype=np.float32)


def table(measured: Mapping[str, Measured]) -> list[str]:
    """Lines to print: two tables, and what they mean."""
    heads = "".join(f"{name:>9}" for name in ("min", "5 %", "median", "95 %", "max"))
    lines = [f"{'cosines of pairs':<34}{heads}{'off mean':>10}"]
    for kind, one in measured.items():
        lines.append(f"{LABELS[kind]:<34}{''.join(f'{value:>9.4f}' for value in one.raw)}{one.off_mean:>10.2g}")
    for kind, one in measured.items():
        lines.append(f"{LABELS[kind] + ', less their mean':<34}{''.join(f'{value:>9.4f}' for value in one.centred)}")
    usual = measured["words"].moved
    lines += ["", f"{'logits moved by an exchange':<34}{'median':>9}{'least':>9}{'most':>9}{'of words':>10}"]
    for kind, one in measured.items():
        numbers = "".join(f"{value:>9.2%}" for value in (one.moved, one.least, one.most))
        lines.append(f"{LABELS[kind]:<34}{numbers}{one.moved / usual:>10.2g}")
    ratios = [f"{one.moved / usual:.2g} with {LABELS[kind]}" for kind, one in measured.items() if kind != "words"]
    meaning = f"Another patient's ECG moves the next word, in parts of what other words do: {', '.join(ratios)}."
    return [*lines, "", meaning, "The smaller it is, the less is told of an ECG beside how many tokens it has."]
