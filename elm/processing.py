"""`ElmProcessor`: recordings and messages to the model's inputs."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import chain, groupby
from typing import Any, cast

import numpy as np
import torch
from transformers import BatchFeature, ProcessorMixin

from data.conversations.rows import Message, Part, assistant, user
from data.ecg import Ecg
from elm.configuration import tokens_per_ecg

Span = tuple[int, int]


def _ecg_parts(messages: Sequence[Message]) -> int:
    return sum(part["type"] == "ecg" for m in messages if not isinstance(m["content"], str) for part in m["content"])


class ElmProcessor(ProcessorMixin):
    """A tokenizer, an encoder's feature extractor, and how many tokens an ECG takes.

    An ECG is one `{"type": "ecg"}` part of a message. It becomes one placeholder token per projected token, so its
    length is right before the model sees it. Text typed by people is text: a special token's string in it is split.

    Args:
        feature_extractor: The encoder's `EcgFeatureExtractor`.
        tokenizer: The language model's tokenizer, with a chat template.
        chat_template: Saved beside the tokenizer; the tokenizer's own when not given.
        ecg_token: The placeholder token.
        pool: The projector's `projector_pool`.
    """

    def __init__(
        self,
        feature_extractor: Any = None,
        tokenizer: Any = None,
        chat_template: str | None = None,
        ecg_token: str = "<ecg>",
        pool: int = 1,
    ) -> None:
        self.ecg_token, self.pool = ecg_token, pool
        self.ecg_token_id = tokenizer.convert_tokens_to_ids(ecg_token)
        if self.ecg_token_id is None or self.ecg_token_id == tokenizer.unk_token_id:
            raise ValueError(f"the tokenizer has no token {ecg_token!r}: add it, or name one of its reserved tokens")
        added = (token.content for token in tokenizer.added_tokens_decoder.values() if token.special)
        special = sorted({*added, *tokenizer.all_special_tokens, ecg_token})
        # The first character of each: a token that begins inside another one is found as well.
        self._special = re.compile(f"(?={'|'.join(re.escape(t) for t in special if len(t) > 1)})(.)", re.DOTALL)
        super().__init__(feature_extractor, tokenizer, chat_template=chat_template or tokenizer.chat_template)

    @property
    def model_input_names(self) -> list[str]:
        """Names of all tensors it can return."""
        return [*self.tokenizer.model_input_names, *self.feature_extractor.model_input_names]

    def as_text(self, text: str) -> str:
        """User text in which no substring is a special token: a space parts each one after its first character."""
        return self._special.sub(r"\1 ", text)

    def render(
        self, messages: Sequence[Message], counts: Sequence[int], add_generation_prompt: bool = False
    ) -> tuple[str, list[Span]]:
        """The conversation as text, and the spans of characters the assistant says, end token included.

        Args:
            messages: The conversation.
            counts: Tokens of each of its ECGs, in order.
            add_generation_prompt: End with the header of an assistant's turn.

        Raises:
            ValueError: The number of ECGs differs from the number of ECG parts, or the chat template rewrites earlier
                turns, so that no span can be told.
        """
        parts = _ecg_parts(messages)
        if parts != len(counts):
            raise ValueError(f"the conversation has {parts} ECG placeholders but {len(counts)} ECGs are given")
        left = iter(counts)
        flat = [{"role": m["role"], "content": self._content(m["content"], left)} for m in messages]
        template = self.chat_template
        whole = self.tokenizer.apply_chat_template(
            flat, tokenize=False, add_generation_prompt=add_generation_prompt, chat_template=template
        )
        spans = []
        for i, message in enumerate(flat):
            if message["role"] != "assistant":
                continue
            before, upto = (
                self.tokenizer.apply_chat_template(
                    turns, tokenize=False, add_generation_prompt=prompt, chat_template=template
                )
                for turns, prompt in ((flat[:i], True), (flat[: i + 1], False))
            )
            if not (upto.startswith(before) and whole.startswith(upto.rstrip())):
                raise ValueError("the chat template rewrites earlier turns: the assistant's words cannot be located")
            spans.append((len(before), len(upto.rstrip())))
        return whole, spans

    def _content(self, content: str | Sequence[Part], counts: Iterator[int]) -> str:
        if isinstance(content, str):
            return self.as_text(content)
        text = ""
        # Neighbouring texts are joined first: "<ec" and "g>" are no special tokens, together they would be.
        for is_ecg, parts in groupby(content, key=lambda part: part["type"] == "ecg"):
            if is_ecg:
                text += "".join(self.ecg_token * next(counts) + "\n" for _ in parts)
            else:
                text += self.as_text("".join(part["text"] for part in parts))
        return text

    def __call__(
        self,
        messages: Sequence[Message] | Sequence[Sequence[Message]],
        ecgs: Sequence[Ecg] | Sequence[Sequence[Ecg]] | None = None,
        *,
        ecg_mask: torch.Tensor | None = None,
        add_generation_prompt: bool = False,
        return_labels: bool = False,
        padding_side: str = "right",
        return_tensors: str = "pt",
    ) -> BatchFeature:
        """The model's inputs for one conversation or a batch of them.

        Args:
            messages: One conversation, or a list of conversations.
            ecgs: The recordings of the conversation in order of appearance, or a list of such lists.
            ecg_mask: In place of `ecgs` when the encoder's output is cached: bool `[ECGs, T]` over the whole batch.
            add_generation_prompt: Ask for an answer.
            return_labels: Add `labels`: the assistant's words and end tokens, -100 elsewhere.
            padding_side: `"right"` for training, `"left"` for generation.
            return_tensors: Only `"pt"`.

        Returns:
            `input_ids` and `attention_mask` `[B, S]`, with `ecgs` the extractor's tensors for all ECGs of the batch
            one after the other, and `labels` `[B, S]` on demand.

        Raises:
            ValueError: ECGs and ECG parts differ in number; the message names both and the conversation. Or an unknown
                `padding_side`.
        """
        if return_tensors != "pt":
            raise ValueError(f"return_tensors must be 'pt', got {return_tensors!r}")
        if padding_side not in ("left", "right"):
            raise ValueError(f"padding_side must be 'left' or 'right', got {padding_side!r}")
        if messages and isinstance(messages[0], dict):
            messages, ecgs = cast("Any", [messages]), None if ecgs is None else cast("Any", [ecgs])
        conversations = cast("Sequence[Sequence[Message]]", messages)
        groups = cast("Sequence[Sequence[Ecg]] | None", ecgs)
        if groups is not None and len(groups) != len(conversations):
            raise ValueError(f"{len(conversations)} conversations are given but the ECGs of {len(groups)}")
        batch = BatchFeature()
        if ecg_mask is not None:
            counts = tokens_per_ecg(ecg_mask, self.pool)
        else:
            flat = [ecg for group in groups or () for ecg in group]
            if flat:
                batch.update(self.feature_extractor(flat, return_tensors="pt"))
            counts = tokens_per_ecg(batch["token_mask"], self.pool) if flat else []
        rows, position = [], 0
        for i, conversation in enumerate(conversations):
            parts = _ecg_parts(conversation)
            given = parts if ecg_mask is not None else len(groups[i]) if groups is not None else 0
            if given != parts:
                raise ValueError(f"conversation {i} has {parts} ECG placeholders but {given} ECGs are given")
            text, spans = self.render(conversation, counts[position : position + given], add_generation_prompt)
            rows.append(self._encode(text, spans))
            position += given
        if position != len(counts):
            raise ValueError(f"the conversations have {position} ECG placeholders but {len(counts)} ECGs are given")
        batch.update(self._pad(rows, padding_side, return_labels))
        return batch

    def answer_ids(self, text: str) -> list[int]:
        """Ids an assistant says to answer `text` and end his turn: what `labels` hold of such an answer, in order."""
        _, labels = self._encode(*self.render([user(0, "?"), assistant(text)], []))
        return [token for token in labels if token != -100]

    def _encode(self, text: str, spans: list[Span]) -> tuple[list[int], list[int]]:
        """Ids of the text, and the same with -100 for all that the assistant does not say.

        What lies between the spans' ends is tokenized piece by piece: no token is half a header's and half an answer's,
        and an answer is asked for after the very tokens it was trained after.
        """
        cuts = [0, *(cut for span in spans for cut in span), len(text)]
        pieces = self.tokenizer([text[a:b] for a, b in zip(cuts, cuts[1:])], add_special_tokens=False)["input_ids"]
        said = [[token if i % 2 else -100 for token in piece] for i, piece in enumerate(pieces)]
        return list(chain(*pieces)), list(chain(*said))

    def _pad(self, rows: list[tuple[list[int], list[int]]], side: str, labels: bool) -> dict[str, torch.Tensor]:
        width = max(len(ids) for ids, _ in rows)
        pad = self.tokenizer.pad_token_id if self.tokenizer.pad_token_id is not None else self.tokenizer.eos_token_id
        out = {
            "input_ids": np.full((len(rows), width), pad),
            "attention_mask": np.zeros((len(rows), width), int),
            "labels": np.full((len(rows), width), -100),
        }
        for r, (ids, label) in enumerate(rows):
            here = slice(0, len(ids)) if side == "right" else slice(width - len(ids), width)
            out["input_ids"][r, here], out["attention_mask"][r, here], out["labels"][r, here] = ids, 1, label
        if not labels:
            del out["labels"]
        return {name: torch.from_numpy(value) for name, value in out.items()}
