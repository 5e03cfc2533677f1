"""ECG-Byte: encoding a recording and learning a table, against upstream's procedures restated.

Upstream calls a Python function for every sample, then compiled code that builds a trie of all tokens for every
recording and counts all pairs again for every merge that it learns. The same steps in Python take about as long for
encoding, of which the function is the larger part, and many times as long for learning: that ratio is about the steps,
not about upstream's program. Ratios are taken within a repeat. Learning by upstream's steps takes time in proportion to
the recordings; it is timed over a few and scaled.
"""

import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from tqdm.auto import tqdm

from data.synthetic import SyntheticCohort
from encoders.ecg_byte import UPSTREAM, EcgByteTokenizer, TokenTable
from encoders.ecg_byte.training import learn_merges
from eval.speed import EcgByte
from eval.speed._rows import spread

T = TypeVar("T")

LEARNED, LEARNING_REPEATS = 1000, 3  # merges, and how often they are learned
SAMPLES = 500  # of each lead of a recording that is learned from
FEW = 3  # recordings that learning is restated over


def direct_encode(signal: NDArray[np.float32], merges: Iterable[tuple[Sequence[int], int]]) -> list[int]:
    """The ids of a recording `[leads, samples]` by upstream's steps: symbols one by one, a trie, the longest match."""
    low, high = signal.min(), signal.max()
    unit = np.clip((signal - low) / (high - low + 1e-6), 0, 1)
    levels = np.minimum(np.floor(unit * 26), 25).astype(np.uint8)
    text = "".join(np.vectorize(lambda level: chr(97 + level))(levels).ravel()).encode()
    trie: list[tuple[dict[int, int], int]] = [({}, -1)]  # children, token
    for content, token in [*(([byte], byte) for byte in range(256)), *merges]:
        node = 0
        for byte in content:
            children = trie[node][0]
            if byte not in children:
                children[byte] = len(trie)
                trie.append(({}, -1))
            node = children[byte]
        trie[node] = trie[node][0], token
    ids, start = [], 0
    while start < len(text):
        node, token, stop = 0, -1, start
        for at in range(start, len(text)):
            child = trie[node][0].get(text[at])
            if child is None:
                break
            node = child
            if trie[node][1] >= 0:
                token, stop = trie[node][1], at + 1
        ids.append(token)
        start = stop
    return ids


def direct_learn(levels: Iterable[int], merges: int) -> list[str]:
    """The strings of merges by upstream's steps: all pairs are counted for each; of ties our own rule's."""
    sequence, strings = list(levels), [chr(97 + level) for level in range(26)]
    for _ in range(merges):
        counts = Counter(zip(sequence, sequence[1:]))
        pair = min(counts, key=lambda pair: (-counts[pair], pair))
        merged, at = [], 0
        while at < len(sequence):
            is_pair = tuple(sequence[at : at + 2]) == pair
            merged.append(len(strings) if is_pair else sequence[at])
            at += 2 if is_pair else 1
        strings.append(strings[pair[0]] + strings[pair[1]])
        sequence = merged
    return strings[26:]


def main(settings: EcgByte) -> None:
    """Print a table of two ratios, each the median of the repeats and their least and greatest.

    Raises:
        RuntimeError: Both ways give different ids.
    """
    cohort = SyntheticCohort(max(settings.recordings, FEW), records_per_patient=1, fs=250, seconds=10)
    signals = [cohort[record].signal for record in tqdm(cohort.records, desc="Simulating", unit="recording")]
    untrained = EcgByteTokenizer(TokenTable(()), UPSTREAM)
    pieces = [row for signal in signals for row in untrained.levels(signal[:, :SAMPLES])]
    few = np.concatenate(pieces[: 12 * FEW]).tolist()
    if settings.table:
        tokenizer = EcgByteTokenizer.from_upstream(settings.table)
    else:
        tokenizer = EcgByteTokenizer(TokenTable(learn_merges(pieces, settings.merges, across=True)), UPSTREAM)
    merges = [(list(merge.encode()), 256 + i) for i, merge in enumerate(tokenizer.table.merges)]

    encoding, learning = [], []
    for i in tqdm(range(settings.repeats), desc="Encoding", unit="recording"):
        signal = signals[i % len(signals)]
        tokenizer.encode(signal)  # the first time builds tables
        ours, ids = _timed(partial(tokenizer.encode, signal))
        direct, expected = _timed(partial(direct_encode, signal, merges))
        if ids != expected:
            raise RuntimeError(f"recording {i} has other ids than upstream's steps give")
        encoding.append((ours * 1e3, direct * 1e3))
    for _ in tqdm(range(LEARNING_REPEATS), desc="Learning", unit="table"):
        ours, _ = _timed(lambda: learn_merges(pieces, LEARNED, across=True, progress=False))
        direct, _ = _timed(lambda: direct_learn(few, LEARNED))
        learning.append((ours, direct * len(signals) / FEW))

    print(f"{len(merges):,} merges. Medians of {settings.repeats} and {LEARNING_REPEATS} repeats; least and")
    print(f"greatest ratio in brackets. Upstream's steps of learning are timed over {FEW} recordings and scaled.")
    print(f"{'':<44}{'here':>12}{'upstream':>12}{'ratio':>9}")
    learned = f"learn {LEARNED} merges, {len(signals)} x 12 x {SAMPLES}"
    for name, unit, pairs in ((f"encode 12 x {signals[0].shape[1]}", "ms", encoding), (learned, "s", learning)):
        ours, direct = (statistics.median(side) for side in zip(*pairs, strict=True))
        ratio = spread(upstream / ours for ours, upstream in pairs)
        print(f"{name:<44}{ours:>9.3g} {unit:<2}{direct:>9.3g} {unit:<2}{ratio}")


def _timed(run: Callable[[], T]) -> tuple[float, T]:
    start = time.perf_counter()
    result = run()
    return time.perf_counter() - start, result
