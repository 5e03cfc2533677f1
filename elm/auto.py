"""Makes transformers' Auto classes know ours. Imported with the package."""

from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoProcessor

import encoders  # noqa: F401  (registers the encoders)
from elm.inputs.collator import EcgCollator
from elm.inputs.processing import ElmProcessor
from elm.model.configuration import ElmConfig
from elm.model.modeling import ElmForConditionalGeneration, ElmModel
from elm.saved.folder import load

AutoConfig.register("elm", ElmConfig)
AutoModel.register(ElmConfig, ElmModel)
AutoModelForCausalLM.register(ElmConfig, ElmForConditionalGeneration)
AutoProcessor.register(ElmConfig, ElmProcessor)

__all__ = ["EcgCollator", "ElmConfig", "ElmForConditionalGeneration", "ElmModel", "ElmProcessor", "load"]
