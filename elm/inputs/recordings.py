"""Recordings that somebody asks a model about: the seconds that it reads of each, and what is to be said of them."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from data.ecg import Ecg
from data.quality import require_readable
from elm.inputs.processing import ElmProcessor
from elm.inputs.window import read_window, seconds_read
from encoders.base import EcgFeatureExtractor

_ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth", "tenth")


def as_read(
    ecgs: Sequence[Ecg], reader: ElmProcessor | EcgFeatureExtractor, starts: Sequence[float] = (), choose: str = ""
) -> tuple[list[Ecg], list[str]]:
    """What a model reads of recordings, and a line about each that is longer, or in which something is wrong.

    Another line says that two of them are one.

    Args:
        ecgs: The recordings, in the order in which a question speaks of them.
        reader: The model's processor, or the encoder's feature extractor.
        starts: From which second on: one number for all, one for each, or none for the first seconds.
        choose: How whoever reads the lines chooses other seconds.

    Raises:
        ValueError: Nothing can be read in a recording, it does not reach so far, or `starts` are of another number.
            Names the recording.
    """
    if len(starts) > 1 and len(starts) != len(ecgs):
        raise ValueError(f"{len(starts)} starts for {len(ecgs)} recordings: give one for all, or one for each")
    each = list(starts) if len(starts) > 1 else [*starts, 0.0][:1] * len(ecgs)
    parts, lines = [], []
    for ecg, start in zip(ecgs, each, strict=True):
        part, sentence = read_window(ecg, seconds_read(reader), start, choose)
        notes = " ".join([sentence, *require_readable(part).notes]).strip()
        parts.append(part)
        lines += [f"{ecg.record_id or 'ECG'}: {notes}"] if notes else []
    return parts, [*lines, *_same(parts)]


def _same(ecgs: Sequence[Ecg]) -> Iterator[str]:
    """A sentence about each recording that is one before it, by file or by signal."""
    for number, ecg in enumerate(ecgs):
        before = next((other for other in range(number) if _equal(ecgs[other], ecg)), None)
        if before is not None:
            what = "file" if _file(ecgs[before]) == _file(ecg) else "signal"
            yield f"The {_ordinal(before)} and the {_ordinal(number)} recording are the same {what}."


def _file(ecg: Ecg) -> Path | Ecg:
    """Where a recording was read; one that was not is by itself."""
    return Path(ecg.meta["file"]).resolve() if "file" in ecg.meta else ecg


def _equal(one: Ecg, other: Ecg) -> bool:
    """Whether two recordings show the same, to the microvolt that files round to."""
    if one.fs != other.fs or one.signal.shape != other.signal.shape or _bare(one) != _bare(other):
        return False
    return bool(np.allclose(one.signal, other.select(one.leads).signal, rtol=0, atol=1e-3))


def _bare(ecg: Ecg) -> set[str]:
    return {lead.removeprefix("-") for lead in ecg.leads}


def _ordinal(number: int) -> str:
    return _ORDINALS[number] if number < len(_ORDINALS) else f"{number + 1}th"
