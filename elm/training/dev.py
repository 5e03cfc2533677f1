"""`--dev`: does a config run? Small parts with random weights, few questions, two steps a stage, a temporary folder.

What can go wrong stays: the stages, the conditions, the encoder's input and tokens per ECG, grouped-query attention,
tied embeddings, scaling of positions, precision, quantisation, saving and the audit. What takes time or a download
shrinks: layers, widths, vocabulary, questions. Nothing is read from the hub where the model is a known one.
"""

import dataclasses
import tempfile
from pathlib import Path
from typing import TypeVar

import torch
import yaml
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, LlamaConfig, PreTrainedConfig, TrainingArguments
from transformers.models.auto.feature_extraction_auto import FEATURE_EXTRACTOR_MAPPING

from data.conversations.rows import QuestionSet
from data.support.commands import Settings
from elm.training import tiny_encoder, tiny_llama
from encoders.base import EcgEncoderConfig
from encoders.hub import save_encoder
from encoders.melp import MelpConfig

A = TypeVar("A", bound=Settings)
T = TypeVar("T", bound=TrainingArguments)
# Shapes of published models, for `--plan`, too: both work where the hub cannot be reached.
LANGUAGE_MODELS: dict[str, dict[str, object]] = yaml.safe_load(
    Path(__file__).with_name("published.yaml").read_text(encoding="utf-8")
)
ENCODERS: dict[str, type[EcgEncoderConfig]] = {"fuyingw/MELP_Encoder": MelpConfig}  # at their defaults
COHORT = {"patients": 12, "held_out_patients": 6, "questions": 4, "held_out_questions": 2}
STEPS = 2
_FLAGS = (
    f"--max_steps {STEPS} --warmup_steps 1 --logging_steps 1 --save_steps 1 --per_device_train_batch_size 2 "
    "--push_to_hub false --threads 1 --dataloader_num_workers 0"  # workers for a handful of rows only take time
)


def flags(is_dev: bool, is_plan: bool, more: str = "") -> list[str]:
    """Flags that `--dev` means, to stand in front of the others, so that one of these still wins.

    `--dev` and `--plan` work without a GPU, whose absence the trainer would refuse under `bf16: true`.
    """
    meant = f"{_FLAGS} {more}".split() if is_dev else []
    if (is_dev or is_plan) and not torch.cuda.is_available():
        meant += ["--use_cpu", "true"]
    return meant


def in_temporary_folder(arguments: A, training_args: T, **changes: object) -> tuple[A, T]:
    """Settings with which a run caches and writes in a new folder, the same for all processes."""
    names = [tempfile.mkdtemp(prefix="ecg-elm-dev-") if PartialState().is_main_process else ""]
    folder = Path(broadcast_object_list(names)[0])
    arguments = dataclasses.replace(arguments, cache_dir=str(folder / "cache"), **changes)
    return arguments, dataclasses.replace(training_args, output_dir=str(folder / "model"))


def words_of(questions: QuestionSet) -> list[str]:
    """Texts of training rows and reports."""
    rows = (*questions.train, *questions.reports)
    return [part["text"] for row in rows for message in row["messages"] for part in message["content"]]


def language_model(name: str, revision: str, questions: QuestionSet, cache: Path, seed: int) -> str:
    """Folder of a small language model of the same kind, with a tokenizer made of the questions' words."""
    folder = cache / f"dev-language-{Path(name).name}"
    if (folder / "tokenizer.json").exists():  # another process, or the model before, has made it
        return str(folder)
    tokenizer = tiny_llama.train_tokenizer(words_of(questions))
    config = tiny_llama.llama_config(tokenizer)
    if name != "tiny":
        ids = {key: vars(config)[key] for key in ("vocab_size", "bos_token_id", "eos_token_id", "pad_token_id")}
        config = shrunk_language(language_config(name, revision), **ids)
    torch.manual_seed(seed)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def encoder(name: str, cache: Path, seed: int) -> str:
    """Folder of a small encoder of the same kind; any other name than a published encoder's or a tiny one's stays."""
    if name not in tiny_encoder.ENCODERS and (name not in ENCODERS or Path(name).exists()):
        return name
    folder = cache / f"dev-encoder-{Path(name).name}"
    if (folder / "preprocessor_config.json").exists():
        return str(folder)
    config = tiny_encoder.ENCODERS[name].config() if name in tiny_encoder.ENCODERS else shrunk_encoder(ENCODERS[name]())
    torch.manual_seed(seed)
    save_encoder(AutoModel.from_config(config), FEATURE_EXTRACTOR_MAPPING[type(config)].from_config(config), folder)
    return str(folder)


def language_config(name: str, revision: str = "main") -> PreTrainedConfig:
    """Configuration of (the part that reads text of) a language model: from above, else from its folder or the hub."""
    if name in LANGUAGE_MODELS:
        return LlamaConfig(**LANGUAGE_MODELS[name])
    return AutoConfig.from_pretrained(name, revision=revision).get_text_config()


def shrunk_language(config: PreTrainedConfig, **changes: object) -> PreTrainedConfig:
    """Two layers, heads of 16 in the same groups, the same ratio of widths; all else as it was."""
    settings, layers, heads = config.to_dict(), config.num_hidden_layers, config.num_attention_heads
    groups = settings.get("num_key_value_heads") or heads
    new_groups = min(groups, 2)
    new_heads = heads // groups * new_groups
    width = {name: settings.get(name) for name in ("intermediate_size", "ffn_dim", "n_inner", "word_embed_proj_dim")}
    sizes = {
        "num_hidden_layers": 2, "num_attention_heads": new_heads, "hidden_size": 16 * new_heads,
        **{name: size * 16 * new_heads // config.hidden_size for name, size in width.items() if size},
    }  # fmt: skip
    sizes |= {"num_key_value_heads": new_groups, "head_dim": 16} if "num_key_value_heads" in settings else {}
    sizes = {config.attribute_map.get(name, name): size for name, size in sizes.items()}  # GPT-2 names them otherwise
    of_layers = {key: value[:2] for key, value in settings.items() if isinstance(value, list) and len(value) == layers}
    return type(config)(**settings | of_layers | sizes | changes)


def shrunk_encoder(config: EcgEncoderConfig) -> EcgEncoderConfig:
    """Two layers, an eighth of each width; the same input and the same tokens."""
    widths = ("hidden_size", "intermediate_size", "shared_dim", "caption_dim")
    settings = config.to_dict()
    sizes = {name: settings[name] // 8 for name in widths}
    sizes["conv_dim"] = [width // 8 for width in settings["conv_dim"]]
    return type(config)(**settings | sizes | {"num_hidden_layers": 2})
