"""What a recording becomes before HeartLang sees it: a sentence of heart beats, lead after lead.

Source: QRS-Tokenizer of HeartLang (Jin et al., "Reading Your Heart", ICLR 2025, arXiv 2502.10707; code MIT). It takes
beats from wfdb's XQRS on lead I, cuts 0.96 s around each out of all leads, and writes the words of the first lead, then
of the second, and so on. `mode="parity"` does that bit by bit.

`mode="safe"` takes the beats in which the leads agree (`agreed_beats`) and says what it met in `EcgSentence.flags`.
docs/encoders.md says why, and how well either does.
"""

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray

from data.ecg import LEADS, Ecg, canonical_lead
from data.signal import bandpass
from encoders.base import EcgFeatureExtractor, Features, TokenSpan, check_choice
from encoders.heartlang import upstream
from encoders.heartlang.beats import agreed_beats
from encoders.heartlang.configuration import HeartLangConfig
from encoders.heartlang.words import Array, Indices, Reading, Words, covered_by, cut, spans_of, windows_over

Mode = Literal["safe", "parity"]
Detection = Literal["one_lead", "per_lead"]
OnNan = Literal["refuse", "repair"]

VERSION = 1  # in cache keys: tests/test_versions.py says when to raise it
_UNCOVERED = 0.2  # of the recording; regular beats at 50 per minute leave as much
_CHUNK = 32  # recordings that a process takes at a time
_FLAGS = (
    *("repaired", "flat_leads", "noisy", "no_beats", "corrected"),
    *("thinned", "dropped_leads", "pauses", "off_centre", "uncovered"),
)
CutWords = tuple[NDArray[np.float32], NDArray[np.int32], NDArray[np.int32]]  # words, in_chan, in_time


@dataclass(frozen=True, eq=False)
class EcgSentence:
    """A recording as HeartLang reads it.

    Attributes:
        words: float32 `[max_words, word_length]`, lead after lead, zeros behind the last word.
        in_chan: int32 `[max_words]`, the lead of each word: 1 for I to 12 for V6, 0 for padding.
        in_time: int32 `[max_words]`, the second that the middle of each word is in, from 1; 0 for padding.
        beats: float64 `[N]`, times in s of all beats that were found, in ascending order; those that were thinned out
            are among them. In safe mode a beat is at the middle of its QRS complex; in parity mode, and where the leads
            do not agree, where XQRS puts it (commonly 60 ms before the R peak).
        beat_of_word: int64 `[W]`, which of `beats` each word of a lead is about, the same in every lead; -1 for a word
            about a stretch without a beat. Empty where each lead has beats of its own (`detection="per_lead"`).
        spans: float64 `[W, 2]`, first and last second of what each word of a lead holds, the same in every lead; empty
            as `beat_of_word` is.
        lead: The lead that XQRS looked at; empty where no lead has a signal.
        flags: What should be known of the recording, in this order:

            * `"repaired"`: samples that were not finite were replaced.
            * `"flat_leads"`: a lead is constant.
            * `"noisy"`: the leads do not agree where the beats are (one or two leads: beats do not stand out), so that
              they are those of XQRS on one lead and may be accidental. Safe mode only.
            * `"no_beats"`: no beat was found. In safe mode words are then windows side by side, in parity mode there
              are none.
            * `"corrected"`: of XQRS's beats some were left out that are none of all leads, or some of these were added.
            * `"thinned"`: there is not room for all beats: some, evenly over time, have no words in any lead.
            * `"dropped_leads"`: the same in parity mode: words of the last leads are missing, as in upstream.
            * `"pauses"`: words about stretches without a beat were added. Safe mode only.
            * `"off_centre"`: the beat of some word is not in its middle column, next to one much nearer than another.
            * `"uncovered"`: more than a fifth of the recording is in no word: a slow rhythm, or `"thinned"`.
    """

    words: NDArray[np.float32]
    in_chan: NDArray[np.int32]
    in_time: NDArray[np.int32]
    beats: Array
    beat_of_word: Indices
    spans: Array
    lead: str
    flags: tuple[str, ...] = ()

    @property
    def good(self) -> bool:
        """Whether every lead has a signal as it was recorded, and words are about beats that the leads agree on."""
        return not {"repaired", "flat_leads", "noisy", "no_beats", "dropped_leads"} & set(self.flags)


class QrsTokenizer(EcgFeatureExtractor):
    """Recordings to `words` float32 `[B, 256, 96]`, `in_chan` and `in_time` int32 `[B, 256]`, `token_mask` `[B, T]`.

    Leads by name, resampled by time, first `seconds`, band-pass, beats, words. A word is what lies between the middles
    of the intervals before and behind a beat, at most `word_length` samples; a longer one is cut around the beat. It
    stands in the word as the beat does in its middle column, with zeros around. Safe mode adds words about pauses that
    are longer than half a word, unless no lead moves in them, as far as there is room.

    Args:
        mode: `"safe"`, or `"parity"` for upstream's sentences, with upstream's faults.
        filter: Corners of the band-pass in Hz, as upstream filters the recordings it trains with; `None` for recordings
            that are filtered already.
        leads: Which leads make the sentence, in this order.
        detection: Parity mode only: `"per_lead"` finds the beats of each lead in that lead, as upstream did before May
            2025; which of the two made the published weights is not known for sure, the paper says lead I.
        nan: `"refuse"`, or `"repair"` to draw straight lines over samples that are not finite (a lead without any
            finite sample becomes zeros).
        output: Which of the encoder's layouts `token_mask` is for.
        sampling_rate, seconds, max_words, word_length: As in `HeartLangConfig`; the last is even.

    Raises:
        ValueError: A setting that is none of these, more leads than there is room for, a lead twice or none of the
            twelve, or a layout that parity mode cannot fill.
    """

    model_input_names = ["words", "in_chan", "in_time", "token_mask"]
    own_settings = ("mode", "filter", "leads", "detection", "nan")
    varying = True

    def __init__(
        self,
        mode: Mode = "safe",
        filter: Sequence[float] | None = (0.67, 40.0),
        leads: Sequence[str] = LEADS,
        detection: Detection = "one_lead",
        nan: OnNan = "refuse",
        output: str = "words",
        sampling_rate: int = 100,
        seconds: float = 10.0,
        max_words: int = 256,
        word_length: int = 96,
        **kwargs: object,
    ) -> None:
        super().__init__(**kwargs)
        check_choice("mode", mode, Mode)
        check_choice("detection", detection, Detection)
        check_choice("nan", nan, OnNan)
        check_choice("output", output, ("words", "beats", "leads", "compact", "codes"))
        if filter is not None and not (len(filter) == 2 and 0 < filter[0] < filter[1] < sampling_rate / 2):
            raise ValueError(
                f"filter must be None or two frequencies below {sampling_rate / 2:g} Hz, low and high, got {filter}"
            )
        upstream.check_mode(mode == "parity", detection == "per_lead", output)
        names = [canonical_lead(name) for name in leads]
        if not set(names) <= set(LEADS) or len(set(names)) < len(names) or not names:
            raise ValueError(
                f"leads must be 1 to 12 different ones of {', '.join(LEADS)}, got {', '.join(names) or 'none'}"
            )
        if word_length % 2 or word_length < 2:
            raise ValueError(f"word_length must be an even number of samples, got {word_length}")
        self.mode, self.leads, self.detection, self.nan, self.output = mode, names, detection, nan, output
        self.filter = None if filter is None else [float(corner) for corner in filter]
        self.sampling_rate, self.seconds = sampling_rate, seconds
        self.max_words, self.word_length = max_words, word_length

    @classmethod
    def from_config(cls, config: HeartLangConfig, **extra: Any) -> Self:
        """The tokenizer for an encoder with this configuration; `extra` are `own_settings`."""
        names = ("output", "sampling_rate", "seconds", "max_words", "word_length")
        return cls(**{name: vars(config)[name] for name in names}, **extra).with_leads(config, "num_leads")

    def features(self, ecg: Ecg) -> Features:
        """`words`, `in_chan`, `in_time` and `token_mask` bool `[T]` of one recording."""
        sentence = self.sentence(ecg)
        words = int((sentence.in_chan > 0).sum())
        leads, beats, room = len(self.leads), len(sentence.beat_of_word), self.max_words // len(self.leads)
        count, tokens = {
            "words": (1 + words, 1 + self.max_words),
            "beats": (beats, room),
            "leads": (leads, leads),
            "compact": (1 + leads + beats, 1 + leads + room),
            "codes": (words, self.max_words),
        }[self.output]
        return {
            "words": sentence.words,
            "in_chan": sentence.in_chan,
            "in_time": sentence.in_time,
            "token_mask": np.arange(tokens) < count,
        }

    def sentence(self, ecg: Ecg) -> EcgSentence:
        """The words of one recording, where its beats are, and what should be known of it.

        Raises:
            ValueError: A lead is missing, or a sample is not finite and is not to be repaired; the record is named.
        """
        signal, moves, repaired = self._signal(ecg)
        flat = ~moves.any(axis=1)
        if self.mode == "parity":
            read = upstream.read_words(
                signal, self.leads, self.sampling_rate, self.word_length, per_lead=self.detection == "per_lead"
            )
        else:
            read = self._agreed(signal, moves)
        words, in_chan, in_time = self._write(signal, read.groups)
        middle, covered = self.word_length // 2, covered_by(read.groups[0].spans, signal.shape[1])
        met = {
            "repaired": repaired,
            "flat_leads": bool(flat.any()),
            "dropped_leads": sum(len(g.rows) * len(g.middles) for g in read.groups) > self.max_words,
            "off_centre": any((g.middles - g.spans[0] + g.spans[2] != middle).any() for g in read.groups),
            "uncovered": bool(covered.mean() < 1 - _UNCOVERED),
        }
        flags = tuple(flag for flag in _FLAGS if met.get(flag) or flag in read.flags)
        shared = read.groups[0].spans[:2, : len(read.beat_of_word)].T / self.sampling_rate
        times = read.beats / self.sampling_rate
        return EcgSentence(words, in_chan, in_time, times, read.beat_of_word, shared, read.lead, flags)

    def token_spans(self, ecg: Ecg) -> list[TokenSpan]:
        """What of a recording each of its tokens is about, in the order of the tokens that `token_mask` counts.

        Raises:
            ValueError: As `sentence`; or each lead has beats of its own.
        """
        if self.detection == "per_lead":
            raise ValueError("detection 'per_lead' gives each lead words of its own, whose spans are not kept")
        sentence, whole = self.sentence(ecg), (0.0, min(ecg.duration, self.seconds))
        everything = [TokenSpan(None, *whole)]
        leads = [TokenSpan(lead, *whole) for lead in self.leads]
        words = [TokenSpan(lead, *span) for lead in self.leads for span in sentence.spans.tolist()][: self.max_words]
        beats = [TokenSpan(None, *span) for span in sentence.spans.tolist()]
        return {
            "words": everything + words,
            "beats": beats,
            "leads": leads,
            "compact": everything + leads + beats,
            "codes": words,
        }[self.output]

    def cut(self, signal: Array, beats: Sequence[int] | Indices) -> CutWords:
        """`words`, `in_chan` and `in_time` around beats (samples, ascending) of `[leads, samples]`, as upstream."""
        centres = np.asarray(beats, np.int64)
        spans = spans_of(centres, signal.shape[1], self.word_length)
        return self._write(signal, [Words(np.arange(len(signal)), centres, spans)])

    def _write(self, signal: Array, groups: list[Words]) -> CutWords:
        """`words`, `in_chan` and `in_time`, as far as there is room for them."""
        words = np.zeros((self.max_words, self.word_length), np.float32)
        in_chan, in_time = np.zeros((2, self.max_words), np.int32)
        channels, slot = np.array([LEADS.index(lead) + 1 for lead in self.leads], np.int32), 0
        for group in groups:
            pieces = cut(signal[group.rows], group.spans, self.word_length)[: self.max_words - slot]
            slots = slice(slot, slot + len(pieces))
            words[slots] = pieces
            in_chan[slots] = np.repeat(channels[group.rows], len(group.middles))[: len(pieces)]
            in_time[slots] = np.tile(group.middles // self.sampling_rate + 1, len(group.rows))[: len(pieces)]
            slot += len(pieces)
        return words, in_chan, in_time

    def tokenize(self, ecgs: Iterable[Ecg], processes: int = 1) -> Iterator[EcgSentence]:
        """The sentences of any number of recordings, in their order; read as needed, cut by so many processes.

        Raises:
            ValueError: A recording cannot be read; the record is named.
        """
        if processes == 1:
            yield from map(self.sentence, ecgs)
            return
        unread = iter(ecgs)
        with ProcessPoolExecutor(processes) as pool:
            while batch := list(islice(unread, 4 * processes * _CHUNK)):  # read no faster than they are cut
                yield from pool.map(self.sentence, batch, chunksize=_CHUNK)

    def _signal(self, ecg: Ecg) -> tuple[Array, NDArray[np.bool_], bool]:
        """The leads as they are cut, and where they move, `[leads, samples]` each; and whether any was repaired."""
        ecg = ecg.select(self.leads)
        finite = np.isfinite(ecg.signal)
        repaired = not finite.all()
        if repaired:
            bad = ", ".join(lead for lead, row in zip(ecg.leads, finite) if not row.all())
            if self.nan == "refuse":
                raise ValueError(
                    f"record {ecg.record_id!r} has samples that are not finite (NaN or infinite) in {bad}: "
                    "nan='repair' draws lines over them"
                )
            ecg = replace(ecg, signal=_repaired(ecg.signal, finite))
        signal = ecg.resample(self.sampling_rate).signal[:, : round(self.seconds * self.sampling_rate)]
        signal = signal.astype(np.float64)
        # Told before the filter, which rings where a recording was filled up with zeros.
        moves = np.abs(np.diff(signal, axis=1, prepend=signal[:, :1])) > 1e-4 * np.ptp(signal, axis=1, keepdims=True)
        if self.filter is not None:
            signal = bandpass(signal, self.sampling_rate, *self.filter)
            signal[~moves.any(axis=1)] = 0.0
        return signal, moves, repaired

    def _agreed(self, signal: Array, moves: NDArray[np.bool_]) -> Reading:
        """Beats that the leads agree on, and words about them and about pauses."""
        samples = signal.shape[1]
        times, centres, lead, flags = agreed_beats(signal, ~moves.any(axis=1), self.sampling_rate)
        room = self.max_words // len(self.leads)
        spans, about = spans_of(centres, samples, self.word_length), np.arange(len(centres))
        if len(centres) > room:
            flags.append("thinned")
            about = np.round(np.linspace(0, len(centres) - 1, room)).astype(np.int64)
        middles, spans = centres[about], spans[:, about]
        windows = windows_over(moves.any(axis=0), covered_by(spans, samples), self.word_length, whole=not len(centres))
        # The longest first, where there is not room for all.
        windows = windows[:, np.argsort(windows[0] - windows[1], kind="stable")[: room - len(about)]]
        if windows.shape[1]:
            flags += ["pauses"] if len(centres) else []
            middles = np.concatenate([middles, windows[0] + (windows[1] - windows[0]) // 2])
            order = np.argsort(middles, kind="stable")
            about = np.concatenate([about, np.full(windows.shape[1], -1)])[order]
            middles, spans = middles[order], np.concatenate([spans, windows], axis=1)[:, order]
        words = Words(np.arange(len(signal)), middles, spans)
        return Reading([words], times, about, "" if lead is None else self.leads[lead], tuple(flags))


def _repaired(signal: NDArray[np.float32], finite: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Straight lines over what is not finite; the nearest finite sample at the ends; zeros without any."""
    out, at = np.zeros_like(signal), np.arange(signal.shape[1])
    for row, raw, good in zip(out, signal, finite):
        if good.any():
            row[:] = np.interp(at, at[good], raw[good])
    return out
