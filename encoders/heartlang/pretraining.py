"""HeartLang's pretraining on transformers' Trainer: VQ-HBR, then masked ECG sentences; and what both are measured by.

Jin et al., "Reading Your Heart", ICLR 2025, arXiv 2502.10707.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from transformers.utils import ModelOutput

from data.ecg import LEADS
from encoders.base import Settings
from encoders.heartlang.configuration import HeartLangConfig
from encoders.heartlang.feature_extraction import QrsTokenizer
from encoders.heartlang.modeling import HeartLangModel
from encoders.heartlang.sentences import Sentences
from encoders.heartlang.tasks import HeartLangForMaskedSentence, masked_words
from encoders.heartlang.vq import HeartLangVQ, codebook_usage
from encoders.training import PretrainingTrainer, Ratios, columns, generator_for

Batch = dict[str, Tensor]


@dataclass(frozen=True)
class MaskedSentences(Dataset[Batch]):
    """Sentences with words to hide, `mask` bool `[N]`: drawn from the seed and the number that is asked for.

    Number `i` is sentence `i % len(sentences)`, so that `i + k * len(sentences)` is the same one with another mask.
    """

    sentences: Sentences
    share: float = 0.5  # share of the words that is hidden
    padding: bool = False  # whether padding is hidden and guessed like words, as upstream
    seed: int = 0  # decides the masks

    def __len__(self) -> int:
        return len(self.sentences)

    @property
    def records(self) -> list[str]:
        """Recordings of the sentences."""
        return self.sentences.records

    def __getitem__(self, number: int) -> Batch:
        item = self.sentences[number % len(self.sentences)]
        generator = generator_for(self.seed, number)
        return item | {"mask": masked_words(item["in_chan"][None], self.share, self.padding, generator)[0]}


class HeartLangTrainer(PretrainingTrainer):
    """The Trainer for either stage.

    In that of masked sentences, `vqhbr` is the frozen VQ-HBR, on the device, whose codes are to be guessed, and
    `target_positions` says whether it is given leads and times.
    """

    loss_is_scaled_for_ga = False

    def __init__(
        self,
        measure: Callable[[nn.Module], dict[str, float]],
        vqhbr: HeartLangVQ | None = None,
        target_positions: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(measure, anew=isinstance(kwargs["train_dataset"], MaskedSentences), **kwargs)
        self.target_positions, self.vqhbr = target_positions, vqhbr

    def compute_loss(
        self, model: nn.Module, inputs: Batch, return_outputs: bool = False, num_items_in_batch: object = None
    ) -> Tensor | tuple[Tensor, ModelOutput]:
        """The mean over the words that count of all processes' batches, in place of the mean of their means."""
        if self.vqhbr is None:
            outputs = model(**inputs)
            counted = torch.ones_like(inputs["in_chan"]) if self.model.config.count_padding else inputs["in_chan"] > 0
        else:
            outputs = model(**inputs, labels=target_codes(self.vqhbr, inputs, self.target_positions))
            counted = inputs["mask"]
        loss, processes = outputs.loss, self.accelerator.num_processes
        if processes > 1:
            count = counted.sum().to(loss.dtype)
            loss = loss * count * processes / self.accelerator.reduce(count, "sum").clamp(min=1)
        return (loss, outputs) if return_outputs else loss


@torch.no_grad()
def target_codes(vqhbr: HeartLangVQ, batch: Batch, positions: bool) -> Tensor:
    """The codes that masked words stand for, int64 `[B, N]`, from a VQ-HBR in eval mode.

    With `positions` it gets leads and times, as when it was trained. Upstream leaves them out here.
    """
    where = (batch["in_chan"], batch["in_time"]) if positions else ()
    return vqhbr.encode(batch["words"], *where)


def _batches(items: Dataset[Batch], model: nn.Module, batch_size: int) -> Iterator[Batch]:
    device = next(model.parameters()).device
    for batch in DataLoader(items, batch_size):
        yield {name: value.to(device) for name, value in batch.items()}


class MeanWords(NamedTuple):
    """Mean word of each lead `[leads + 1, samples]`, row 0 of padding; mean of all samples."""

    of_lead: Tensor
    sample: float


def mean_words(sentences: Sentences) -> MeanWords:
    """The usual words, for comparison."""
    leads = len(LEADS)
    sums = torch.zeros(leads + 1, sentences.shape[1], dtype=torch.float64)
    counts = torch.zeros(leads + 1, dtype=torch.float64)
    for sentence in sentences:
        sums.index_add_(0, sentence["in_chan"].long(), sentence["words"].double())
        counts += torch.bincount(sentence["in_chan"], minlength=leads + 1)
    sums[0] = 0
    sample = float(sums.sum() / (counts[1:].sum() * sentences.shape[1]))
    return MeanWords((sums / counts.clamp(min=1)[:, None]).float(), sample)


@dataclass(frozen=True)
class Reconstruction:
    """How well a VQ-HBR writes held-out words in codes. Padding does not count."""

    train: Sentences  # sentences trained on, for the mean words
    held_out: Sentences  # sentences to measure on
    batch_size: int  # sentences at once

    @cached_property
    def usual(self) -> MeanWords:
        """Mean words of the sentences trained on."""
        return mean_words(self.train)

    @torch.no_grad()
    def __call__(self, vqhbr: HeartLangVQ) -> Ratios:
        """Measure a VQ-HBR in eval mode.

        Returns:
            `reconstruction_error` (mean square per sample) beside `mean_word_error` (each word taken for the mean word
            of its lead) and `zero_error`; `explained_variance`, the share of the samples' variance that the
            reconstruction holds; `over_mean_word`, by what share its error is less than the mean word's; and how the
            codes are used.
        """
        errors, codes = [], []
        for batch in _batches(self.held_out, vqhbr, self.batch_size):
            words, in_chan = batch["words"], batch["in_chan"]
            out, valid = vqhbr(**batch), in_chan > 0
            codes.append(out.codes[valid].cpu())
            guesses = {"ours": out.reconstruction, "zero": 0.0, "variance": self.usual.sample}
            guesses["mean word"] = self.usual.of_lead.to(words.device)[in_chan.long()]
            errors.append(
                {name: ((words - guess).double().square().sum(-1) * valid).sum(-1) for name, guess in guesses.items()}
                | {"samples": valid.sum(-1) * words.shape[-1]}
            )
        of = columns(errors)
        measured = {
            "reconstruction_error": (of["ours"], of["samples"]),
            "mean_word_error": (of["mean word"], of["samples"]),
            "zero_error": (of["zero"], of["samples"]),
            "explained_variance": (of["variance"] - of["ours"], of["variance"]),
            "over_mean_word": (of["mean word"] - of["ours"], of["mean word"]),
        }
        return Ratios.of(measured, **_usage(codes, vqhbr))


@dataclass(frozen=True)
class Guesses:
    """How often codes of hidden words are guessed. Padding does not count, hidden or not."""

    train: Sentences  # sentences trained on, for the most frequent codes
    held_out: MaskedSentences  # sentences to measure on
    batch_size: int  # sentences at once
    vqhbr: HeartLangVQ  # says which codes are right, given `positions` or not (`target_codes`)
    positions: bool

    @cached_property
    def counts(self) -> Tensor:
        """How often each code stands for a word of each lead in `train`, `[leads + 1, codes]`; 0 for padding's row."""
        size = self.vqhbr.config.codebook_size
        counts = torch.zeros((len(LEADS) + 1) * size, dtype=torch.int64)
        for batch in _batches(self.train, self.vqhbr, self.batch_size):
            codes, in_chan = target_codes(self.vqhbr, batch, self.positions), batch["in_chan"].long()
            counts += torch.bincount((in_chan * size + codes)[in_chan > 0].cpu(), minlength=len(counts))
        return counts.view(-1, size)

    @torch.no_grad()
    def __call__(self, model: HeartLangForMaskedSentence) -> Ratios:
        """Measure a model in eval mode.

        Returns:
            `masked_accuracy` and `masked_cross_entropy` (nats per word); the accuracy of always saying the
            `most_frequent_code`, or that of the word's lead (`most_frequent_code_of_lead`), or the code of the nearest
            word of its lead that is to be seen (`nearest_word`: beats of a recording are alike); the model's advantage
            over each of the three (`over_...`); and how the codes to be guessed are used.
        """
        names = ("masked_accuracy", "most_frequent_code", "most_frequent_code_of_lead", "nearest_word")
        rows, targets = [], []
        usual, usual_of_lead = self.counts.sum(0).argmax(), self.counts.argmax(1)
        for batch in _batches(self.held_out, model, self.batch_size):
            codes = target_codes(self.vqhbr, batch, self.positions)
            in_chan, mask = batch["in_chan"].long(), batch["mask"]
            logits = model(**batch).logits.float()
            of_lead = usual_of_lead.to(codes.device)[in_chan]
            guessed, nats = torch.zeros_like(codes), logits.new_zeros(codes.shape)
            guessed[mask] = logits.argmax(-1)
            nats[mask] = F.cross_entropy(logits, codes[mask], reduction="none")
            counted = mask & (in_chan > 0)
            targets.append(codes[counted].cpu())
            nearest = _nearest_seen(codes, in_chan, mask, of_lead)
            guesses = zip(names, (guessed, usual.to(codes.device), of_lead, nearest), strict=True)
            row = {name: ((guess == codes) & counted).sum(1) for name, guess in guesses}
            rows.append(row | {"masked_cross_entropy": (nats * counted).sum(1), "words": counted.sum(1)})
        above = columns(rows)
        words = above.pop("words")
        above |= {f"over_{name}": above["masked_accuracy"] - above[name] for name in names[1:]}
        return Ratios(above, dict.fromkeys(above, words), _usage(targets, self.vqhbr))


def _usage(codes: list[Tensor], vqhbr: HeartLangVQ) -> dict[str, float]:
    """How the codes of words are used, by the names of what is reported."""
    usage = codebook_usage(torch.cat(codes), vqhbr.config.codebook_size)
    return {"codes_used": usage.used, "codes": usage.size, "perplexity": usage.perplexity}


def _nearest_seen(codes: Tensor, in_chan: Tensor, mask: Tensor, otherwise: Tensor) -> Tensor:
    """The code of the nearest word of the same lead that is not hidden, `[B, N]`; `otherwise` where there is none."""
    place = torch.arange(codes.shape[1], device=codes.device)
    far = len(place)
    distance = (place[:, None] - place).abs().expand(len(codes), -1, -1)
    unseen = mask[:, None] | (in_chan[:, :, None] != in_chan[:, None])
    nearest = distance.masked_fill(unseen, far).min(dim=2)
    return torch.where(nearest.values < far, codes.gather(1, nearest.indices), otherwise)


# What a masked model has in common with the VQ-HBR whose codes it guesses.
_SHAPE = ("sampling_rate", "seconds", "num_leads", "max_words", "word_length")
SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "head_dim": 16, "intermediate_size": 64}
SMALL_VQ = SMALL | {"decoder_layers": 1, "codebook_size": 64, "code_dim": 16}  # for a run that shows that it runs


def new_masked_model(
    vqhbr: HeartLangVQ, tokenizer: QrsTokenizer, settings: Settings, extra: Settings
) -> tuple[HeartLangForMaskedSentence, QrsTokenizer]:
    """An untrained model that guesses a VQ-HBR's codes, and its tokenizer, which cuts the same words.

    Settings are fields of `HeartLangConfig`, and `extra` those of the tokenizer.

    Raises:
        ValueError: These contradict the VQ-HBR's.
    """
    sizes = {name: vars(vqhbr.config)[name] for name in _SHAPE} | {"vocab_size": vqhbr.config.codebook_size}
    cutting = tokenizer.own_values()
    wanted = settings | (QrsTokenizer(**extra).own_values() if extra else {})
    for name, value in (sizes | cutting).items():
        if name in wanted and wanted[name] != value:
            raise ValueError(
                f"{name} is {wanted[name]!r}, but the VQ-HBR whose codes are guessed has {value!r}: "
                "leave it out, or pretrain a VQ-HBR with it"
            )
    config = HeartLangConfig(**settings | sizes)
    return HeartLangForMaskedSentence(config), QrsTokenizer.from_config(config, **cutting)


def encoder_of(model: HeartLangForMaskedSentence) -> HeartLangModel:
    """The encoder that was pretrained, with the same weights."""
    encoder = HeartLangModel(model.config)
    encoder.load_state_dict({name: value for name, value in model.state_dict().items() if name.startswith("backbone.")})
    return encoder.eval()
