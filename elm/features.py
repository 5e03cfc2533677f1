"""A frozen encoder's output, computed once per recording and memory-mapped.

ECG-QA asks about 25 questions per recording; a full-size encoder costs tens of GFLOP per recording. Cached features go
into the model as `ecg_features` and `ecg_mask` in place of the feature extractor's tensors, and give the same logits.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.lib.format import open_memmap
from tqdm.auto import tqdm
from transformers import BatchFeature, PreTrainedModel

from data.conditions import zero_features
from data.ecg import EcgSource
from data.files import written_whole


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


class FeatureStore:
    """Encoder output on disk by (weights, feature extractor, source, record): `store.get(records)`.

    Args:
        encoder: Frozen encoder.
        extractor: Its feature extractor.
        source: Where recordings come from.
        source_name: Tells sources apart that use the same record ids.
        root: Folder of all caches; this one takes a folder of its own in it.
        zero: Cache the output for inputs set to zero after the extractor's normalisation (the `zero` condition).
    """

    def __init__(
        self,
        encoder: PreTrainedModel,
        extractor: Any,
        source: EcgSource,
        source_name: str,
        root: Path | str,
        zero: bool = False,
    ) -> None:
        self.encoder, self.extractor, self.source, self.zero = encoder, extractor, source, zero
        # A configuration can change an encoder's output and not its weights; an extractor's class is part of its JSON.
        config = {name: value for name, value in encoder.config.to_dict().items() if name not in NO_MATTER}
        key = [weights_hash(encoder), config, extractor.to_json_string(), source_name, zero]
        self.folder = Path(root) / f"features-{hashlib.sha256(json.dumps(key).encode()).hexdigest()[:16]}"
        self._where: dict[str, tuple[int, int]] = {}
        self._shards: list[tuple[np.ndarray, np.ndarray]] = []
        for index in sorted(self.folder.glob("*.json")):
            self._open(index)

    def __contains__(self, record_id: str) -> bool:
        return record_id in self._where

    def _open(self, index: Path) -> None:
        features = np.load(index.with_suffix(".features.npy"), mmap_mode="r")
        mask = np.load(index.with_suffix(".mask.npy"))
        for row, record in enumerate(json.loads(index.read_text())):
            self._where[record] = (len(self._shards), row)
        self._shards.append((features, mask))

    def fill(self, records: Iterable[str], batch_size: int = 64) -> FeatureStore:
        """Compute what is missing, with a progress bar. Complete files only appear at the end, under their names."""
        missing = [record for record in dict.fromkeys(records) if record not in self]
        if not missing:
            return self
        self.folder.mkdir(parents=True, exist_ok=True)
        name = hashlib.sha256("\n".join(missing).encode()).hexdigest()[:16]
        # A name of its own: two runs may fill the same cache at the same time.
        handle, partial = tempfile.mkstemp(prefix=f".{name}.", dir=self.folder)
        os.close(handle)
        training = self.encoder.training
        try:
            mask = self._encode(missing, batch_size, partial)
            os.chmod(partial, 0o644)
            os.replace(partial, self.folder / f"{name}.features.npy")
        finally:
            self.encoder.train(training)
            Path(partial).unlink(missing_ok=True)
        with written_whole(self.folder / f"{name}.mask.npy") as file:
            np.save(file, mask)
        with written_whole(self.folder / f"{name}.json", "w") as file:  # last: a shard exists once its index does
            json.dump(missing, file)
        self._open(self.folder / f"{name}.json")
        return self

    @torch.no_grad()
    def _encode(self, records: Sequence[str], batch_size: int, path: str) -> np.ndarray:
        """Writes the features of the records, in order, to a `.npy` file; returns their masks `[N, T]`."""
        encoder = self.encoder.eval()
        masks: list[np.ndarray] = []
        out: np.ndarray | None = None
        for start in tqdm(range(0, len(records), batch_size), desc="Encoding ECGs", unit="batch"):
            batch = records[start : start + batch_size]
            tensors = dict(self.extractor([self.source[record] for record in batch], return_tensors="pt"))
            if self.zero:
                tensors = zero_features(tensors, encoder.ecg_inputs)
            encoded = encoder(**BatchFeature(tensors).to(encoder.device, encoder.dtype))
            features = encoded.last_hidden_state.float().cpu().numpy()
            if out is None:
                out = open_memmap(path, mode="w+", dtype=np.float32, shape=(len(records), *features.shape[1:]))
            out[start : start + len(batch)] = features
            masks.append(encoded.mask.cpu().numpy())
        assert isinstance(out, np.memmap)
        out.flush()
        return np.concatenate(masks)

    def get(self, records: Sequence[str]) -> dict[str, torch.Tensor]:
        """`ecg_features` float32 `[N, T, D]` and `ecg_mask` bool `[N, T]`; computes records it does not hold."""
        self.fill(records)
        rows = [(self._shards[shard], row) for shard, row in (self._where[record] for record in records)]
        return {
            "ecg_features": torch.from_numpy(np.stack([features[row] for (features, _), row in rows])),
            "ecg_mask": torch.from_numpy(np.stack([mask[row] for (_, mask), row in rows])),
        }
