"""What is wrong with the signal of a recording, and whether a model may be asked about it: one set of rules and words.

`signal_quality(ecg)` looks at the samples and at what the reader noted about gaps. Commands, the chat page, the server,
measurements and corpora all decide by it: where no lead can be read, or amplitudes are impossible, the recording is
refused (`require_readable`); what else is wrong is said and goes with it. It costs a few ms for 12 leads of 10 s.

The limits are of signals in millivolts. None of them judges the heart: ventricular fibrillation is a signal.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from data.ecg import LEADS, Ecg

Grade = Literal["good", "poor", "unreadable"]
Array = NDArray[np.float64]

FLAT = 0.01  # mV between the highest and the lowest sample of a lead
PLATEAU = 0.02  # s at the very same extreme value: the amplifier's or the file's limit
SHORTEST = 1.0  # s: less holds no beat and what follows it
USUAL = 10.0  # s of a diagnostic recording
HIGHEST = 20.0  # mV from the middle of a lead; the highest QRS complexes of an adult stay below 10
SHORT_GAP = 0.2  # s of a lead that a straight line may bridge and the recording still be good
_ALIKE = 0.5  # of noise: power per Hz at 25 to 100 Hz, relative to that at 1 to 15 Hz, where a heart is
_MORE = 2.0  # times the noise power of leads that show a heart, to call another lead noise
_IMPULSIVE = 6.0  # kurtosis: more is not noise
_UNLIKE = 0.3  # of limb leads that contradict each other: what is left over, relative to the leads themselves


@dataclass(frozen=True)
class SignalQuality:
    """What is wrong with a signal.

    Attributes:
        grade: `"good"`, `"poor"` where something may mislead a reader, `"unreadable"` where no model should be asked.
        notes: Sentences about what is wrong; a good signal may have some, too (`Only 7 s long.`).
        readable: Leads that show a signal, in their order.
    """

    grade: Grade
    notes: tuple[str, ...] = ()
    readable: tuple[str, ...] = ()

    def __str__(self) -> str:
        return " ".join(self.notes) or "Nothing is wrong with the signal."


def signal_quality(ecg: Ecg) -> SignalQuality:
    """Judge the signal of a recording in millivolts, all of it."""
    names = [lead.removeprefix("-") for lead in ecg.leads]
    if ecg.duration < SHORTEST:
        return SignalQuality("unreadable", (f"Only {ecg.duration:.3g} s long: it takes {SHORTEST:g} s to read one.",))
    signal = ecg.signal.astype(np.float64)
    low, high = signal.min(axis=1, keepdims=True), signal.max(axis=1, keepdims=True)
    span = (high - low)[:, 0]
    at_ends = np.count_nonzero(signal == low, axis=1) + np.count_nonzero(signal == high, axis=1)
    # Seldom more, and percentiles and medians take longer than all the rest.
    is_high = bool(span.max() > HIGHEST)
    if is_high and (too_high := _impossible(signal, names)):
        return SignalQuality("unreadable", (too_high,))
    dead = _silent(signal, ecg.fs, names, span)  # sentences' beginnings, by lead
    dead |= {name: "Saturated" for name, n, mv in zip(names, at_ends, span) if n > signal.shape[1] / 2 and mv >= FLAT}
    readable = tuple(lead for lead, name in zip(ecg.leads, names) if name not in dead)
    harmless = [f"Only {ecg.duration:.3g} s long."] if ecg.duration < USUAL - 0.05 else []
    if derived := ecg.meta.get("derived_leads"):
        harmless.append(f"Computed from the other limb leads: {', '.join(derived)}.")
    gaps: Mapping[str, int] = ecg.meta.get("repaired_samples", {})
    short = {lead: count / ecg.fs for lead, count in gaps.items() if count <= SHORT_GAP * ecg.fs}
    harmless += _bridged(short)
    absent: Sequence[str] = ecg.meta.get("absent_leads", ())
    harmful = [f"Mostly missing, and left out: {', '.join(absent)}."] if absent else []
    if never := [lead for lead in LEADS if lead not in names and lead not in absent and f"-{lead}" not in absent]:
        harmful.append(f"Not recorded: {', '.join(never)}.")
    harmful += [f"{what}: {', '.join(leads)}." for what, leads in _by_value(dead)]
    harmful += _bridged({lead: count / ecg.fs for lead, count in gaps.items() if lead not in short})
    least = max(5, round(PLATEAU * ecg.fs))
    held = [(name, row) for name, row, n in zip(names, signal, at_ends) if n >= least and name not in dead]
    if cut := [name for name, row in held if _is_cut(row, least)]:
        harmful.append(f"Cut off at the top or the bottom: {', '.join(cut)}. Amplitudes are too small there.")
    if is_high:
        harmful += _spikes(signal, names)
    harmful += contradictions(dict(zip(names, _uninverted(ecg, signal))), ecg.fs, dead)
    if not readable:
        return SignalQuality("unreadable", (*harmful, *harmless))
    return SignalQuality("poor" if harmful else "good", (*harmful, *harmless), readable)


def require_readable(ecg: Ecg) -> SignalQuality:
    """The quality of a recording that a model may be asked about.

    Raises:
        ValueError: Nothing can be read in it; names the record and says why.
    """
    quality = signal_quality(ecg)
    if quality.grade == "unreadable":
        raise ValueError(f"{ecg.who}: no model can read this recording: {quality}")
    return quality


def _by_value(words: Mapping[str, str]) -> Iterator[tuple[str, list[str]]]:
    for value in dict.fromkeys(words.values()):
        yield value, [name for name, other in words.items() if other == value]


def _bridged(gaps: Mapping[str, float]) -> list[str]:
    """A sentence about gaps, in s by lead."""
    listed = ", ".join(f"{lead} ({seconds:.2g} s)" for lead, seconds in gaps.items())
    return [f"Missing samples, bridged by a straight line: {listed}."] if listed else []


def _impossible(signal: Array, names: Sequence[str]) -> str:
    """Why the numbers of a lead cannot be millivolts; empty where they can."""
    low, high = np.percentile(signal, (0.5, 99.5), axis=1)
    worst = int(np.argmax(high - low))
    if (span := high[worst] - low[worst]) <= HIGHEST:
        return ""
    return (
        f"Lead {names[worst]} spans {span:,.4g} mV, an ECG less than {HIGHEST:g} mV: check units, gain and byte order "
        "(microvolts called millivolts?)."
    )


def _silent(signal: Array, fs: float, names: Sequence[str], span: Array) -> dict[str, str]:
    """Leads in which there is no heart: flat ones, and those that hold only noise, drift or hum."""
    silent = {name: "Flat" for name, mv in zip(names, span) if mv < FLAT}
    spectrum = _spectrum(signal)
    frequency: Array = np.asarray(np.fft.rfftfreq(signal.shape[1], 1 / fs), dtype=np.float64)
    power: Array = spectrum.real**2 + spectrum.imag**2
    band = (frequency >= 2) & (frequency <= 45)
    # No signal has a standard deviation above half of its range, which spares nearly all leads the inverse transform.
    deviation = np.sqrt(2 * power[:, band].sum(axis=1)) / signal.shape[1]
    for row in np.flatnonzero(deviation <= FLAT / 2).tolist():
        if np.ptp(np.fft.irfft(spectrum[row] * band, signal.shape[1])) < FLAT:
            silent.setdefault(names[row], "Only drift or hum")
    for row in _noisy(power, frequency, [name not in silent for name in names]):
        if _is_even(signal[row], frequency):
            silent.setdefault(names[row], "Noise alone")
    return {name: silent[name] for name in names if name in silent}


def _spectrum(signal: Array) -> NDArray[np.complex128]:
    """Spectrum of each lead without the straight line through the means of its first and its last tenth."""
    tenth = -(-signal.shape[1] // 10)
    first, last = signal[:, :tenth].mean(axis=1, keepdims=True), signal[:, -tenth:].mean(axis=1, keepdims=True)
    slope = first + np.linspace(-0.5, 9.5, signal.shape[1]) / 9 * (last - first)
    return np.fft.rfft((signal - slope) * np.hanning(signal.shape[1]), axis=1)


def _noisy(power: Array, frequency: Array, live: Sequence[bool]) -> list[int]:
    """Leads whose power does not fall from the frequencies of a heart to those above.

    Where other `live` leads do show a heart, only those with more noise than these have: a lead across the heart's axis
    shows little of it, and may be lost in the noise of a sound recording.
    """
    highest = min(100.0, 0.9 * float(frequency[-1]))
    heart = (frequency >= 1) & (frequency <= 15)
    above = (frequency >= min(25.0, 0.7 * highest)) & (frequency <= highest)
    if not (heart.any() and above.any()):  # the sampling rate is too low to tell
        return []
    # The median over lines of hum; that of noise's power per line is ln 2 of its mean.
    noise = np.median(power[:, above], axis=1) / np.log(2)
    is_noisy = noise > _ALIKE * power[:, heart].mean(axis=1)
    others = noise[~is_noisy & np.array(live)]
    usual = float(np.median(others)) if len(others) else 0.0
    return np.flatnonzero(is_noisy & (noise > _MORE * usual)).tolist()


def _is_even(row: Array, frequency: Array) -> bool:
    """Whether what is faster than 5 Hz goes on all the time, as noise does; narrow QRS complexes and spikes do not."""
    spectrum = np.fft.rfft(row - row.mean())
    fast = np.fft.irfft(spectrum * ((frequency >= 5) & (frequency <= 100)), row.size)
    kurtosis = float(np.mean(fast**4)) / max(float(np.mean(fast**2)) ** 2, 1e-30)  # 3 for noise; 10 to 50 for an ECG
    return kurtosis < _IMPULSIVE


def _is_cut(row: Array, least: int) -> bool:
    """Whether a wave runs into its highest or lowest value and stays there; the flat top of a slow wave is rounded."""
    slope = 0.01 * np.ptp(row)  # to the next sample; smoothed tops of real recordings begin and end with a tenth of it
    for extreme in (row.max(), row.min()):
        at_end = row == extreme
        if np.count_nonzero(at_end) < least:
            continue
        for start, end in np.flatnonzero(np.diff(at_end, prepend=False, append=False)).reshape(-1, 2):
            sides = [row[place] for place in (start - 1, end) if 0 <= place < row.size]
            if end - start >= least and all(abs(extreme - side) >= slope for side in sides):
                return True
    return False


def _spikes(signal: Array, names: Sequence[str]) -> list[str]:
    """A sentence about leads with rare samples beyond what a heart gives."""
    reach = np.abs(signal - np.median(signal, axis=1, keepdims=True)).max(axis=1)
    high = [f"{name} ({mv:.4g} mV)" for name, mv in zip(names, reach) if mv > HIGHEST]
    return [f"Spikes that no heart makes: {', '.join(high)}."] if high else []


# What is zero in every recording: Einthoven's and Goldberger's laws, as weights of the leads.
_LAWS: tuple[tuple[str, Mapping[str, float]], ...] = (
    ("II is not I + III", {"I": 1, "III": 1, "II": -1}),
    ("aVR is not -(I + II) / 2", {"aVR": 1, "I": 0.5, "II": 0.5}),
    ("aVL is not I - II / 2", {"aVL": 1, "I": -1, "II": 0.5}),
    ("aVF is not II - I / 2", {"aVF": 1, "II": -1, "I": 0.5}),
)


def _uninverted(ecg: Ecg, signal: Array) -> Array:
    signs = np.array([-1.0 if lead.startswith("-") else 1.0 for lead in ecg.leads])
    return np.asarray(signal * signs[:, None], dtype=np.float64)


def _smooth(rows: Array, samples: int) -> Array:
    """Means of so many neighbours."""
    if samples < 2 or samples >= rows.shape[1]:
        return rows
    sums = np.cumsum(rows, axis=1)
    return np.asarray((sums[:, samples:] - sums[:, :-samples]) / samples, dtype=np.float64)


def contradictions(leads: Mapping[str, Array], fs: float, dead: Mapping[str, str]) -> list[str]:
    """A sentence about limb leads that cannot be those of one body, and what would explain it; none where they can.

    The leads are `[samples]` by name, in mV, none inverted; those in `dead` do not count.
    """
    limbs = [lead for lead in LEADS[:6] if lead in leads and lead not in dead]
    if len(limbs) < 3:
        return []
    rows = np.stack([leads[lead] for lead in limbs])
    rows = _smooth(rows, round(0.02 * fs))  # noise and hum are other in each lead where leads were not computed
    rows = rows - rows.mean(axis=1, keepdims=True)
    products = rows @ rows.T / rows.shape[1]  # all that follows are sums of these
    broken = _broken(products, limbs)
    if not broken:
        return []
    sentence = f"The limb leads contradict each other: {'; '.join(broken)}."
    for one, other in combinations(range(len(limbs)), 2):
        order = list(range(len(limbs)))
        order[one], order[other] = other, one
        if not _broken(products[np.ix_(order, order)], limbs):
            return [f"{sentence} {limbs[one]} and {limbs[other]} look interchanged."]
    for one in range(len(limbs)):
        signs = np.ones(len(limbs))
        signs[one] = -1
        if not _broken(products * np.outer(signs, signs), limbs):
            return [f"{sentence} {limbs[one]} looks upside down."]
    return [f"{sentence} A name, the order or a gain is wrong."]


def _broken(products: Array, limbs: Sequence[str]) -> list[str]:
    """Laws that do not hold, by the mean products of the limb leads `[leads, leads]`, mV^2."""
    words = []
    for sentence, weights in _LAWS:
        if not weights.keys() <= set(limbs):
            continue
        w = np.array([weights.get(lead, 0.0) for lead in limbs])
        size = float((np.abs(w) * np.diag(products)).sum())
        if w @ products @ w > max((2 * FLAT) ** 2, _UNLIKE**2 * size):
            words.append(sentence)
    return words
