"""The tiny encoders: they learn to predict from an ECG which words and word pairs its report holds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn
from tqdm.auto import tqdm

from data.conversations.rows import QuestionSet
from elm.training.tiny_llama import report_of
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
    held = []
    for text in reports:
        grams: set[str] = set()
        for sentence in text.lower().replace(",", " ").split("."):
            words = sentence.split()
            grams.update(words, (" ".join(pair) for pair in zip(words, words[1:], strict=False)))
        held.append(grams)
    counts = Counter(gram for grams in held for gram in grams)
    words = sorted(g for g, n in counts.items() if 0.01 * len(reports) < n < 0.99 * len(reports))
    return torch.tensor([[word in grams for word in words] for grams in held], dtype=torch.float32), words


Inputs = dict[str, torch.Tensor]  # of an encoder, as its extractor makes them


class _MelpReader(nn.Module):
    """A tiny MELP that says which words a report holds.

    Each caption token answers for its own share of the words: read off their mean, all would become copies of one
    vector. The rhythm vector answers for all words, so that the contrast pooler learns too.
    """

    steps, batch = 441, 64
    config = staticmethod(melp_config)

    def __init__(self, words: int) -> None:
        super().__init__()
        self.encoder = MelpModel(config := melp_config())
        self.extractor = MelpFeatureExtractor.from_config(config)
        self.owner = torch.arange(words) * config.n_queries_caption // words
        self.heads = nn.ModuleList([nn.Linear(config.caption_dim, words), nn.Linear(config.shared_dim, words)])

    def loss(self, inputs: Inputs, held: torch.Tensor) -> torch.Tensor:
        """Of recordings and the words their reports hold, `[B, words]`."""
        out = self.encoder(**inputs)
        of_token = (out.tokens[:, self.owner] * self.heads[0].weight).sum(dim=-1) + self.heads[0].bias  # [B, words]
        bce = nn.functional.binary_cross_entropy_with_logits
        return bce(of_token, held) + 0.3 * bce(self.heads[1](out.rhythm), held)


class _HeartLangReader(nn.Module):
    """A tiny HeartLang that says which words a report holds.

    As in MELP's, each lead's token answers for its own share of the words, and CLS for all. Tokens of beats answer for
    none: there is no beat that every recording has.
    """

    steps, batch = 700, 32
    config = staticmethod(heartlang_config)

    def __init__(self, words: int) -> None:
        super().__init__()
        self.encoder = HeartLangModel(config := heartlang_config())
        self.extractor = QrsTokenizer.from_config(config)
        self.owner = torch.arange(words) * config.num_leads // words
        self.heads = nn.ModuleList([nn.Linear(config.hidden_size, words) for _ in range(2)])

    def loss(self, inputs: Inputs, held: torch.Tensor) -> torch.Tensor:
        """Of recordings and the words their reports hold, `[B, words]`."""
        out = self.encoder(**inputs)
        of_lead = (out.last_hidden_state[:, self.owner] * self.heads[0].weight).sum(dim=-1) + self.heads[0].bias
        bce = nn.functional.binary_cross_entropy_with_logits
        return bce(of_lead, held) + 0.3 * bce(self.heads[1](out.probe), held)


class _CnnReader(nn.Module):
    """A convolutional network that says which words a report holds, from the mean of its tokens."""

    steps, batch = 900, 64
    config = CnnConfig

    def __init__(self, words: int) -> None:
        super().__init__()
        self.encoder = CnnEncoder(config := CnnConfig())
        self.extractor = PatchFeatureExtractor.from_config(config, normalize="zscore")
        self.head = nn.Sequential(nn.Dropout(0.3), nn.Linear(config.output_dim, words))

    def loss(self, inputs: Inputs, held: torch.Tensor) -> torch.Tensor:
        """Of recordings and the words their reports hold, `[B, words]`."""
        tokens = self.encoder(varied(inputs["ecg_values"])).last_hidden_state
        return nn.functional.binary_cross_entropy_with_logits(self.head(tokens.mean(dim=1)), held)


# Every tiny encoder by the name that a config gives it.
ENCODERS: dict[str, type[_MelpReader] | type[_HeartLangReader] | type[_CnnReader]] = {
    "tiny": _MelpReader,
    "tiny-heartlang": _HeartLangReader,
    "tiny-cnn": _CnnReader,
}


def train(
    questions: QuestionSet,
    kind: type[_MelpReader] | type[_HeartLangReader] | type[_CnnReader],
    seed: int,
    steps: int,
    folder: Path,
) -> None:
    """Train an encoder of this kind on the reports of the training split, and write it into a folder."""
    records = [row["ecgs"][0] for row in questions.reports]
    targets, words = word_targets([report_of(row) for row in questions.reports])
    if not words:
        raise ValueError(f"{questions.name}: its reports share no words, so there is nothing for an encoder to learn")
    torch.manual_seed(seed)
    reader = kind(len(words)).train()
    reader.encoder.config.pretrained_on = (
        f"{questions.name}: ECGs and reports of the training split (report-word prediction)"
    )
    chunks = [records[i : i + 256] for i in range(0, len(records), 256)]
    parts = [
        reader.extractor([questions.source[r] for r in chunk], return_tensors="pt")
        for chunk in tqdm(chunks, desc="Reading ECGs", unit="batch", disable=None, leave=False)
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
