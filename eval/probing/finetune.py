"""Full fine-tuning of an encoder for a classification task, with learning rates that fall layer by layer.

Binary cross-entropy of all classes, AdamW, cosine with warm-up, gradients clipped, the epoch with the best macro AUROC
on the validation split. Dropout of the encoder is active here, and nowhere else in `eval`.
"""

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from tqdm.auto import tqdm
from transformers import BatchFeature

from data.ecg import EcgSource
from encoders.base import EcgEncoder, EcgFeatureExtractor
from eval.probing.rates import Group, layer_groups, optimizer_for
from eval.probing.settings import CLIP, WARM_UP, Finetuning
from eval.probing.vectors import vector_of
from eval.statistics import auroc

CHUNK = 64  # recordings read, or scored, at once
LEAST_STEPS = 10  # in an epoch: of few records smaller batches are made, or one per cent would hardly move the weights


class Inputs:
    """What an extractor makes of recordings, made once for all epochs: in files, as memory may not hold it."""

    def __init__(self, extractor: EcgFeatureExtractor, source: EcgSource, records: Sequence[str], folder: Path) -> None:
        self.place = {record: i for i, record in enumerate(dict.fromkeys(records))}
        self._arrays: dict[str, np.memmap] = {}
        names = list(self.place)
        for start in tqdm(range(0, len(names), CHUNK), desc="Reading ECGs", unit="batch"):
            chunk = extractor([source[record] for record in names[start : start + CHUNK]], return_tensors="np")
            for name, values in chunk.items():
                if name not in self._arrays:
                    shape = (len(names), *values.shape[1:])
                    self._arrays[name] = np.lib.format.open_memmap(folder / f"{name}.npy", "w+", values.dtype, shape)
                self._arrays[name][start : start + CHUNK] = values

    def of(self, records: Sequence[str], encoder: EcgEncoder) -> BatchFeature:
        """The tensors of some records, where the encoder is."""
        rows = [self.place[record] for record in records]
        tensors = {name: torch.from_numpy(values[rows]) for name, values in self._arrays.items()}
        return BatchFeature(tensors).to(encoder.device, encoder.dtype)


@dataclass(frozen=True)
class Tuned:
    """Logits of the test records `[records, classes]` by the best epoch (from 1), which had this validation AUROC.

    `rates` are the learning rates of the groups of parameters, from the input to the head.
    """

    scores: NDArray[np.float64]
    epoch: int
    validation: float
    rates: dict[str, float]


def finetune(
    encoder: EcgEncoder,
    inputs: tuple[Inputs, Inputs],
    records: tuple[Sequence[str], Sequence[str], Sequence[str]],
    labels: tuple[NDArray[np.bool_], NDArray[np.bool_]],
    settings: Finetuning,
    *,
    kind: str = "paper",
    seed: int = 0,
) -> Tuned:
    """Train a copy of an encoder and a linear head, and score the test records with the best epoch.

    The same encoder, data, settings, seed and machine give the same scores.

    Args:
        encoder: Stays as it is.
        inputs: Inputs of training and validation records, and of test records.
        records: Training, validation and test records.
        labels: Labels of training and validation records, `[records, classes]`.
        settings: How it is trained.
        kind: Which vector the head reads (`eval.probing.vectors`).
        seed: Seed of the head, the batches and dropout.

    Raises:
        ValueError: No class has both labels in the validation, or the loss is not finite.
    """
    (learned_from, tested_on), (train, valid, test) = inputs, records
    judged = np.flatnonzero(labels[1].any(axis=0) & ~labels[1].all(axis=0))
    if not judged.size:
        raise ValueError("no class has records with and without it in the validation split: take more records for it")
    model, device = copy.deepcopy(encoder), encoder.device
    with torch.random.fork_rng(devices=[] if device.type == "cpu" else [device]):
        torch.manual_seed(seed)
        with torch.no_grad():
            width = vector_of(model.eval()(**learned_from.of(train[:1], model)), kind).shape[1]
        head = nn.Linear(width, labels[0].shape[1], device=device)
        nn.init.trunc_normal_(head.weight, std=0.02)
        nn.init.zeros_(head.bias)
        groups = layer_groups(model, learned_from.of(train[:2], model), kind, settings.layer_decay)
        groups.append(Group("head", 1.0, dict(head.named_parameters())))
        optimizer = optimizer_for(groups, settings.learning_rate)
        size = min(settings.batch_size, -(-len(train) // LEAST_STEPS))
        steps = settings.epochs * -(-len(train) // size)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, _warm_cosine(steps))
        network = _Network(model, head, kind)
        truth = torch.from_numpy(labels[0].astype(np.float32)).to(device)
        best, weights = (-1.0, 0), network.state_dict()
        with tqdm(total=settings.epochs, desc="Fine-tuning", unit="epoch") as progress:
            for epoch in range(1, settings.epochs + 1):
                network.train()
                for rows in torch.randperm(len(train)).split(size):
                    logits = network(learned_from.of([train[i] for i in rows.tolist()], model))
                    loss = nn.functional.binary_cross_entropy_with_logits(logits, truth[rows.to(device)])
                    if not torch.isfinite(loss):
                        raise ValueError(f"epoch {epoch}: the loss is {loss.item()}: lower learning_rate")
                    optimizer.zero_grad()
                    loss.backward()
                    nn.utils.clip_grad_norm_([p for group in optimizer.param_groups for p in group["params"]], CLIP)
                    optimizer.step()
                    schedule.step()
                scores = network.scores(learned_from, valid)
                macro = float(np.mean([auroc(scores[:, k], labels[1][:, k]) for k in judged]))
                if macro > best[0]:
                    best, weights = (macro, epoch), copy.deepcopy(network.state_dict())
                progress.set_postfix(validation=f"{macro:.3f}", best=f"{best[0]:.3f}")
                progress.update()
        network.load_state_dict(weights)
    rates = {group.name: settings.learning_rate * group.scale for group in groups}
    return Tuned(network.scores(tested_on, test), best[1], best[0], rates)


class _Network(nn.Module):
    """An encoder and a linear head on one of its vectors."""

    def __init__(self, encoder: EcgEncoder, head: nn.Linear, kind: str) -> None:
        super().__init__()
        self.encoder, self.head, self.kind = encoder, head, kind

    def forward(self, features: BatchFeature) -> torch.Tensor:
        """Logits `[records, classes]`."""
        logits: torch.Tensor = self.head(vector_of(self.encoder(**features), self.kind))
        return logits

    @torch.no_grad()
    def scores(self, inputs: Inputs, records: Sequence[str]) -> NDArray[np.float64]:
        """Logits of some records in eval mode."""
        self.eval()
        chunks = (records[i : i + CHUNK] for i in range(0, len(records), CHUNK))
        return np.concatenate([self(inputs.of(chunk, self.encoder)).double().cpu().numpy() for chunk in chunks])


def _warm_cosine(steps: int) -> Callable[[int], float]:
    """The share of the rate at each step: up in a line, then down along a half cosine."""
    warm = max(1, round(WARM_UP * steps))

    def share(step: int) -> float:
        if step < warm:
            return (step + 1) / warm
        return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))

    return share
