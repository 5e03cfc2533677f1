"""A recording as a sequence of tokens, with everything that the tokens depend on in one JSON file.

Source: ECG-Byte (Han et al., 2024, arXiv 2412.14373), which symbolises a signal, learns byte-pair merges and hands
their ids to a language model. Its published tables give upstream's ids here (`EcgByteTokenizer.from_upstream`). What is
different in a tokenizer that is trained here, and why:

* Millivolts are kept: upstream divides each recording's own range, so that a low voltage looks like a high one.
* No token goes from one lead into the next, so each belongs to a lead and a stretch of time (`spans`).
* There is a budget: upstream cuts what is too long, so that a language model is shown the first leads only. Here rate,
  leads, seconds and merges are chosen until recordings fit (`fit`), and no recording ever loses a lead.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter1d

from data.ecg import LEADS, Ecg
from data.support.files import written_whole
from encoders.base import Settings
from encoders.ecg_byte.quantizing import DEFAULTS, EcgByteSettings, Quantizer
from encoders.ecg_byte.table import BOUNDARY, BYTES, SYMBOLS, TokenTable
from encoders.ecg_byte.training import learn_merges, plans
from encoders.ecg_byte.upstream import UPSTREAM

_FIRST = ord(SYMBOLS[0])
_SMOOTHING = (0.5, 1.0, 2.0)  # samples; at 100 Hz 6 dB are lost at 37, 19 and 9 Hz


class Span(NamedTuple):
    """A stretch of one lead: its row, and seconds from the start of the recording."""

    row: int
    start: float
    stop: float


@dataclass(frozen=True, eq=False)
class EcgByteTokens:
    """A recording as tokens, and what is needed to draw it from them."""

    ids: list[int]  # the tokens, one lead after the other
    low: float  # millivolts at the lower end of the range that was divided into levels
    high: float  # millivolts at its upper end
    # Name of each row; empty where the recording was an array and the tokenizer takes rows as they come.
    leads: tuple[str, ...]
    rows: int  # number of leads
    samples: int  # samples of each lead
    sampling_rate: float  # Hz
    outside: int = 0  # how many samples lie outside the range, and became the first or the last level
    smoothing: float = 0.0  # standard deviation in seconds of the Gaussian that was needed for `max_tokens`; 0 for none


class EcgByteTokenizer:
    """Recordings to the ids of tokens, and back: by a table of tokens, and settings, what else the ids depend on."""

    def __init__(self, table: TokenTable, settings: EcgByteSettings = DEFAULTS) -> None:
        self.table, self.settings = table, settings

    @classmethod
    def from_upstream(cls, path: Path | str, settings: EcgByteSettings = UPSTREAM) -> Self:
        """A published table (`TokenTable.from_upstream`) with upstream's ids, decoded as upstream does.

        The settings are those the table was learned with. For the tables of the stand-alone ECG-Byte give
        `dataclasses.replace(UPSTREAM, quantizer=Quantizer("percentile", p1, p99, "upstream"))`.
        """
        return cls(TokenTable.from_upstream(path), settings)

    @classmethod
    def train(
        cls, ecgs: Sequence[Ecg], merges: int = 2000, settings: EcgByteSettings = DEFAULTS, progress: bool = True
    ) -> Self:
        """Learn tokens from recordings of the training split by `learn_merges`; `max_tokens` plays no part in it.

        Raises:
            ValueError: There are no recordings, or one of them cannot be read (its record id is named).
        """
        untrained = cls(TokenTable(()), settings)
        pieces = [row for ecg in ecgs for row in untrained.levels(ecg)]
        return cls(TokenTable(learn_merges(pieces, merges, settings.across, progress)), settings)

    @classmethod
    def fit(
        cls,
        ecgs: Sequence[Ecg],
        max_tokens: int,
        merges: int = 5000,
        settings: EcgByteSettings = DEFAULTS,
        progress: bool = True,
    ) -> Self:
        """Learn tokens of which recordings need at most `max_tokens`, by giving up as little as possible.

        First more tokens are learned, 500, 1000, 2000, ... up to `merges`. Then, one after the other and each in
        addition: III, aVR, aVL and aVF are left out where I and II are there, which say the same; the rate is halved;
        the seconds are halved, and halved again. Every fifth recording is kept out of learning and decides: 99 of 100
        of them need at most seven eighths of the budget, and the others fit too, smoothed if they must be (see
        `EcgByteSettings.max_tokens`). A few thousand recordings are enough to learn from; of a few dozen, none may be
        as fast or as noisy as one that comes later and is refused.

        Raises:
            ValueError: There are fewer than five recordings, one of them cannot be read, or nothing fits.
        """
        if len(ecgs) < 5:
            raise ValueError(f"{len(ecgs)} recordings are too few to learn tokens from and to count them: give five")
        deciding = ecgs[4::5]
        learning = [ecg for i, ecg in enumerate(ecgs) if i % 5 != 4]
        sizes = [500 * 2**i for i in range(32) if 500 * 2**i < merges] + [merges]
        for plan in plans(replace(settings, max_tokens=max_tokens)):
            largest = cls.train(learning, merges, plan, progress)
            if not largest._holds(deciding):
                continue
            tried = (cls(largest.table.first(size), plan) for size in sizes)
            return next((tokenizer for tokenizer in tried if tokenizer._holds(deciding)), largest)
        needs = max(len(largest._ids(largest.levels(ecg))) for ecg in deciding)
        raise ValueError(
            f"{max_tokens} tokens are too few: with {len(largest.table.merges)} merges, {len(plan.leads or LEADS)} "
            f"leads, {plan.sampling_rate:g} Hz and {plan.seconds or 'all'} seconds a recording still needs up to "
            f"{needs}; raise max_tokens or merges, or begin with fewer leads or seconds"
        )

    @classmethod
    def load(cls, path: Path | str) -> Self:
        """Read what `save` wrote.

        Raises:
            ValueError: The file is something else; it is named, and what is wrong.
        """
        path = Path(path)
        try:
            return cls.from_dict(json.loads(path.read_text(encoding="utf-8")))
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error

    @classmethod
    def from_dict(cls, saved: Mapping[str, Any]) -> Self:
        """The tokenizer that `to_dict` describes.

        Raises:
            ValueError: It is something else; says what is wrong.
        """
        try:
            if not isinstance(saved, dict) or saved.keys() != {"merges", "llm_order", "settings"}:
                raise ValueError("expected merges, llm_order and settings; tables of others: from_upstream")
            values = dict(saved["settings"])
            values["quantizer"] = Quantizer(**values["quantizer"])
            values["leads"] = None if values["leads"] is None else tuple(values["leads"])
            return cls(TokenTable(saved["merges"], saved["llm_order"]), EcgByteSettings(**values))
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"not a tokenizer that was saved here: {error}") from error

    def to_dict(self) -> Settings:
        """Everything that ids depend on, in what JSON knows."""
        settings = asdict(self.settings)
        settings["leads"] = None if self.settings.leads is None else list(self.settings.leads)
        return {"settings": settings, "llm_order": list(self.table.llm_order), "merges": list(self.table.merges)}

    def save(self, path: Path | str) -> None:
        """Write everything to one JSON file."""
        with written_whole(path, "w") as file:
            json.dump(self.to_dict(), file)

    def encode(self, ecg: Ecg | NDArray[np.floating]) -> list[int]:
        """The ids of a recording, one lead after the other.

        As an array it is millivolts `[leads, samples]` at the tokenizer's rate, with its leads in its order.

        Raises:
            ValueError: A sample is NaN or infinite, a lead is missing, the range of the samples has no float32, or more
                than `max_tokens` are needed; the record is named.
        """
        return self.read(ecg).ids

    def read(self, ecg: Ecg | NDArray[np.floating]) -> EcgByteTokens:
        """Reads a recording as `encode` does, with what `decode` and `spans` need to know of it."""
        signal, who = self._signal(ecg)
        budget = self.settings.max_tokens
        needed = 0
        for smoothing in (0.0, *_SMOOTHING):
            smooth = gaussian_filter1d(signal, smoothing, axis=-1, mode="nearest") if smoothing else signal
            levels, low, high = self._levels(smooth, who)
            ids = self._ids(levels)
            if budget is None or len(ids) <= budget:
                break
            needed = needed or len(ids)
        else:
            raise ValueError(
                f"{who} needs {needed} tokens, and {len(ids)} when smoothed: more than max_tokens={budget}. "
                "Leave it out if it is noise, or fit a tokenizer to a larger budget"
            )
        leads = self.settings.leads or (ecg.leads if isinstance(ecg, Ecg) else ())
        rate, outside = self.settings.sampling_rate, self.settings.quantizer.outside(smooth, low, high)
        return EcgByteTokens(ids, low, high, leads, *signal.shape, rate, outside, smoothing / rate)

    def levels(self, ecg: Ecg | NDArray[np.floating]) -> NDArray[np.uint8]:
        """The levels of a recording, 0 to 25: uint8 `[leads, samples]`; raises as `encode`."""
        return self._levels(*self._signal(ecg))[0]

    def decode(
        self, tokens: EcgByteTokens | Sequence[int], low: float | None = None, high: float | None = None
    ) -> NDArray[np.float32]:
        """Millivolts of tokens, which `read` or `encode` gave: float32 `[leads, samples]`.

        The range that was divided, `low` to `high` mV, is known for what `read` gave, and for a tokenizer with a fixed
        range; ids of one with `"minmax"` do not say it.

        Raises:
            ValueError: The range is not known, an id is none of a level, or the leads would not be of equal length.
        """
        if isinstance(tokens, EcgByteTokens):
            ids, rows, low, high = tokens.ids, tokens.rows, tokens.low, tokens.high
        else:
            ids, rows = tokens, len(self.settings.leads or LEADS)
        quantizer = self.settings.quantizer
        if low is None or high is None:
            if quantizer.normalize == "minmax":
                raise ValueError("ids do not say the range of their recording: give low and high, or what `read` gave")
            low, high = quantizer.fixed_range
        levels = np.frombuffer(self.table.decode(ids), np.uint8) - np.uint8(_FIRST)
        if len(levels) % rows:
            raise ValueError(f"{len(levels)} samples cannot be those of {rows} leads: are tokens missing?")
        return quantizer.voltages(levels.reshape(rows, -1), low, high)

    def spans(self, tokens: EcgByteTokens) -> list[tuple[Span, ...]]:
        """Where on the recording each token lies: one stretch of a lead, or several if it goes `across`."""
        ends = np.cumsum(self.lengths[tokens.ids]).tolist()
        starts = [0, *ends[:-1]]
        return [tuple(_pieces(a, b, tokens.samples, tokens.sampling_rate)) for a, b in zip(starts, ends)]

    @cached_property
    def lengths(self) -> NDArray[np.int64]:
        """Samples of each token by id: int64 `[len(table)]`, 1 for single bytes."""
        return np.array([1] * BYTES + [len(merge) for merge in self.table.merges], np.int64)

    def waveforms(self, points: int = 32) -> NDArray[np.float32]:
        """What each token looks like, for an embedding that begins with it: float32 `[len(llm_order), points]`.

        In millivolts, or in parts of a recording's range (0 to 1) for `"minmax"`; drawn out to `points`, whatever its
        length. Flat tokens of several lengths look alike, so an embedding needs `lengths` besides. Rows are in the
        order of `table.llm_order`; bytes that no recording contains are zeros.
        """
        quantizer = self.settings.quantizer
        low, high = quantizer.fixed_range
        rows = np.zeros((len(self.table.llm_order), points), np.float32)
        for row, token in zip(rows, self.table.llm_order):
            content = self.table[token]
            if chr(content[0]) in SYMBOLS:
                wave = quantizer.voltages(np.frombuffer(content, np.uint8) - np.uint8(_FIRST), low, high)
                row[:] = np.interp(np.linspace(0, len(wave) - 1, points), np.arange(len(wave)), wave)
        return rows

    def _signal(self, ecg: Ecg | NDArray[np.floating]) -> tuple[NDArray[np.float32], str]:
        """float32 `[leads, samples]` at the tokenizer's rate, and what to call the recording."""
        rate, seconds, leads = self.settings.sampling_rate, self.settings.seconds, self.settings.leads
        if isinstance(ecg, Ecg):
            who = f"record {ecg.record_id!r}" if ecg.record_id else "ECG"
            _require_finite(ecg.signal, who)  # before resampling, which would spread what is not finite
            signal = (ecg if leads is None else ecg.select(leads)).resample(rate).signal
        else:
            who = "ECG"
            signal = np.asarray(ecg, np.float32)
            if signal.ndim != 2 or not signal.size or (leads is not None and len(signal) != len(leads)):
                wanted = "leads" if leads is None else f"{len(leads)} leads"
                raise ValueError(f"an ECG as an array must be [{wanted}, samples], got shape {signal.shape}")
            _require_finite(signal, who)
        return (signal if seconds is None else signal[:, : round(seconds * rate)]), who

    def _levels(self, signal: NDArray[np.float32], who: str) -> tuple[NDArray[np.uint8], float, float]:
        """Levels, and the range that was divided."""
        quantizer = self.settings.quantizer
        low, high = quantizer.range_of(signal)
        try:
            return quantizer.levels(signal, low, high), low, high
        except ValueError as error:
            raise ValueError(f"{who}: {error}") from error

    def _ids(self, levels: NDArray[np.uint8]) -> list[int]:
        letters = levels + np.uint8(_FIRST)
        if not self.settings.across:
            letters = np.pad(letters, ((0, 0), (0, 1)), constant_values=ord(BOUNDARY))
        return self.table.encode(letters.tobytes().decode("ascii"))

    def _holds(self, ecgs: Sequence[Ecg]) -> bool:
        """Whether recordings fit the budget: 99 of 100 with an eighth to spare, the others at all."""
        budget = self.settings.max_tokens or 0
        beyond = 0
        for ecg in ecgs:
            beyond += len(self._ids(self.levels(ecg))) > budget * 7 / 8
            try:
                self.read(ecg)
            except ValueError:  # of the budget: what else it could be, `levels` has raised
                return False
        return beyond <= len(ecgs) // 100


def _require_finite(signal: NDArray[np.float32], who: str) -> None:
    if not np.isfinite(signal).all():
        raise ValueError(f"{who} has samples that are not finite (NaN or infinite): repair it or leave it out")


def _pieces(start: int, stop: int, samples: int, rate: float) -> Iterator[Span]:
    while start < stop:
        row, first = divmod(start, samples)
        last = min(first + stop - start, samples)
        yield Span(row, first / rate, last / rate)
        start += last - first
