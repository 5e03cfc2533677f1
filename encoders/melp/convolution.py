"""A wide grouped convolution by its spectrum: what tells MELP its positions, and a tenth of its time on a CPU."""

import math

import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn


class WideConv1d(nn.Conv1d):
    """A convolution with as many outputs as inputs, `[B, D, T] -> [B, D, T]`, and a kernel of `taps` frames.

    In float32 on a CPU by `spectral_conv`, which from two recordings on is the faster way (at MELP's sizes 4 times for
    eight); elsewhere as torch does it.
    """

    def __init__(self, channels: int, taps: int, groups: int):
        super().__init__(channels, channels, taps, padding=taps // 2, groups=groups)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`[B, D, T] -> [B, D, T]`."""
        if x.device.type == "cpu" and x.dtype == torch.float32:
            return spectral_conv(x.mT, self.weight, self.groups).mT + self.bias[:, None]
        return super().forward(x)[..., : x.shape[-1]]  # an even kernel gives one too many


def spectral_conv(x: torch.Tensor, weight: torch.Tensor, groups: int) -> torch.Tensor:
    """The first T outputs of `F.conv1d(x.mT, weight, padding=K // 2, groups=groups).mT`, as exactly.

    From `[B, T, D]` and a weight `[D, D / groups, K]` it makes `[B, T, D]`.

    Overlap-save: K outputs at a time are made from 2 K inputs, whose spectrum is multiplied by that of the kernel. The
    Fourier transforms are matrix products: these leave the frequencies in front, where the products over channels need
    them, while an FFT would need copies that cost more than it saves. At MELP's sizes (K = 128, 312 frames, 48 channels
    a group) the multiplications are as many as the plain way's for one recording and a third for eight, as the kernel's
    spectrum is made anew at each call.
    """
    (batch, frames, width), taps = x.shape, weight.shape[-1]
    blocks, channels, frequencies = math.ceil(frames / taps), width // groups, taps + 1
    turns = torch.outer(torch.arange(frequencies), torch.arange(2 * taps)) % (2 * taps)
    angle = turns.double() * (math.pi / taps)
    wave = torch.stack([angle.cos(), angle.sin()]).to(x)  # [2, F, 2 K]

    padded = F.pad(x, (0, 0, taps // 2, (blocks + 1) * taps - taps // 2 - frames))
    pieces = padded.unfold(1, 2 * taps, taps).mT  # [B, blocks, 2 K, D]
    of_x = wave.flatten(0, 1) @ pieces  # [B, blocks, 2 F, D]
    of_kernel = wave[..., :taps].flatten(0, 1) @ weight.flatten(0, 1).T  # [2 F, D * channels]
    # Views, for products over the channels of each frequency and group; cosines and sines of a piece are two rows.
    rows = of_x.view(2 * batch * blocks, frequencies, groups, channels).permute(1, 2, 0, 3).flatten(0, 1)
    cosines, sines = of_kernel.view(2, frequencies * groups, channels, channels).mT
    by_cosines, by_sines = ((rows @ part).unflatten(1, (-1, 2)) for part in (cosines, sines))
    # (cosine - i sine) of the piece times (cosine + i sine) of the kernel: what networks call convolution correlates.
    real = (by_cosines[:, :, 0] + by_sines[:, :, 1]).view(frequencies, -1)
    imaginary = (by_sines[:, :, 0] - by_cosines[:, :, 1]).view(frequencies, -1)

    share = x.new_full((frequencies, 1), 1 / taps)
    share[0] = share[-1] = 0.5 / taps  # every other one stands for its negative too
    back_real, back_imaginary = (wave[..., :taps] * share).mT
    out = (back_real @ real - back_imaginary @ imaginary).view(taps, groups, batch, blocks, channels)
    return out.permute(2, 3, 0, 1, 4).reshape(batch, blocks * taps, width)[:, :frames]
