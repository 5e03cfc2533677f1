"""Upstream's fixtures, two small encoders, and recordings to feed them."""

from pathlib import Path

import numpy as np
import pytest
import torch

from data.ecg import LEADS, Ecg
from encoders import load_encoder
from encoders.base import EcgEncoder, EcgEncoderConfig, EcgFeatureExtractor
from encoders.cnn import CnnConfig, CnnEncoder
from encoders.contract import simulated
from encoders.heartlang import HeartLangConfig, HeartLangModel, HeartLangVQ, HeartLangVQConfig, QrsTokenizer
from encoders.melp import MelpConfig, MelpFeatureExtractor, MelpModel
from encoders.patch import PatchConfig, PatchEncoder, PatchFeatureExtractor
from helpers.golden import golden_folder

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
    """MELP's."""
    return golden_folder("melp")


@pytest.fixture(scope="session")
def golden_heartlang() -> Path:
    return golden_folder("heartlang")


@pytest.fixture(scope="session")
def golden_ecgs(golden: Path) -> list[Ecg]:
    return [Ecg(adc / 1000, 500, LEADS) for adc in np.load(golden / "in_adc_int16.npy")]


@pytest.fixture(scope="session")
def tiny(golden: Path) -> EcgEncoder:
    return load_encoder(golden / "encoder_tiny.safetensors", output="features", **TINY_HEADS)[0]


SMALL_HEARTLANG = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "head_dim": 8,
    "intermediate_size": 48,
}
PATCH_ENCODERS = {
    "patch": {"hidden_size": 32},
    "samples": {"hidden_size": None, "patch_size": 40},
    "lead-patches": {"patches": "leads", "patch_size": 50, "hidden_size": 16},
    "conv-patches": {"patches": "conv", "hidden_size": 32, "conv_dim": (8, 16)},
}
SIGNAL_ENCODERS = ("features", "beats", "tokens", "rhythm", *PATCH_ENCODERS, "cnn")  # the first four are MELP's
WORD_ENCODERS = ("heart-words", "heart-beats", "heart-leads", "heart-compact", "codes")
Pair = tuple[EcgEncoder, EcgFeatureExtractor]


@pytest.fixture(params=SIGNAL_ENCODERS + WORD_ENCODERS)
def pair(request: pytest.FixtureRequest) -> Pair:
    """Every encoder, with every choice of output."""
    return make_pair(request.param)


@pytest.fixture(params=SIGNAL_ENCODERS)
def signal_pair(request: pytest.FixtureRequest) -> Pair:
    """Encoders of the signal as it is, `ecg_values`."""
    return make_pair(request.param)


@pytest.fixture(params=WORD_ENCODERS)
def word_pair(request: pytest.FixtureRequest) -> Pair:
    """Encoders of heart-beat words."""
    return make_pair(request.param)


def make_pair(name: str) -> Pair:
    torch.manual_seed(0)
    if name == "cnn":
        return CnnEncoder(cnn := CnnConfig()).eval(), PatchFeatureExtractor.from_config(cnn, normalize="zscore")
    if name == "codes":
        vq = HeartLangVQConfig(**SMALL_HEARTLANG, decoder_layers=1, codebook_size=32, code_dim=8)
        return HeartLangVQ(vq).eval(), QrsTokenizer.from_config(vq)
    if name.startswith("heart-"):
        words = HeartLangConfig(**SMALL_HEARTLANG, output=name.removeprefix("heart-"))
        return HeartLangModel(words).eval(), QrsTokenizer.from_config(words)
    if name in PATCH_ENCODERS:
        config: EcgEncoderConfig = PatchConfig(**PATCH_ENCODERS[name])
        return PatchEncoder(config).eval(), PatchFeatureExtractor.from_config(config)
    config = MelpConfig(output=name, **SMALL_MELP)
    return MelpModel(config).eval(), MelpFeatureExtractor.from_config(config)


@pytest.fixture(scope="session")
def make_ecg():
    """A recording of pulses at 72 per minute, the same in time whatever the rate and length."""

    return simulated
