"""Full fine-tuning of an encoder for a classification task, with learning rates that fall layer by layer.

Binary cross-entropy of all classes, AdamW, cosine with warm-up, gradients clipped, the epoch with the best macro AUROC
on the validation split. Dropout of the encoder is active here, and nowhere else in `eval`.

Layer-wise decay (Clark et al., ICLR 2020; for masked autoencoders He et al., CVPR 2022): of n layers the i-th (from 0)
learns at `decay ** (n - i)` of the whole rate, what comes before them at `decay ** (n + 1)`, what comes after them and
the new head at the whole rate. The layers are the largest stack of modules of one class, whatever they are called, and
what comes before them is what the first layer's input depends on, as gradients tell. Parameters that the vector does
not depend on (a pooler for another output, say) are not trained, nor those that the encoder itself holds frozen.
"""

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from tqdm.auto import tqdm
from transformers import BatchFeature

from data.ecg import EcgSource
from encoders.base import EcgEncoder, EcgFeatureExtractor
from eval.probing.settings import CLIP, WARM_UP, WEIGHT_DECAY, Finetuning
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
        folder.mkdir(exist_ok=True)
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
    """What the best epoch came to."""

    scores: NDArray[np.float64]  # logits of the test records `[records, classes]`
    epoch: int  # from 1
    validation: float  # its AUROC
    rates: dict[str, float]  # learning rates of the groups of parameters, from the input to the head


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

    The same encoder, data, settings, seed and machine give the same scores; the encoder stays as it is. Inputs are of
    training and validation records, and of test records; labels of training, and of validation records `[records,
    classes]`. The head reads the vector `kind` (`eval.probing.vectors`); the seed is of head, batches and dropout.

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
        progress = tqdm(range(1, settings.epochs + 1), desc="Fine-tuning", unit="epoch")
        for epoch in progress:
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
        network.load_state_dict(weights)
    rates = {group.name: settings.learning_rate * group.scale for group in groups}
    return Tuned(network.scores(tested_on, test), best[1], best[0], rates)


class _Network(nn.Module):
    """An encoder and a linear head on one of its vectors."""

    def __init__(self, encoder: EcgEncoder, head: nn.Linear, kind: str) -> None:
        super().__init__()
        self.encoder, self.head, self.kind = encoder, head, kind

    def forward(self, features: BatchFeature) -> Tensor:
        logits: Tensor = self.head(vector_of(self.encoder(**features), self.kind))
        return logits

    @torch.no_grad()
    def scores(self, inputs: Inputs, records: Sequence[str]) -> NDArray[np.float64]:
        self.eval()
        chunks = (records[i : i + CHUNK] for i in range(0, len(records), CHUNK))
        return np.concatenate([self(inputs.of(chunk, self.encoder)).double().cpu().numpy() for chunk in chunks])


def _warm_cosine(steps: int) -> Callable[[int], float]:
    """The share of the rate at each step: up in a line, then down along a half cosine."""
    warm = max(1, round(WARM_UP * steps))

    def share(step: int) -> float:
        down = 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))
        return (step + 1) / warm if step < warm else down

    return share


class Group(NamedTuple):
    """Parameters that learn at one rate: `before`, `layer 0`, ..., `after` or `head`, at a share of the whole rate."""

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


def layer_groups(encoder: EcgEncoder, features: Mapping[str, Tensor], kind: str, decay: float) -> list[Group]:
    """The encoder's parameters by learning rate, from the input to the output.

    Gradients are followed from the vector `kind` that is trained on to `features`, the inputs for a few recordings;
    `decay` is the rate of a layer as a share of the one above.
    """
    name, layers = stack_of(encoder)
    entered: list[Tensor] = []

    def note(_: nn.Module, args: tuple[object, ...], kwargs: dict[str, object]) -> None:
        if not entered:
            tensors = (value for value in (*args, *kwargs.values()) if isinstance(value, Tensor))
            entered.extend([tensor for tensor in tensors if tensor.is_floating_point()][:1])

    # A layer may be a list of modules that is never called itself: then its first part is.
    parts = layers[0].modules() if layers else ()
    hooks = [module.register_forward_pre_hook(note, with_kwargs=True) for module in parts]
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


def _reached(encoder: nn.Module, value: Tensor) -> set[str]:
    """Names of the parameters that a value depends on, less those that the encoder holds frozen."""
    parameters = {name: parameter for name, parameter in encoder.named_parameters() if parameter.requires_grad}
    leaves = list(parameters.values())
    gradients = torch.autograd.grad(value.float().sum(), leaves, retain_graph=True, allow_unused=True)
    return {name for name, gradient in zip(parameters, gradients) if gradient is not None}


def optimizer_for(groups: Sequence[Group], learning_rate: float) -> torch.optim.AdamW:
    """AdamW with each group's rate; biases, norms and other parameters of one dimension do not decay."""
    return torch.optim.AdamW(
        [
            {"params": chosen, "lr": learning_rate * group.scale, "weight_decay": decay, "name": group.name}
            for group in groups
            for decay in (WEIGHT_DECAY, 0.0)
            if (chosen := [p for p in group.parameters.values() if (p.ndim > 1) == (decay > 0)])
        ]
    )
