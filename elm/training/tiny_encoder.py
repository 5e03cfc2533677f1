"""The tiny encoders: they learn to predict from an ECG which words and word pairs its report holds."""

from collections import Counter
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import ClassVar

import torch
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits as cross_entropy
from tqdm.auto import tqdm

from data.conversations.rows import QuestionSet
from elm.training.tiny_llama import report_of
from encoders.base import EcgEncoder, EcgEncoderConfig, EcgFeatureExtractor
from encoders.cnn import CnnConfig, CnnEncoder, varied
from encoders.heartlang import HeartLangConfig, HeartLangModel, QrsTokenizer
from encoders.hub import save_encoder
from encoders.melp import MelpConfig, MelpFeatureExtractor, MelpModel
from encoders.patch import PatchFeatureExtractor


def melp_config() -> MelpConfig:
    """Sizes of the tiny MELP: 10 s at 100 Hz become 62 frames of 160 ms and 16 caption tokens."""
    return MelpConfig(
        sampling_rate=100, conv_dim=[32] * 4, hidden_size=96, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=192, conv_pos_kernel=15, conv_pos_groups=4, shared_dim=64, caption_dim=96, pooler_heads=4,
        n_queries_contrast=8, n_queries_caption=16, dropout=0.0, dropout_input=0.0, attention_dropout=0.0,
    )  # fmt: skip


def heartlang_config() -> HeartLangConfig:
    """Sizes of the tiny HeartLang: 10 s at 100 Hz become ten words of each lead, and those one token per lead.

    Faster than 60 beats per minute some beats have no words, evenly; how far beats are apart is in the others' width.
    """
    return HeartLangConfig(
        output="leads", max_words=120, hidden_size=64, num_hidden_layers=2, num_attention_heads=4, head_dim=16,
        intermediate_size=128, dropout=0.0, embedding_dropout=0.0, attend_padding=False, initializer_range=0.1,
    )  # fmt: skip


def word_targets(reports: Sequence[str]) -> tuple[torch.Tensor, list[str]]:
    """Which words and pairs of neighbouring words each report holds: float `[reports, words]`, and the words.

    Those that nearly all or nearly no reports hold are left out.
    """
    held: list[set[str]] = [set() for _ in reports]
    for text, grams in zip(reports, held, strict=True):
        for sentence in text.lower().replace(",", " ").split("."):
            words = sentence.split()
            grams.update(words, map(" ".join, pairwise(words)))
    counts = Counter(gram for grams in held for gram in grams)
    words = sorted(g for g, n in counts.items() if 0.01 * len(reports) < n < 0.99 * len(reports))
    return torch.tensor([[word in grams for word in words] for grams in held], dtype=torch.float32), words


class _Reader(nn.Module):
    """A tiny encoder that says which words a report holds.

    Each token answers for its own share of the words: read off their mean, all would become copies of one vector. What
    the encoder says of the `whole` recording answers for all words.
    """

    steps: ClassVar[int]
    batch: ClassVar[int]
    config: ClassVar[Callable[[], EcgEncoderConfig]]
    parts: ClassVar[tuple[type[EcgEncoder], type[EcgFeatureExtractor]]]
    whole: ClassVar[tuple[str, str]]  # output of the encoder `[B, D]`, and D's name in its configuration

    def __init__(self, words: int) -> None:
        super().__init__()
        config, (model, extractor) = type(self).config(), self.parts
        self.encoder, self.extractor = model(config), extractor.from_config(config)
        self.owner = torch.arange(words) * config.max_tokens // words
        width = getattr(config, self.whole[1])
        self.heads = nn.ModuleList([nn.Linear(config.output_dim, words), nn.Linear(width, words)])

    def loss(self, inputs: dict[str, torch.Tensor], held: torch.Tensor) -> torch.Tensor:
        """Cross-entropy of the words that reports hold, `[B, words]`, given what the extractor made of recordings."""
        out = self.encoder(**inputs)
        of_token = (out.last_hidden_state[:, self.owner] * self.heads[0].weight).sum(dim=-1) + self.heads[0].bias
        return cross_entropy(of_token, held) + 0.3 * cross_entropy(self.heads[1](out[self.whole[0]]), held)


class _MelpReader(_Reader):
    """A tiny MELP; its rhythm vector answers for all words, so that the contrast pooler learns too."""

    steps, batch, config = 441, 64, staticmethod(melp_config)
    parts, whole = (MelpModel, MelpFeatureExtractor), ("rhythm", "shared_dim")


class _HeartLangReader(_Reader):
    """A tiny HeartLang; CLS answers for all words. No token is a beat's: there is no beat that all recordings have."""

    steps, batch, config = 700, 32, staticmethod(heartlang_config)
    parts, whole = (HeartLangModel, QrsTokenizer), ("probe", "hidden_size")


class _CnnReader(nn.Module):
    """A convolutional network, which answers from the mean of its tokens."""

    steps, batch, config = 900, 64, CnnConfig

    def __init__(self, words: int) -> None:
        super().__init__()
        self.encoder = CnnEncoder(config := CnnConfig())
        self.extractor = PatchFeatureExtractor.from_config(config, normalize="zscore")
        self.head = nn.Sequential(nn.Dropout(0.3), nn.Linear(config.output_dim, words))

    def loss(self, inputs: dict[str, torch.Tensor], held: torch.Tensor) -> torch.Tensor:
        tokens = self.encoder(varied(inputs["ecg_values"])).last_hidden_state
        return cross_entropy(self.head(tokens.mean(dim=1)), held)


Reader = type[_Reader] | type[_CnnReader]
ENCODERS: dict[str, Reader] = {"tiny": _MelpReader, "tiny-heartlang": _HeartLangReader, "tiny-cnn": _CnnReader}


def train(questions: QuestionSet, kind: Reader, seed: int, steps: int, folder: Path) -> None:
    """Train an encoder of this kind on the reports of the training split, and write it into a folder."""
    records = [row["ecgs"][0] for row in questions.reports]
    targets, words = word_targets([report_of(row) for row in questions.reports])
    if not words:
        raise ValueError(f"{questions.name}: its reports share no words, so there is nothing for an encoder to learn")
    torch.manual_seed(seed)
    reader = kind(len(words)).train()
    learned_from = f"{questions.name}: ECGs and reports of the training split (report-word prediction)"
    reader.encoder.config.pretrained_on = learned_from
    parts = [
        reader.extractor([questions.source[r] for r in records[i : i + 256]], return_tensors="pt")
        for i in tqdm(range(0, len(records), 256), desc="Reading ECGs", unit="batch", disable=None, leave=False)
    ]
    inputs = {name: torch.cat([part[name] for part in parts]) for name in reader.encoder.ecg_inputs}
    optimizer = torch.optim.AdamW(reader.parameters(), lr=2e-3, betas=(0.9, 0.98), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps + 1, pct_start=0.1)
    batches: list[torch.Tensor] = []
    with tqdm(range(steps), desc="Tiny encoder learns from reports", unit="step", disable=None) as progress:
        for step in progress:
            batches = batches or list(torch.randperm(len(records)).split(kind.batch))
            batch = batches.pop(0)
            loss = reader.loss({name: values[batch] for name, values in inputs.items()}, targets[batch])
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(reader.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            if step % 20 == 0:
                progress.set_postfix(loss=f"{loss:.3f}")
    save_encoder(reader.encoder.eval(), reader.extractor, folder)
