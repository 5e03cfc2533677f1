"""ECG-Byte: an ECG as text, a level per letter and frequent strings as tokens (Han et al., 2024)."""

from encoders.ecg_byte.configuration import EcgByteConfig
from encoders.ecg_byte.feature_extraction import EcgByteFeatureExtractor
from encoders.ecg_byte.modeling import EcgByteEncoder
from encoders.ecg_byte.quantizing import EcgByteSettings, Quantizer
from encoders.ecg_byte.table import TokenTable
from encoders.ecg_byte.tokenizer import EcgByteTokenizer, EcgByteTokens, Span
from encoders.ecg_byte.upstream import UPSTREAM

__all__ = [
    "UPSTREAM",
    "EcgByteConfig",
    "EcgByteEncoder",
    "EcgByteFeatureExtractor",
    "EcgByteSettings",
    "EcgByteTokenizer",
    "EcgByteTokens",
    "Quantizer",
    "Span",
    "TokenTable",
]
