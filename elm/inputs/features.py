"""A frozen encoder's output, computed once per recording and kept on disk.

ECG-QA asks about 25 questions per recording; a full-size encoder costs tens of GFLOP per recording. Cached features go
into the model as `ecg_features` and `ecg_mask` in place of the feature extractor's tensors, and give the same logits.

A store is a folder of shards (`data.support.cache`), each a safetensors file: `features` float32 `[n, T, D]`, `mask`
bool `[n, T]`, and in its header the ids of the n recordings. Many processes and runs may fill and read it at once, and
share the work; readers compute for themselves what is not there or no longer there.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save
from tqdm.auto import tqdm
from transformers import BatchFeature

from data.ecg import Ecg, EcgSource
from data.experiment.conditions import zero_features
from data.support.cache import NoRoom, Shards
from data.support.sentences import Refused
from encoders.base import EcgEncoder, EcgEncoderOutput, EcgFeatureExtractor

logger = logging.getLogger(__name__)

SHARD_RECORDS, SHARD_BYTES = 512, 64_000_000  # whichever is less
CACHE_GB = 50.0
VERSION = 3  # of a shard and its name, in cache keys

Arrays = tuple[NDArray[np.float32], NDArray[np.bool_]]


def weights_hash(module: torch.nn.Module) -> str:
    """A hash of a module's parameters and buffers: names, shapes, types and bytes."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        value = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
        digest.update(value.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def encoder_key(encoder: EcgEncoder, extractor: EcgFeatureExtractor) -> list[object]:
    """What an encoder's output follows from beside the recording, as parts of a `cache_key`.

    A configuration can change the output and not the weights; an extractor's class is part of its JSON.
    """
    config = {name: value for name, value in encoder.config.to_dict().items() if name not in _OF_FILES}
    return [weights_hash(encoder), config, extractor.to_json_string()]


# In an encoder's configuration: what saving and loading add, and what the weights' hash already says.
_OF_FILES = ("architectures", "dtype", "transformers_version", "_name_or_path")


def encode_ecgs(
    encoder: EcgEncoder, extractor: EcgFeatureExtractor, ecgs: Sequence[Ecg], zero: bool = False
) -> EcgEncoderOutput:
    """An encoder's output for recordings, in the mode and with the gradients that are set.

    With `zero` the inputs are set to zero after the extractor's normalisation (the `zero` condition).
    """
    tensors: Mapping[str, torch.Tensor] = extractor(list(ecgs), return_tensors="pt")
    if zero:
        tensors = zero_features(tensors, encoder.ecg_inputs, encoder.zero_token)
    output: EcgEncoderOutput = encoder(**BatchFeature(dict(tensors)).to(encoder.device, encoder.dtype))
    return output


@dataclass(frozen=True, eq=False)
class _Shard:
    """A file of the output for some recordings; opened for each reading, lest it keep its disk space once deleted."""

    path: Path
    records: list[str]
    shape: tuple[int, int]  # T, D

    @classmethod
    def open(cls, path: Path) -> _Shard:
        """Reads the header alone. Raises `ValueError` for a file that is not what its header says."""
        try:
            with safe_open(path, "numpy") as file:
                records = json.loads(file.metadata()["records"])
                count, tokens, width = file.get_slice("features").get_shape()
        except (KeyError, TypeError, ValueError, SafetensorError) as error:
            raise ValueError(f"it cannot be read ({error!r})") from error
        if count != len(records):
            raise ValueError(f"it has {count} rows for {len(records)} recordings")
        return cls(path, records, (tokens, width))

    def read(self, rows: Sequence[int], places: Sequence[int], features: np.ndarray, mask: np.ndarray) -> None:
        """Copies rows into places of two arrays. Raises `OSError` or `SafetensorError` if they are no longer there."""
        with safe_open(self.path, "numpy") as file:
            for name, array in (("features", features), ("mask", mask)):
                tensor = file.get_slice(name)
                for row, place in zip(rows, places, strict=True):
                    array[place] = tensor[row]


class FeatureStore:
    """Output of a frozen encoder on disk by (weights, feature extractor, source, record): `store.get(records)`.

    Args:
        encoder: The encoder.
        extractor: Its feature extractor.
        source: Where recordings come from.
        source_key: Tells sources apart that use the same record ids.
        root: Folder of all caches; this one takes a folder of its own in it.
        zero: Cache the output for inputs set to zero after the extractor's normalisation (the `zero` condition).
        cache_gb: What all stores in `root` may take together, in 10^9 bytes. To make room, `fill` deletes the least
            recently used shards of other stores; what does not fit even so is computed each time it is asked for. 0
            keeps nothing.

    Raises:
        ValueError: `cache_gb` is negative or not a number.
    """

    def __init__(
        self,
        encoder: EcgEncoder,
        extractor: EcgFeatureExtractor,
        source: EcgSource,
        source_key: str,
        root: Path | str,
        zero: bool = False,
        cache_gb: float = CACHE_GB,
    ) -> None:
        if not cache_gb >= 0:
            raise ValueError(f"cache_gb must be 0 (keep nothing) or more, got {cache_gb}")
        self.encoder, self.extractor, self.source, self.zero = encoder, extractor, source, zero
        self.root, self.cache_gb = Path(root), cache_gb
        key = [VERSION, *encoder_key(encoder, extractor), source_key, zero]
        self._shards = Shards(root, "features", key, ".safetensors", cache_gb)
        self.folder = self._shards.folder
        self._row_bytes = encoder.config.max_tokens * (4 * encoder.config.output_dim + 1) + 64  # the id, and some
        self._shard_rows = min(SHARD_RECORDS, max(1, SHARD_BYTES // self._row_bytes))
        self._where: dict[str, _Shard] = {}
        self._full = not cache_gb
        self._refresh()

    def __contains__(self, record_id: str) -> bool:
        return record_id in self._where

    def fill(
        self, records: Iterable[str], batch_size: int = 64, device: torch.device | str | None = None
    ) -> FeatureStore:
        """Compute what is missing, with a progress bar, until there is no room.

        Several processes that fill the same store share the work, a shard at a time, and wait for each other's.

        Meanwhile the encoder is on `device`; by default it stays where it is.
        """
        self._refresh()
        self._full = not self.cache_gb
        pending = deque(record for record in dict.fromkeys(records) if record not in self)
        home = self.encoder.device
        try:
            if pending and device is not None:
                self.encoder.to(device)
            self._fill(pending, batch_size)
        except NoRoom as why:
            self._no_room([record for record in pending if record not in self], why)
        finally:
            self.encoder.to(home)
        return self

    def _fill(self, pending: deque[str], batch_size: int) -> None:
        """Compute shards of `pending` until none is missing; raises `NoRoom`."""
        with tqdm(total=len(pending), desc="Encoding ECGs", unit="ECG", disable=not pending or None) as progress:
            while pending and not self._full:
                if (rows := min(self._shard_rows, int(self._shards.room(evict=True) // self._row_bytes))) < 1:
                    raise NoRoom(f"cache_gb is {self.cache_gb:g}")
                missing = (record for record in pending if record not in self)
                with self._shards.claimed(missing, rows) as claimed:
                    self._refresh()  # a shard appears before its claim goes
                    if chunk := [record for record in claimed if record not in self]:
                        self._write(chunk, self._encode(chunk, batch_size), evict=True)
                while pending and pending[0] in self:
                    pending.popleft()
                progress.update(progress.total - len(pending) - progress.n)

    def get(self, records: Sequence[str]) -> dict[str, torch.Tensor]:
        """`ecg_features` float32 `[N, T, D]` and `ecg_mask` bool `[N, T]`; computes records it does not hold.

        Raises:
            ValueError: No records.
            Refused: The encoder would have to run on a GPU in a worker process of a data loader.
        """
        if not records:
            raise ValueError("no records to get the encoder's output of")
        if any(record not in self for record in records):
            self._refresh()
        places: dict[_Shard, list[int]] = {}
        missing: list[int] = []
        for place, record in enumerate(records):
            shard = self._where.get(record)
            (missing if shard is None else places.setdefault(shard, [])).append(place)
        out = _empty(len(records), *next(iter(places)).shape) if places else None
        for shard, its_places in places.items():
            assert out is not None
            try:
                # Searched among hundreds; a row number for each record would cost more.
                shard.read([shard.records.index(records[place]) for place in its_places], its_places, *out)
                self._shards.touch(shard.path)
            except (OSError, SafetensorError):  # another process needed its room
                self._shards.forget(shard.path)
                self._where = {record: other for record, other in self._where.items() if other is not shard}
                missing += its_places
        if missing:
            rows = {record: row for row, record in enumerate(dict.fromkeys(records[place] for place in missing))}
            arrays = self._encode(list(rows), batch_size=64)
            out = out or _empty(len(records), *arrays[0].shape[1:])
            for array, computed in zip(out, arrays):
                array[missing] = computed[[rows[records[place]] for place in missing]]
            try:
                # Room is made by `fill` alone: two runs that do not fit in together would push each other out for ever.
                if not self._full:
                    self._write(list(rows), arrays, evict=False)
            except NoRoom as why:
                self._no_room(list(rows), why)
        assert out is not None
        return {"ecg_features": torch.from_numpy(out[0]), "ecg_mask": torch.from_numpy(out[1])}

    @torch.no_grad()
    def _encode(self, records: Sequence[str], batch_size: int) -> Arrays:
        """Features and masks of the records, in order."""
        encoder, training = self.encoder, self.encoder.training
        if encoder.device.type != "cpu" and torch.utils.data.get_worker_info() is not None:
            raise Refused(
                f"a worker of a data loader cannot run the encoder on {encoder.device}, and {records[0]!r} is not in "
                "the feature cache: raise cache_gb, or set dataloader_num_workers to 0"
            )
        parts: list[Arrays] = []
        encoder.eval()
        try:
            for start in range(0, len(records), batch_size):
                ecgs = [self.source[record] for record in records[start : start + batch_size]]
                output = encode_ecgs(encoder, self.extractor, ecgs, self.zero)
                parts.append((output["last_hidden_state"].float().cpu().numpy(), output["mask"].cpu().numpy()))
        finally:
            encoder.train(training)
        return np.concatenate([features for features, _ in parts]), np.concatenate([mask for _, mask in parts])

    def _write(self, records: list[str], arrays: Arrays, *, evict: bool) -> None:
        """Write a shard; raises `NoRoom`."""
        tensors = {name: np.ascontiguousarray(array) for name, array in zip(("features", "mask"), arrays)}
        self._shards.write(records, save(tensors, metadata={"records": json.dumps(records)}), evict=evict)
        self._refresh()

    def _refresh(self) -> None:
        """Take note of shards that have come and gone."""

        def read(path: Path) -> None:
            shard = _Shard.open(path)
            self._where.update(dict.fromkeys(shard.records, shard))

        if gone := self._shards.refresh(read):
            self._where = {record: shard for record, shard in self._where.items() if shard.path.name not in gone}

    def _no_room(self, records: Sequence[str], why: NoRoom) -> None:
        """Say, once, how much room there would have to be; from now on write nothing more."""
        if not self._full:
            needed = (len(self._where) + len(records)) * self._row_bytes / 1e9
            logger.warning(
                f"no room for the encoder's output of {len(records)} recordings in {self.folder} ({why}; with them it "
                f"takes {needed:.3g} GB): they are encoded each time they are asked for"
            )
        self._full = True


def _empty(count: int, tokens: int, width: int) -> Arrays:
    return np.empty((count, tokens, width), np.float32), np.empty((count, tokens), np.bool_)
