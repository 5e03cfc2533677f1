"""Learning a table of tokens: the most frequent pair of neighbours becomes a token, again and again.

Byte-pair merges, as ECG-Byte learns them, with two differences. Which of several equally frequent pairs comes first is
not left to the order of a hash map: it is the one whose left token is the older, then whose right token is. And counts
are kept up to date where a merge changes them, where upstream counts the whole corpus again for every merge.
"""

import heapq
import logging
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from data.ecg import LEADS
from encoders.ecg_byte.quantizing import LEVELS, EcgByteSettings
from encoders.ecg_byte.table import SYMBOLS

logger = logging.getLogger(__name__)

_DERIVED = {"III", "aVR", "aVL", "aVF"}  # sums and differences of I and II
_END = 2**16 - 1  # stands between pieces; no pair has it


def learn_merges(
    pieces: Sequence[NDArray[np.uint8]], merges: int, across: bool = False, progress: bool = True
) -> list[str]:
    """The strings of the merges, in the order in which they are learned.

    Fewer are learned where no pair occurs twice any more. A pair whose string is a token already is merged into that
    one. Overlapping pairs count, as upstream counts them (`aaa` is two), and are merged from the left. Pieces are
    levels, 0 to 25, of the leads of all recordings. With `across` a token may go over the end of one into the next.

    Raises:
        ValueError: There are no pieces, or more merges are wanted than 16 bits can number.
    """
    from tqdm.auto import tqdm

    if not any(len(piece) for piece in pieces):
        raise ValueError("no recording to learn tokens from")
    if not 0 <= merges <= _END - LEVELS:
        raise ValueError(f"merges must be 0 to {_END - LEVELS}, got {merges}")
    sequence = _joined(pieces, across)
    strings = list(SYMBOLS)
    token_of = {string: i for i, string in enumerate(strings)}
    counts: dict[int, int] = {}
    waiting: list[tuple[int, int]] = []  # (-count, pair), with counts that may be out of date: a heap

    def change(pairs: NDArray[np.uint32], sign: int) -> None:
        for pair, count in zip(*(column.tolist() for column in np.unique(pairs, return_counts=True))):
            counts[pair] = counts.get(pair, 0) + sign * count
            changed.add(pair)

    with tqdm(total=merges, desc="Learning tokens", unit="token", disable=not progress) as bar:
        changed: set[int] = set()
        change(_pairs(sequence[:-1], sequence[1:]), 1)
        while len(strings) - LEVELS < merges:
            for pair in changed:
                if counts[pair] > 1:
                    heapq.heappush(waiting, (-counts[pair], pair))
                elif not counts[pair]:
                    del counts[pair]
            while waiting and -waiting[0][0] != counts.get(waiting[0][1], 0):
                heapq.heappop(waiting)
            if not waiting:
                logger.warning("no pair occurs twice after %d of %d merges", len(strings) - LEVELS, merges)
                break
            left, right = divmod(heapq.heappop(waiting)[1], 2**16)
            string = strings[left] + strings[right]
            new = token_of.setdefault(string, len(strings))
            if new == len(strings):
                strings.append(string)
                bar.update()
            changed = set()
            at = _places(sequence, left, right)
            change(_around(sequence, at, 2), -1)
            sequence[at] = new
            keep = np.ones(len(sequence), bool)
            keep[at + 1] = False
            sequence = sequence[keep]
            change(_around(sequence, at - np.arange(len(at)), 1), 1)
    return strings[LEVELS:]


def _joined(pieces: Sequence[NDArray[np.uint8]], across: bool) -> NDArray[np.uint16]:
    parts: list[NDArray[np.uint16]] = []
    end = np.array([_END], np.uint16)
    for piece in pieces:
        if not across or not parts:
            parts.append(end)
        parts.append(piece.astype(np.uint16))
    return np.concatenate([*parts, end])  # an end on both sides, so that every token has neighbours


def _pairs(left: NDArray[np.uint16], right: NDArray[np.uint16]) -> NDArray[np.uint32]:
    """Pairs as numbers, `left * 2**16 + right`, without those at an end of a piece."""
    inside = (left != _END) & (right != _END)
    return (left[inside].astype(np.uint32) << 16) | right[inside]


def _places(sequence: NDArray[np.uint16], left: int, right: int) -> NDArray[np.intp]:
    """Where the pair stands, without overlaps: of three equal tokens the first two."""
    at = np.flatnonzero((sequence[:-1] == left) & (sequence[1:] == right))
    if left == right and len(at):
        starts = np.flatnonzero(np.diff(at, prepend=-2) > 1)
        into_run = np.arange(len(at)) - np.repeat(starts, np.diff(starts, append=len(at)))
        at = at[into_run % 2 == 0]
    return at


def _around(sequence: NDArray[np.uint16], at: NDArray[np.intp], length: int) -> NDArray[np.uint32]:
    """The pairs that have a part in the tokens `at` to `at + length - 1`, each once."""
    first = np.concatenate([at + i for i in range(length)] + [(at - 1)[np.diff(at, prepend=-2) > length]])
    return _pairs(sequence[first], sequence[first + 1])


def plans(settings: EcgByteSettings) -> Iterator[EcgByteSettings]:
    """Settings to learn tokens with, each giving up more than the one before, for recordings to need fewer."""
    yield settings
    leads = settings.leads or LEADS
    if {"I", "II"} <= set(leads) and _DERIVED & set(leads):
        settings = replace(settings, leads=tuple(lead for lead in leads if lead not in _DERIVED))
        yield settings
    settings = replace(settings, sampling_rate=settings.sampling_rate / 2)
    yield settings
    for _ in range(2):
        if settings.seconds is not None:
            settings = replace(settings, seconds=settings.seconds / 2)
            yield settings
