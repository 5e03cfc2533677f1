"""Encoder-free: patches of the signal through one linear layer, behind a few convolutions if wanted."""

from encoders.patch.configuration import PatchConfig
from encoders.patch.feature_extraction import PatchFeatureExtractor
from encoders.patch.modeling import PatchEncoder

__all__ = ["PatchConfig", "PatchEncoder", "PatchFeatureExtractor"]
