"""MELP as upstream has it: its published checkpoints, read without its code, and its path for CPSC2018.

Reads `fuyingw/MELP_Encoder` (`model.safetensors`, bf16), its reproductions, and a Lightning `.ckpt` of HKU-MedAI/MELP.
All of them name the ECG tower `ecg_encoder.*`; here it is the model itself, so one prefix goes:

    ecg_encoder.ecg_encoder.encoder.layers.0.fc1.weight  ->  ecg_encoder.encoder.layers.0.fc1.weight
    ecg_encoder.attn_pool_contrast.query                 ->  attn_pool_contrast.query

A Lightning checkpoint holds the text side too, which `MelpForPretraining` has a use for:

    lm_model.bert.encoder.layer.0...                     ->  text_model.encoder.layer.0...
    proj_t.*, sent_proj.*, text_decoder.*, logit_scale   ->  the same

The positional convolution is stored as direction and length per tap (weight norm over the last dimension). Both are
multiplied into a plain weight: it computes the same, loads without a rename and is trained as an ordinary convolution.
"""

import json
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from encoders.base import Settings
from encoders.checkpoints import Weights, layers_in, not_default, read_state, report_unused
from encoders.melp.configuration import MelpConfig, MelpPretrainingConfig

Config = TypeVar("Config", MelpConfig, MelpPretrainingConfig)

PRETRAINED_ON = (
    "MIMIC-IV-ECG recordings and their reports (MELP); its authors chose the checkpoint by zero-shot AUROC on the "
    "validation splits of PTB-XL, CPSC2018 and CSN"
)
# Weights of the ECG tower that only its first pretraining needed (wav2vec's quantizer and projections), or nothing: a
# temperature and a norm that no forward reads. Then the text side.
_UNUSED = (
    *(f"ecg_encoder.{name}" for name in ("quantizer.", "project_q.", "final_proj.", "mask_emb")),
    *("logit_scale", "bn."),
)
_TEXT = ("lm_model.", "proj_t.", "sent_proj.", "text_decoder.")
_POS_CONV = "ecg_encoder.conv_pos.pos_conv.0."
_WEIGHT_NORM = (("parametrizations.weight.original0", "parametrizations.weight.original1"), ("weight_g", "weight_v"))


class Published(NamedTuple, Generic[Config]):
    """A published checkpoint in our terms."""

    config: Config  # sizes read from the tensors, the others from its config.json, the settings, or as published
    weights: Weights  # float32 state for the model; not checked yet, `encoders.checkpoints.built` does that
    ignored: list[str]  # names, as in the file, of the tensors that the model has no use for


def read_published(path: str | Path, **settings: Any) -> Published[MelpConfig]:
    """Read a published MELP encoder; which tensors are ignored is also logged.

    The path is a `.safetensors` file, a Lightning `.ckpt` (or `.pt`, `.bin`), or a folder with `model.safetensors`.
    Settings are fields of `MelpConfig`: `output`, or the numbers of heads, which no tensor shows (64 wide heads and 8
    in the poolers unless a config.json beside the file or these say otherwise).

    Raises:
        FileNotFoundError: No such file, or no checkpoint in the folder.
        ValueError: It is not a MELP checkpoint, or a size cannot be told from it.
    """
    file = _file(path)
    published = _ecg_tower(read_state(file), file, settings)
    report_unused(file, published.ignored)
    return published


def read_published_pretraining(path: str | Path, **settings: Any) -> Published[MelpPretrainingConfig]:
    """Read the Lightning checkpoint of a whole MELP, at a path as `read_published` takes it; logs ignored tensors.

    Settings are fields of `MelpPretrainingConfig`; `encoder_config` and `text_config` as dicts of what no tensor shows.
    Heads are 64 wide in the text tower, and 8 in the caption decoder, unless these say otherwise.

    Raises:
        FileNotFoundError: No such file, or no checkpoint in the folder.
        ValueError: It has no text side, it is no MELP checkpoint, or a size cannot be told from it.
    """
    file = _file(path)
    state = read_state(file)
    if not any(name.startswith(_TEXT) for name in state):
        raise ValueError(f"{file} has no text side (lm_model, proj_t, text_decoder): what is published is the encoder")
    tower = _ecg_tower(state, file, settings.pop("encoder_config", {}))
    weights = {f"encoder.{name}": tensor for name, tensor in tower.weights.items()}
    ignored = []
    for name in tower.ignored:
        if name == "logit_scale" or name.startswith(_TEXT[1:]):
            weights[name] = state[name].float()
        elif name.startswith("lm_model.bert."):
            weights["text_model" + name.removeprefix("lm_model.bert")] = state[name].float()
        else:  # of the ECG tower's dead weights, and the head that would predict words from the text alone
            ignored.append(name)
    text_settings = settings.pop("text_config", {})
    text = _text_sizes(weights, file) | text_settings
    if text["hidden_size"] % 64 and "num_attention_heads" not in text_settings:
        raise ValueError(
            f"{file}: the number of heads of its text tower, of width {text['hidden_size']}, is not known: give "
            "num_attention_heads in text_config"
        )
    settings = {
        "encoder_config": tower.config,
        "text_config": text,
        "text_hidden_dim": _shape(weights, "proj_t.0.weight", file)[0],
        "decoder_layers": layers_in(weights, "text_decoder.resblocks.{}.ln_1.weight"),
        "frozen_text_layers": min(6, text["num_hidden_layers"]),
        # BERT's [PAD], [CLS], [SEP] and [MASK] as MedCPT has them, and [BOS], which upstream adds last.
        "special_token_ids": (0, 2, 3, 4, text["vocab_size"] - 1),
    } | settings
    report_unused(file, ignored)
    return Published(MelpPretrainingConfig(**settings), weights, ignored)


def settings_for_pretraining(config: MelpPretrainingConfig | MelpConfig | None) -> Settings:
    """What `MelpForPretraining.from_upstream`'s configuration says, for `read_published_pretraining`."""
    if isinstance(config, MelpPretrainingConfig):
        text = config.text_config
        settings = not_default(config) | {"encoder_config": not_default(config.encoder_config), "text_config": {}}
        if text.num_attention_heads != type(text)().num_attention_heads:
            settings["text_config"] = {"num_attention_heads": text.num_attention_heads}
        return settings
    uniform: Settings = {"single_sentence": "uniform"}
    if config is None:
        return uniform
    heads = {"text_config": {"num_attention_heads": config.num_attention_heads}, "decoder_heads": config.pooler_heads}
    return uniform | {"encoder_config": not_default(config)} | heads


def _file(path: str | Path) -> Path:
    path = Path(path)
    file = path / "model.safetensors" if path.is_dir() else path
    if not file.is_file():
        raise FileNotFoundError(f"no MELP checkpoint at {file}")
    return file


def _ecg_tower(state: Weights, file: Path, settings: Settings) -> Published[MelpConfig]:
    weights: Weights = {}
    ignored: list[str] = []
    for name, tensor in state.items():
        ours = name.removeprefix("ecg_encoder.")
        if ours.startswith(_UNUSED + _TEXT):
            ignored.append(name)
        else:
            weights[ours] = tensor.float()
    for length, direction in _WEIGHT_NORM:
        if {_POS_CONV + length, _POS_CONV + direction} <= weights.keys():
            g, v = weights.pop(_POS_CONV + length), weights.pop(_POS_CONV + direction)  # [1, 1, K], [D, D / groups, K]
            weights[_POS_CONV + "weight"] = g * v / v.norm(dim=(0, 1), keepdim=True)
    config = MelpConfig(**(_sizes(weights, file) | settings))
    if config.hidden_size % 64 and "num_attention_heads" not in settings:
        raise ValueError(
            f"{file}: the number of heads of width {config.hidden_size} is not known: give num_attention_heads"
        )
    return Published(config, weights, ignored)


def _shape(weights: Weights, name: str, file: Path) -> torch.Size:
    if name not in weights or weights[name].ndim != 2:
        raise ValueError(f"{file} is no whole MELP: no 2-d tensor for {name} in it")
    return weights[name].shape


def _text_sizes(weights: Weights, file: Path) -> Settings:
    """Fields of `BertConfig` that the tensors tell."""
    embeddings = "text_model.embeddings.{}_embeddings.weight"
    vocabulary, hidden = _shape(weights, embeddings.format("word"), file)
    return {
        "vocab_size": vocabulary,
        "hidden_size": hidden,
        "max_position_embeddings": _shape(weights, embeddings.format("position"), file)[0],
        "type_vocab_size": _shape(weights, embeddings.format("token_type"), file)[0],
        "num_attention_heads": max(1, hidden // 64),
        "num_hidden_layers": layers_in(weights, "text_model.encoder.layer.{}.intermediate.dense.weight"),
        "intermediate_size": _shape(weights, "text_model.encoder.layer.0.intermediate.dense.weight", file)[0],
    }


def _sizes(weights: Weights, file: Path) -> Settings:
    """Fields of `MelpConfig` that the tensors and a config.json beside them tell."""

    def shape(name: str, ndim: int = 2) -> torch.Size:
        if name not in weights or weights[name].ndim != ndim:
            raise ValueError(
                f"{file} is no MELP encoder with both poolers: no {ndim}-d tensor ecg_encoder.{name} in it"
            )
        return weights[name].shape

    convs = "ecg_encoder.feature_extractor.conv_layers.{}.0.weight"
    conv_shapes = [shape(convs.format(index), 3) for index in range(max(1, layers_in(weights, convs)))]
    hidden = shape("ecg_encoder.post_extract_proj.weight")[0]
    kernel = [s[2] for s in conv_shapes]
    sizes: Settings = {
        "pretrained_on": PRETRAINED_ON,
        "in_channels": conv_shapes[0][1],
        "conv_dim": [s[0] for s in conv_shapes],
        "conv_kernel": kernel,
        "conv_stride": kernel,  # convolutions do not overlap in any published size
        "hidden_size": hidden,
        "num_attention_heads": max(1, hidden // 64),
        "num_hidden_layers": layers_in(weights, "ecg_encoder.encoder.layers.{}.fc1.weight"),
        "intermediate_size": shape("ecg_encoder.encoder.layers.0.fc1.weight")[0],
        "conv_pos_kernel": shape(_POS_CONV + "weight", 3)[2],
        "conv_pos_groups": hidden // shape(_POS_CONV + "weight", 3)[1],
        "n_queries_contrast": shape("attn_pool_contrast.query")[0],
        "shared_dim": shape("attn_pool_contrast.query")[1],
        "n_queries_caption": shape("attn_pool_caption.query")[0],
        "caption_dim": shape("attn_pool_caption.query")[1],
    }
    upstream = file.parent / "config.json"
    if upstream.is_file():
        published = json.loads(upstream.read_text(encoding="utf-8"))
        if "attn_pooler_heads" in published:
            sizes["pooler_heads"] = published["attn_pooler_heads"]
    return sizes


def as_for_cpsc(signal: NDArray[np.float64], length: int) -> tuple[NDArray[np.float64], int]:
    """Upstream's input for CPSC2018: half of `length` samples, then zeros (mV); and how many samples are signal."""
    half = signal[:, : round(length / 2)]
    return np.pad(half, ((0, 0), (0, length - half.shape[1]))), half.shape[1]
