"""A plain convolutional classifier, trained on labels alone: how good an answer can be without any language.

The network of `encoders/cnn`, the mean of its tokens, one linear layer; recordings at 100 Hz, each lead less its mean
and over its standard deviation. A minute on one CPU core for a thousand recordings.
"""

from collections.abc import Sequence
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from tqdm.auto import tqdm

from data.ecg import EcgSource
from encoders.cnn import CnnConfig, CnnEncoder, varied
from encoders.patch import PatchFeatureExtractor

EPOCHS, BATCH, RATE = 20, 64, 2e-3
CHUNK = 256  # recordings read, or scored, at once


class CnnClassifier:
    """Scores of classes that do not exclude each other; `seed` is that of weights, batches and augmentation."""

    def __init__(self, classes: int, seed: int = 0) -> None:
        self.seed = seed
        config = CnnConfig()
        self.extractor = PatchFeatureExtractor.from_config(config, normalize="zscore")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.encoder = CnnEncoder(config)
            self.head = nn.Sequential(nn.Dropout(0.3), nn.Linear(config.output_dim, classes))

    def fit(self, source: EcgSource, records: Sequence[str], labels: NDArray[np.bool_]) -> Self:
        """Learn from recordings and their labels `[records, classes]`; both answers of a class weigh the same.

        Raises:
            ValueError: A class has no recording with it, or none without.
        """
        counts = labels.sum(axis=0)
        if (lacking := np.flatnonzero((counts == 0) | (counts == len(labels)))).size:
            raise ValueError(f"class {lacking[0]}: {counts[lacking[0]]} of {len(labels)} recordings have it")
        weights = torch.tensor((len(labels) - counts) / counts, dtype=torch.float32)
        bce = nn.BCEWithLogitsLoss(pos_weight=weights)
        values, held = self._values(source, records), torch.tensor(labels, dtype=torch.float32)
        parameters = [*self.encoder.parameters(), *self.head.parameters()]
        optimizer = torch.optim.AdamW(parameters, lr=RATE, weight_decay=0.01)
        steps = EPOCHS * -(-len(records) // BATCH)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            for module in (self.encoder, self.head):
                module.train()
            for _ in tqdm(range(EPOCHS), desc="A classifier for reference", unit="epoch"):
                for batch in torch.randperm(len(records)).split(BATCH):
                    loss = bce(self._logits(varied(values[batch])), held[batch])
                    optimizer.zero_grad()
                    loss.backward()
                    optimizer.step()
                    schedule.step()
        return self

    @torch.no_grad()
    def scores(self, source: EcgSource, records: Sequence[str]) -> NDArray[np.float64]:
        """Logits `[records, classes]`; above 0 is yes."""
        for module in (self.encoder, self.head):
            module.eval()
        logits = [self._logits(chunk) for chunk in self._values(source, records).split(CHUNK)]
        return torch.cat(logits).double().numpy()

    def _logits(self, values: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.head(self.encoder(values).last_hidden_state.mean(dim=1))
        return out

    def _values(self, source: EcgSource, records: Sequence[str]) -> torch.Tensor:
        chunks = [records[i : i + CHUNK] for i in range(0, len(records), CHUNK)]
        return torch.cat([self.extractor([source[r] for r in chunk])["ecg_values"] for chunk in chunks])
