"""ECG encoders, one folder each; `load_encoder` gives one and its feature extractor; the Auto classes know them."""

from encoders.cnn import CnnEncoder
from encoders.contract import check_encoder
from encoders.ecg_byte import EcgByteEncoder, EcgByteFeatureExtractor
from encoders.heartlang import HeartLangModel, HeartLangVQ, QrsTokenizer
from encoders.hub import load_encoder, new_encoder, save_encoder
from encoders.melp import MelpFeatureExtractor, MelpModel
from encoders.patch import PatchEncoder, PatchFeatureExtractor
from encoders.registry import register, register_installed

_OURS = (
    (MelpModel, MelpFeatureExtractor),
    (PatchEncoder, PatchFeatureExtractor),
    (CnnEncoder, PatchFeatureExtractor),
    (HeartLangModel, QrsTokenizer),
    (HeartLangVQ, QrsTokenizer),
    (EcgByteEncoder, EcgByteFeatureExtractor),
)
for _model, _extractor in _OURS:
    register(_model, _extractor)
register_installed({_model.config_class.model_type for _model, _ in _OURS})

__all__ = ["check_encoder", "load_encoder", "new_encoder", "save_encoder"]
