"""Learning rates that fall layer by layer, by what an encoder is rather than how its parts are called.

Layer-wise decay (Clark et al., ICLR 2020; for masked autoencoders He et al., CVPR 2022): of n layers the i-th (from 0)
learns at `decay ** (n - i)` of the whole rate, what comes before them at `decay ** (n + 1)`, what comes after them and
the new head at the whole rate. The layers are the largest stack of modules of one class, and what comes before them is
what the first layer's input depends on, as gradients tell. Parameters that the vector does not depend on (a pooler for
another output, say) are not trained, nor those that the encoder itself holds frozen.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from encoders.base import EcgEncoder
from eval.probing.settings import WEIGHT_DECAY
from eval.probing.vectors import vector_of


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

    Args:
        encoder: The encoder.
        features: Its inputs for a few recordings, to follow the gradients of.
        kind: Which vector is trained on (`eval.probing.vectors`).
        decay: Rate of a layer as a share of the one above.
    """
    name, layers = stack_of(encoder)
    entered: list[Tensor] = []

    def note(_: nn.Module, args: tuple[object, ...], kwargs: dict[str, object]) -> None:
        if not entered:
            tensors = (value for value in (*args, *kwargs.values()) if isinstance(value, Tensor))
            entered.extend([tensor for tensor in tensors if tensor.is_floating_point()][:1])

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


def _reached(encoder: nn.Module, value: Tensor) -> set[str]:
    """Names of the parameters that a value depends on, less those that the encoder holds frozen."""
    parameters = {name: parameter for name, parameter in encoder.named_parameters() if parameter.requires_grad}
    gradients = torch.autograd.grad(
        value.float().sum(), list(parameters.values()), retain_graph=True, allow_unused=True
    )
    return {name for name, gradient in zip(parameters, gradients) if gradient is not None}


def optimizer_for(groups: Sequence[Group], learning_rate: float) -> torch.optim.AdamW:
    """AdamW with each group's rate; biases, norms and other parameters of one dimension do not decay."""
    return torch.optim.AdamW(
        [
            {
                "params": chosen,
                "lr": learning_rate * group.scale,
                "weight_decay": WEIGHT_DECAY if decays else 0.0,
                "name": group.name,
            }
            for group in groups
            for decays in (True, False)
            if (chosen := [p for p in group.parameters.values() if (p.ndim > 1) == decays])
        ]
    )
