"""HeartLang: an ECG read as a sentence of heart-beat words (Jin et al., ICLR 2025)."""

from encoders.heartlang.configuration import HeartLangConfig, HeartLangVQConfig
from encoders.heartlang.feature_extraction import EcgSentence, QrsTokenizer
from encoders.heartlang.modeling import HeartLangModel, HeartLangOutput
from encoders.heartlang.tasks import HeartLangClassifier, HeartLangForMaskedSentence, masked_words
from encoders.heartlang.vq import CodebookUsage, HeartLangVQ, HeartLangVQOutput, codebook_usage

__all__ = [
    "CodebookUsage",
    "EcgSentence",
    "HeartLangClassifier",
    "HeartLangConfig",
    "HeartLangForMaskedSentence",
    "HeartLangModel",
    "HeartLangOutput",
    "HeartLangVQ",
    "HeartLangVQConfig",
    "HeartLangVQOutput",
    "QrsTokenizer",
    "codebook_usage",
    "masked_words",
]
