"""Positions and masks of a batch: padding has no position, and questions that share a row do not read each other.

ECG-QA asks about 25 questions per recording, and an ECG's tokens are most of a question's: read once per row, they cost
once per row (`elm.inputs.packing`). Every question attends to the shared prefix and to itself, and its positions go on
from the prefix, so that it has the hidden states and the losses it has in a row of its own.
"""

import logging
from functools import partial

import torch
from transformers import Cache, PreTrainedConfig, PreTrainedModel

logger = logging.getLogger(__name__)

# Those that take a mask of their own for every pair of tokens. Flash attention knows causal masks and padding alone.
MASKED = ("sdpa", "eager")


def positions_of(attention_mask: torch.Tensor) -> torch.Tensor:
    """Positions `[B, S]` counted from the first token that is none of padding, by the attention mask `[B, S]`.

    Left to itself, GPT-2 counts padding on the left, too, and gives every token another embedding for it.
    """
    return (attention_mask.long().cumsum(dim=1) - 1).clamp(min=0)


def check_positions(
    text: PreTrainedConfig,
    inputs_embeds: torch.Tensor,
    attention_mask: torch.Tensor | None,
    position_ids: torch.Tensor | None,
    cache: Cache | None,
) -> torch.Tensor | None:
    """Positions of `inputs_embeds` `[B, S, H]`: as they are given, or counted where padding stands on the left.

    Raises:
        ValueError: There are more than the language model of this configuration knows.
    """
    length = inputs_embeds.shape[1] + (0 if cache is None else int(cache.get_seq_length()))
    is_2d = isinstance(attention_mask, torch.Tensor) and attention_mask.ndim == 2
    if position_ids is None and attention_mask is not None and is_2d and not bool(attention_mask[:, 0].all()):
        position_ids = positions_of(attention_mask)[:, -inputs_embeds.shape[1] :]
    most = vars(text).get(text.attribute_map.get("max_position_embeddings", "max_position_embeddings"))
    if most is not None and length > most:
        needed = length if position_ids is None else 1 + int(position_ids.max())
        if needed > most:
            raise ValueError(
                f"a conversation of {needed} tokens is longer than the {most} positions of this language model "
                f"({text.model_type}): let an ECG take fewer tokens (projector_pool), put fewer "
                "turns in a dialogue, or take a language model with more positions"
            )
    return position_ids


def refuse_unmasked(implementation: str) -> None:
    """Raises `ValueError` for an attention that cannot separate the questions of a row."""
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

    `question_ids` `[B, S]` are 0 in the shared prefix, then 1, 2, ...; `attention_mask` `[B, S]` is 0 at padding, which
    attends to itself alone; `near`, bool `[B, S, S]`, tells which tokens are within a sliding window.

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


def masks_of_questions(
    text: PreTrainedConfig,
    implementation: str,
    question_ids: torch.Tensor,
    attention_mask: torch.Tensor | None,
    position_ids: torch.Tensor | None,
    dtype: torch.dtype,
) -> torch.Tensor | dict[str, torch.Tensor]:
    """The mask of questions that share a row; for a model whose layers differ, one of each kind of layer.

    Layers with a sliding window (Gemma, Mistral) take a mask as it is, so the window is put into it.
    """
    kinds, window = set(vars(text).get("layer_types") or ()), vars(text).get("sliding_window")
    mask = partial(mask_of_questions, question_ids, attention_mask, implementation, dtype)
    if window is None or kinds == {"full_attention"}:
        return mask()
    assert position_ids is not None, "questions that share a row come with their positions"
    near = position_ids[:, :, None] - position_ids[:, None, :] < window
    if not kinds:
        return mask(near)
    if odd := sorted(kinds - {"full_attention", "sliding_attention"}):
        raise ValueError(f"questions cannot share a row in layers of {odd[0]}: train one per row")
    return {kind: mask(near if kind == "sliding_attention" else None) for kind in kinds}


def attend_within_bounds(config: PreTrainedConfig, language: PreTrainedModel) -> None:
    """Take a language model that bounds its attention's logits (Gemma 2) off `sdpa`, which leaves that out silently.

    `config` is our own configuration of it, by which masks are made; `language` is without its head.
    """
    if vars(config).get("attn_logit_softcapping") is not None and language.config._attn_implementation == "sdpa":
        logger.warning("%s bounds its attention, which sdpa does not: eager is used", config.model_type)
        language.set_attn_implementation("eager")
        config._attn_implementation = "eager"
