"""MELP: milliseconds per recording for its encoder, beside a plain restatement of it.

The restatement computes what upstream's code does, an operation at a time: attention with an explicit softmax, the
positional convolution with its weight norm applied in every call, the poolers spelled out. Recordings are simulated, 12
leads of 10 s at 500 Hz; the encoder has the published size and random weights, both ways the same ones, and their
outputs are compared first. CPU time of one thread; a ratio is taken within a repeat (`eval.speed._rows.report`).
"""

from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from data.synthetic import SyntheticCohort
from encoders.melp import MelpConfig, MelpFeatureExtractor, MelpModel
from eval.speed import Encoder, _rows
from eval.speed._rows import Rows, report

OUTPUTS = ("features", "beats", "tokens", "rhythm", "probe")
TOLERANCE = 5e-5  # that the full-size encoder is held to beside upstream's own outputs


def weight_norm(model: MelpModel) -> tuple[Tensor, Tensor]:
    """The positional convolution's weight as upstream keeps it: length `[1, 1, K]` and direction `[D, C, K]`."""
    part: Any = model.ecg_encoder.conv_pos.pos_conv
    weight: Tensor = part[0].weight.detach()
    sizes = torch.linspace(0.5, 2, weight.shape[-1])
    return weight.norm(dim=(0, 1), keepdim=True), weight * sizes


def plain_encoder(model: MelpModel, norm: tuple[Tensor, Tensor], x: Tensor) -> dict[str, Tensor]:
    """What upstream's network computes of recordings `[B, 12, L]`, by the name of `MelpOutput`."""
    net: Any = model
    trunk, (length, direction) = net.ecg_encoder, norm

    def attention(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
        q, k, v = (part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in (q, k, v))
        weights = (q * q.shape[-1] ** -0.5 @ k.mT).softmax(dim=-1)
        out: Tensor = (weights @ v).transpose(1, 2).flatten(2)
        return out

    def pooled(pooler: Any, frames: Tensor) -> Tensor:
        attn, keys = pooler.attn, pooler.ln_k(frames)
        query = pooler.ln_q(pooler.query).expand(len(frames), -1, -1)
        three = attn.in_proj_weight
        weights = (attn.q_proj_weight, attn.k_proj_weight, attn.v_proj_weight) if three is None else three.chunk(3)
        q, k, v = map(F.linear, (query, keys, keys), weights, attn.in_proj_bias.chunk(3))
        out: Tensor = attn.out_proj(attention(q, k, v, attn.num_heads))
        return out

    x = x - x.mean(dim=-1, keepdim=True)  # not upstream's: without it the first norm rounds more than the tolerance
    for layer in trunk.feature_extractor.conv_layers:
        x = layer(x)
    x = trunk.post_extract_proj(trunk.layer_norm(x.mT))
    conv = trunk.conv_pos.pos_conv[0]
    weight = length * direction / direction.norm(dim=(0, 1), keepdim=True)
    around = F.conv1d(x.mT, weight, conv.bias, padding=conv.padding, groups=conv.groups)[..., : x.shape[1]]
    x = trunk.encoder.layer_norm(x + F.gelu(around).mT)
    for layer in trunk.encoder.layers:
        part = layer.self_attn
        attended = attention(part.q_proj(x), part.k_proj(x), part.v_proj(x), part.heads)
        x = layer.self_attn_layer_norm(x + part.out_proj(attended))
        x = layer.final_layer_norm(x + layer.fc2(F.gelu(layer.fc1(x))))
    contrast = net.ln_contrast(pooled(net.attn_pool_contrast, x))
    beats = contrast @ net.proj_contrast
    caption = net.ln_caption(pooled(net.attn_pool_caption, x))
    return dict(zip(OUTPUTS, (x, beats, caption, beats.mean(dim=1), contrast.mean(dim=1))))


def encoder_rows(batch: int, config: MelpConfig | None = None) -> tuple[tuple[Tensor, ...], Rows]:
    """A batch of recordings, and what is timed over it.

    Raises:
        RuntimeError: The encoder and its restatement do not give the same.
    """
    torch.manual_seed(0)
    model = MelpModel(config or MelpConfig()).eval()
    cohort = SyntheticCohort(batch, records_per_patient=1, seed=0, fs=model.config.sampling_rate)
    extractor = MelpFeatureExtractor.from_config(model.config)
    inputs = (extractor([cohort[record] for record in cohort.records])["ecg_values"],)
    norm = weight_norm(model)
    return inputs, _rows.encoder_rows(model, lambda x: plain_encoder(model, norm, x), inputs, atol=TOLERANCE)


def time_encoder(batch: int, repeats: int, config: MelpConfig | None = None) -> None:
    """Print a table of the encoder's times; of the published size unless a configuration says otherwise."""
    inputs, rows = encoder_rows(batch, config)
    report(f"encoder: batch {batch}, CPU time of one thread", [inputs], rows, repeats, batch)


def main(settings: Encoder) -> None:
    """Print the table."""
    torch.set_num_threads(1)
    time_encoder(settings.batch, settings.repeats)
