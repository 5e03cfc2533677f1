"""The seconds of a recording that a model reads: how many they are, which, and a sentence where others are left out."""

import math
from dataclasses import replace

from data.ecg import Ecg
from data.quality import signal_quality
from elm.inputs.processing import ElmProcessor
from encoders.base import SLACK, EcgFeatureExtractor


def seconds_read(reader: ElmProcessor | EcgFeatureExtractor) -> float:
    """Seconds that a model's processor, or an encoder's feature extractor, reads of a recording; infinite for all."""
    extractor = reader.feature_extractor if isinstance(reader, ElmProcessor) else reader
    return float(extractor.seconds_read)


def read_window(ecg: Ecg, seconds: float, start: float = 0.0, choose: str = "") -> tuple[Ecg, str]:
    """The `seconds` of a recording from second `start` on, and a sentence about them where the recording is longer.

    A recording that is no longer than `seconds` comes back as it is, with an empty sentence: that it is short is said
    by `data.quality`. The quality that a reader noted in `meta` is judged anew for the part.

    Args:
        ecg: The recording.
        seconds: How many a model reads (`seconds_read`).
        start: The first of them, s.
        choose: How whoever reads the sentence chooses others: `--start chooses others`.

    Raises:
        ValueError: The recording does not cover these seconds; names it, its length and the last possible start.
    """
    wanted = min(seconds, ecg.duration)
    last = ecg.duration - wanted
    if not (math.isfinite(start) and 0 <= start <= last + SLACK):
        possible = f"choose a start from 0 to {_rounded(last)} s" if last > SLACK else "all of it is read, from 0 s"
        raise ValueError(
            f"{ecg.who} lasts {_rounded(ecg.duration)} s, which do not hold {_rounded(wanted)} s from {start:g} s on: "
            + possible
        )
    if last <= SLACK:
        return ecg, ""
    start = min(start, last)
    part = ecg.crop(start, wanted)
    if "quality" in ecg.meta:
        part = replace(part, meta={**part.meta, "quality": signal_quality(part)})
    span = f"{_rounded(start)} to {_rounded(start + wanted)} s"
    hint = f" ({choose})" if choose else ""
    return part, f"The model reads {_rounded(wanted)} s of these {_rounded(ecg.duration)} s: {span}{hint}."


def _rounded(seconds: float) -> str:
    return f"{round(seconds, 2):.10g}"
