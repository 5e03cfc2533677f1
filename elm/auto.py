"""Makes transformers' Auto classes know ours. Imported with the package."""

from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoProcessor

import encoders  # noqa: F401  (registers the encoders)
from elm.collator import EcgCollator
from elm.configuration import ElmConfig
from elm.folder import load
from elm.modeling import ElmForConditionalGeneration, ElmModel
from elm.processing import ElmProcessor

AutoConfig.register("elm", ElmConfig)
AutoModel.register(ElmConfig, ElmModel)
AutoModelForCausalLM.register(ElmConfig, ElmForConditionalGeneration)
AutoProcessor.register(ElmConfig, ElmProcessor)

__all__ = ["EcgCollator", "ElmConfig", "ElmForConditionalGeneration", "ElmModel", "ElmProcessor", "load"]
