"""VQ-HBR: heart-beat words to codes of a vocabulary that is learned with them, and back.

Jin et al., ICLR 2025, after PKUDigitalHealth/HeartLang `modeling_vqhbr.py` and `utils/norm_ema_quantizer.py` (which
follow BEiT v2, arXiv 2208.06366). A codebook of unit vectors is moved by exponential averages, not by gradients.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.distributed as dist
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from transformers import initialization as init
from transformers.utils import can_return_tuple

from encoders.base import EcgEncoderOutput, output_mask
from encoders.heartlang.configuration import HeartLangVQConfig
from encoders.heartlang.modeling import HeartLangBackbone, HeartLangPreTrained

_ROWS = 4096  # words compared with the codebook at once: 134 MB for the published one
_KMEANS_ITERATIONS = 10


@dataclass
class HeartLangVQOutput(EcgEncoderOutput):
    """Unit vectors of words' codes, `[B, 256, 128]`, and as `probe` their mean without padding; sizes as published."""

    codes: torch.LongTensor | None = None  # `[B, 256]`; padding has one too
    reconstruction: torch.FloatTensor | None = None  # the words made of the codes, `[B, 256, 96]`
    loss: torch.FloatTensor | None = None  # reconstruction and commitment together
    reconstruction_loss: torch.FloatTensor | None = None  # mean squared error of the samples of words
    commitment_loss: torch.FloatTensor | None = None  # mean square of the encoder's unit vectors less their codes


class HeartLangQuantizer(nn.Module):
    """The codebook: `codebook_size` vectors of unit length, `[K, d]`."""

    def __init__(self, config: HeartLangVQConfig):
        super().__init__()
        self.decay, self.seed = config.ema_decay, 0
        size = config.codebook_size
        self.register_buffer("codebook", torch.empty(size, config.code_dim))
        # Exponential average of how many words each code stands for in a training step.
        self.register_buffer("cluster_size", torch.zeros(size))
        self.register_buffer("started", torch.zeros(1, dtype=torch.bool))  # at the means of a first batch

    def forward(self, vectors: Tensor, counted: Tensor) -> tuple[Tensor, Tensor]:
        """Codes `[...]` of unit vectors `[..., d]` behind the codes' vectors `[..., d]`, which have no gradient.

        In training mode the codebook moves towards those of the vectors that count, bool `[...]`.
        """
        flat, counts = vectors.detach().float().flatten(0, -2), counted.flatten()
        if self.training and not self.started:
            self._start(flat[counts])
        codes = nearest(flat, self.codebook)
        chosen = self.codebook[codes].to(vectors.dtype)
        if self.training:
            self._move(flat[counts], codes[counts])
        return chosen.view_as(vectors), codes.view(vectors.shape[:-1])

    @torch.no_grad()
    def _move(self, vectors: Tensor, codes: Tensor) -> None:
        sums, bins = _totals(vectors, codes, len(self.codebook))
        self.cluster_size.lerp_(bins.to(self.cluster_size.dtype), 1 - self.decay)
        old = self.codebook.float()
        means = torch.where((bins > 0)[:, None], F.normalize(sums / bins.clamp(min=1)[:, None], dim=-1), old)
        self.codebook.copy_(F.normalize(self.decay * old + (1 - self.decay) * means, dim=-1))

    @torch.no_grad()
    def _start(self, vectors: Tensor) -> None:
        """Spherical k-means of a first batch. The same on every process, and whatever their number."""
        size = len(self.codebook)
        means = self._drawn(vectors)
        for _ in range(_KMEANS_ITERATIONS):
            sums, bins = _totals(vectors, nearest(vectors, means), size)
            means = torch.where((bins > 0)[:, None], F.normalize(sums, dim=-1), means)
        _, bins = _totals(vectors, nearest(vectors, means), size)
        self.codebook.copy_(means)
        self.cluster_size.copy_(bins)
        self.started.fill_(True)

    def _drawn(self, vectors: Tensor) -> Tensor:
        """Draws as many of all processes' vectors as there are codes, by the seed: `[K, d]`."""
        count = torch.tensor([len(vectors)], device=vectors.device)
        counts, rank = [count], 0
        if _distributed():
            rank, counts = dist.get_rank(), [torch.empty_like(count) for _ in range(dist.get_world_size())]
            dist.all_gather(counts, count)
        lengths = [int(number) for number in counts]
        total, first, size = sum(lengths), sum(lengths[:rank]), len(self.codebook)
        if not total:
            raise ValueError("the first batch has no word that could start the codebook: every slot is padding")
        generator = torch.Generator().manual_seed(self.seed)
        drawn = torch.randperm(total, generator=generator)[:size]
        if total < size:
            drawn = torch.cat([drawn, torch.randint(total, (size - total,), generator=generator)])
        drawn = drawn.to(vectors.device) - first
        local = (drawn >= 0) & (drawn < len(vectors))
        means = torch.zeros(size, vectors.shape[1], device=vectors.device)
        means[local] = vectors[drawn[local]]
        return _summed(means)


def nearest(vectors: Tensor, codebook: Tensor) -> Tensor:
    """The nearest code of each unit vector `[N, d]`: int64 `[N]`. In float32, whatever runs around it."""
    codebook = codebook.float()
    with torch.autocast(vectors.device.type, enabled=False):
        parts = [(rows.float() @ codebook.mT).argmax(dim=-1) for rows in vectors.split(_ROWS)]
    return torch.cat(parts)


def _totals(vectors: Tensor, codes: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Sums of all processes' vectors by code `[K, d]`, and their numbers `[K]`."""
    sums = torch.zeros(size, vectors.shape[-1] + 1, device=vectors.device)
    sums.index_add_(0, codes, F.pad(vectors, (0, 1), value=1.0))
    sums = _summed(sums)
    return sums[:, :-1], sums[:, -1]


def _summed(tensor: Tensor) -> Tensor:
    if _distributed():
        dist.all_reduce(tensor)
    return tensor


def _distributed() -> bool:
    return dist.is_available() and dist.is_initialized()


class HeartLangVQ(HeartLangPreTrained):
    """Words to codes and back: an encoder whose tokens are the codes of the words."""

    config_class = HeartLangVQConfig

    def __init__(self, config: HeartLangVQConfig):
        super().__init__(config)
        d = config.hidden_size
        self.encoder = HeartLangBackbone(config)
        self.decoder = HeartLangBackbone(config, channels=config.code_dim, layers=config.decoder_layers)
        for backbone in (self.encoder, self.decoder):
            backbone.mask_token.requires_grad_(False)  # no word is masked
        self.quantize = HeartLangQuantizer(config)
        self.encode_task_layer = nn.Sequential(nn.Linear(d, d), nn.Tanh(), nn.Linear(d, config.code_dim))
        self.decode_task_layer = nn.Sequential(nn.Linear(d, d), nn.Tanh(), nn.Linear(d, config.word_length))
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, HeartLangQuantizer):
            # Directions alike; drawn into a tensor first, for `init` leaves alone what a checkpoint has filled.
            init.copy_(module.codebook, F.normalize(torch.randn(module.codebook.shape), dim=-1))
            init.zeros_(module.cluster_size)
            init.zeros_(module.started)
        else:
            super()._init_weights(module)

    def get_input_embeddings(self) -> nn.Module:
        """The embedding of words."""
        return self.encoder.token_embed

    def vectors(self, words: Tensor, in_chan: Tensor | None = None, in_time: Tensor | None = None) -> Tensor:
        """Vectors of unit length to compare with the codes, `[B, 256, 128]`. Arguments as `forward`'s."""
        self._check(words, in_chan, in_time)
        features = self.encoder(words, in_chan, in_time)[:, 1:]
        # As upstream: a word of zeros is taken for padding, a lead that is off too, and all of these get one code.
        blank = (words == 0).all(dim=-1, keepdim=True)
        vectors = F.normalize(self.encode_task_layer(features.masked_fill(blank, 0)), dim=-1)
        # A new model has a blank word's vector at the origin, where the gradient of a direction is beyond all bounds.
        return vectors if self.config.count_padding else torch.where(blank, vectors.detach(), vectors)

    @torch.no_grad()
    def encode(self, words: Tensor, in_chan: Tensor | None = None, in_time: Tensor | None = None) -> Tensor:
        """The code of each word, int64 `[B, 256]`; arguments as `forward`'s. Published codes need leads and times."""
        vectors = self.vectors(words, in_chan, in_time)
        return nearest(vectors.flatten(0, -2), self.quantize.codebook).view(words.shape[:2])

    def decode(self, codes: Tensor, in_chan: Tensor | None = None, in_time: Tensor | None = None) -> Tensor:
        """The words of codes `[B, 256]`: `[B, 256, 96]`."""
        return self._words(self.quantize.codebook[codes.long()], in_chan, in_time)

    def _words(self, vectors: Tensor, in_chan: Tensor | None, in_time: Tensor | None) -> Tensor:
        return self.decode_task_layer(self.decoder(vectors, in_chan, in_time)[:, 1:])

    @can_return_tuple
    def forward(
        self,
        words: Tensor,
        in_chan: Tensor | None = None,
        in_time: Tensor | None = None,
        token_mask: Tensor | None = None,
    ) -> HeartLangVQOutput:
        """Encode sentences, and decode them again; arguments and errors as `HeartLangModel`'s.

        In training mode the codebook moves; in eval mode nothing does.
        """
        vectors = self.vectors(words, in_chan, in_time)
        valid = torch.ones(words.shape[:2], dtype=torch.bool, device=words.device) if in_chan is None else in_chan > 0
        counted = torch.ones_like(valid) if self.config.count_padding else valid
        chosen, codes = self.quantize(vectors, counted)
        # The gradient of the chosen code goes to the vector that chose it.
        restored = self._words(vectors + (chosen - vectors).detach(), in_chan, in_time)
        reconstruction_loss = _mean_square(restored - words, counted)
        commitment_loss = _mean_square(chosen - vectors, counted)
        mask = valid if token_mask is None else output_mask(chosen, token_mask)
        weights = mask.to(chosen.dtype)[..., None]
        return HeartLangVQOutput(
            last_hidden_state=chosen,
            mask=mask,
            probe=(chosen * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1),
            codes=codes,
            reconstruction=restored,
            loss=reconstruction_loss + self.config.commitment * commitment_loss,
            reconstruction_loss=reconstruction_loss,
            commitment_loss=commitment_loss,
        )


def _mean_square(difference: Tensor, counted: Tensor) -> Tensor:
    """The mean of the squares of `[B, N, d]` over the rows that count."""
    rows = difference.float().square().mean(dim=-1) * counted
    return rows.sum() / counted.sum().clamp(min=1)


@dataclass(frozen=True)
class CodebookUsage:
    """How many of the codes stand for something."""

    used: int  # codes that occur
    size: int  # codes that there are
    perplexity: float  # as many codes, used alike, would be as uncertain: e to the entropy of how often each occurs


def codebook_usage(codes: Iterator[Tensor] | Tensor, size: int) -> CodebookUsage:
    """How the codes of many words, padding left out, spread over a codebook of `size`.

    Raises:
        ValueError: There are no codes.
    """
    counts = torch.zeros(size, dtype=torch.float64)
    for part in [codes] if isinstance(codes, Tensor) else codes:
        counts += torch.bincount(part.flatten().cpu(), minlength=size)
    if not counts.sum():
        raise ValueError("there are no codes whose use could be counted")
    shares = counts[counts > 0] / counts.sum()
    return CodebookUsage(len(shares), size, float((-shares * shares.log()).sum().exp()))
