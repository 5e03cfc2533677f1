"""A tokenizer and untrained models of a few thousand weights, in which an ECG changes what is said."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from transformers import FEATURE_EXTRACTOR_MAPPING, LlamaConfig, PreTrainedTokenizerFast

import elm  # noqa: F401  (registers the Auto classes)
from data.ecg import Ecg
from elm import ElmConfig, ElmForConditionalGeneration, ElmProcessor
from elm.training.tiny_llama import train_tokenizer
from encoders.base import EcgEncoderConfig
from encoders.contract import simulated
from encoders.heartlang import HeartLangConfig, HeartLangVQConfig
from encoders.melp import MelpConfig
from encoders.patch import PatchConfig

TEXTS = [
    "Is this a normal ECG? yes no",
    "What is the rhythm? atrial fibrillation, sinus rhythm",
    "Compare the two ECGs. The second one shows a longer PR interval than the first one.",
]
MELP = {
    "sampling_rate": 100,
    "conv_dim": (16, 16, 16, 16),
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "conv_pos_kernel": 16,
    "conv_pos_groups": 4,
    "shared_dim": 8,
    "caption_dim": 16,
    "pooler_heads": 2,
    "n_queries_contrast": 5,
    "n_queries_caption": 7,
}
HEARTLANG = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "head_dim": 4,
    "intermediate_size": 24,
}


@dataclass
class Pair:
    """A model and the processor that fits it."""

    model: ElmForConditionalGeneration
    processor: ElmProcessor

    def __iter__(self):
        return iter((self.model, self.processor))


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    return train_tokenizer(TEXTS, vocab_size=320)


@pytest.fixture(scope="session")
def make_ecg():
    def make(seed: int = 0, seconds: float = 10.0, record_id: str = "") -> Ecg:
        return simulated(seconds, 100, seed, record_id or f"r{seed}")

    return make


@pytest.fixture(scope="session")
def encoder_config():
    def make(name: str = "patch", **settings) -> EcgEncoderConfig:
        if name == "patch":
            return PatchConfig(**{"patch_size": 200, "hidden_size": 12} | settings)  # 2 s to a token, 5 in all
        if name.startswith("heart-"):
            return HeartLangConfig(output=name.removeprefix("heart-"), **HEARTLANG | settings)
        if name == "codes":
            sizes = {"decoder_layers": 1, "codebook_size": 32, "code_dim": 8}
            return HeartLangVQConfig(**HEARTLANG | sizes | settings)
        return MelpConfig(output=name, **MELP | settings)

    return make


@pytest.fixture(scope="session")
def text_config(tokenizer):
    def make(**settings) -> LlamaConfig:
        sizes = {
            "vocab_size": len(tokenizer),
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 512,
            "initializer_range": 0.3,  # at 0.02 an untrained model says the same to everyone
            "tie_word_embeddings": False,
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
        }
        return LlamaConfig(**sizes | settings)

    return make


@pytest.fixture(scope="session")
def make_pair(tokenizer, encoder_config, text_config):
    """A model in eval mode and its processor: `make_pair("beats", pool=2, tied=True)`."""

    def make(
        encoder: str = "patch",
        *,
        pool: int = 1,
        mode: str = "stack",
        kind: str = "mlp",
        tied: bool = False,
        seed: int = 0,
    ) -> Pair:
        torch.manual_seed(seed)
        config = ElmConfig(
            text_config=text_config(tie_word_embeddings=tied),
            encoder_config=encoder_config(encoder),
            ecg_token_id=tokenizer.convert_tokens_to_ids("<ecg>"),
            projector_type=kind,
            projector_pool=pool,
            projector_pool_mode=mode,
        )
        model = ElmForConditionalGeneration(config).eval()
        with torch.no_grad():  # a new projector is timid: its tokens would hardly be noticed
            for weight in model.model.projector.parameters():
                weight += 0.3 * torch.randn_like(weight)
        extractor = FEATURE_EXTRACTOR_MAPPING[type(config.encoder_config)]
        return Pair(model, ElmProcessor(extractor.from_config(config.encoder_config), tokenizer, pool=pool))

    return make


@pytest.fixture(scope="session")
def pair(make_pair) -> Pair:
    """Five patches to three tokens. Not to be changed by a test."""
    return make_pair(pool=2)
