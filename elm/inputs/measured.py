"""Measured features of recordings, each measured once and kept beside the encoder's output."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path

from tqdm.auto import tqdm

from data import measure
from data.ecg import EcgSource
from data.experiment import conditions
from data.experiment.conditions import Altered
from data.measure import Measurements, measure_many
from data.support.cache import Shards

SHARD = 512  # recordings in a file: what an interrupted run measures again at most


class MeasuredStore:
    """Measurements on disk by (source, version of the measurement, record): `store.get(records)`.

    Altered recordings (`data.experiment.conditions.Altered`) are measured as they are altered. Several processes may
    fill it at the same time: files appear whole, and what two of them measured is the same.

    Args:
        source: Where recordings come from.
        source_name: Tells sources with the same record ids from each other.
        root: Folder of all caches; this one takes a folder in it.
    """

    def __init__(self, source: EcgSource, source_name: str, root: Path | str) -> None:
        measure.require_neurokit()
        self.source = Altered(source)
        # What an earlier version made of a recording is another recording.
        key = [source_name, measure.version(), conditions.VERSION]
        self._shards = Shards(root, "measured", key, ".json")
        self.folder = self._shards.folder
        self._measured: dict[str, str] = {}  # as JSON: a tenth of the memory
        self._refresh()

    def __contains__(self, record_id: str) -> bool:
        return record_id in self._measured

    def _refresh(self) -> None:
        self._shards.refresh(lambda path: self._measured.update(json.loads(path.read_text(encoding="utf-8"))))

    def fill(self, records: Iterable[str], jobs: int | None = None) -> MeasuredStore:
        """Measure what is missing, on as many cores as there are, with a progress bar."""
        wanted = dict.fromkeys(records)
        if not wanted.keys() <= self._measured.keys():
            self._refresh()  # another process may have measured them since
        if not (missing := [record for record in wanted if record not in self]):
            return self
        look = {"total": len(missing), "desc": "Measuring ECGs", "unit": "ECG", "disable": len(missing) < SHARD}
        measured = iter(tqdm(measure_many(self.source, missing, jobs), **look))
        for start in range(0, len(missing), SHARD):
            shard = {record: json.dumps(asdict(next(measured))) for record in missing[start : start + SHARD]}
            self._shards.write(list(shard), json.dumps(shard).encode())
            self._refresh()
        return self

    def get(self, records: Sequence[str]) -> list[Measurements]:
        """Measurements of these recordings; measures those it does not hold."""
        self.fill(records)
        return [Measurements(**json.loads(self._measured[record])) for record in records]
