"""Token ids to rows of a batch: several conversations about the same ECGs in one row, and padding.

What the conversations begin with in common, the ECGs, stands in their row once (`elm.model.attention`).
"""

from collections.abc import Sequence
from os.path import commonprefix

import numpy as np
import torch


def join(conversations: Sequence[tuple[list[int], list[int]]], ecg_token_id: int) -> dict[str, list[int]]:
    """One row of conversations: `input_ids`, `labels`, `position_ids`, and `question_ids` (0: prefix, then 1, 2, ...).

    The prefix ends before the last token that precedes an answer: a question's first token is never learned, since what
    stands before it in the row is another question.

    Args:
        conversations: Ids and labels (-100 where nothing is learned) of each.
        ecg_token_id: The placeholder; all of them must lie in the prefix.

    Raises:
        ValueError: The conversations differ before the last of their ECGs.
    """
    shared = len(commonprefix([ids for ids, _ in conversations]))
    for ids, labels in conversations:
        learned = (i for i, label in enumerate(labels) if label != -100)
        shared = max(0, min(shared, next(learned, len(ids)) - 1))
    if any(ecg_token_id in ids[shared:] for ids, _ in conversations):
        raise ValueError(
            "conversations that are to share their ECGs differ before the last ECG: put ECGs before the words of a "
            "question, or train one question per row (questions_per_row: 1)"
        )
    row = {"input_ids": conversations[0][0][:shared], "labels": [-100] * shared}
    row |= {"position_ids": list(range(shared)), "question_ids": [0] * shared}
    for question, (ids, labels) in enumerate(conversations, 1):
        assert labels[shared] == -100
        row["input_ids"] += ids[shared:]
        row["labels"] += labels[shared:]
        row["position_ids"] += range(shared, len(ids))
        row["question_ids"] += [question] * (len(ids) - shared)
    return row


def pad(rows: Sequence[dict[str, list[int]]], pad_token_id: int, side: str) -> dict[str, torch.Tensor]:
    """Rows of equal names as tensors `[B, S]`, padded on one side, with `attention_mask`."""
    width = max(len(row["input_ids"]) for row in rows)
    rows = [{**row, "attention_mask": [1] * len(row["input_ids"])} for row in rows]
    fillers = {"input_ids": pad_token_id, "labels": -100}
    batch = {name: np.full((len(rows), width), fillers.get(name, 0)) for name in rows[0]}
    for number, row in enumerate(rows):
        size = len(row["input_ids"])
        place = slice(0, size) if side == "right" else slice(width - size, width)
        for name, values in row.items():
            batch[name][number, place] = values
    return {name: torch.from_numpy(values) for name, values in batch.items()}
