"""Inputs of the ladder's probes: an ECG's features, its projected tokens, and the state where the answer begins."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from data.conversations.rows import Row
from elm.model.attention import positions_of
from eval.answerers.base import question_messages
from eval.answerers.model import ModelResponder, placed

Features = NDArray[np.float32]
WIDEST = 4096  # numbers per ECG up to which its tokens are taken one after the other


def tokens(responder: ModelResponder, records: Sequence[str]) -> tuple[Features, Features, str]:
    """Each ECG at `encoder` and at `projected` `[records, ...]`, and how an ECG's tokens became one row, in words."""
    model, features, size, parts = responder.model, responder.features, responder.batch_size, []
    assert features is not None
    with torch.inference_mode():
        for start in tqdm(range(0, len(records), size), desc="projecting ECGs", unit="batch"):
            cached = dict(features.get(records[start : start + size]))
            ecgs = placed(model, cached)
            both = [
                (cached["ecg_features"], cached["ecg_mask"]),
                model.model.projector(ecgs["ecg_features"], ecgs["ecg_mask"]),
            ]
            flat = all(tokens[0].numel() <= WIDEST for tokens, _ in both)
            parts.append([row_of(tokens.float(), mask, flat).cpu().numpy() for tokens, mask in both])
    encoder, projected = (np.concatenate(part) for part in zip(*parts))
    how = "one after the other" if flat else "their mean and standard deviation"
    return encoder, projected, f"tokens: {how} ({encoder.shape[1]} and {projected.shape[1]} numbers)"


def row_of(tokens: torch.Tensor, mask: torch.Tensor, flat: bool) -> torch.Tensor:
    """Tokens `[B, T, D]` as one row per ECG, of those that carry signal; where flat, zeros for the others."""
    mask = mask.bool()[..., None]
    tokens = tokens.masked_fill(~mask, 0)  # what an encoder says of padding need not be finite
    if flat:
        return tokens.flatten(1)
    count = mask.sum(dim=1).clamp(min=1)
    mean = tokens.sum(dim=1) / count
    variance = ((tokens - mean[:, None]).masked_fill(~mask, 0) ** 2).sum(dim=1) / count
    return torch.cat([mean, variance.sqrt()], dim=1)


def states(responder: ModelResponder, rows: Sequence[Row]) -> Features:
    """States of the last layer `[rows, H]`, of which the head makes the first token of the answer."""
    model, processor, features = responder.model, responder.processor, responder.features
    assert features is not None
    order = sorted(range(len(rows)), key=lambda i: -len(rows[i]["question"]))  # of like length together
    states = np.empty((len(rows), model.config.embedding_width), np.float32)
    with responder.evaluating(), tqdm(total=len(rows), desc="reading questions", unit="question") as progress:
        for start in range(0, len(order), responder.batch_size):
            batch = order[start : start + responder.batch_size]
            records = [rows[i]["ecgs"][0] for i in batch]
            cached = features.get(records)
            prompts = processor(
                [question_messages(rows[i]) for i in batch],
                ecg_mask=cached["ecg_mask"],
                measured=processor.lines(responder.measured.get(records)) if responder.measured is not None else None,
                add_generation_prompt=True,
                padding_side="left",
            )
            inputs = placed(model, {**prompts, **cached})
            inputs["position_ids"] = positions_of(inputs["attention_mask"])  # as `generate` numbers them
            last = model.model(**inputs, use_cache=False).last_hidden_state[:, -1]
            states[batch] = last.float().cpu().numpy()
            progress.update(len(batch))
    return states
