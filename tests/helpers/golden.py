"""Upstream's own numbers: small cuts of them in tests/golden, the whole files in ../shared where those are."""

import math
import runpy
import zlib
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

SMALL = Path(__file__).parents[1] / "golden"
SHARED = Path(__file__).parents[2].parent / "shared" / "golden"


def golden_folder(name: str) -> Path:
    """The whole files of `name`; skips the test where they are absent."""
    if not (SHARED / name).is_dir():
        pytest.skip(f"upstream's fixtures are not at {SHARED / name}")
    return SHARED / name


def script(path: Path) -> SimpleNamespace:
    """What a script beside golden files defines, such as the recipe by which its weights are drawn."""
    return SimpleNamespace(**runpy.run_path(str(path)))


def melp_weight(name: str, shape: list[int]) -> torch.Tensor:
    """A weight of MELP by the recipe of its golden files: a function of its name and shape alone."""
    seed = zlib.crc32(f"20250611:{name}".encode()) & 0xFFFFFFFF
    z = np.random.RandomState(seed).standard_normal(shape or (1,))
    if name.endswith("logit_scale"):
        z = np.full(1, math.log(1 / 0.07))
    elif name.endswith("weight.original0"):
        z = 1.2 * (1 + 0.1 * z)
    elif name.endswith(("weight.original1", "bias")):
        z = 0.05 * z
    elif name.endswith(("proj_contrast", "text_projection")):
        z = z / math.sqrt(shape[0])
    elif name.endswith((".query", ".vars", "mask_emb")):
        pass
    elif len(shape) == 1:
        z = 1 + 0.1 * z
    else:
        z = z * (1 / math.sqrt(np.prod(shape[1:])))
    return torch.from_numpy(z.astype(np.float32).reshape(shape))


def heartlang_weight(name: str, shape: list[int], seed: int) -> torch.Tensor:
    """A weight of HeartLang by the recipe of its golden files."""
    generator = np.random.Generator(np.random.PCG64([seed, zlib.crc32(name.encode())]))
    z = np.ones(shape) if name.endswith("initted") else generator.standard_normal(shape)
    if name.endswith("initted"):
        pass
    elif name.endswith("cluster_size"):
        z = np.abs(z) * 3
    elif name.endswith("quantize.embedding.weight"):
        z = z / np.linalg.norm(z, axis=-1, keepdims=True)
    elif name.endswith(".bias"):
        z = 0.1 * z
    elif name.endswith((".norm.weight", ".net.0.weight", "norm_layer.weight")):
        z = 1 + 0.1 * z
    elif name.endswith("tokenConv.weight"):
        z = z / np.sqrt(shape[1] * shape[2]) * 3
    elif name.endswith(".weight") and "embed.embed" not in name and len(shape) == 2:
        z = z / np.sqrt(shape[1])
    else:
        z = 0.5 * z
    return torch.from_numpy(np.ascontiguousarray(z, dtype=np.float32))
