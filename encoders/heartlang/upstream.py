"""HeartLang as upstream has it: its published checkpoints, read without its code, and its way to words.

`PKUDigitalHealth/HeartLang` on the hub holds what upstream's `save_model` writes: `{"model": state, "optimizer",
"epoch", "args", "scaler"}`. There are three kinds, told apart by their tensors, whose names have no prefix, or
`backbone.` (fine-tuned), or `module.` (saved from a parallel wrapper). Here:

    kind        | upstream                         | ours
    pretrained  | transformer..., lm_head          | HeartLangModel backbone...; HeartLangForMaskedSentence, lm_head too
    fine-tuned  | backbone.transformer..., mlp_head| the same; HeartLangClassifier, mlp_head
    VQ-HBR      | encoder..., decoder..., quantize | HeartLangVQ; the codebook is quantize.codebook
"""

import logging
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from encoders.base import EcgEncoder, Settings
from encoders.checkpoints import Weights, built, layers_in, not_default, read_state, report_unused
from encoders.heartlang.configuration import HeartLangConfig, HeartLangVQConfig
from encoders.heartlang.words import Array, Reading, Words, spans_of
from encoders.heartlang.xqrs import find_beats

logger = logging.getLogger(__name__)

PRETRAINED_ON = "MIMIC-IV-ECG recordings without reports or labels (HeartLang); its split is by record, not by patient"
# Where the authors' repository on the hub has them.
PUBLISHED = {
    HeartLangConfig: "checkpoints/pretrain/MIMIC-IV/checkpoint-200.pth",
    HeartLangVQConfig: "checkpoints/vqhbr/MIMIC-IV/checkpoint-100.pth",
}
_WORDS = "token_embed.tokenConv.weight"
# Codes' names: those of ours that are upstream's under another name, and upstream's that nothing reads.
_CODEBOOK = {
    "quantize.embedding.weight": "quantize.codebook",
    "quantize.cluster_size": "quantize.cluster_size",
    "quantize.embedding.initted": "quantize.started",
}
_UNUSED = ("quantize.embedding.cluster_size", "quantize.embedding.embed_avg")
_HEADS = {"mlp_head": "fine-tuned", "lm_head": "pretrained"}

Model = TypeVar("Model", bound=EcgEncoder)


def is_heartlang(names: list[str]) -> bool:
    """Whether a checkpoint with tensors of these names is HeartLang's."""
    return any(name.endswith(_WORDS) for name in names)


def is_vq(names: list[str]) -> bool:
    """Whether a HeartLang checkpoint with tensors of these names is VQ-HBR's."""
    return any("quantize.embedding.weight" in name for name in names)


def read_upstream(path: str | Path) -> tuple[str, Weights]:
    """Kind (`"pretrained"`, `"fine-tuned"`, `"VQ-HBR"`) and float32 weights, by our names, of a checkpoint.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is none of the three kinds; says what is missing.
    """
    state = read_state(path)
    if not is_heartlang(list(state)):
        raise ValueError(f"{path} is no HeartLang checkpoint: it has no tensor {_WORDS}")
    if is_vq(list(state)):
        weights = {}
        for name, tensor in state.items():
            name = name.removeprefix("module.")
            weights[_CODEBOOK.get(name, name)] = tensor.float()
        if "quantize.started" in weights:
            weights["quantize.started"] = weights["quantize.started"].bool()
        return "VQ-HBR", weights
    weights = {}
    for name, tensor in state.items():
        # A head is a head wherever it stands: `--finetune` upstream makes `backbone.mlp_head` of it.
        bare = name.removeprefix("module.").removeprefix("backbone.").removeprefix("module.")
        weights[bare if bare.startswith(tuple(_HEADS)) else f"backbone.{bare}"] = tensor.float()
    return ("fine-tuned" if "mlp_head.weight" in weights else "pretrained"), weights


def read_published(cls: type[Model], path: str | Path, **settings: Any) -> tuple[HeartLangConfig, Weights]:
    """The configuration and the weights of a checkpoint, for one of our classes. What is left out is logged.

    Settings are fields of the configuration that no tensor shows; heads are 64 wide unless these say otherwise. The
    state is float32 and not checked yet, `encoders.checkpoints.built` does that. A classifier's head is not in it where
    the checkpoint has none and `num_labels` is given.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is a checkpoint of another kind, or a size cannot be told from it.
    """
    kind, weights = read_upstream(path)
    vq = issubclass(cls.config_class, HeartLangVQConfig)
    if vq != (kind == "VQ-HBR"):
        reader = "HeartLangVQ" if kind == "VQ-HBR" else "HeartLangModel"
        raise ValueError(f"{path} is a {kind} checkpoint, which {cls.__name__} cannot read: use {reader}")
    config: HeartLangConfig = cls.config_class(
        **({"pretrained_on": PRETRAINED_ON} | settings | _sizes(weights, path, settings, vq))
    )
    with torch.device("meta"):
        wanted = cls(config).state_dict().keys()
    if "lm_head.weight" in wanted and kind == "fine-tuned":
        raise ValueError(f"{path} is fine-tuned: its lm_head was never trained. Use a pretraining checkpoint")
    if "mlp_head.weight" in wanted and kind == "pretrained" and "num_labels" not in settings:
        raise ValueError(
            f"{path} has no mlp_head: it is pretrained, not fine-tuned. For a new head give a config with num_labels"
        )
    if vq:
        weights.setdefault("quantize.started", torch.ones(1, dtype=torch.bool))
    ignored = [name for name in weights if name not in wanted and name.startswith((*_HEADS, *_UNUSED))]
    report_unused(path, ignored)
    return config, {name: tensor for name, tensor in weights.items() if name not in ignored}


def from_upstream(cls: type[Model], path: str | Path, config: HeartLangConfig | None) -> Model:
    """A model of one of our classes with the weights of a checkpoint, in eval mode: see `HeartLangPreTrained`."""
    settings = not_default(config)
    if isinstance(config, cls.config_class):
        settings["num_labels"] = config.num_labels
    else:  # the encoder's, for VQ-HBR
        settings = {name: value for name, value in settings.items() if name in ("num_attention_heads", "head_dim")}
    whole_config, weights = read_published(cls, path, **settings)
    model = cls(whole_config)
    head = {name: tensor for name, tensor in model.state_dict().items() if name.startswith("mlp_head.")}
    if head and "mlp_head.weight" not in weights:
        logger.info("%s has no mlp_head: a new one of %d labels", path, whole_config.num_labels)
        weights = head | weights
    return built(model, weights, source=str(path))


def _sizes(weights: Weights, path: str | Path, settings: Settings, vq: bool) -> Settings:
    """Fields of the configuration that tensors tell. The split of attention into heads is the one they do not."""

    def shape(name: str, ndim: int) -> torch.Size:
        if name not in weights or weights[name].ndim != ndim:
            raise ValueError(f"{path} is no whole HeartLang checkpoint: no {ndim}-d tensor {name} in it")
        return weights[name].shape

    def layers(trunk: str) -> int:
        return layers_in(weights, trunk + ".transformer.layers.{}.0.to_qkv.weight")

    trunk = "encoder" if vq else "backbone"
    hidden, length, _ = shape(f"{trunk}.{_WORDS}", 3)
    inner = shape(f"{trunk}.transformer.layers.0.0.to_qkv.weight", 2)[0] // 3
    heads, head_dim = settings.get("num_attention_heads"), settings.get("head_dim")
    head_dim = head_dim or (inner // heads if heads else 64)
    heads = heads or max(1, inner // head_dim)
    if heads * head_dim != inner:
        raise ValueError(
            f"{path}: its attention is {inner} wide, which is not {heads} heads of {head_dim}: "
            "give num_attention_heads and head_dim"
        )
    sizes: Settings = {
        "hidden_size": hidden,
        "word_length": length,
        "max_words": shape(f"{trunk}.pos_embed", 3)[1] - 1,
        "num_hidden_layers": layers(trunk),
        "num_attention_heads": heads,
        "head_dim": head_dim,
        "intermediate_size": shape(f"{trunk}.transformer.layers.0.1.net.1.weight", 2)[0],
        "lead_positions": shape(f"{trunk}.spa_embed.embed.weight", 2)[0],
        "time_positions": shape(f"{trunk}.tem_embed.embed.weight", 2)[0],
    }
    if vq:
        size, dim = shape("quantize.codebook", 2)
        return sizes | {"decoder_layers": layers("decoder"), "codebook_size": size, "code_dim": dim}
    if "mlp_head.weight" in weights:
        sizes["num_labels"] = shape("mlp_head.weight", 2)[0]
    elif "lm_head.weight" in weights:
        sizes["vocab_size"] = shape("lm_head.weight", 2)[0]
    return sizes


# --- words ------------------------------------------------------------------------------------------------------------


def check_mode(parity: bool, per_lead: bool, output: str) -> None:
    """Refuse, with a `ValueError`, settings of a `QrsTokenizer` that upstream's way and ours do not share."""
    if per_lead and not parity:
        raise ValueError("detection 'per_lead' is upstream's old tokenizer: it needs mode='parity'")
    if parity and output in ("beats", "leads", "compact"):
        raise ValueError(
            f"output {output!r} needs mode='safe': upstream drops words of the last leads when there are many "
            "beats, so in parity mode a beat or a lead is not the same number of words in every recording"
        )


def read_words(signal: Array, leads: list[str], fs: int, length: int, *, per_lead: bool) -> Reading:
    """Beats and words as upstream has them: by XQRS on the first lead, or `per_lead`, as until May 2025."""
    every = np.arange(len(signal))
    groups = []
    for rows in every[:, None] if per_lead else [every]:
        beats = find_beats(signal[rows[0]], fs)
        groups.append(Words(rows, beats, spans_of(beats, signal.shape[1], length)))
    beats = groups[0].middles
    flags = () if any(len(group.middles) for group in groups) else ("no_beats",)
    return Reading(groups, beats, np.arange(len(beats) if len(groups) == 1 else 0), leads[0], flags)
