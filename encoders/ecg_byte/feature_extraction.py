"""What a recording becomes before a language model reads it as ECG-Byte's tokens: their numbers, padded."""

import math
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from data.ecg import Ecg
from encoders.base import EcgFeatureExtractor, Features, Settings, TokenSpan
from encoders.ecg_byte.configuration import EcgByteConfig
from encoders.ecg_byte.tokenizer import EcgByteTokenizer, EcgByteTokens


class EcgByteFeatureExtractor(EcgFeatureExtractor):
    """Recordings to `ecg_tokens` int32 `[B, T]` and `token_mask` bool `[B, T]`, T the tokenizer's budget.

    Tokens are numbered in the order of the table's `llm_order`, which is that of a language model's new rows.

    Args:
        tokenizer: What `EcgByteTokenizer.save` writes: the path of such a file, or its content. It has a budget
            (`max_tokens`), as those from `EcgByteTokenizer.fit` do.
        lead_tokens: Put a token in front of each lead that says which lead begins: after those of `llm_order`, one for
            each of the tokenizer's leads. Else a language model would have to count samples to know.

    Raises:
        ValueError: The tokenizer has no budget, or is none; or leads are to be told apart that it does not name, or
            lets tokens go across.
    """

    model_input_names = ["ecg_tokens", "token_mask"]
    own_settings = ("tokenizer", "lead_tokens")
    varying = True

    def __init__(
        self, tokenizer: str | Path | Settings | None = None, lead_tokens: bool = False, **kwargs: object
    ) -> None:
        super().__init__(**kwargs)
        if tokenizer is None:
            raise ValueError("an ECG-Byte model needs a tokenizer: a file that EcgByteTokenizer.save wrote")
        as_file = isinstance(tokenizer, (str, Path))
        self._byte = EcgByteTokenizer.load(tokenizer) if as_file else EcgByteTokenizer.from_dict(tokenizer)
        if self._byte.settings.max_tokens is None:
            raise ValueError("the tokenizer has no budget (max_tokens): make one with EcgByteTokenizer.fit")
        if lead_tokens and (self._byte.settings.leads is None or self._byte.settings.across):
            raise ValueError("lead_tokens need a tokenizer that names its leads, none of whose tokens go across them")
        self.tokenizer, self.lead_tokens = self._byte.to_dict(), lead_tokens
        self._number = {token: number for number, token in enumerate(self._byte.table.llm_order)}

    @classmethod
    def from_config(cls, config: EcgByteConfig, **extra: Any) -> Self:
        """The extractor for an encoder with this configuration; `extra` are `own_settings`."""
        extractor, wanted = cls(**extra), (config.vocabulary, config.budget, config.zero_token)
        if (sizes := extractor.config()) != wanted:
            raise ValueError(f"the tokenizer has (vocabulary, budget, zero_token) = {sizes}, not {wanted}")
        return extractor

    def config(self) -> tuple[int, int, int]:
        """`vocabulary`, `budget` and `zero_token` of the configuration that fits."""
        settings = self._byte.settings
        quantizer = settings.quantizer
        zero = int(quantizer.levels(np.zeros(1, np.float32), *quantizer.fixed_range)[0])
        assert settings.max_tokens is not None
        leads = self.count_of_lead_tokens
        return len(self._number) + leads, settings.max_tokens + leads, self._number[ord("a") + zero]

    @property
    def count_of_lead_tokens(self) -> int:
        """How many tokens of the vocabulary, its last ones, say which lead begins."""
        return len(self._byte.settings.leads or ()) if self.lead_tokens else 0

    @property
    def byte(self) -> EcgByteTokenizer:
        """The tokenizer itself: what tokens look like, and back from tokens to millivolts."""
        return self._byte

    @property
    def seconds_read(self) -> float:
        """Seconds that it reads of a longer recording: the tokenizer's."""
        return self._byte.settings.seconds or math.inf

    def features(self, ecg: Ecg) -> Features:
        """`ecg_tokens` int32 `[T]` and `token_mask` bool `[T]` of one recording."""
        read = self._byte.read(ecg)
        numbers = np.array([self._number[token] for token in read.ids], np.int32)
        if self.lead_tokens:
            first = self._firsts(read)
            numbers = np.insert(numbers, first, len(self._number) + np.arange(len(first), dtype=np.int32))
        _, budget, _ = self.config()
        tokens = np.zeros(budget, np.int32)
        tokens[: len(numbers)] = numbers
        return {"ecg_tokens": tokens, "token_mask": np.arange(budget) < len(numbers)}

    def _firsts(self, read: EcgByteTokens) -> NDArray[np.int64]:
        """Place of the first token of each lead, of tokens that do not go across."""
        starts = np.cumsum(self._byte.lengths[read.ids]) - self._byte.lengths[read.ids]
        return np.searchsorted(starts, read.samples * np.arange(read.rows))

    def token_spans(self, ecg: Ecg) -> list[TokenSpan]:
        """Which lead and which seconds each token of a recording is about, in order; a lead's own token, all of it.

        Raises:
            ValueError: The tokenizer lets tokens go from one lead into the next (`across`).
        """
        if self._byte.settings.across:
            raise ValueError("tokens of this tokenizer go from one lead into the next: no lead is theirs (across)")
        read = self._byte.read(ecg)
        spans = [TokenSpan(read.leads[row], start, stop) for ((row, start, stop),) in self._byte.spans(read)]
        if self.lead_tokens:
            whole = read.samples / read.sampling_rate
            for lead, place in reversed(list(zip(read.leads, self._firsts(read)))):
                spans.insert(place, TokenSpan(lead, 0.0, whole))
        return spans

    def to_dict(self) -> Settings:
        """Saves the tokenizer, not what was made of it."""
        return {name: value for name, value in super().to_dict().items() if name not in ("_byte", "_number")}
