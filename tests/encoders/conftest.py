"""Upstream's fixtures, two small encoders, and recordings to feed them."""

from pathlib import Path

import numpy as np
import pytest
import torch

from data.ecg import LEADS, Ecg
from encoders import load_encoder
from encoders.base import EcgEncoder, EcgEncoderConfig, EcgFeatureExtractor
from encoders.cnn import CnnConfig, CnnEncoder
from encoders.melp import MelpConfig, MelpFeatureExtractor, MelpModel
from encoders.patch import PatchConfig, PatchEncoder, PatchFeatureExtractor

torch.set_num_threads(1)
GOLDEN = Path(__file__).parents[2].parent / "shared" / "golden" / "melp"
TINY_HEADS = {"num_attention_heads": 4, "pooler_heads": 4}  # no tensor of the tiny checkpoint shows its heads
SMALL_MELP = {
    "sampling_rate": 100,
    "conv_dim": (32, 32, 32, 32),
    "hidden_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 96,
    "conv_pos_kernel": 16,
    "shared_dim": 24,
    "caption_dim": 48,
    "pooler_heads": 4,
    "n_queries_contrast": 5,
    "n_queries_caption": 8,
}


@pytest.fixture(scope="session")
def golden() -> Path:
    if not GOLDEN.is_dir():
        pytest.skip(f"upstream's fixtures are not at {GOLDEN}")
    return GOLDEN


@pytest.fixture(scope="session")
def golden_ecgs(golden: Path) -> list[Ecg]:
    return [Ecg(adc / 1000, 500, LEADS) for adc in np.load(golden / "in_adc_int16.npy")]


@pytest.fixture(scope="session")
def tiny(golden: Path) -> EcgEncoder:
    return load_encoder(golden / "encoder_tiny.safetensors", output="features", **TINY_HEADS)[0]


@pytest.fixture(params=["features", "beats", "tokens", "rhythm", "patch", "samples", "cnn"])
def pair(request: pytest.FixtureRequest) -> tuple[EcgEncoder, EcgFeatureExtractor]:
    """Every encoder, with every choice of output."""
    torch.manual_seed(0)
    if request.param == "cnn":
        return CnnEncoder(cnn := CnnConfig()).eval(), PatchFeatureExtractor.from_config(cnn, normalize="zscore")
    if request.param in ("patch", "samples"):
        own = {"hidden_size": 32} if request.param == "patch" else {"hidden_size": None, "patch_size": 40}
        config: EcgEncoderConfig = PatchConfig(**own)
        return PatchEncoder(config).eval(), PatchFeatureExtractor.from_config(config)
    config = MelpConfig(output=request.param, **SMALL_MELP)
    return MelpModel(config).eval(), MelpFeatureExtractor.from_config(config)


@pytest.fixture(scope="session")
def make_ecg():
    """A recording of pulses at 72 per minute, the same in time whatever the rate and length."""

    def make(seconds: float = 10.0, fs: float = 500, seed: int = 0, record_id: str = "") -> Ecg:
        gains = np.random.default_rng(seed).normal(size=(12, 1))
        phase = (np.arange(round(seconds * fs)) / fs * 1.2) % 1.0
        pulses = np.exp(-(((phase - 0.3) / 0.03) ** 2)) + 0.3 * np.exp(-(((phase - 0.6) / 0.08) ** 2))
        return Ecg(gains * pulses, fs, LEADS, record_id=record_id)

    return make
