"""What a recording becomes before HeartLang sees it: a sentence of heart beats, lead after lead.

Source: QRS-Tokenizer of HeartLang (Jin et al., "Reading Your Heart", ICLR 2025, arXiv 2502.10707; code MIT). It takes
beats from wfdb's XQRS on lead I, cuts 0.96 s around each out of all leads, and writes the words of the first lead, then
of the second, and so on. `mode="parity"` does that bit by bit.

Upstream's beats are often not the heart's. At 100 Hz XQRS takes many T waves for beats and misses others: on simulated
recordings whose beats are known (300 of `data.synthetic`) lead I gives an F1 of 0.84, what all leads have in common
0.99. And a lead that is off, noise, or more beats than the sentence has room for go through without a word.
`mode="safe"` takes the beats in which the leads agree, keeps XQRS's place of each one that it found too (so that a
recording in which XQRS is right becomes the very words of upstream), and says what it met in `EcgSentence.flags`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import cache
from itertools import islice
from typing import Any, Literal, Self, get_args

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import uniform_filter1d
from scipy.signal import butter, filtfilt, find_peaks

from data.ecg import LEADS, Ecg, canonical_lead
from data.signal import bandpass
from encoders.base import EcgFeatureExtractor, TokenSpan
from encoders.heartlang.configuration import HeartLangConfig

Array = NDArray[np.float64]
Indices = NDArray[np.int64]
Mode = Literal["safe", "parity"]
Detection = Literal["one_lead", "per_lead"]
OnNan = Literal["refuse", "repair"]

VERSION = 1  # in cache keys: tests/test_versions.py says when to raise it
_FIRST_LEAD = 0.9  # the first lead is preferred while it agrees this well, compared with the one that agrees best
# Below either the leads do not agree. Of 1,625 recordings of PTB-XL none does, and with white noise of the signal's own
# size added few do; noise in each lead agrees by less than 0.5, noise at the electrodes (which leads share) has a
# contrast of at most 1.65. One or two leads agree with themselves or by chance: noise has 1.5 to 2.1, recordings 2.3.
_AGREEMENT, _CONTRAST, _CONTRAST_OF_TWO = 0.7, 1.65, 2.1
_BEAT = 0.4  # of the height of the beats; QRS complexes are above 0.7, T waves below 0.35
_SAME = 0.12  # s between a beat of XQRS and one of all leads that are the same
_UNCOVERED = 0.2  # of the recording; regular beats at 50 per minute leave as much
_CHUNK = 32  # recordings that a process takes at a time


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
        sampling_rate: Hz.
        seconds: Duration of the input.
        max_words: Words of a sentence.
        word_length: Samples of a word, an even number.

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
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        for name, value, known in (
            ("mode", mode, get_args(Mode)),
            ("detection", detection, get_args(Detection)),
            ("nan", nan, get_args(OnNan)),
            ("output", output, ("words", "beats", "leads", "compact", "codes")),
        ):
            if value not in known:
                raise ValueError(f"{name} must be one of {', '.join(known)}, got {value!r}")
        if filter is not None and not (len(filter) == 2 and 0 < filter[0] < filter[1] < sampling_rate / 2):
            raise ValueError(
                f"filter must be None or two frequencies below {sampling_rate / 2:g} Hz, low and high, got {filter}"
            )
        if mode == "safe" and detection == "per_lead":
            raise ValueError("detection 'per_lead' is upstream's old tokenizer: it needs mode='parity'")
        if mode == "parity" and output in ("beats", "leads", "compact"):
            raise ValueError(
                f"output {output!r} needs mode='safe': upstream drops words of the last leads when there are many "
                "beats, so in parity mode a beat or a lead is not the same number of words in every recording"
            )
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
    def from_config(cls, config: HeartLangConfig, **own: Any) -> Self:
        """The tokenizer for an encoder with this configuration.

        Args:
            config: Says layout, rate, duration and the shape of a sentence.
            **own: `mode`, `filter`, `leads`, `detection`, `nan`.

        Raises:
            ValueError: The settings do not fit the configuration.
        """
        tokenizer = cls(
            output=config.output,
            sampling_rate=config.sampling_rate,
            seconds=config.seconds,
            max_words=config.max_words,
            word_length=config.word_length,
            **own,
        )
        if len(tokenizer.leads) != config.num_leads:
            raise ValueError(
                f"the encoder takes {config.num_leads} leads, not {', '.join(tokenizer.leads)}: set its num_leads"
            )
        return tokenizer

    def features(self, ecg: Ecg) -> dict[str, NDArray[Any]]:
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
        read = self._upstream(signal) if self.mode == "parity" else self._agreed(signal, moves)
        words, in_chan, in_time, dropped = self._write(signal, read.groups)
        middle, covered = self.word_length // 2, _covered(read.groups[0].spans, signal.shape[1])
        met = {
            "repaired": repaired,
            "flat_leads": bool(flat.any()),
            "dropped_leads": dropped,
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

    def cut(
        self, signal: Array, beats: Sequence[int] | Indices
    ) -> tuple[NDArray[np.float32], NDArray[np.int32], NDArray[np.int32]]:
        """`words`, `in_chan` and `in_time` around beats that are known, as upstream cuts them.

        Args:
            signal: `[leads, samples]` of `leads` at `sampling_rate`.
            beats: Samples at which the beats are, in ascending order.
        """
        centres = np.asarray(beats, np.int64)
        spans = _spans(centres, signal.shape[1], self.word_length)
        return self._write(signal, [_Words(np.arange(len(signal)), centres, spans)])[:3]

    def _write(
        self, signal: Array, groups: list[_Words]
    ) -> tuple[NDArray[np.float32], NDArray[np.int32], NDArray[np.int32], bool]:
        """`words`, `in_chan` and `in_time`; and whether there were more words than there is room for."""
        words = np.zeros((self.max_words, self.word_length), np.float32)
        in_chan, in_time = np.zeros((2, self.max_words), np.int32)
        channels, slot = np.array([LEADS.index(lead) + 1 for lead in self.leads], np.int32), 0
        for group in groups:
            cut = _cut(signal[group.rows], group.spans, self.word_length)[: self.max_words - slot]
            here = slice(slot, slot + len(cut))
            words[here] = cut
            in_chan[here] = np.repeat(channels[group.rows], len(group.middles))[: len(cut)]
            in_time[here] = np.tile(group.middles // self.sampling_rate + 1, len(group.rows))[: len(cut)]
            slot += len(cut)
        return words, in_chan, in_time, slot < sum(len(group.rows) * len(group.middles) for group in groups)

    def tokenize(self, ecgs: Iterable[Ecg], processes: int = 1) -> Iterator[EcgSentence]:
        """The sentences of any number of recordings, in their order.

        Args:
            ecgs: Recordings; read as they are needed.
            processes: How many processes share the work; 1 does it in this one.

        Raises:
            ValueError: A recording cannot be read; the record is named.
        """
        if processes == 1:
            yield from map(self.sentence, ecgs)
            return
        rest, waiting = iter(ecgs), deque[Future[list[EcgSentence]]]()
        pool = ProcessPoolExecutor(processes)
        try:
            while chunk := list(islice(rest, _CHUNK)):
                waiting.append(pool.submit(self._sentences, chunk))
                if len(waiting) > 2 * processes:  # recordings are read no faster than they are cut
                    yield from waiting.popleft().result()
            while waiting:
                yield from waiting.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)

    def _sentences(self, ecgs: list[Ecg]) -> list[EcgSentence]:
        return [self.sentence(ecg) for ecg in ecgs]

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

    def _upstream(self, signal: Array) -> _Reading:
        """Beats and words as upstream has them."""
        from encoders.heartlang.xqrs import find_beats  # wfdb's import takes most of a second

        every = np.arange(len(signal))
        groups = []
        for rows in every[:, None] if self.detection == "per_lead" else [every]:
            beats = find_beats(signal[rows[0]], self.sampling_rate)
            groups.append(_Words(rows, beats, _spans(beats, signal.shape[1], self.word_length)))
        beats = groups[0].middles
        flags = () if any(len(group.middles) for group in groups) else ("no_beats",)
        return _Reading(groups, beats, np.arange(len(beats) if len(groups) == 1 else 0), self.leads[0], flags)

    def _agreed(self, signal: Array, moves: NDArray[np.bool_]) -> _Reading:
        """Beats that the leads agree on, and words about them and about pauses."""
        samples = signal.shape[1]
        times, centres, lead, flags = _agreed_beats(signal, ~moves.any(axis=1), self.sampling_rate)
        room = self.max_words // len(self.leads)
        spans, about = _spans(centres, samples, self.word_length), np.arange(len(centres))
        if len(centres) > room:
            flags.append("thinned")
            about = np.round(np.linspace(0, len(centres) - 1, room)).astype(np.int64)
        middles, spans = centres[about], spans[:, about]
        windows = _windows(moves.any(axis=0), _covered(spans, samples), self.word_length, whole=not len(centres))
        # The longest first, where there is not room for all.
        windows = windows[:, np.argsort(windows[0] - windows[1], kind="stable")[: room - len(about)]]
        if windows.shape[1]:
            flags += ["pauses"] if len(centres) else []
            middles = np.concatenate([middles, windows[0] + (windows[1] - windows[0]) // 2])
            order = np.argsort(middles, kind="stable")
            about = np.concatenate([about, np.full(windows.shape[1], -1)])[order]
            middles, spans = middles[order], np.concatenate([spans, windows], axis=1)[:, order]
        lead_name = "" if lead is None else self.leads[lead]
        words = _Words(np.arange(len(signal)), middles, spans)
        return _Reading([words], times, about, lead_name, tuple(flags))


_FLAGS = (
    *("repaired", "flat_leads", "noisy", "no_beats", "corrected"),
    *("thinned", "dropped_leads", "pauses", "off_centre", "uncovered"),
)


@dataclass(frozen=True, eq=False)
class _Words:
    """Words about the same stretches in some leads: rows of the signal, sample in the middle of each, `_spans`."""

    rows: Indices
    middles: Indices
    spans: Indices


@dataclass(frozen=True, eq=False)
class _Reading:
    """What is read in a recording; `beats` in samples, the rest as in `EcgSentence`."""

    groups: list[_Words]
    beats: NDArray[Any]
    beat_of_word: Indices
    lead: str
    flags: tuple[str, ...]


# --- words ------------------------------------------------------------------------------------------------------------


def _spans(beats: Indices, samples: int, length: int) -> Indices:
    """First sample, end, and first column in the word, of what is cut around each beat: `[3, beats]`, as upstream."""
    if not len(beats):
        return np.zeros((3, 0), np.int64)
    half = length // 2
    between = (beats[1:] + beats[:-1]) // 2
    start = np.concatenate([[max(beats[0] - half, 0)], between])
    end = np.concatenate([between, [min(beats[-1] + half, samples)]])
    if len(beats) == 1:
        end[0] = min(start[0] + length, samples)
    long = end - start > length
    start = np.where(long, np.maximum(beats - half, 0), start)
    end = np.where(long, np.minimum(start + length, samples), end)
    column = np.maximum(half - (beats - start), 0)
    return np.stack([start, np.minimum(end, start + length - column), column])


def _cut(signal: Array, spans: Indices, length: int) -> NDArray[np.float32]:
    """Words float32 `[leads * spans, length]`, lead after lead."""
    start, end, column = spans[..., None]
    take = start - column + np.arange(length)  # [spans, length]
    inside = (take >= start) & (take < end)
    words = signal.astype(np.float32).take(np.where(inside, take, 0), axis=1)
    words *= inside
    return words.reshape(-1, length)


def _covered(spans: Indices, samples: int) -> NDArray[np.bool_]:
    covered = np.zeros(samples, bool)
    for start, end in spans[:2].T.tolist():
        covered[start:end] = True
    return covered


def _windows(moves: NDArray[np.bool_], covered: NDArray[np.bool_], length: int, *, whole: bool) -> Indices:
    """Windows side by side over what is not covered, like `_spans`: of `length`, the last of each row half or more.

    With `whole` they are all of a recording without beats, be it shorter or flat; otherwise a window in most of which
    no lead moves (a recording filled up with zeros) is no pause.
    """
    edges = np.flatnonzero(np.diff(covered.astype(np.int8), prepend=1, append=1))
    found = []
    for start, end in edges.reshape(-1, 2).tolist():
        stops = [*range(start + length, end + 1, length)]
        if (rest := (end - start) % length) >= length // 2 or (whole and not stops):
            stops.append(end)
        found += [(stop - (length if (stop - start) % length == 0 else rest), stop) for stop in stops]
    if not whole:
        found = [(start, end) for start, end in found if moves[start:end].mean() >= 0.5]
    start, end = np.array(found, np.int64).reshape(-1, 2).T
    return np.stack([start, end, length // 2 - (end - start) // 2])


def _repaired(signal: NDArray[np.float32], finite: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Straight lines over what is not finite; the nearest finite sample at the ends; zeros without any."""
    out, at = np.zeros_like(signal), np.arange(signal.shape[1])
    for row, raw, good in zip(out, signal, finite):
        if good.any():
            row[:] = np.interp(at, at[good], raw[good])
    return out


# --- beats ------------------------------------------------------------------------------------------------------------


def _agreed_beats(signal: Array, flat: NDArray[np.bool_], fs: float) -> tuple[Array, Indices, int | None, list[str]]:
    """The beats of all leads together.

    Each lead's activity is the size of what it holds between 5 and 20 Hz (mostly QRS complexes), over 0.11 s. Leads
    count by how much they have in common, so that those which are off or noisy lose. XQRS runs on the first lead if
    that agrees with the others, else on the lead that does most.

    Args:
        signal: float64 `[leads, samples]`.
        flat: Which leads are constant.
        fs: Sampling rate, Hz.

    Returns:
        Where the beats are; where words are centred, which is where XQRS has found the same beat; the row XQRS ran on;
        flags of `EcgSentence`.
    """
    from encoders.heartlang.xqrs import find_beats  # wfdb's import takes most of a second

    if flat.all():
        return np.empty(0), np.empty(0, np.int64), None, ["no_beats"]
    activity = _activity(signal, fs)
    weights, agreement = _agreement(np.where(flat[:, None], 0.0, activity))
    lead = 0 if not flat[0] and agreement[0] >= _FIRST_LEAD * agreement.max() else int(agreement.argmax())
    found = find_beats(signal[lead], fs)
    together = weights @ activity
    peaks, contrast = _peaks(together, fs)
    few = (~flat).sum() < 3
    if contrast < (_CONTRAST_OF_TWO if few else _CONTRAST) or (not few and agreement.max() < _AGREEMENT):
        return found.astype(np.float64), found, lead, ["noisy"] + ([] if len(found) else ["no_beats"])
    if not len(found):
        return peaks.astype(np.float64), peaks, lead, ["corrected"]
    apart = np.abs(peaks[:, None] - found)  # [peaks, found]
    nearest = apart.argmin(axis=1)
    here = np.arange(len(peaks))
    same = (apart[here, nearest] <= _SAME * fs) & (apart.argmin(axis=0)[nearest] == here)  # each other's nearest
    centres = np.where(same, found[nearest], peaks)
    return peaks.astype(np.float64), centres, lead, [] if same.all() and len(found) == len(peaks) else ["corrected"]


@cache
def _qrs_band(fs: float) -> tuple[Array, Array]:
    return butter(2, (5, 20), "bandpass", fs=fs)


def _activity(signal: Array, fs: float) -> Array:
    """How active each lead is: `[leads, samples]`."""
    quick = filtfilt(*_qrs_band(fs), signal, padlen=min(15, signal.shape[1] - 1))
    return np.sqrt(np.maximum(uniform_filter1d(quick * quick, round(0.11 * fs)), 0.0))


def _agreement(activity: Array) -> tuple[Array, Array]:
    """How much each lead counts in the sum of all, and its correlation with the sum of the others: `[leads]` each.

    The weights are the first principal component of the leads' activities, each of unit variance: of groups of leads
    that agree among themselves the largest prevails.
    """
    centred = activity - activity.mean(axis=1, keepdims=True)
    size = np.linalg.norm(centred, axis=1)
    unit = np.divide(centred, size[:, None], out=np.zeros_like(centred), where=size[:, None] > 0)
    alike = unit @ unit.T
    weights = np.abs(np.linalg.eigh(alike)[1][:, -1])
    # Of the others: a lead is taken out of the sum that it is compared with.
    with_others = alike @ weights - weights * alike.diagonal()
    others = weights @ alike @ weights - 2 * weights * (alike @ weights) + weights**2 * alike.diagonal()
    live = size > 0
    if live.sum() > 1:
        agreement = np.divide(with_others, np.sqrt(others), out=np.zeros(len(size)), where=others > 1e-12)
    else:
        agreement = live.astype(np.float64)
    agreement[~live] = 0.0
    return np.divide(weights, size, out=np.zeros_like(size), where=live), agreement


def _peaks(activity: Array, fs: float) -> tuple[Indices, float]:
    """Beats in the activity of all leads, and how far they stand out: their usual height over the median of all."""
    tops = find_peaks(np.concatenate([[0.0], activity, [0.0]]), distance=round(0.2 * fs))[0] - 1
    if not len(tops):
        return tops, 0.0
    rest = float(np.median(activity))
    heights = activity[tops] - rest
    # A beat has at most three waves, so that the highest third are QRS complexes.
    usual = float(np.median(np.sort(heights)[-max(3, len(heights) // 3) :]))
    return tops[heights > _BEAT * usual], 1 + usual / rest if rest > 0 else np.inf
