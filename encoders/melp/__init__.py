"""MELP: multi-scale ECG-language pretraining (Wang, Xu and Yu, ICML 2025)."""

from encoders.melp.configuration import MelpConfig
from encoders.melp.feature_extraction import MelpFeatureExtractor
from encoders.melp.modeling import MelpModel, MelpOutput

__all__ = ["MelpConfig", "MelpFeatureExtractor", "MelpModel", "MelpOutput"]
