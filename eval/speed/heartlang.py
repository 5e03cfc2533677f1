"""HeartLang's tokenizer: milliseconds per recording in both modes, beside upstream's procedure.

    python -m eval.speed heartlang [--records 50] [--repeats 5]

Upstream calls wfdb's XQRS and cuts word by word. Recordings are simulated, 12 leads of 10 s at 100 Hz, and not filtered
in any of the ways. One thread; in every repeat all ways are timed one after the other, and a ratio is taken within it.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:  # `--help` need not wait for torch
    from data.ecg import Ecg

Floats = NDArray[np.float64]
Way = Callable[["Ecg"], object]


def looped_words(
    signal: Floats, beats: Sequence[int], channels: Sequence[int], fs: int = 100, words: int = 256, length: int = 96
) -> tuple[NDArray[np.float32], NDArray[np.int32], NDArray[np.int32]]:
    """Upstream's sentence, word by word.

    Args:
        signal: `[leads, samples]`.
        beats: Samples at which the beats are.
        channels: The number of each lead, from 1.
        fs: Sampling rate, Hz.
        words: Words of a sentence.
        length: Samples of a word.

    Returns:
        Words float32 `[words, length]`, the lead of each and its second, int32 `[words]` each.
    """
    samples, half = signal.shape[1], length // 2
    out = np.zeros((words, length), np.float32)
    in_chan, in_time = np.zeros(words, np.int32), np.zeros(words, np.int32)
    slot = 0
    for lead, channel in zip(signal, channels, strict=True):
        for i, beat in enumerate(beats):
            if slot == words:
                return out, in_chan, in_time
            start = max(beat - half, 0) if i == 0 else (beats[i - 1] + beat) // 2
            if i < len(beats) - 1:
                end = (beat + beats[i + 1]) // 2
            else:
                end = min(start + length, samples) if i == 0 else min(beat + half, samples)
            if end - start > length:
                start = max(beat - half, 0)
                end = min(start + length, samples)
            offset = max(half - (beat - start), 0)
            piece = lead[start:end][: length - offset]
            out[slot, offset : offset + len(piece)] = piece
            in_chan[slot], in_time[slot] = channel, beat // fs + 1
            slot += 1
    return out, in_chan, in_time


def tokenizer_rows(records: int) -> tuple[list[Ecg], dict[str, tuple[Way, str]]]:
    """Recordings, and what is timed over them: by its name, what it does with one and the name of its baseline."""
    from wfdb.processing import xqrs_detect

    from data.synthetic import SyntheticCohort
    from encoders.heartlang.feature_extraction import QrsTokenizer
    from encoders.heartlang.xqrs import find_beats

    cohort = SyntheticCohort(records, records_per_patient=1, seed=0)
    ecgs = [cohort[record] for record in cohort.records]
    parity, safe = QrsTokenizer(mode="parity", filter=None), QrsTokenizer(filter=None)
    beats = {ecg.record_id: find_beats(ecg.signal[0].astype(np.float64), 100).tolist() for ecg in ecgs}

    def float64(ecg: Ecg) -> Floats:
        return ecg.signal.astype(np.float64)

    def upstream(ecg: Ecg) -> Any:
        return looped_words(float64(ecg), xqrs_detect(float64(ecg)[0], fs=100, verbose=False), range(1, 13))

    return ecgs, {
        "upstream, all": (upstream, ""),
        "upstream, XQRS": (lambda ecg: xqrs_detect(float64(ecg)[0], fs=100, verbose=False), ""),
        "upstream, cutting": (lambda ecg: looped_words(float64(ecg), beats[ecg.record_id], range(1, 13)), ""),
        "parity, all": (parity.sentence, "upstream, all"),
        "parity, XQRS": (lambda ecg: find_beats(float64(ecg)[0], 100), "upstream, XQRS"),
        "parity, cutting": (lambda ecg: parity.cut(float64(ecg), beats[ecg.record_id]), "upstream, cutting"),
        "safe, all": (safe.sentence, "upstream, all"),
        "safe, with the filter": (QrsTokenizer().sentence, "upstream, all"),
    }


def timed(ecgs: Sequence[Ecg], rows: dict[str, tuple[Way, str]], repeats: int) -> dict[str, list[float]]:
    """Milliseconds per recording of every row, in each repeat; the first round warms up and is not timed."""
    times: dict[str, list[float]] = {name: [] for name in rows}
    for repeat in range(repeats + 1):
        for name, (run, _) in rows.items():
            start = time.perf_counter()
            for ecg in ecgs:
                run(ecg)
            if repeat:
                times[name].append((time.perf_counter() - start) / len(ecgs) * 1000)
    return times


def show(rows: dict[str, tuple[Way, str]], times: dict[str, list[float]]) -> None:
    """Print a table: medians, and the median of the ratios to the baseline with the least and the greatest."""
    print(f"{'':<28}{'ms/record':>12}{'ratio':>10}")
    for name, (_, baseline) in rows.items():
        line = f"{name:<28}{statistics.median(times[name]):>12.3g}"
        if baseline:
            ratios = sorted(base / here for base, here in zip(times[baseline], times[name], strict=True))
            line += f"{statistics.median(ratios):>9.3g}x  ({ratios[0]:.3g}-{ratios[-1]:.3g}) of {baseline}"
        print(line)


def main(argv: Sequence[str]) -> None:
    """Print a table of the tokenizer's times."""
    parser = argparse.ArgumentParser(prog="python -m eval.speed heartlang", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--records", type=int, default=50, help="ECGs (default %(default)s)")
    parser.add_argument("--repeats", type=int, default=5, help="times all is timed (default %(default)s)")
    args = parser.parse_args(argv)

    import torch

    torch.set_num_threads(1)
    ecgs, rows = tokenizer_rows(args.records)
    print(f"tokenizer: {args.records} ECGs, one thread; medians of {args.repeats} repeats")
    show(rows, timed(ecgs, rows, args.repeats))
