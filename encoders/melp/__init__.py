"""MELP: multi-scale ECG-language pretraining (Wang, Xu and Yu, ICML 2025)."""

from encoders.melp.configuration import MelpConfig, MelpPretrainingConfig
from encoders.melp.feature_extraction import MelpFeatureExtractor
from encoders.melp.modeling import MelpModel, MelpOutput
from encoders.melp.pretraining import MelpForPretraining, MelpPretrainingOutput

__all__ = [
    "MelpConfig",
    "MelpFeatureExtractor",
    "MelpForPretraining",
    "MelpModel",
    "MelpOutput",
    "MelpPretrainingConfig",
    "MelpPretrainingOutput",
]
