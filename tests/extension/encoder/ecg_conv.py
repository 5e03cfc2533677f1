"""An ECG encoder for ecg-elm: two convolutions, four tokens per second."""

import numpy as np
from torch import nn

from data.ecg import LEADS
from encoders.base import (
    EcgEncoder,
    EcgEncoderConfig,
    EcgEncoderOutput,
    EcgFeatureExtractor,
    first_seconds,
    output_mask,
)
from encoders.registry import register

RATE, STRIDE = 100, 25  # Hz, samples per token


class ConvConfig(EcgEncoderConfig):
    model_type = "ecg_conv"  # the entry point's name

    seconds: float = 10.0
    hidden_size: int = 64

    @property
    def output_dim(self):
        return self.hidden_size

    @property
    def max_tokens(self):
        return round(self.seconds * RATE) // STRIDE


class ConvFeatureExtractor(EcgFeatureExtractor):
    model_input_names = ["ecg_values", "token_mask"]

    def __init__(self, seconds=10.0, **kwargs):
        super().__init__(**kwargs)
        self.seconds = seconds

    @classmethod
    def from_config(cls, config, **extra):
        return cls(config.seconds, **extra)

    def features(self, ecg):
        signal = first_seconds(ecg, LEADS, RATE, self.seconds)  # [12, samples], mV
        tokens = round(self.seconds * RATE) // STRIDE
        values = np.zeros((12, tokens * STRIDE), np.float32)
        values[:, : signal.shape[1]] = signal[:, : values.shape[1]]
        return {"ecg_values": values, "token_mask": np.arange(tokens) * STRIDE < signal.shape[1]}


class ConvEncoder(EcgEncoder):
    config_class = ConvConfig

    def __init__(self, config):
        super().__init__(config)
        self.first = nn.Conv1d(12, 32, 5, stride=5)
        self.second = nn.Conv1d(32, config.hidden_size, STRIDE // 5, stride=STRIDE // 5)
        self.post_init()

    def forward(self, ecg_values, token_mask=None):
        hidden = nn.functional.gelu(self.first(ecg_values.to(self.dtype)))  # [B, 32, 5 T]
        tokens = self.second(hidden).transpose(1, 2)  # [B, T, D]
        return EcgEncoderOutput(last_hidden_state=tokens, mask=output_mask(tokens, token_mask))


register(ConvEncoder, ConvFeatureExtractor)
