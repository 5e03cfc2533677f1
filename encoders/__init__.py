"""ECG encoders, one folder each; `load_encoder` gives one and its feature extractor; the Auto classes know them."""

from transformers import AutoConfig, AutoFeatureExtractor, AutoModel

from encoders.hub import load_encoder, save_encoder
from encoders.melp import MelpConfig, MelpFeatureExtractor, MelpModel
from encoders.patch import PatchConfig, PatchEncoder, PatchFeatureExtractor

for _config, _model, _extractor in (
    (MelpConfig, MelpModel, MelpFeatureExtractor),
    (PatchConfig, PatchEncoder, PatchFeatureExtractor),
):
    AutoConfig.register(_config.model_type, _config)
    AutoModel.register(_config, _model)
    AutoFeatureExtractor.register(_config, _extractor)

__all__ = ["load_encoder", "save_encoder"]
