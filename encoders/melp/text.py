"""Reports and prompts as MELP's text tower takes them.

Upstream's text model is MedCPT's query encoder, an uncased BERT; [BOS] is added to its vocabulary. A text becomes
`[BOS] words [SEP]`, then padding; the model itself puts a [CLS] behind it.
"""

from collections.abc import Sequence

import torch
from transformers import PreTrainedTokenizerBase

from encoders.base import Settings

_SENTENCE_ENDS = (".", "!", "?", "。")


def add_bos(tokenizer: PreTrainedTokenizerBase) -> None:
    """Give a BERT's tokenizer the [BOS] that MELP's texts begin with, if it has no such token yet.

    Raises:
        ValueError: It has no [CLS], [SEP] or [PAD].
    """
    named = {"[CLS]": tokenizer.cls_token, "[SEP]": tokenizer.sep_token, "[PAD]": tokenizer.pad_token}
    missing = [name for name, token in named.items() if token is None]
    if missing:
        raise ValueError(f"the tokenizer has no {', '.join(missing)}: MELP's text tower takes that of a BERT")
    if tokenizer.bos_token is None:
        tokenizer.add_special_tokens({"bos_token": "[BOS]"})


def token_settings(tokenizer: PreTrainedTokenizerBase) -> Settings:
    """Fields of `MelpPretrainingConfig` that its tokenizer decides.

    Raises:
        ValueError: No token of its vocabulary ends a sentence.
    """
    vocabulary = tokenizer.get_vocab()
    ends = [vocabulary[token] for token in _SENTENCE_ENDS if token in vocabulary]
    if not ends:
        raise ValueError(f"no token of the tokenizer ends a sentence: it has none of {' '.join(_SENTENCE_ENDS)}")
    special = sorted(set(tokenizer.all_special_ids) - {tokenizer.unk_token_id})  # an unknown word is a word
    return {"cls_token_id": tokenizer.cls_token_id, "special_token_ids": special, "sentence_end_ids": ends}


def tokenize_texts(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], length: int = 128
) -> dict[str, torch.Tensor]:
    """Texts to `input_ids` and `attention_mask`, int64 `[B, L]`, padded to the longest of them.

    The tokenizer has a [BOS] (`add_bos`). What looks like a special token in a text is text; what is longer than
    `length`, that of `MelpPretrainingConfig.text_length`, is cut, so that L is less than it.

    Raises:
        ValueError: A text has no words.
    """
    rows = tokenizer(
        list(texts), add_special_tokens=False, split_special_tokens=True, truncation=True, max_length=length - 3
    )["input_ids"]
    for index, row in enumerate(rows):
        if not row:
            raise ValueError(f"text {index} has no words: {texts[index]!r}")
    longest = 2 + max(map(len, rows), default=0)
    ids = torch.full((len(rows), longest), tokenizer.pad_token_id)
    mask = torch.zeros_like(ids)
    for index, row in enumerate(rows):
        ids[index, : len(row) + 2] = torch.tensor([tokenizer.bos_token_id, *row, tokenizer.sep_token_id])
        mask[index, : len(row) + 2] = 1
    return {"input_ids": ids, "attention_mask": mask}


def sentence_weights(
    input_ids: torch.Tensor, attention_mask: torch.Tensor, ends: Sequence[int], special: Sequence[int]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Which tokens make up each sentence, as weights of a mean.

    A sentence goes up to and with the token that ends it, and what follows the last such token is a sentence too.
    Without a word there is none: of several ends in a row, the first counts. Ids and mask are `[B, L]`, 0 at padding;
    `ends` are the ids that end a sentence, `special` those that belong to none.

    Returns:
        Weights float32 `[B, S, L]` that sum to 1 for each sentence, and bool `[B, S]`, true where there is a sentence.
        A text without a word gets one sentence of weights 0.
    """
    is_end, is_special = (torch.isin(input_ids, input_ids.new_tensor(list(ids))) for ids in (ends, special))
    inside = attention_mask.bool() & ~is_special
    is_end &= inside
    number = is_end.cumsum(dim=1) - is_end.long()  # of ends before each token
    members = torch.arange(int(number.max()) + 1, device=input_ids.device)[:, None] == number[:, None]  # [B, S, L]
    members &= inside[:, None]
    mask = (members & ~is_end[:, None]).any(dim=2)
    members &= mask[..., None]
    weights = members / members.sum(dim=2, keepdim=True).clamp_min(1)
    mask[:, 0] |= ~mask.any(dim=1)
    return weights, mask
