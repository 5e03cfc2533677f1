"""HeartLang's models with a task: guessing hidden words, and labels of recordings."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from transformers.utils import ModelOutput, can_return_tuple

from encoders.heartlang.configuration import HeartLangConfig
from encoders.heartlang.modeling import HeartLangBackbone, HeartLangPreTrained


@dataclass
class HeartLangMaskedSentenceOutput(ModelOutput):
    """What `HeartLangForMaskedSentence` gives for M masked words."""

    loss: torch.FloatTensor | None = None  # cross-entropy with the codes of the masked words
    logits: torch.FloatTensor | None = None  # `[M, codes]`, in the order of `mask.nonzero()`
    correct: torch.LongTensor | None = None  # how many of the masked words that are no padding were guessed, a number
    counted: torch.LongTensor | None = None  # how many there are, a number


class HeartLangForMaskedSentence(HeartLangPreTrained):
    """Guesses the codes of hidden words from the words around them."""

    def __init__(self, config: HeartLangConfig):
        super().__init__(config)
        self.backbone = HeartLangBackbone(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        words: Tensor,
        in_chan: Tensor | None = None,
        in_time: Tensor | None = None,
        mask: Tensor | None = None,
        labels: Tensor | None = None,
    ) -> HeartLangMaskedSentenceOutput:
        """Guess hidden words of sentences, which are as `HeartLangModel` takes them.

        Those to hide are true in `mask`, bool `[B, 256]` (see `masked_words`); `labels` are the codes of all words
        `[B, 256]`, from `HeartLangVQ.encode`.

        Raises:
            ValueError: A shape is not as there, or there is no mask.
        """
        self._check(words, in_chan, in_time)
        if mask is None or mask.shape != words.shape[:2]:
            raise ValueError(f"mask must be bool {tuple(words.shape[:2])}: which words to guess")
        hidden = self.backbone(words, in_chan, in_time, mask)[:, 1:][mask]
        logits = self.lm_head(hidden)  # [M, codes]
        if labels is None:
            return HeartLangMaskedSentenceOutput(logits=logits)
        wanted = labels[mask].long()
        right = logits.argmax(dim=-1) == wanted
        counted = (in_chan > 0)[mask] if in_chan is not None else torch.ones_like(right)
        return HeartLangMaskedSentenceOutput(
            loss=F.cross_entropy(logits.float(), wanted),
            logits=logits,
            correct=(right & counted).sum(),
            counted=counted.sum(),
        )


def masked_words(
    in_chan: Tensor, share: float = 0.5, mask_padding: bool = False, generator: torch.Generator | None = None
) -> Tensor:
    """Words to hide, drawn anew for each sentence: bool `[B, N]`, of leads `in_chan` `[B, N]` where 0 is padding.

    The share is rounded to a whole number of words in each sentence; with `mask_padding` it is of all N, as upstream.
    The generator, torch's own without one, is on the device of `in_chan`.
    """
    eligible = torch.ones_like(in_chan, dtype=torch.bool) if mask_padding else in_chan > 0
    draw = torch.rand(in_chan.shape, device=in_chan.device, generator=generator).masked_fill(~eligible, 2.0)
    hidden = (eligible.sum(dim=1, keepdim=True) * share).round()
    return draw.argsort(dim=1).argsort(dim=1) < hidden


@dataclass
class HeartLangClassifierOutput(ModelOutput):
    """Binary cross-entropy, the mean over recordings and labels, and logits `[B, labels]`."""

    loss: torch.FloatTensor | None = None
    logits: torch.FloatTensor | None = None


class HeartLangClassifier(HeartLangPreTrained):
    """Labels that do not exclude each other, from CLS; `config.num_labels` of them."""

    def __init__(self, config: HeartLangConfig):
        super().__init__(config)
        self.backbone = HeartLangBackbone(config)
        self.backbone.mask_token.requires_grad_(False)  # no word is masked
        self.mlp_head = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()

    @can_return_tuple
    def forward(
        self, words: Tensor, in_chan: Tensor | None = None, in_time: Tensor | None = None, labels: Tensor | None = None
    ) -> HeartLangClassifierOutput:
        """Classify sentences `[B, 256, 96]`; `labels` are 0 or 1, `[B, labels]`."""
        self._check(words, in_chan, in_time)
        logits = self.mlp_head(self.backbone(words, in_chan, in_time)[:, 0])
        loss = None if labels is None else F.binary_cross_entropy_with_logits(logits.float(), labels.float())
        return HeartLangClassifierOutput(loss=loss, logits=logits)
