"""Full fine-tuning of an encoder for a classification task, with learning rates that fall layer by layer.

Binary cross-entropy of all classes, AdamW, cosine with warm-up, gradients clipped, the epoch with the best macro AUROC
on the validation split. Dropout of the encoder is active here, and nowhere else in `eval`.

Layer-wise decay (Clark et al., ICLR 2020; for masked autoencoders He et al., CVPR 2022): of n layers the i-th (from 0)
learns at `decay ** (n - i)` of the whole rate, what comes before them at `decay ** (n + 1)`, what comes after them and
the new head at the whole rate. Which is which follows from the encoder itself and not from names: the layers are the
largest stack of modules of one class, and what comes before them is what the first layer's input depends on, as
gradients tell. Parameters that the vector does not depend on (a pooler for another output, say) are not trained, nor
those that the encoder itself holds frozen.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from tqdm.auto import tqdm
from transformers import BatchFeature

from data.ecg import EcgSource
from encoders.base import EcgEncoder, EcgFeatureExtractor
from eval.probing.vectors import vector_of
from eval.statistics import auroc

CHUNK = 64  # recordings read, or scored, at once
CLIP = 1.0  # norm of the gradients
LEAST_STEPS = 10  # in an epoch: of few records smaller batches are made, or one per cent would hardly move the weights
WARM_UP = 0.1  # share of the steps
WEIGHT_DECAY = 0.05  # of weights; biases and norms have none


@dataclass(frozen=True)
class Settings:
    """How an encoder is fine-tuned.

    Attributes:
        epochs: Passes over the training records.
        batch_size: Records per step; fewer where an epoch would else have less than `LEAST_STEPS`.
        learning_rate: The whole rate, of the head.
        layer_decay: What a layer's rate is, of the rate of the layer above; 1 for one rate.

    Raises:
        ValueError: A value that cannot be.
    """

    epochs: int = 30
    batch_size: int = 64
    learning_rate: float = 5e-4
    layer_decay: float = 0.75

    def __post_init__(self) -> None:
        if self.epochs < 1 or self.batch_size < 1:
            raise ValueError(f"epochs and batch_size must be at least 1, got {self.epochs} and {self.batch_size}")
        if not self.learning_rate > 0:
            raise ValueError(f"learning_rate must be positive, got {self.learning_rate}")
        if not 0 < self.layer_decay <= 1:
            raise ValueError(f"layer_decay must be above 0 and at most 1, got {self.layer_decay}")

    def told(self) -> dict[str, Any]:
        """For a report."""
        return {**asdict(self), "weight_decay": WEIGHT_DECAY, "warm_up": WARM_UP, "clip": CLIP}


class Inputs:
    """What a feature extractor makes of recordings, made once for all epochs: in files, as it may not fit in memory.

    Args:
        extractor: The extractor.
        source: Gives the recordings.
        records: Which.
        folder: For the files; whoever makes it removes it.
    """

    def __init__(self, extractor: EcgFeatureExtractor, source: EcgSource, records: Sequence[str], folder: Path) -> None:
        self.place = {record: i for i, record in enumerate(dict.fromkeys(records))}
        self._arrays: dict[str, NDArray[Any]] = {}
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


# --- learning rates ---------------------------------------------------------------------------------------------------


class Group(NamedTuple):
    """Parameters that learn at one rate.

    Attributes:
        name: `before`, `layer 0`, ..., `after`, `head`.
        scale: Of the whole rate.
        parameters: By name.
    """

    name: str
    scale: float
    parameters: dict[str, nn.Parameter]


def stack_of(encoder: nn.Module) -> tuple[str, list[nn.Module]]:
    """The layers of an encoder: the largest list or sequence of two or more modules of one class, and its name.

    Largest by parameters. Empty, with no name, for an encoder that has none, such as a single linear layer.
    """
    best, size = ("", list[nn.Module]()), 0
    for name, module in encoder.named_modules():
        if not isinstance(module, nn.ModuleList | nn.Sequential):
            continue
        layers = list(module)
        weights = sum(parameter.numel() for parameter in module.parameters())
        if len(layers) > 1 and len({type(layer) for layer in layers}) == 1 and weights > size:
            best, size = (name, layers), weights
    return best


def layer_groups(encoder: EcgEncoder, features: Mapping[str, Any], kind: str, decay: float) -> list[Group]:
    """The encoder's parameters by learning rate, from the input to the output.

    Args:
        encoder: The encoder.
        features: Its inputs for a few recordings, to follow the gradients of.
        kind: Which vector is trained on (`eval.probing.vectors`).
        decay: What a layer's rate is, of the one above.
    """
    name, layers = stack_of(encoder)
    entered: list[torch.Tensor] = []

    def note(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given = (value for value in (*args, *kwargs.values()) if torch.is_tensor(value) and value.is_floating_point())
        if not entered:
            entered.extend(list(given)[:1])

    # A layer may be a list of modules that is never called itself: then its first part is.
    hooks = [
        module.register_forward_pre_hook(note, with_kwargs=True) for module in (layers[0].modules() if layers else ())
    ]
    mode = {module: module.training for module in encoder.modules()}
    try:
        encoder.eval()
        with torch.enable_grad():
            vector = vector_of(encoder(**features), kind)
    finally:
        for hook in hooks:
            hook.remove()
        for module, training in mode.items():
            module.training = training
    trained = _reached(encoder, vector)
    before = _reached(encoder, entered[0]) if entered and entered[0].requires_grad else set()
    depth = len(layers)
    groups = [Group("before", decay ** (depth + 1), {})]
    groups += [Group(f"layer {i}", decay ** (depth - i), {}) for i in range(depth)]
    groups.append(Group("after", 1.0, {}))
    for path, parameter in encoder.named_parameters():
        if path not in trained:
            continue
        if name and path.startswith(f"{name}."):
            place = 1 + int(path.removeprefix(f"{name}.").partition(".")[0])
        else:
            place = 0 if path in before else depth + 1
        groups[place].parameters[path] = parameter
    return [group for group in groups if group.parameters]


def _reached(encoder: nn.Module, value: torch.Tensor) -> set[str]:
    """Names of the parameters that a value depends on, less those that the encoder holds frozen."""
    parameters = {name: parameter for name, parameter in encoder.named_parameters() if parameter.requires_grad}
    gradients = torch.autograd.grad(
        value.float().sum(), list(parameters.values()), retain_graph=True, allow_unused=True
    )
    return {name for name, gradient in zip(parameters, gradients) if gradient is not None}


def optimizer_for(groups: Sequence[Group], learning_rate: float) -> torch.optim.AdamW:
    """AdamW with each group's rate; biases, norms and other parameters of one dimension do not decay."""
    options: list[dict[str, Any]] = []
    for group in groups:
        for decays in (True, False):
            chosen = [p for p in group.parameters.values() if (p.ndim > 1) == decays]
            if chosen:
                options.append(
                    {
                        "params": chosen,
                        "lr": learning_rate * group.scale,
                        "weight_decay": WEIGHT_DECAY if decays else 0.0,
                        "name": group.name,
                    }
                )
    return torch.optim.AdamW(options)


# --- training ---------------------------------------------------------------------------------------------------------


class Tuned(NamedTuple):
    """What came of a fine-tuning.

    Attributes:
        scores: Logits of the test records, `[records, classes]`.
        epoch: The best one, from 1.
        validation: Its macro AUROC on the validation split.
        rates: Of each group of parameters, from the input to the head.
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
    settings: Settings,
    *,
    kind: str = "paper",
    seed: int = 0,
) -> Tuned:
    """Train a copy of an encoder and a linear head, and score the test records with the best epoch.

    The same encoder, data, settings, seed and machine give the same scores.

    Args:
        encoder: Stays as it is.
        inputs: Of training and validation records, and of test records.
        records: Of training, validation and test.
        labels: Of training and validation, `[records, classes]`.
        settings: How.
        kind: Which vector the head reads (`eval.probing.vectors`).
        seed: Of the head, the batches and dropout.

    Raises:
        ValueError: No class has both labels in the validation, or the loss is not finite.
    """
    (here, there), (train, valid, test) = inputs, records
    judged = np.flatnonzero(labels[1].any(axis=0) & ~labels[1].all(axis=0))
    if not judged.size:
        raise ValueError("no class has records with and without it in the validation split: take more records for it")
    model, device = copy.deepcopy(encoder), encoder.device
    with torch.random.fork_rng(devices=[] if device.type == "cpu" else [device]):
        torch.manual_seed(seed)
        with torch.no_grad():
            width = vector_of(model.eval()(**here.of(train[:1], model)), kind).shape[1]
        head = nn.Linear(width, labels[0].shape[1], device=device)
        nn.init.trunc_normal_(head.weight, std=0.02)
        nn.init.zeros_(head.bias)
        groups = layer_groups(model, here.of(train[:2], model), kind, settings.layer_decay)
        groups.append(Group("head", 1.0, dict(head.named_parameters())))
        optimizer = optimizer_for(groups, settings.learning_rate)
        trained = [p for group in optimizer.param_groups for p in group["params"]]
        size = min(settings.batch_size, -(-len(train) // LEAST_STEPS))
        per_epoch = -(-len(train) // size)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, _warm_cosine(settings.epochs * per_epoch))
        truth = torch.from_numpy(labels[0].astype(np.float32)).to(device)
        best: tuple[float, int, dict[str, Any], dict[str, Any]] | None = None
        with tqdm(total=settings.epochs, desc="Fine-tuning", unit="epoch") as progress:
            for epoch in range(1, settings.epochs + 1):
                model.train()
                for rows in torch.randperm(len(train)).split(size):
                    batch = here.of([train[i] for i in rows.tolist()], model)
                    logits = head(vector_of(model(**batch), kind))
                    loss = nn.functional.binary_cross_entropy_with_logits(logits, truth[rows.to(device)])
                    if not torch.isfinite(loss):
                        raise ValueError(f"epoch {epoch}: the loss is {loss.item()}: lower learning_rate")
                    optimizer.zero_grad()
                    loss.backward()
                    nn.utils.clip_grad_norm_(trained, CLIP)
                    optimizer.step()
                    schedule.step()
                scores = _scores(model, head, here, valid, kind)
                macro = float(np.mean([auroc(scores[:, k], labels[1][:, k]) for k in judged]))
                if best is None or macro > best[0]:
                    best = (macro, epoch, copy.deepcopy(model.state_dict()), copy.deepcopy(head.state_dict()))
                progress.set_postfix(validation=f"{macro:.3f}", best=f"{best[0]:.3f}")
                progress.update()
        assert best is not None
        macro, epoch, weights, head_weights = best
        model.load_state_dict(weights)
        head.load_state_dict(head_weights)
        rates = {group.name: settings.learning_rate * group.scale for group in groups}
        return Tuned(_scores(model, head, there, test, kind), epoch, macro, rates)


def _warm_cosine(steps: int) -> Any:
    """The share of the rate at each step: up in a line, then down along a half cosine."""
    warm = max(1, round(WARM_UP * steps))

    def share(step: int) -> float:
        if step < warm:
            return (step + 1) / warm
        return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))

    return share


@torch.no_grad()
def _scores(
    model: EcgEncoder, head: nn.Linear, inputs: Inputs, records: Sequence[str], kind: str
) -> NDArray[np.float64]:
    """Logits `[records, classes]`, in eval mode."""
    model.eval()
    parts = [
        head(vector_of(model(**inputs.of(records[i : i + CHUNK], model)), kind)).double().cpu().numpy()
        for i in range(0, len(records), CHUNK)
    ]
    return np.concatenate(parts)
