"""A frozen encoder's output, computed once per recording and kept on disk.

ECG-QA asks about 25 questions per recording; a full-size encoder costs tens of GFLOP per recording. Cached features go
into the model as `ecg_features` and `ecg_mask` in place of the feature extractor's tensors, and give the same logits.

A store is a folder of shards, each a safetensors file: `features` float32 `[n, T, D]`, `mask` bool `[n, T]`, and in its
header the ids of the n recordings. A shard appears whole, so a process killed at any moment costs the shard it was
computing. Many processes may fill and read a store at once: who computes what is settled by claims, files that a
living process keeps locked; readers lock nothing, and compute for themselves what is not there or no longer there.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import logging
import math
import os
import secrets
import time
from collections import deque
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import save
from tqdm.auto import tqdm
from transformers import BatchFeature, PreTrainedModel

from data.ecg import EcgSource
from data.experiment.conditions import zero_features
from data.support.files import written_whole

logger = logging.getLogger(__name__)

SHARD_RECORDS, SHARD_BYTES = 512, 64_000_000  # whichever is less
CACHE_GB = 50.0
FORMAT = 2  # of a shard: another one takes other folders
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT)

Arrays = tuple[NDArray[np.float32], NDArray[np.bool_]]


def weights_hash(module: torch.nn.Module) -> str:
    """A hash of a module's parameters and buffers: names, shapes, types and bytes."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        value = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
        digest.update(value.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


# Of an encoder's configuration: what saving and loading add, and what the weights' hash already says.
NO_MATTER = ("architectures", "dtype", "transformers_version", "_name_or_path")


@dataclass(frozen=True, eq=False)
class _Shard:
    """Where the rows of a shard lie in its file."""

    path: Path
    records: list[str]
    shape: tuple[int, int]  # T, D
    features_at: int
    mask_at: int

    @classmethod
    def open(cls, path: Path) -> _Shard:
        """Reads the header alone. Raises `ValueError` for a file that is not what its header says."""
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            length = int.from_bytes(file.read(8), "little")
            if size < 8 + length:
                raise ValueError(f"it has {size} bytes and ends in its header")
            try:
                header = json.loads(file.read(length))
                features, mask = header["features"], header["mask"]
                records = json.loads(header["__metadata__"]["records"])
                count, tokens, width = features["shape"]
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(f"its header cannot be read ({error!r})") from error
        start = 8 + length
        if size != (end := start + max(features["data_offsets"][1], mask["data_offsets"][1])) or count != len(records):
            raise ValueError(f"it has {size} bytes for {len(records)} records, by its header {end} for {count}")
        at = [start + tensor["data_offsets"][0] for tensor in (features, mask)]
        return cls(path, records, (tokens, width), *at)

    def read(self, rows: Sequence[int], places: Sequence[int], features: np.ndarray, mask: np.ndarray) -> None:
        """Copies rows into places of two arrays. Raises `OSError` if the file is gone, or ends before a row does.

        Read and not mapped: a mapped shard would keep its disk space after it was deleted, and what was read of it
        would count as this process's memory.
        """
        with open(self.path, "rb", buffering=0) as file:
            for row, place in zip(rows, places, strict=True):
                for at, out in ((self.features_at, features[place]), (self.mask_at, mask[place])):
                    buffer = out.reshape(-1).view(np.uint8)
                    file.seek(at + row * buffer.nbytes)
                    if file.readinto(buffer) != buffer.nbytes:
                        raise OSError(errno.EIO, "the shard ends before its rows do", str(self.path))


class FeatureStore:
    """Encoder output on disk by (weights, feature extractor, source, record): `store.get(records)`.

    Args:
        encoder: Frozen encoder.
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
        encoder: PreTrainedModel,
        extractor: Any,
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
        # A configuration can change an encoder's output and not its weights; an extractor's class is part of its JSON.
        config = {name: value for name, value in encoder.config.to_dict().items() if name not in NO_MATTER}
        key = [FORMAT, weights_hash(encoder), config, extractor.to_json_string(), source_key, zero]
        self.folder = self.root / f"features-{hashlib.sha256(json.dumps(key).encode()).hexdigest()[:16]}"
        self._row_bytes = encoder.config.max_tokens * (4 * encoder.config.output_dim + 1) + 64  # the id, and some
        self._shard_rows = min(SHARD_RECORDS, max(1, SHARD_BYTES // self._row_bytes))
        self._shards: dict[str, _Shard] = {}  # by file name
        self._where: dict[str, _Shard] = {}
        self._used: dict[str, float] = {}  # when a shard's time of last use was last written
        self._full = not cache_gb
        self._refresh()

    def __contains__(self, record_id: str) -> bool:
        return record_id in self._where

    def fill(
        self, records: Iterable[str], batch_size: int = 64, device: torch.device | str | None = None
    ) -> FeatureStore:
        """Compute what is missing, with a progress bar, until there is no room.

        Several processes that fill the same store share the work, a shard at a time, and wait for each other's.

        Args:
            records: What will be asked for.
            batch_size: Recordings encoded at once.
            device: Where the encoder is meanwhile; by default it stays where it is.
        """
        self._refresh()
        self._full = not self.cache_gb
        pending = deque(record for record in dict.fromkeys(records) if record not in self)
        home = self.encoder.device
        try:
            if pending and device is not None:
                self.encoder.to(device)
            self._fill(pending, batch_size)
        finally:
            self.encoder.to(home)
        return self

    def _fill(self, pending: deque[str], batch_size: int) -> None:
        with tqdm(total=len(pending), desc="Encoding ECGs", unit="ECG", disable=not pending or None) as progress:
            while pending and not self._full:
                if (rows := min(self._shard_rows, self._room(evict=True) // self._row_bytes)) < 1:
                    return self._no_room(len(pending))
                with self._until_full(len(pending)), self._claim(pending, rows) as mine:
                    if mine:
                        self._keep(mine, self._encode(mine, batch_size), evict=True, rest=len(pending))
                progress.update(progress.total - len(pending) - progress.n)

    def get(self, records: Sequence[str]) -> dict[str, torch.Tensor]:
        """`ecg_features` float32 `[N, T, D]` and `ecg_mask` bool `[N, T]`; computes records it does not hold.

        Raises:
            ValueError: No records.
            RuntimeError: The encoder would have to run on a GPU in a worker process of a data loader.
        """
        if not records:
            raise ValueError("no records to get the encoder's output of")
        if any(record not in self for record in records):
            self._refresh()
        places: dict[_Shard, tuple[list[int], list[int]]] = {}  # rows, and where they go
        missing: dict[str, list[int]] = {}
        for place, record in enumerate(records):
            if record in self._where:
                shard = self._where[record]
                rows, targets = places.setdefault(shard, ([], []))
                rows.append(shard.records.index(record))  # among hundreds; a row number for each would cost more
                targets.append(place)
            else:
                missing.setdefault(record, []).append(place)
        out = _empty(len(records), *next(iter(places)).shape) if places else None
        for shard, (rows, targets) in places.items():
            assert out is not None
            try:
                shard.read(rows, targets, *out)
            except OSError:  # another process needed its room
                self._forget(shard)
                for place in targets:
                    missing.setdefault(records[place], []).append(place)
            else:
                self._touch(shard)
        if missing:
            features, mask = self._encode(list(missing), batch_size=64)
            out = out or _empty(len(records), *features.shape[1:])
            for row, targets in enumerate(missing.values()):
                out[0][targets], out[1][targets] = features[row], mask[row]
            # Room is made by `fill` alone: two runs that do not fit in beside each other would else push each other
            # out for ever.
            if not self._full:
                with self._until_full(len(missing)):
                    self._keep(list(missing), (features, mask), evict=False)
        assert out is not None
        return {"ecg_features": torch.from_numpy(out[0]), "ecg_mask": torch.from_numpy(out[1])}

    @torch.no_grad()
    def _encode(self, records: Sequence[str], batch_size: int) -> Arrays:
        """Features and masks of the records, in order."""
        encoder, training = self.encoder, self.encoder.training
        if encoder.device.type != "cpu" and torch.utils.data.get_worker_info() is not None:
            raise RuntimeError(
                f"a worker of a data loader cannot run the encoder on {encoder.device}, and {records[0]!r} is not in "
                "the feature cache: raise cache_gb, or set dataloader_num_workers to 0"
            )
        parts: list[Arrays] = []
        encoder.eval()
        try:
            for start in range(0, len(records), batch_size):
                batch = [self.source[record] for record in records[start : start + batch_size]]
                tensors = dict(self.extractor(batch, return_tensors="pt"))
                if self.zero:
                    tensors = zero_features(tensors, encoder.ecg_inputs, encoder.zero_token)
                encoded = encoder(**BatchFeature(tensors).to(encoder.device, encoder.dtype))
                parts.append((encoded.last_hidden_state.float().cpu().numpy(), encoded.mask.cpu().numpy()))
        finally:
            encoder.train(training)
        return np.concatenate([features for features, _ in parts]), np.concatenate([mask for _, mask in parts])

    # --- index --------------------------------------------------------------------------------------------------------

    def _refresh(self) -> None:
        """Take note of shards that have come and gone."""
        try:
            found = {entry.name for entry in os.scandir(self.folder) if _is_shard(entry.name)}
        except FileNotFoundError:
            found = set()
        for name in self._shards.keys() - found:
            self._forget(self._shards[name])
        for name in sorted(found - self._shards.keys()):
            path = self.folder / name
            try:
                self._add(_Shard.open(path))
            except FileNotFoundError:
                continue
            except ValueError as error:
                logger.warning("%s is damaged, %s: it is deleted and computed anew", path, error)
                with suppress(OSError):
                    path.unlink()

    def _add(self, shard: _Shard) -> None:
        self._shards[shard.path.name] = shard
        self._where.update(dict.fromkeys(shard.records, shard))

    def _forget(self, shard: _Shard) -> None:
        self._shards.pop(shard.path.name, None)
        for record in shard.records:
            if self._where.get(record) is shard:
                del self._where[record]

    def _touch(self, shard: _Shard) -> None:
        """A shard's modification time says when it was last used, to a minute."""
        now = time.monotonic()
        if now - self._used.get(shard.path.name, -math.inf) > 60:
            self._used[shard.path.name] = now
            with suppress(OSError):  # somebody else's folder, or gone by now
                os.utime(shard.path)

    # --- several processes --------------------------------------------------------------------------------------------

    @contextmanager
    def _claim(self, pending: deque[str], rows: int) -> Iterator[list[str]]:
        """Takes from `pending` what is there by now, and up to `rows` records for this process alone to compute.

        Records that other processes are computing go to the end of `pending`; when there is nothing else, one of these
        processes is waited for. A claim is locked while its process lives, so one that can be locked is a dead one's.
        """
        mine: list[str] = []
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f".claim-{secrets.token_hex(8)}"
        with ExitStack() as claimed:
            with _locked(self.folder / ".lock"):
                theirs = {record: other for other in self.folder.glob(".claim-*") for record in _claimed_in(other)}
                self._refresh()  # after the claims were read: a shard appears before its claim goes
                later: list[str] = []
                while pending and len(mine) < rows:
                    record = pending.popleft()
                    if record not in self:
                        (later if record in theirs else mine).append(record)
                pending.extend(later)
                if mine:
                    claim = claimed.enter_context(open(path, "x"))
                    claimed.callback(path.unlink, missing_ok=True)
                    fcntl.flock(claim, fcntl.LOCK_EX)
                    json.dump(mine, claim)
                    claim.flush()
            if pending and not mine:
                _wait_for(theirs[pending[0]])
            yield mine

    def _keep(self, records: list[str], arrays: Arrays, *, evict: bool, rest: int = 0) -> None:
        """Writes a shard if there is room; if not, says so, of `rest` more records too.

        One process at a time writes in `root`, lest two take the same room.
        """
        features, mask = arrays
        tensors = {"features": np.ascontiguousarray(features), "mask": np.ascontiguousarray(mask)}
        content = save(tensors, metadata={"records": json.dumps(records)})
        path = self.folder / f"{secrets.token_hex(8)}.safetensors"
        self.folder.mkdir(parents=True, exist_ok=True)
        with _locked(self.root / ".features.lock"):
            if self._room(evict=evict, needed=len(content)) < len(content):
                return self._no_room(len(records) + rest)
            with written_whole(path) as file:
                file.write(content)
        self._add(_Shard.open(path))

    def _room(self, *, evict: bool, needed: int = 0) -> int:
        """Bytes left of `cache_gb`, those counted that deleting other stores' shards would give if `evict`.

        With `needed`, which takes the lock of `root`, leftovers of dead processes are deleted, and as many of those
        shards as it takes.
        """
        others: list[tuple[float, int, Path]] = []
        room = int(self.cache_gb * 1e9)
        for path in self.root.glob("features-*/*"):
            with suppress(FileNotFoundError, PermissionError):  # gone by now; another user's
                if needed and path.name.startswith(".") and not path.name.startswith((".lock", ".claim-")):
                    path.unlink()  # who writes has the lock: nobody does
                    continue
                stat = path.stat()
                room -= stat.st_size
                if evict and path.parent != self.folder and not path.name.startswith("."):
                    others.append((stat.st_mtime, stat.st_size, path))
        spare = sum(size for _, size, _ in others)
        if not needed or room + spare < needed:
            return room + spare
        for _, size, path in sorted(others):
            if room >= needed:
                break
            with suppress(PermissionError):
                path.unlink(missing_ok=True)
                room += size
        return room

    @contextmanager
    def _until_full(self, records: int) -> Iterator[None]:
        """A full disk is no room for these records, and no error."""
        try:
            yield
        except OSError as error:
            if error.errno not in _DISK_FULL:
                raise
            self._no_room(records, f"{error.strerror} on its disk")

    def _no_room(self, records: int, why: str = "") -> None:
        """Say, once, how much room there would have to be; from now on write nothing more."""
        if not self._full:
            logger.warning(
                "no room for the encoder's output of %d recordings in %s (%s; with them it takes %.3g GB): they are "
                "encoded each time they are asked for", records, self.folder, why or f"cache_gb is {self.cache_gb:g}",
                (len(self._where) + records) * self._row_bytes / 1e9,
            )  # fmt: skip
        self._full = True


def _is_shard(name: str) -> bool:
    return name.endswith(".safetensors") and not name.startswith(".")


def _empty(count: int, tokens: int, width: int) -> Arrays:
    return np.empty((count, tokens, width), np.float32), np.empty((count, tokens), np.bool_)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Holds the lock of a file; the system lets go of it when the process ends, however it ends."""
    with open(path, "a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _claimed_in(path: Path) -> Collection[str]:
    """Records of another process's claim. One that is dead, or done, claims none."""
    try:
        with open(path) as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                claimed: list[str] = json.load(file)
                return claimed
            path.unlink(missing_ok=True)
    except (FileNotFoundError, json.JSONDecodeError):  # gone by now; on a full disk it may be torn
        pass
    return ()


def _wait_for(path: Path) -> None:
    with suppress(FileNotFoundError), open(path) as file:
        fcntl.flock(file, fcntl.LOCK_SH)
