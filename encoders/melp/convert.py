"""Published MELP checkpoints, read without upstream's code.

Reads `fuyingw/MELP_Encoder` (`model.safetensors`, bf16), its reproductions, and a Lightning `.ckpt` of HKU-MedAI/MELP.
All of them name the ECG tower `ecg_encoder.*`; here it is the model itself, so one prefix goes:

    ecg_encoder.ecg_encoder.encoder.layers.0.fc1.weight  ->  ecg_encoder.encoder.layers.0.fc1.weight
    ecg_encoder.attn_pool_contrast.query                 ->  attn_pool_contrast.query

The positional convolution is stored as direction and length per tap (weight norm over the last dimension). Both are
multiplied into a plain weight: it computes the same, loads without a rename and is trained as an ordinary convolution.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file

from encoders.melp.configuration import MelpConfig

logger = logging.getLogger(__name__)

PRETRAINED_ON = (
    "MIMIC-IV-ECG recordings and their reports (MELP); its authors chose the checkpoint by zero-shot AUROC on the "
    "validation splits of PTB-XL, CPSC2018 and CSN"
)
# Weights that pretraining needs and inference does not: wav2vec's quantizer and projections, CLIP's temperature, a norm
# that no forward calls. Then the text side, which only a training checkpoint has.
_PRETRAINING = ("quantizer.", "project_q.", "final_proj.", "mask_emb")
_IGNORED = (
    *(f"ecg_encoder.{name}" for name in _PRETRAINING),
    *("logit_scale", "bn."),
    *("lm_model.", "proj_t.", "sent_proj.", "text_decoder."),
)
_POS_CONV = "ecg_encoder.conv_pos.pos_conv.0."
_WEIGHT_NORM = (("parametrizations.weight.original0", "parametrizations.weight.original1"), ("weight_g", "weight_v"))


class PublishedMelp(NamedTuple):
    """A published checkpoint in our terms.

    Attributes:
        config: Sizes read from the tensors, the rest from its config.json or as published.
        weights: float32 state for `MelpModel`; not checked yet, `encoders.hub.load_weights` does that.
        ignored: Names, as in the file, of the tensors that the encoder has no use for.
    """

    config: MelpConfig
    weights: dict[str, torch.Tensor]
    ignored: list[str]


def read_published(path: str | Path, **settings: Any) -> PublishedMelp:
    """Read a published MELP checkpoint.

    Args:
        path: A `.safetensors` file, a Lightning `.ckpt` (or `.pt`, `.bin`), or a folder with `model.safetensors`.
        **settings: Fields of `MelpConfig` to set: `output`, or the numbers of heads, which no tensor shows (64 wide
            heads and 8 in the poolers unless a config.json beside the file or these say otherwise).

    Returns:
        Configuration, weights and what was ignored; also logged.

    Raises:
        FileNotFoundError: No such file, or no checkpoint in the folder.
        ValueError: It is not a MELP checkpoint, or a size cannot be told from it.
    """
    path = Path(path)
    file = path / "model.safetensors" if path.is_dir() else path
    if not file.is_file():
        raise FileNotFoundError(f"no MELP checkpoint at {file}")
    weights: dict[str, torch.Tensor] = {}
    ignored: list[str] = []
    for name, tensor in _read_tensors(file).items():
        ours = name.removeprefix("ecg_encoder.")
        if ours.startswith(_IGNORED):
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
    if ignored:
        logger.info("%s: no use for %d of its tensors: %s", file, len(ignored), ", ".join(sorted(ignored)))
    return PublishedMelp(config, weights, ignored)


def _read_tensors(file: Path) -> dict[str, torch.Tensor]:
    if file.suffix == ".safetensors":
        return load_file(file)
    content = torch.load(file, map_location="cpu", weights_only=True)
    state = content.get("state_dict", content) if isinstance(content, dict) else None
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise ValueError(f"{file} holds no state_dict of tensors")
    return state


def _sizes(weights: dict[str, torch.Tensor], file: Path) -> dict[str, Any]:
    """Fields of `MelpConfig` that the tensors and a config.json beside them tell."""

    def shape(name: str, ndim: int = 2) -> torch.Size:
        if name not in weights or weights[name].ndim != ndim:
            raise ValueError(
                f"{file} is no MELP encoder with both poolers: no {ndim}-d tensor ecg_encoder.{name} in it"
            )
        return weights[name].shape

    def count(pattern: str) -> int:
        index = 0
        while pattern.format(index) in weights:
            index += 1
        return index

    convs = "ecg_encoder.feature_extractor.conv_layers.{}.0.weight"
    conv_shapes = [shape(convs.format(index), 3) for index in range(max(1, count(convs)))]
    hidden = shape("ecg_encoder.post_extract_proj.weight")[0]
    kernel = [s[2] for s in conv_shapes]
    sizes: dict[str, Any] = {
        "pretrained_on": PRETRAINED_ON,
        "in_channels": conv_shapes[0][1],
        "conv_dim": [s[0] for s in conv_shapes],
        "conv_kernel": kernel,
        "conv_stride": kernel,  # convolutions do not overlap in any published size
        "hidden_size": hidden,
        "num_attention_heads": max(1, hidden // 64),
        "num_hidden_layers": count("ecg_encoder.encoder.layers.{}.fc1.weight"),
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
