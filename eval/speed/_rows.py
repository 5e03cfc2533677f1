"""Ways of doing one thing, timed one after the other in every repeat, and the table of them."""

import copy
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

Way = Callable[[Any], object]
Rows = dict[str, tuple[Way, str]]  # by name, what it does with one item, and the name of its baseline


def report(title: str, items: Sequence[object], rows: Rows, repeats: int, records: int) -> None:
    """Time all rows over the items, which hold so many recordings, and print a table.

    Milliseconds of CPU time per recording, as other processes may run beside: all ways must keep to one thread. The
    first round warms up and is not timed.
    """
    times: dict[str, list[float]] = {name: [] for name in rows}
    for repeat in range(repeats + 1):
        for name, (run, _) in rows.items():
            start = time.process_time()
            for item in items:
                run(item)
            if repeat:
                times[name].append((time.process_time() - start) / records * 1000)
    print(f"{title}; medians of {repeats} repeats\n{'':<28}{'ms/record':>12}{'records/s':>12}{'ratio':>10}")
    for name, (_, baseline) in rows.items():
        middle = statistics.median(times[name])
        ratios = [base / ours for base, ours in zip(times.get(baseline, ()), times[name])]
        ratio = f"{spread(ratios):>10} of {baseline}" if baseline else ""
        print(f"{name:<28}{middle:>12.3g}{1000 / middle:>12.3g}{ratio}")


def spread(ratios: Iterable[float]) -> str:
    """The median of ratios, each within a repeat, and the least and the greatest."""
    ordered = sorted(ratios)
    return f"{statistics.median(ordered):>8.3g}x  ({ordered[0]:.3g}-{ordered[-1]:.3g})"


def encoder_rows(
    model: PreTrainedModel,
    plain: Callable[..., Mapping[str, Tensor]],
    inputs: Sequence[Tensor],
    *,
    atol: float,
    rtol: float = 0.0,
) -> Rows:
    """Ways to run an encoder in eval mode: its plain restatement, itself, and itself in bfloat16.

    Prints how alike they are. `plain` gives outputs by the model's names; `rtol` is in parts of the output.

    Raises:
        RuntimeError: The encoder and its restatement do not give the same.
    """
    half = copy.deepcopy(model).to(torch.bfloat16)
    restated, ours, coarse = (torch.inference_mode()(run) for run in (plain, model, half))
    want, got, rough = restated(*inputs), ours(*inputs), coarse(*inputs)
    for name in want:
        if not torch.allclose(got[name], want[name], atol=atol, rtol=rtol):
            far = (got[name] - want[name]).abs().max()
            raise RuntimeError(f"the encoder's {name} differ from those of its restatement by {far:.2g}")
    print("bfloat16 against float32, cosine (mean, least) and greatest difference:")
    for name in want:
        likeness = torch.nn.functional.cosine_similarity(rough[name].float(), want[name], dim=-1)
        far = (rough[name].float() - want[name]).abs().max()
        print(f"  {name:<10}{likeness.mean():.5f}  {likeness.min():.5f}  {far:.2g}")
    return {
        "plain, float32": (lambda batch: restated(*batch), ""),
        "ours, float32": (lambda batch: ours(*batch), "plain, float32"),
        "ours, bfloat16": (lambda batch: coarse(*batch), "plain, float32"),
    }
