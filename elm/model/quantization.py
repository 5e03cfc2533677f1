"""A language model whose linear layers are held in 4 bits while LoRA is trained on it.

QLoRA (Dettmers et al., NeurIPS 2023): 4-bit NormalFloat with double quantisation, computing in bfloat16. Encoder,
projector, embeddings, norms and head keep their precision. bitsandbytes does it, on CPUs too.
"""

import importlib.util
from pathlib import Path

import torch
from peft import PeftModel
from torch import nn
from transformers import BitsAndBytesConfig, PreTrainedConfig

from elm.model.families import family_of
from elm.model.modeling import ElmForConditionalGeneration

# Bytes of one weight: 4 bits, 8 for the scale of 64 weights, and 32 for the scale of 256 such scales.
BYTES_PER_WEIGHT = 0.5 + 1 / 64 + 4 / (64 * 256)
SAVED = (
    "nf4: the language model's linear layers were held in 4 bits while LoRA was trained on them. The saved weights are "
    "what those 4 bits stand for with LoRA merged in, an ordinary model; they are not the published weights with LoRA."
)


def nf4(whole: list[str] | None = None) -> BitsAndBytesConfig:
    """What `from_pretrained` takes to load a language model in 4 bits; raises `ImportError` without bitsandbytes.

    `whole` are the modules that keep their precision; the head, if not given.
    """
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ImportError('quantization nf4 needs bitsandbytes: pip install "ecg-elm[quant]"')
    kind = {"bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True, "bnb_4bit_compute_dtype": torch.bfloat16}
    return BitsAndBytesConfig(load_in_4bit=True, llm_int8_skip_modules=whole, **kind)


def refuse_transposed(config: PreTrainedConfig) -> None:
    """Refuse a language model of this configuration whose layers bitsandbytes passes over: raises `ValueError`."""
    if family_of(config).transposed:
        raise ValueError(f"quantization nf4 does not know the layers of {config.model_type} (Conv1D): leave it out")


def is_quantized(model: nn.Module) -> bool:
    """Whether some of a model's weights are packed into integers."""
    return any(not parameter.is_floating_point() for parameter in model.parameters())


def dequantize(model: nn.Module, dtype: torch.dtype) -> None:
    """Put ordinary linear layers of the weights that the 4 bits stand for in place of the quantised ones."""
    import bitsandbytes  # the `quant` extra

    for name, layer in list(model.named_modules()):
        if isinstance(layer, bitsandbytes.nn.Linear4bit):
            weight = bitsandbytes.functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state)
            plain = nn.Linear(layer.in_features, layer.out_features, bias=False, device="meta")
            plain.weight = nn.Parameter(weight.to(dtype), requires_grad=False)
            plain.bias = layer.bias
            model.set_submodule(name, plain)


def merge_into_dequantized(tuned: PeftModel, adapter: Path) -> ElmForConditionalGeneration:
    """A trained model, whose parts become the result's, with its adapter merged into what the 4 bits stand for.

    Merged into the 4-bit weights themselves, what LoRA learned would be rounded to 16 levels together with them.
    """
    base = tuned.unload()
    dequantize(base, base.lm_head.weight.dtype)
    merged: ElmForConditionalGeneration = PeftModel.from_pretrained(base, str(adapter)).merge_and_unload()
    return merged
