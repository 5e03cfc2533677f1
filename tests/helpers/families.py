"""Small language models of every family: a few thousand random weights and the family's own special tokens.

Chat templates of instruction-tuned models are the published ones, as TRL carries them.
"""

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import transformers
import trl
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast
from trl import ModelConfig

import elm
from elm.saved.arguments import ElmArguments
from elm.training.build import build as build_model

TEMPLATES = Path(trl.__file__).parent / "chat_templates"
TEXTS = [
    "Is this a normal ECG? yes no",
    "What is the rhythm? atrial fibrillation, sinus rhythm",
    "user assistant model system\n\nBe brief. Compare the two ECGs.",
]
SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
GROUPED = SIZES | {"num_key_value_heads": 2, "head_dim": 8, "initializer_range": 0.3}
GATED = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}


@dataclass(frozen=True)
class Kind:
    """One kind of model.

    Attributes:
        config: Name of its class, and settings.
        special: Special tokens, in the order of the vocabulary.
        plain: Added tokens that it does not call special.
        named: Which of them are bos, eos, pad and unk.
        template: File of its published chat template.
        first: Whether they come before the words.
        rows: Embedding rows beyond the tokens.
        ecg, end: The placeholder, and what ends an answer.
        header: What stands right before an answer.
        targets: Layers LoRA adapts.
    """

    config: tuple[str, dict]
    special: tuple[str, ...]
    named: dict[str, str]
    ecg: str
    end: str
    header: str
    targets: set[str]
    template: str | None = None
    plain: tuple[str, ...] = ()
    first: bool = False
    rows: int = 0


LLAMA = (
    "<|begin_of_text|>", "<|end_of_text|>", "<|reserved_special_token_0|>", "<|reserved_special_token_1|>",
    "<|finetune_right_pad_id|>", "<|start_header_id|>", "<|end_header_id|>", "<|eom_id|>", "<|eot_id|>",
)  # fmt: skip
QWEN = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|vision_start|>", "<|vision_end|>",
    "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>",
)  # fmt: skip
GEMMA = ("<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>")
GEMMA_NAMED = {"bos": "<bos>", "eos": "<eos>", "pad": "<pad>", "unk": "<unk>"}
WINDOW = {"sliding_window": 12, "layer_types": ["sliding_attention", "full_attention"]}
BOUNDED = {"query_pre_attn_scalar": 8, "final_logit_softcapping": 2.0, "attn_logit_softcapping": 4.0}
GEMMA_3 = {"query_pre_attn_scalar": 8, **WINDOW}
NEOX = {**SIZES, "initializer_range": 0.2, "rotary_pct": 0.5, "attention_dropout": 0.0}
LLAMA_HEADER, QWEN_HEADER = "<|start_header_id|>assistant<|end_header_id|>\n\n", "<|im_start|>assistant\n"
OUTSIDE = {"query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"}
KINDS = {
    "llama-3.2": Kind(
        ("LlamaConfig", GROUPED | {"tie_word_embeddings": True}), LLAMA,
        {"bos": LLAMA[0], "eos": "<|eot_id|>"}, "<|reserved_special_token_0|>", "<|eot_id|>", LLAMA_HEADER, GATED,
        "llama3_2.jinja",
    ),
    "llama-3-base": Kind(
        ("LlamaConfig", GROUPED), LLAMA, {"bos": LLAMA[0], "eos": "<|end_of_text|>"}, "<|reserved_special_token_0|>",
        "<|eot_id|>", LLAMA_HEADER, GATED,
    ),
    "qwen2.5": Kind(
        ("Qwen2Config", GROUPED | {"tie_word_embeddings": True}), QWEN, {"eos": "<|im_end|>", "pad": "<|endoftext|>"},
        "<|vision_pad|>", "<|im_end|>", QWEN_HEADER, GATED, "qwen2_5.jinja", ("<tool_call>", "</tool_call>"), rows=37,
    ),
    "qwen3": Kind(
        ("Qwen3Config", GROUPED), QWEN, {"eos": "<|im_end|>", "pad": "<|endoftext|>"}, "<|vision_pad|>", "<|im_end|>",
        QWEN_HEADER + "<think>\n\n</think>\n\n", GATED, "qwen3.jinja", ("<tool_call>", "<think>", "</think>"), rows=37,
    ),
    "gemma2": Kind(
        ("Gemma2Config", GROUPED | BOUNDED | WINDOW), GEMMA,
        GEMMA_NAMED, "<unused0>", "<end_of_turn>", "<start_of_turn>model\n", GATED, "gemma.jinja",
        ("<unused0>", "<unused1>", "\n\n"), first=True,
    ),
    "gemma3": Kind(
        ("Gemma3TextConfig", GROUPED | GEMMA_3), GEMMA, GEMMA_NAMED, "<unused0>", "<end_of_turn>",
        "<start_of_turn>model\n", GATED, "gemma3.jinja", ("<unused0>", "\n\n"), first=True,
    ),
    "gemma3-multimodal": Kind(
        ("Gemma3Config", {}), GEMMA, GEMMA_NAMED, "<unused0>", "<end_of_turn>", "<start_of_turn>model\n", GATED,
        "gemma3.jinja", ("<unused0>", "\n\n"), first=True,
    ),
    "gpt2": Kind(
        ("GPT2Config", {"n_embd": 32, "n_layer": 2, "n_head": 4, "initializer_range": 0.3,
                        "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}),
        ("<|endoftext|>",), dict.fromkeys(("bos", "eos", "unk"), "<|endoftext|>"), "<ecg>", "<|endoftext|>",
        "Assistant:\n", {"c_attn", "c_proj", "c_fc"},
    ),
    "opt": Kind(
        ("OPTConfig", {"hidden_size": 32, "word_embed_proj_dim": 16, "ffn_dim": 48, "num_hidden_layers": 2,
                       "num_attention_heads": 4, "init_std": 0.3, "dropout": 0.0}),
        ("<s>", "<pad>", "</s>", "<unk>"), {"bos": "</s>", "eos": "</s>", "pad": "<pad>", "unk": "<unk>"}, "<ecg>",
        "</s>", "Assistant:\n", {"q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"}, first=True, rows=7,
    ),
    "gpt-neox": Kind(  # not in the table
        ("GPTNeoXConfig", NEOX), ("<|endoftext|>", "<|padding|>"), {"bos": "<|endoftext|>", "eos": "<|endoftext|>"},
        "<ecg>", "<|endoftext|>", "Assistant:\n", OUTSIDE, rows=3,
    ),
    "mistral": Kind(  # nor this one; it has a template of its own, and a window in all layers
        ("MistralConfig", GROUPED | {"sliding_window": 12}), ("<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>"),
        {"bos": "<s>", "eos": "</s>", "unk": "<unk>"}, "<ecg>", "<|im_end|>", QWEN_HEADER, GATED,
        "qwen3_instruct_2507.jinja", first=True,
    ),
}  # fmt: skip

# For fixtures: what the others show besides these, their tables and names of layers, waits for the slow tests.
QUICK = ("llama-3.2", "gemma2", "gpt2")
EACH = [pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow) for name in KINDS]


def make_tokenizer(kind: Kind) -> PreTrainedTokenizerFast:
    """Byte-level BPE, or for Gemma what its SentencePiece model became: spaces as ▁, unknown characters as bytes."""
    if "<start_of_turn>" in kind.special:
        bpe = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
        bpe.normalizer = normalizers.Replace(" ", "▁")
        bpe.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
        bpe.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
        alphabet = [*map(chr, range(33, 127)), "▁", "\n"]
        more = [f"<0x{byte:02X}>" for byte in range(256)]
    else:
        bpe = Tokenizer(models.BPE())
        bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        bpe.decoder = decoders.ByteLevel()
        alphabet, more = pre_tokenizers.ByteLevel.alphabet(), []
    before = [*kind.special, *kind.plain] if kind.first else []
    trainer = trainers.BpeTrainer(
        vocab_size=330 + len(more), special_tokens=before + more, initial_alphabet=alphabet, show_progress=False
    )
    bpe.train_from_iterator(TEXTS, trainer)
    bpe.add_special_tokens([AddedToken(token, special=True) for token in kind.special])
    bpe.add_tokens([AddedToken(token, special=False, normalized=False) for token in kind.plain])
    template = (TEMPLATES / kind.template).read_text() if kind.template else None
    names = {f"{name}_token": token for name, token in kind.named.items()}
    return PreTrainedTokenizerFast(tokenizer_object=bpe, chat_template=template, **names)


def make_language(kind: Kind, tokenizer: PreTrainedTokenizerFast, positions: int = 160):
    name, settings = kind.config
    settings = settings | {"n_positions" if name == "GPT2Config" else "max_position_embeddings": positions}
    ids = {f"{what}_token_id": tokenizer.convert_tokens_to_ids(token) for what, token in kind.named.items()}
    ids = {what: ids.get(what) for what in ("bos_token_id", "eos_token_id", "pad_token_id")}
    settings = settings | ids | {"vocab_size": len(tokenizer) + kind.rows}
    if name == "Gemma3Config":
        vision = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
        text = GROUPED | GEMMA_3 | ids | {"vocab_size": len(tokenizer), "max_position_embeddings": positions}
        settings = {"text_config": text, "vision_config": vision | {"image_size": 28}, "mm_tokens_per_image": 4}
        settings |= {"image_token_index": 3, "boi_token_index": 1, "eoi_token_index": 2, "initializer_range": 0.3}
        settings["tie_word_embeddings"] = False  # the text's own configuration says otherwise
    torch.manual_seed(1)
    language = AutoModelForCausalLM.from_config(getattr(transformers, name)(**settings))
    language.generation_config.eos_token_id = ids["eos_token_id"]
    return language.eval()


@dataclass
class Built:
    kind: Kind
    folder: Path
    language: torch.nn.Module  # another copy, as it was published
    model: elm.ElmForConditionalGeneration
    processor: elm.ElmProcessor


def build(folder, **settings):
    encoder_args = {"patch_size": 200, "hidden_size": 12}
    arguments = ElmArguments(encoder="ecg_patch", encoder_args=encoder_args, projector_pool=2, **settings)
    return build_model(arguments, ModelConfig(model_name_or_path=str(folder)), None, 0)


def saved(name, folder, positions=160):
    tokenizer = make_tokenizer(KINDS[name])
    make_language(KINDS[name], tokenizer, positions).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
