"""`ElmProcessor`: recordings and messages to the model's inputs."""

import re
from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import chain, groupby
from typing import Any, cast

import torch
from transformers import BatchFeature, PreTrainedTokenizerBase, ProcessorMixin

from data.conversations.rows import Message, Part, assistant, user
from data.ecg import Ecg
from data.measure import AMPLITUDES, Measurements, as_text, measure
from elm.inputs.packing import join, pad
from elm.model.configuration import MARK, token_name, tokens_per_ecg
from elm.model.templates import Span, locate


def _ecg_parts(messages: Sequence[Message]) -> int:
    return sum(part["type"] == "ecg" for m in messages if not isinstance(m["content"], str) for part in m["content"])


def _as_batch(
    messages: Sequence[Message] | Sequence[Sequence[Message]], ecgs: Sequence[Ecg] | Sequence[Sequence[Ecg]] | None
) -> tuple[Sequence[Sequence[Message]], Sequence[Sequence[Ecg]] | None]:
    """One conversation and its ECGs, or a batch of both, as a batch."""
    if messages and isinstance(messages[0], dict):
        return [cast("Sequence[Message]", messages)], None if ecgs is None else [cast("Sequence[Ecg]", ecgs)]
    return cast("Sequence[Sequence[Message]]", messages), cast("Sequence[Sequence[Ecg]] | None", ecgs)


def _marks_of_turns(tokenizer: PreTrainedTokenizerBase, template: str | None) -> set[str]:
    """Added tokens around a user's turn. Some vocabularies do not call them special; typed, they are text even so."""
    if template is None:
        return set()
    text, _ = locate(tokenizer, template, [{"role": "user", "content": ""}])
    added = {token.content for token in tokenizer.added_tokens_decoder.values()}
    return {token for token in added if token.strip() and token in text}


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
        measured: Put a line of measured features (`data.measure`) behind each ECG's tokens. It belongs to the ECG.
        measured_amplitudes: Which amplitudes it gives, where millivolts are true: `"leads"`, `"mean"` or `"none"`.
    """

    def __init__(
        self,
        feature_extractor: Any = None,
        tokenizer: Any = None,
        chat_template: str | None = None,
        ecg_token: str = "<ecg>",
        pool: int = 1,
        measured: bool = False,
        measured_amplitudes: str = "leads",
    ) -> None:
        self.ecg_token, self.pool = ecg_token, pool
        if measured_amplitudes not in AMPLITUDES:
            raise ValueError(f"measured_amplitudes must be one of {', '.join(AMPLITUDES)}, got {measured_amplitudes!r}")
        self.measured, self.measured_amplitudes = measured, measured_amplitudes
        self.ecg_token_id = tokenizer.convert_tokens_to_ids(ecg_token)
        if self.ecg_token_id is None or self.ecg_token_id == tokenizer.unk_token_id:
            raise ValueError(f"the tokenizer has no token {ecg_token!r}: add it, or name one of its reserved tokens")
        added = (token.content for token in tokenizer.added_tokens_decoder.values() if token.special)
        template = chat_template or tokenizer.chat_template
        tokens = {*added, *tokenizer.all_special_tokens, ecg_token, *_marks_of_turns(tokenizer, template)}
        # The names of an ECG's tokens, where these are words, are thousands, and begin alike.
        special = sorted({MARK if token.startswith(MARK) else token for token in tokens})
        # The first character of each: a token that begins inside another one is found as well.
        self._special = re.compile(f"(?={'|'.join(re.escape(t) for t in special if len(t) > 1)})(.)", re.DOTALL)
        super().__init__(feature_extractor, tokenizer, chat_template=template)

    @property
    def model_input_names(self) -> list[str]:
        """Names of all tensors it can return."""
        return [*self.tokenizer.model_input_names, *self.feature_extractor.model_input_names]

    def as_text(self, text: str) -> str:
        """User text in which no substring is a special token: a space parts each one after its first character."""
        return self._special.sub(r"\1 ", text)

    def lines(self, measured: Sequence[Measurements]) -> list[str]:
        """The lines that stand behind the tokens of ECGs with these measurements."""
        return [as_text(values, self.measured_amplitudes) for values in measured]

    def render(
        self,
        messages: Sequence[Message],
        counts: Sequence[int],
        add_generation_prompt: bool = False,
        lines: Sequence[str] = (),
    ) -> tuple[str, list[Span]]:
        """The conversation as text, and the spans of characters the assistant says, end token included.

        Args:
            messages: The conversation.
            counts: Tokens of each of its ECGs, in order.
            add_generation_prompt: End with the header of an assistant's turn.
            lines: What was measured in each of its ECGs; needed where the processor is `measured`.

        Raises:
            ValueError: The number of ECGs differs from the number of ECG parts, or the chat template refuses the
                conversation or rewrites earlier turns, so that no span can be located.
        """
        texts = [{"role": role, "content": text} for role, text in self._texts(messages, counts, lines)]
        return locate(self.tokenizer, self.chat_template, texts, add_generation_prompt)

    def _texts(
        self, messages: Sequence[Message], counts: Sequence[int], lines: Sequence[str] = ()
    ) -> tuple[tuple[str, str], ...]:
        """Role and text of each message, with a placeholder for each token of an ECG."""
        parts = _ecg_parts(messages)
        if parts != len(counts):
            raise ValueError(f"the conversation has {parts} ECG placeholders but {len(counts)} ECGs are given")
        self._check_lines(lines, parts)
        ecgs = iter([(count, lines[i] if self.measured else "") for i, count in enumerate(counts)])
        return tuple((m["role"], self._content(m["content"], ecgs)) for m in messages)

    def _check_lines(self, lines: Sequence[str], ecgs: int) -> None:
        if len(lines) != (ecgs if self.measured else 0):
            expected = f"but the processor was made with measured={self.measured}"
            raise ValueError(f"{len(lines)} lines of measured features are given for {ecgs} ECGs, {expected}")

    def _content(self, content: str | Sequence[Part], ecgs: Iterator[tuple[int, str]]) -> str:
        if isinstance(content, str):
            return self.as_text(content)
        text = ""
        # Neighbouring texts are joined first: "<ec" and "g>" are no special tokens, together they would be.
        for is_ecg, parts in groupby(content, key=lambda part: part["type"] == "ecg"):
            if is_ecg:
                for count, line in (next(ecgs) for _ in parts):
                    text += self.ecg_token * count + "\n" + (f"{self.as_text(line)}\n" if line else "")
            else:
                text += self.as_text("".join(part["text"] for part in parts))
        return text

    def __call__(
        self,
        messages: Sequence[Message] | Sequence[Sequence[Message]],
        ecgs: Sequence[Ecg] | Sequence[Sequence[Ecg]] | None = None,
        *,
        ecg_mask: torch.Tensor | None = None,
        measured: Sequence[str] | None = None,
        others: Sequence[Sequence[Sequence[Message]]] = (),
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
            measured: What was measured in each ECG of the batch (`lines`), for a processor that is `measured`. Needed
                with `ecg_mask`; without it `ecgs` are measured.
            others: For each conversation, more conversations about the same ECGs, to be put in its row behind what
                all of them begin with (`elm.inputs.packing`).
            add_generation_prompt: Ask for an answer.
            return_labels: Add `labels`: the assistant's words and end tokens, -100 elsewhere.
            padding_side: `"right"` for training, `"left"` for generation.
            return_tensors: Only `"pt"`.

        Returns:
            `input_ids` and `attention_mask` `[B, S]`, with `ecgs` the extractor's tensors for all ECGs of the batch
            one after the other, and `labels` `[B, S]` on demand. With `others`, `position_ids` and `question_ids`
            `[B, S]` as well.

        Raises:
            ValueError: ECGs and ECG parts differ in number; the message names both and the conversation. Or an unknown
                `padding_side`, `others` that cannot share a prefix, or lines of measured features missing or too many.
            ModuleNotFoundError: Recordings are to be measured, and NeuroKit2 is not installed.
        """
        if return_tensors != "pt":
            raise ValueError(f"return_tensors must be 'pt', got {return_tensors!r}")
        if padding_side not in ("left", "right"):
            raise ValueError(f"padding_side must be 'left' or 'right', got {padding_side!r}")
        conversations, groups = _as_batch(messages, ecgs)
        for name, values in (("ECGs", groups), ("others", others or None)):
            if values is not None and len(values) != len(conversations):
                raise ValueError(f"{len(conversations)} conversations are given but the {name} of {len(values)}")
        features: BatchFeature | dict[str, torch.Tensor] = {}
        sizes = [_ecg_parts(conversation) for conversation in conversations]  # ECGs of each conversation
        if ecg_mask is None:
            recordings = [ecg for group in groups or () for ecg in group]
            sizes = [len(group) for group in groups or ((),) * len(conversations)]
            if recordings:
                features = self.feature_extractor(recordings, return_tensors="pt")
            if self.measured and measured is None:
                measured = self.lines([measure(ecg) for ecg in recordings])
            ecg_mask = features.get("token_mask")
        counts = [] if ecg_mask is None else tokens_per_ecg(ecg_mask, self.pool)
        self._check_lines(measured or (), len(counts))
        rows = self._rows(conversations, others, sizes, counts, measured or (), add_generation_prompt)
        filler = self.tokenizer.eos_token_id if self.tokenizer.pad_token_id is None else self.tokenizer.pad_token_id
        batch = pad(rows, filler, padding_side)
        if not return_labels:
            del batch["labels"]
        return BatchFeature({**features, **batch})

    def _rows(
        self,
        conversations: Sequence[Sequence[Message]],
        others: Sequence[Sequence[Sequence[Message]]],
        sizes: Sequence[int],
        counts: Sequence[int],
        lines: Sequence[str],
        add_generation_prompt: bool,
    ) -> list[dict[str, list[int]]]:
        """Ids and labels of each conversation, with its `others` in the same row.

        `sizes` are numbers of ECGs; `counts` and `lines` are tokens and measurements of each ECG of the batch.
        """
        rows, start = [], 0
        for number, (conversation, size) in enumerate(zip(conversations, sizes, strict=True)):
            if size != (parts := _ecg_parts(conversation)):
                raise ValueError(f"conversation {number} has {parts} ECG placeholders but {size} ECGs are given")
            place = slice(start, start := start + size)
            row = [
                self._encode(self._texts(one, counts[place], lines[place]), add_generation_prompt)
                for one in (conversation, *(others[number] if others else ()))
            ]
            rows.append(join(row, self.ecg_token_id) if others else {"input_ids": row[0][0], "labels": row[0][1]})
        if start != len(counts):
            raise ValueError(f"the conversations have {start} ECG placeholders but {len(counts)} ECGs are given")
        return rows

    def token_ids(
        self, messages: Sequence[Message], ecgs: Sequence[Ecg] = (), add_generation_prompt: bool = True
    ) -> list[int]:
        """A conversation as ids of a plain ECG-Byte model (`elm.model.vocabulary`), for any engine that takes ids.

        They are the ids of `__call__`, with the tokens of each recording in its places.

        Raises:
            ValueError: The processor is none of such a model, or as `__call__` does.
        """
        start = self.tokenizer.convert_tokens_to_ids(token_name(0))
        if "ecg_tokens" not in self.feature_extractor.model_input_names or start in (None, self.tokenizer.unk_token_id):
            kind = type(self.feature_extractor).__name__
            raise ValueError(
                f"an ECG is no words to a model with {kind}: only an ECG-Byte language model takes it as ids"
            )
        batch = self(messages, ecgs, add_generation_prompt=add_generation_prompt)
        ids: torch.Tensor = batch["input_ids"][0]
        if ecgs:
            ids[ids == self.ecg_token_id] = start + batch["ecg_tokens"][batch["token_mask"]].to(ids.dtype)
        return ids.tolist()

    def answer_ids(self, text: str) -> list[int]:
        """Ids an assistant says to answer `text` and end his turn: what `labels` hold of such an answer, in order."""
        _, labels = self._encode(self._texts([user(0, "?"), assistant(text)], []), False)
        return [token for token in labels if token != -100]

    def _encode(self, texts: tuple[tuple[str, str], ...], add_generation_prompt: bool) -> tuple[list[int], list[int]]:
        """Ids of a conversation, and the same with -100 for all that the assistant does not say."""
        tokenizer = self.tokenizer
        ids, labels = _encoded(tokenizer, len(tokenizer), self.chat_template, texts, add_generation_prompt)
        return list(ids), list(labels)


# In training the same questions are asked about many ECGs: rendering and tokenizing them is a fifth of a small step.
@lru_cache(maxsize=8192)
def _encoded(
    tokenizer: PreTrainedTokenizerBase,
    words: int,  # `len(tokenizer)`: another one once tokens were added
    template: str | None,
    texts: tuple[tuple[str, str], ...],
    add_generation_prompt: bool,
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Ids and labels of a conversation.

    What lies between the spans' ends is tokenized piece by piece: no token is half a header's and half an answer's,
    and an answer is asked for after the very tokens it was trained after.
    """
    messages = [{"role": role, "content": text} for role, text in texts]
    text, spans = locate(tokenizer, template, messages, add_generation_prompt)
    cuts = [0, *(cut for span in spans for cut in span), len(text)]
    pieces = tokenizer([text[a:b] for a, b in zip(cuts, cuts[1:])], add_special_tokens=False)["input_ids"]
    labels = ([token if i % 2 else -100 for token in piece] for i, piece in enumerate(pieces))
    return tuple(chain(*pieces)), tuple(chain(*labels))
