"""HeartLang: milliseconds per recording for its tokenizer, beside upstream's procedure, and for its encoder.

Upstream calls wfdb's XQRS and cuts word by word; its encoder is restated as plainly as it is written there. Recordings
are simulated, 12 leads of 10 s at 100 Hz, and not filtered in any of the ways; the encoder has the published size and
random weights. CPU time of one thread; a ratio is taken within a repeat (`eval.speed._rows.report`).
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from numpy.typing import NDArray
from torch import Tensor
from wfdb.processing import xqrs_detect

from data.ecg import Ecg
from data.synthetic import SyntheticCohort
from encoders.heartlang import HeartLangConfig, HeartLangModel
from encoders.heartlang.feature_extraction import QrsTokenizer
from encoders.heartlang.xqrs import find_beats
from eval.speed import HeartLang, _rows
from eval.speed._rows import Rows, report

Floats = NDArray[np.float64]


def looped_words(
    signal: Floats, beats: Sequence[int], channels: Sequence[int], fs: int = 100, words: int = 256, length: int = 96
) -> tuple[NDArray[np.float32], NDArray[np.int32], NDArray[np.int32]]:
    """Upstream's sentence of a signal `[leads, samples]`, word by word; `channels` numbers its leads, from 1.

    That is words float32 `[words, length]`, the lead of each and its second, int32 `[words]` each.
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


def tokenizer_rows(records: int) -> tuple[list[Ecg], Rows]:
    """Recordings, and what is timed over them: by its name, what it does with one and the name of its baseline."""
    cohort = SyntheticCohort(records, records_per_patient=1, seed=0)
    ecgs = [cohort[record] for record in cohort.records]
    parity, safe = QrsTokenizer(mode="parity", filter=None), QrsTokenizer(filter=None)
    beats = {ecg.record_id: find_beats(ecg.signal[0].astype(np.float64), 100).tolist() for ecg in ecgs}

    def float64(ecg: Ecg) -> Floats:
        return ecg.signal.astype(np.float64)

    xqrs = partial(xqrs_detect, fs=100, verbose=False)
    return ecgs, {
        "upstream, all": (lambda ecg: looped_words(float64(ecg), xqrs(float64(ecg)[0]), range(1, 13)), ""),
        "upstream, XQRS": (lambda ecg: xqrs(float64(ecg)[0]), ""),
        "upstream, cutting": (lambda ecg: looped_words(float64(ecg), beats[ecg.record_id], range(1, 13)), ""),
        "parity, all": (parity.sentence, "upstream, all"),
        "parity, XQRS": (lambda ecg: find_beats(float64(ecg)[0], 100), "upstream, XQRS"),
        "parity, cutting": (lambda ecg: parity.cut(float64(ecg), beats[ecg.record_id]), "upstream, cutting"),
        "safe, all": (safe.sentence, "upstream, all"),
        "safe, with the filter": (QrsTokenizer().sentence, "upstream, all"),
    }


def plain_encoder(model: HeartLangModel, words: Tensor, in_chan: Tensor, in_time: Tensor) -> Tensor:
    """What upstream's network computes with these weights, an operation at a time: CLS and words `[B, 257, 768]`.

    `words` are `[B, 256, 96]`, their leads and seconds `[B, 256]`.
    """
    net: Any = model.backbone
    heads, layers = model.config.num_attention_heads, net.transformer.layers
    around = F.pad(words.mT, (1, 1), mode="circular")
    x = F.conv1d(around, net.token_embed.tokenConv.weight).mT
    x = x + net.spa_embed.embed(in_chan) + net.tem_embed.embed(in_time)
    x = torch.cat([net.cls_token.expand(len(x), 1, -1), x], dim=1) + net.pos_embed
    for attention, feed_forward in layers:
        parts = attention.to_qkv(attention.norm(x)).chunk(3, dim=-1)
        q, k, v = (part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in parts)
        weights = (q @ k.mT * model.config.head_dim**-0.5).softmax(dim=-1)
        x = attention.to_out((weights @ v).transpose(1, 2).flatten(2)) + x
        x = feed_forward.net(x) + x
    out: Tensor = net.norm_layer(x)
    return out


def encoder_rows(batch: int, config: HeartLangConfig | None = None) -> tuple[tuple[Tensor, ...], Rows]:
    """A batch of sentences, and what is timed over it.

    Raises:
        RuntimeError: The encoder and its restatement do not give the same.
    """
    torch.manual_seed(0)
    model = HeartLangModel(config or HeartLangConfig()).eval()
    cohort = SyntheticCohort(batch, records_per_patient=1, seed=0)
    sentences = QrsTokenizer(filter=None)([cohort[record] for record in cohort.records])
    inputs = tuple(sentences[name] for name in ("words", "in_chan", "in_time"))
    rows = _rows.encoder_rows(model, lambda *x: {"words": plain_encoder(model, *x)}, inputs, atol=2e-4, rtol=1e-3)
    return inputs, rows


def time_tokenizer(records: int, repeats: int) -> None:
    """Print a table of the tokenizer's times."""
    ecgs, rows = tokenizer_rows(records)
    report(f"tokenizer: {records} ECGs, one thread", ecgs, rows, repeats, records)


def time_encoder(batch: int, repeats: int, config: HeartLangConfig | None = None) -> None:
    """Print a table of the encoder's times; of the published size unless a configuration says otherwise."""
    inputs, rows = encoder_rows(batch, config)
    report(f"encoder: batch {batch}, one thread", [inputs], rows, repeats, batch)


def main(settings: HeartLang) -> None:
    """Print both tables."""
    torch.set_num_threads(1)
    time_tokenizer(settings.records, settings.repeats)
    print()
    time_encoder(settings.batch, settings.repeats)
