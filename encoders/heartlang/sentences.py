"""Sentences of many recordings, cut once and kept on disk: pretraining reads each of them a hundred times.

A folder of shards. Each is an array float32 `[words, word_length + 2]`, whose last two columns are lead and second, and
an index beside it that says which rows are whose; padding is not kept. 12 leads at 72 beats per minute take 56 kB, and
never more than 101 kB. A shard counts once its index is there, which is written last, so a process killed at any moment
costs the shard it was cutting. Arrays are memory-mapped: what is read of them is the system's to keep or to drop.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset
from tqdm.auto import tqdm

from data.ecg import EcgSource
from data.experiment.recordings import evenly
from data.support.cache import Shards
from data.support.files import written_whole
from data.support.parallel import in_processes
from encoders.heartlang import feature_extraction
from encoders.heartlang.feature_extraction import QrsTokenizer
from encoders.training import report_refused

SHARD_RECORDS = 256
FORMAT = 1


@dataclass(frozen=True, eq=False)
class Sentences(Dataset[dict[str, torch.Tensor]]):
    """Sentences by number: `words` float32 `[N, samples]`, `in_chan` and `in_time` int32 `[N]`."""

    records: list[str]  # recordings of the sentences, in this order
    refused: dict[str, str]  # why records that were asked for are not among them
    shape: tuple[int, int]  # N and samples
    paths: list[Path]  # arrays on disk
    places: NDArray[np.int64]  # int64 `[records, 3]`: array, first row, rows

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, number: int) -> dict[str, torch.Tensor]:
        path, first, count = self.places[number].tolist()
        rows = _mapped(self.paths[path])[first : first + count]
        words = np.zeros(self.shape, np.float32)
        positions = np.zeros((2, self.shape[0]), np.int32)
        words[:count] = rows[:, :-2]
        positions[:, :count] = rows[:, -2:].T
        in_chan, in_time = torch.from_numpy(positions)
        return {"words": torch.from_numpy(words), "in_chan": in_chan, "in_time": in_time}

    def spread(self, limit: int) -> Self:
        """Pick at most `limit` recordings, evenly over all."""
        some = evenly(range(len(self)), limit)
        return replace(self, records=[self.records[i] for i in some], places=self.places[some])


@lru_cache(maxsize=8192)  # two million recordings
def _mapped(path: Path) -> NDArray[np.float32]:
    return np.load(path, mmap_mode="r")


def sentences_of(
    records: Sequence[str], source: EcgSource, source_key: str, tokenizer: QrsTokenizer, root: Path | str, jobs: int = 1
) -> Sentences:
    """The sentences of recordings; those that are not on disk yet are cut by `jobs` processes, with a progress bar.

    They take a folder in `root`, that of all caches, for this tokenizer and source; `source_key` tells sources apart
    that use the same record ids. Several processes may fill it: files appear whole, and what two of them cut is the
    same. Recordings that cannot be cut are left out: `refused` says which and why.

    Raises:
        ValueError: Every recording was refused.
    """
    settings = tokenizer.to_dict()
    settings["output"] = "words" if settings["output"] == "codes" else settings["output"]  # codes are of the same words
    shards = Shards(root, "sentences", [FORMAT, feature_extraction.VERSION, source_key, settings], ".json")
    paths: list[Path] = []
    where: dict[str, tuple[int, int, int]] = {}  # array, first row and rows of each record
    reasons: dict[str, str] = {}

    def read(path: Path) -> None:
        index = json.loads(path.read_text(encoding="utf-8"))
        ends = np.cumsum(index["words"]).tolist()
        for record, words, end in zip(index["records"], index["words"], ends, strict=True):
            where[record] = len(paths), end - words, words
        reasons.update(index["refused"])
        paths.append(path.with_suffix(".npy"))

    shards.refresh(read)
    missing = [record for record in dict.fromkeys(records) if record not in where and record not in reasons]
    chunks = [missing[i : i + SHARD_RECORDS] for i in range(0, len(missing), SHARD_RECORDS)]
    with tqdm(total=len(missing), desc="Cutting ECGs into words", unit="ECG", disable=not missing) as progress:
        for count in in_processes(_write_shard, chunks, source, tokenizer, shards, jobs=min(jobs, len(chunks))):
            progress.update(count)
    shards.refresh(read)
    refused = {record: reasons[record] for record in records if record in reasons}
    cut = [record for record in records if record in where]
    if not cut:
        first, why = next(iter(refused.items()), ("", "none was asked for"))
        raise ValueError(f"none of {len(records):,} recordings could be cut into words, the first {first!r}: {why}")
    report_refused(refused, records)
    places = np.array([where[record] for record in cut], np.int64)
    return Sentences(cut, refused, (tokenizer.max_words, tokenizer.word_length), paths, places)


def _write_shard(records: Sequence[str], source: EcgSource, tokenizer: QrsTokenizer, shards: Shards) -> int:
    rows, words, cut, refused = [], [], [], {}
    for record in records:
        try:
            sentence = tokenizer.sentence(source[record])
        except ValueError as error:
            refused[record] = str(error)
            continue
        count = int((sentence.in_chan > 0).sum())
        rows.append(np.column_stack([sentence.words, sentence.in_chan, sentence.in_time])[:count])
        words.append(count)
        cut.append(record)
    empty = np.zeros((0, tokenizer.word_length + 2), np.float32)
    with written_whole(shards.path_of(records).with_suffix(".npy")) as file:
        np.save(file, np.concatenate([empty, *rows]).astype(np.float32))
    shards.write(records, json.dumps({"records": cut, "words": words, "refused": refused}).encode())
    return len(records)
