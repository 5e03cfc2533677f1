"""Several conversations about the same ECGs in one row, with what they begin with in common standing there once.

ECG-QA asks about 25 questions per recording, and an ECG's tokens are most of a question's: read once per row, they cost
once per row. Every question attends to the shared prefix and to itself, and its positions go on from the prefix, so
that it has the hidden states and the losses it has in a row of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from os.path import commonprefix

import torch

# Those that take a mask of their own for every pair of tokens. Flash attention knows causal masks and padding alone.
MASKED = ("sdpa", "eager")


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


def refuse_unmasked(implementation: str) -> None:
    """A `ValueError` for an attention that cannot keep the questions of a row apart."""
    if implementation not in MASKED:
        raise ValueError(
            f"questions that share a row need attn_implementation {' or '.join(MASKED)}, got {implementation!r}: it "
            "would let them read each other; change it, or train one question per row (questions_per_row: 1)"
        )


def mask_of_questions(
    question_ids: torch.Tensor,
    attention_mask: torch.Tensor | None,
    implementation: str,
    dtype: torch.dtype,
    near: torch.Tensor | None = None,
) -> torch.Tensor:
    """Who attends to whom, `[B, 1, S, S]`: every token to what stands before it in its own question and in the prefix.

    Args:
        question_ids: `[B, S]` of `join`.
        attention_mask: `[B, S]`, 0 at padding, which attends to itself alone.
        implementation: Name of the attention: what it takes differs.
        dtype: Of the hidden states.
        near: bool `[B, S, S]`, which tokens are within the window of which, for layers with a sliding one.

    Returns:
        bool for `sdpa`; numbers to be added for `eager`, which takes a bool mask for numbers without a word.

    Raises:
        ValueError: The attention takes no such mask.
    """
    refuse_unmasked(implementation)
    place = torch.arange(question_ids.shape[1], device=question_ids.device)
    asking, read = question_ids[:, :, None], question_ids[:, None, :]
    seen = ((read == 0) | (read == asking)) & (place[:, None] >= place)
    if attention_mask is not None:
        seen = seen & attention_mask.bool()[:, None, :]
    if near is not None:
        seen = seen & near
    seen = (seen | (place[:, None] == place))[:, None]  # a row that attends to nothing would be NaN
    if implementation == "sdpa":
        return seen
    return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill(~seen, torch.finfo(dtype).min)
