"""One vector per recording from an encoder, computed once and kept on disk; and encoders with random weights.

Kinds of vector: `paper` takes the vector that the encoder's own paper gives to a linear probe
(`EcgEncoderOutput.probe`), or the mean of the tokens that carry signal where there is none; `mean` and `max` go over
those tokens; any other name is that of a `[B, P]` tensor of the output, such as MELP's `rhythm`.
"""

import copy
import json
import logging
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save
from torch import nn
from tqdm.auto import tqdm
from transformers import AutoModel

from data.ecg import EcgSource
from data.support.cache import Shards
from elm.inputs.features import encode_ecgs, encoder_key, weights_hash
from encoders.base import EcgEncoder, EcgEncoderOutput, EcgFeatureExtractor

logger = logging.getLogger(__name__)

BATCH = 64
FORMAT = 2  # of a file: another one takes other names
SAVE_EVERY = 60.0  # seconds of computing that a killed process may lose
SETTLED_ON = 512  # recordings

Floats = NDArray[np.float32]


def vector_of(output: EcgEncoderOutput, kind: str) -> torch.Tensor:
    """`[B, P]` of an encoder's output.

    Raises:
        ValueError: The output has no such vector.
    """
    tokens, mask = output.last_hidden_state, output.mask
    assert tokens is not None and mask is not None
    if kind == "paper" and output.probe is not None:
        return output.probe
    if kind in ("paper", "mean"):
        signal = tokens.masked_fill(~mask[..., None], 0)  # what an encoder says of padding need not be finite
        return signal.sum(dim=1) / mask.sum(dim=1, keepdim=True).clamp(min=1)
    if kind == "max":
        return tokens.masked_fill(~mask[..., None], float("-inf")).amax(dim=1)
    vector: torch.Tensor | None = output.get(kind)
    if vector is None or vector.ndim != 2:
        vectors = [name for name, value in output.items() if torch.is_tensor(value) and value.ndim == 2]
        names = ", ".join(["paper", "mean", "max", *(n for n in vectors if n not in ("mask", "probe"))])
        raise ValueError(f"the encoder has no vector {kind!r} per recording: expected one of {names}")
    return vector


def vectors(
    encoder: EcgEncoder,
    extractor: EcgFeatureExtractor,
    source: EcgSource,
    source_key: str,
    records: Sequence[str],
    cache: Path | str,
    kind: str = "paper",
) -> Floats:
    """One vector per recording, `[records, P]`, by an encoder in eval mode.

    What is computed is kept in a folder of `cache` per encoder, extractor, source and kind, a shard a minute. Two
    processes that compute the same at the same time do it twice, and nothing worse.

    Raises:
        ValueError: The output has no such vector, or one is not finite; names the record.
    """
    shards = Shards(cache, "vectors", [FORMAT, *encoder_key(encoder, extractor), source_key, kind], ".safetensors")
    computed: dict[str, Floats] = {}
    shards.refresh(lambda path: computed.update(_read(path)))
    missing = [record for record in dict.fromkeys(records) if record not in computed]
    shard: dict[str, Floats] = {}
    saved, training = time.monotonic(), encoder.training
    encoder.eval()
    try:
        with tqdm(total=len(missing), desc="Encoding ECGs", unit="ECG", disable=not missing) as progress:
            for start in range(0, len(missing), BATCH):
                batch = missing[start : start + BATCH]
                with torch.no_grad():
                    output = encode_ecgs(encoder, extractor, [source[record] for record in batch])
                rows = vector_of(output, kind).float().cpu().numpy()
                if not (finite := np.isfinite(rows).all(axis=1)).all():
                    raise ValueError(f"record {batch[int(np.argmin(finite))]}: the encoder's vector is not finite")
                shard.update(zip(batch, rows))
                progress.update(len(batch))
                if start + BATCH >= len(missing) or time.monotonic() - saved > SAVE_EVERY:
                    metadata = {"records": json.dumps(list(shard))}
                    shards.write(list(shard), save({"vectors": np.stack(list(shard.values()))}, metadata=metadata))
                    computed.update(shard)
                    shard, saved = {}, time.monotonic()
    finally:
        encoder.train(training)
    return np.stack([computed[record] for record in records])


def _read(path: Path) -> dict[str, Floats]:
    """The vectors in a shard; `ValueError` where it is damaged."""
    try:
        with safe_open(path, "numpy") as file:
            names, rows = json.loads(file.metadata()["records"]), file.get_tensor("vectors")
    except (KeyError, TypeError, SafetensorError) as error:
        raise ValueError(str(error)) from error
    return dict(zip(names, rows, strict=True))


def random_like(encoder: EcgEncoder, seed: int) -> EcgEncoder:
    """An encoder of the same configuration with weights drawn anew, in eval mode, on the same device."""
    config = copy.deepcopy(encoder.config)
    config.pretrained_on = ""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: EcgEncoder = AutoModel.from_config(config, dtype=torch.float32).to(encoder.device).eval()
    return model


def settle_batch_norm(
    encoder: EcgEncoder, extractor: EcgFeatureExtractor, source: EcgSource, records: Sequence[str]
) -> None:
    """Give an untrained encoder's batch norms the averages they would have after one look at the recordings.

    Without it they would hold a mean of 0 and a variance of 1, which no random network's activations have, and the
    random row would be weaker than it need be. No label is used. Up to `SETTLED_ON` recordings, evenly spaced; an
    encoder without batch norms stays as it is.
    """
    batch_norm = nn.modules.batchnorm._BatchNorm
    layers = [layer for layer in encoder.modules() if isinstance(layer, batch_norm) and layer.track_running_stats]
    if not layers:
        return
    momenta = [layer.momentum for layer in layers]
    encoder.eval()
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum = None  # the plain mean over batches
        layer.train()
    chosen = records[:: -(-len(records) // SETTLED_ON)]
    with torch.no_grad():
        for start in range(0, len(chosen), BATCH):
            encode_ecgs(encoder, extractor, [source[record] for record in chosen[start : start + BATCH]])
    for layer, momentum in zip(layers, momenta):
        layer.momentum = momentum
    encoder.eval()


def describe(encoder: EcgEncoder) -> dict[str, str | int]:
    """Type, size, weights and pretraining of an encoder, for a report."""
    config, parameters = encoder.config, sum(parameter.numel() for parameter in encoder.parameters())
    about = {"model_type": config.model_type, "parameters": parameters, "weights": weights_hash(encoder)}
    return about | {"pretrained_on": config.pretrained_on}
