"""What is particular to each family of language models: one table, and what is read from it.

Everything else about a language model is found out from the model itself, so that one that is not in the table is
trained like one that is: LoRA on all its linear layers, `<ecg>` as a new token, its own chat template.
"""

import logging
from dataclasses import dataclass

import torch
from jinja2 import TemplateError
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.integrations import is_deepspeed_zero3_enabled
from transformers.pytorch_utils import Conv1D

from elm.model.templates import CHATML, GEMMA, LLAMA_3, PLAIN, QWEN_3, SAME_DAY, locate

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Family:
    """What is particular to a family."""

    ecg_token: str | None = None  # a token of its vocabulary that no text holds; an ECG's places are marked with it
    template: str = PLAIN  # for tokenizers without a chat template, and in place of one that cannot be learned from
    marks: tuple[str, ...] = ()  # tokens a vocabulary needs for it
    targets: tuple[str, ...] = ()  # linear layers that LoRA adapts, the last part of their names; none: all there are
    transposed: bool = False  # they are `Conv1D`, whose weights are `[in, out]`


_GATED = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
_HEADERS = ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
_QWEN = Family("<|vision_pad|>", CHATML, ("<|im_start|>", "<|im_end|>"), _GATED)
_GEMMA = Family("<unused0>", GEMMA, ("<start_of_turn>", "<end_of_turn>"), _GATED)
# By `model_type` of the text's configuration. Llama 1 and 2, and all who took its architecture, are "llama", too: what
# of the family a vocabulary does not have is not used.
FAMILIES = {
    "llama": Family("<|reserved_special_token_0|>", LLAMA_3, _HEADERS, _GATED),
    "qwen2": _QWEN,
    "qwen3": Family(_QWEN.ecg_token, QWEN_3, (*_QWEN.marks, "<think>", "</think>"), _GATED),
    "gemma": _GEMMA,
    "gemma2": _GEMMA,
    "gemma3_text": _GEMMA,
    "gpt2": Family(targets=("c_attn", "c_proj", "c_fc"), transposed=True),
    "opt": Family(targets=("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2")),
}


def family_of(config: PreTrainedConfig) -> Family:
    """The family of a language model, by its configuration; one that is not in the table has nothing particular."""
    return FAMILIES.get(config.get_text_config().model_type, Family())


_TURNS = [("system", "Be brief."), ("user", "First?"), ("assistant", "One."), ("user", "Then?"), ("assistant", "Two.")]


def _can_be_learned_from(tokenizer: PreTrainedTokenizerBase, template: str) -> bool:
    """Whether a template renders a system prompt and two turns, with all that is said, each answer located."""
    messages = [{"role": role, "content": content} for role, content in _TURNS]
    try:
        text, spans = locate(tokenizer, template, messages)
    except (TemplateError, ValueError):
        return False
    answers = [text[a:b] for a, b in spans]
    return "Be brief." in text and [answer[:4] for answer in answers] == ["One.", "Two."]


def chat_template(tokenizer: PreTrainedTokenizerBase, family: Family) -> str:
    """The template to train and to ask with: the tokenizer's own, or else the family's.

    The family's is taken where there is none, and where its own refuses a system prompt or rewrites earlier turns. A
    family that is not in the table keeps its own all the same; what it refuses is refused when it is met.

    Raises:
        ValueError: There is none, and no end-of-text token to end an answer with.
    """
    template = published = tokenizer.get_chat_template() if tokenizer.chat_template else None
    if published is None or not _can_be_learned_from(tokenizer, published):
        has_marks = set(family.marks) <= tokenizer.get_vocab().keys()
        if published is None or (family.marks and has_marks):
            template = family.template if has_marks else PLAIN
            why = "it has none" if published is None else "its own refuses system prompts or rewrites earlier turns"
            logger.warning("%s: our chat template is used, since %s", tokenizer.name_or_path, why)
    assert isinstance(template, str)
    if template is PLAIN and tokenizer.eos_token is None:
        raise ValueError(
            f"{tokenizer.name_or_path} has no chat template and no eos_token to end an answer with: use an "
            "instruction-tuned language model, or set the tokenizer's eos_token"
        )
    return SAME_DAY + template if "strftime_now" in template and not template.startswith(SAME_DAY) else template


def ecg_token_of(tokenizer: PreTrainedTokenizerBase, family: Family) -> str:
    """The placeholder token: `<ecg>`, or the family's reserved one, or `<ecg>` added to the tokenizer.

    A reserved token needs no new embedding row; the row itself is never read, an ECG's tokens stand in its place.
    """
    vocabulary = tokenizer.get_vocab()
    for token in ("<ecg>", family.ecg_token):
        if token in vocabulary:
            return str(token)
    tokenizer.add_special_tokens({"extra_special_tokens": ["<ecg>"]}, replace_extra_special_tokens=False)
    return "<ecg>"


def fit_vocabulary(language: PreTrainedModel, tokens: int) -> None:
    """Add the embedding rows that a tokenizer of so many tokens needs; rows beyond it (Qwen, OPT) stay.

    The number of rows stays a multiple of the power of two it was a multiple of, up to 128: what a model was padded to
    for its matrix products or for tensor parallelism.
    """
    rows = language.get_input_embeddings().num_embeddings
    if tokens > rows:
        language.resize_token_embeddings(tokens, pad_to_multiple_of=min(rows & -rows, 128))


def backbone_of(language: PreTrainedModel) -> PreTrainedModel:
    """A causal language model without its head; of a multimodal one (Gemma 3), the part that reads text."""
    is_text = language.config.get_text_config() is language.config
    backbone: PreTrainedModel = language.base_model if is_text else language.get_decoder()
    return backbone


def linear_layers(language: nn.Module) -> dict[str, nn.Module]:
    """Linear layers of a language model by name, `Conv1D` among them."""
    return {name: module for name, module in language.named_modules() if isinstance(module, (nn.Linear, Conv1D))}


def lora_targets(language: PreTrainedModel, wanted: list[str] | str | None = None) -> list[str]:
    """Last parts of the names of the layers that LoRA adapts; raises `ValueError` where the model has no such layer."""
    present = sorted({name.rpartition(".")[2] for name in linear_layers(language)})
    if wanted == "all-linear":
        return present
    names = [wanted] if isinstance(wanted, str) else list(wanted or family_of(language.config).targets)
    if not names:
        logger.warning("LoRA adapts all linear layers of %s: %s", language.config.model_type, ", ".join(present))
        return present
    if missing := [name for name in names if name not in present]:
        kind, others = language.config.model_type, ", ".join(present)
        raise ValueError(f"lora_target_modules: {kind} has no linear layer {missing[0]!r}, it has {others}")
    return names


def end_answers(language: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, end: int) -> None:
    """Have generation stop at the token `end`, which ends an answer in the chat template, and pad with a token it has.

    A base model stops at the end of a text alone; trained on answers that end otherwise, it would go on for ever.
    Raises `ValueError` where an answer ends with no token of its own.
    """
    settings = language.generation_config
    if end not in {*tokenizer.added_tokens_decoder, *tokenizer.all_special_ids}:
        raise ValueError(
            f"the chat template of {tokenizer.name_or_path} ends an answer with {tokenizer.decode([end])!r}, which is "
            "no special token: generation would not stop"
        )
    ends = settings.eos_token_id if isinstance(settings.eos_token_id, list) else [settings.eos_token_id]
    if end not in ends:
        settings.eos_token_id = [*(token for token in ends if token is not None), end]
    if settings.pad_token_id is None:
        settings.pad_token_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else end


@torch.no_grad()
def refuse_other_logits(model: PreTrainedModel, language: PreTrainedModel) -> None:
    """Raises `ValueError` for a language model that does more than backbone and head: our logits would be others.

    Some scale logits, or mix something else in. Those of the table are known; others are asked for a few tokens.
    """
    kind = language.config.get_text_config().model_type
    if kind in FAMILIES or is_deepspeed_zero3_enabled():  # there, no process holds whole weights
        return
    size = language.get_input_embeddings().num_embeddings
    ids = torch.arange(1, 7, device=language.device).remainder(size)[None]
    ids[ids == model.config.ecg_token_id] = 0
    # Without a cache: some have caches of their own kind.
    logits, expected = (one(input_ids=ids, use_cache=False).logits.float() for one in (model, language))
    if not torch.allclose(logits, expected, rtol=1e-2, atol=1e-2 * float(expected.std())):
        raise ValueError(
            f"language models of type {kind!r} do something between their last hidden states and their logits that is "
            "not known here: use another one"
        )
