"""MELP's pretraining model as a folder: `load_pretraining` and `save_pretraining`; a new one: `new_pretraining`.

The folder holds config.json, model.safetensors, preprocessor_config.json and the tokenizer. `load_encoder` reads the
plain encoder out of it.
"""

import copy
import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModel, AutoTokenizer, PreTrainedTokenizerBase

from encoders.base import Settings
from encoders.checkpoints import built, from_hub, settings_of
from encoders.melp.configuration import MelpPretrainingConfig
from encoders.melp.feature_extraction import MelpFeatureExtractor
from encoders.melp.modeling import MelpModel
from encoders.melp.pretraining import MelpForPretraining
from encoders.melp.text import add_bos, token_settings
from encoders.melp.upstream import read_published_pretraining


def new_pretraining(
    encoder: MelpModel, text: str | Path, *, text_weights: bool = True, **settings: Any
) -> tuple[MelpForPretraining, PreTrainedTokenizerBase]:
    """An encoder with a text side to train it against, in eval mode, float32.

    Args:
        encoder: Its weights are copied.
        text: The text model, a BERT: a folder or hub id with its configuration and its tokenizer, to which [BOS] is
            added. Upstream's is `ncbi/MedCPT-Query-Encoder`.
        text_weights: Whether to start from its weights too; without, they are drawn from torch's generator.
        **settings: Fields of `MelpPretrainingConfig`.

    Raises:
        ValueError: An unknown setting; the text model is no BERT or lacks weights, or its tokenizer lacks what MELP
            needs.
    """
    _refuse_unknown(settings)
    tokenizer = AutoTokenizer.from_pretrained(text)
    add_bos(tokenizer)
    text_config = AutoConfig.from_pretrained(text)
    if text_config.model_type != "bert":
        raise ValueError(f"the text model {text} is of type {text_config.model_type!r}: MELP's text tower is a BERT")
    bert = None
    if text_weights:
        text_config.is_decoder = True
        bert, report = AutoModel.from_pretrained(
            text, config=text_config, add_pooling_layer=False, dtype=torch.float32, output_loading_info=True
        )
        if report["missing_keys"]:  # the stock loader draws what it does not find
            raise ValueError(f"the text model {text} lacks {', '.join(sorted(report['missing_keys'])[:5])}")
        bert.resize_token_embeddings(len(tokenizer))  # the new row is drawn around the mean of the others
        text_config = bert.config
    text_config.vocab_size = len(tokenizer)
    frozen = min(6, text_config.num_hidden_layers // 2) if text_weights else 0  # nothing to keep in drawn weights
    config = MelpPretrainingConfig(
        encoder_config=copy.deepcopy(encoder.config),
        text_config=text_config,
        **({"frozen_text_layers": frozen} | token_settings(tokenizer) | settings),
    )
    model = MelpForPretraining(config)
    model.encoder.load_state_dict(encoder.state_dict())
    if bert is not None:
        model.text_model.load_state_dict(bert.state_dict())
    return model.eval(), tokenizer


def save_pretraining(
    model: MelpForPretraining, extractor: MelpFeatureExtractor, tokenizer: PreTrainedTokenizerBase, folder: str | Path
) -> None:
    """Write a model, its feature extractor and its tokenizer to a folder that `load_pretraining` reads."""
    for part in (model, extractor, tokenizer):
        part.save_pretrained(folder)


def load_pretraining(
    name_or_path: str | Path, *, revision: str | None = None, tokenizer: str | Path | None = None, **settings: Any
) -> tuple[MelpForPretraining, MelpFeatureExtractor, PreTrainedTokenizerBase]:
    """A pretraining model in eval mode, float32, with its feature extractor and its tokenizer.

    Args:
        name_or_path: A folder of ours or its hub id, or a training checkpoint of upstream (a Lightning `.ckpt` that
            holds the text side too).
        revision: Branch, tag or commit of a hub id.
        tokenizer: For a checkpoint of upstream, folder or hub id of its text model's tokenizer.
        **settings: Fields of `MelpPretrainingConfig` to set; for a checkpoint, `encoder_config` and `text_config` as
            dicts of what no tensor shows.

    Raises:
        FileNotFoundError: There is no such folder or file, or one of its files is missing.
        ValueError: An unknown setting; it is no such model, the tokenizer does not belong to it, or a tensor is
            missing, unexpected, misshapen or not finite.
    """
    _refuse_unknown(settings)
    path = Path(name_or_path)
    if not path.exists():
        path = from_hub(str(name_or_path), ["*.json", "*.safetensors", "vocab.txt"], revision)
    file = path / "config.json"
    saved = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    if saved.get("model_type") == MelpPretrainingConfig.model_type:
        config = MelpPretrainingConfig.from_dict(saved | settings)
        weights = load_file(path / "model.safetensors")
        extractor = MelpFeatureExtractor.from_pretrained(path)
        words = AutoTokenizer.from_pretrained(path, config=config)
    elif tokenizer is None:
        raise ValueError(
            f"{name_or_path} is no folder of a MELP pretraining model. If it is a training checkpoint of upstream, say "
            "which tokenizer its text model has (tokenizer=)"
        )
    else:
        words = AutoTokenizer.from_pretrained(tokenizer)
        add_bos(words)
        config, weights, _ = read_published_pretraining(path, **(token_settings(words) | settings))
        extractor = MelpFeatureExtractor.from_config(config.encoder_config)
    if len(words) != config.text_config.vocab_size:
        raise ValueError(
            f"the tokenizer has {len(words)} tokens and the text tower of {name_or_path} "
            f"{config.text_config.vocab_size}: they do not belong together"
        )
    return built(MelpForPretraining(config), weights, source=str(name_or_path)), extractor, words


def _refuse_unknown(settings: Settings) -> None:
    """A configuration of transformers keeps any name it is given, and nothing would read a misspelt one."""
    fields = settings_of(MelpPretrainingConfig)
    if unknown := ", ".join(sorted(settings.keys() - fields)):
        raise ValueError(f"unknown setting {unknown}: MELP's pretraining has {', '.join(sorted(fields))}")
