"""What a recording becomes before a language model reads it as ECG-Byte's tokens: their numbers, padded."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from data.ecg import Ecg
from encoders.base import EcgFeatureExtractor, TokenSpan
from encoders.ecg_byte.configuration import EcgByteConfig
from encoders.ecg_byte.tokenizer import EcgByteTokenizer


class EcgByteFeatureExtractor(EcgFeatureExtractor):
    """Recordings to `ecg_tokens` int32 `[B, T]` and `token_mask` bool `[B, T]`, T the tokenizer's budget.

    Tokens are numbered in the order of the table's `llm_order`, which is that of a language model's new rows.

    Args:
        tokenizer: What `EcgByteTokenizer.save` writes: the path of such a file, or its content. It has a budget
            (`max_tokens`), as those from `EcgByteTokenizer.fit` do.

    Raises:
        ValueError: The tokenizer has no budget, or is none.
    """

    model_input_names = ["ecg_tokens", "token_mask"]
    own_settings = ("tokenizer",)
    varying = True

    def __init__(self, tokenizer: str | Path | dict[str, Any] | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if tokenizer is None:
            raise ValueError("an ECG-Byte model needs a tokenizer: a file that EcgByteTokenizer.save wrote")
        as_file = isinstance(tokenizer, (str, Path))
        self._byte = EcgByteTokenizer.load(tokenizer) if as_file else EcgByteTokenizer.from_dict(tokenizer)
        if self._byte.settings.max_tokens is None:
            raise ValueError("the tokenizer has no budget (max_tokens): make one with EcgByteTokenizer.fit")
        self.tokenizer = self._byte.to_dict()
        self._number = {token: number for number, token in enumerate(self._byte.table.llm_order)}

    @classmethod
    def from_config(cls, config: EcgByteConfig, **own: Any) -> Self:
        """The extractor for an encoder with this configuration.

        Args:
            config: Says how many tokens there are, and how many a recording may have.
            **own: `tokenizer`.

        Raises:
            ValueError: The tokenizer has another number of tokens or another budget.
        """
        extractor = cls(**own)
        if (found := extractor.config()) != (config.vocabulary, config.budget, config.zero_token):
            raise ValueError(
                f"the tokenizer has (vocabulary, budget, zero_token) = {found}, not "
                f"{(config.vocabulary, config.budget, config.zero_token)}"
            )
        return extractor

    def config(self) -> tuple[int, int, int]:
        """`vocabulary`, `budget` and `zero_token` of the configuration that fits."""
        settings = self._byte.settings
        quantizer = settings.quantizer
        low, high = (0.0, 1.0) if quantizer.normalize == "minmax" else quantizer.range_of(np.empty(0, np.float32))
        zero = 0 if quantizer.normalize == "minmax" else int(quantizer.levels(np.zeros(1, np.float32), low, high)[0])
        assert settings.max_tokens is not None
        return len(self._number), settings.max_tokens, self._number[ord("a") + zero]

    @property
    def byte(self) -> EcgByteTokenizer:
        """The tokenizer itself: what tokens look like, and back from tokens to millivolts."""
        return self._byte

    def features(self, ecg: Ecg) -> dict[str, NDArray[Any]]:
        """`ecg_tokens` int32 `[T]` and `token_mask` bool `[T]` of one recording."""
        ids = self._byte.encode(ecg)
        tokens = np.zeros(self._byte.settings.max_tokens or len(ids), np.int32)
        tokens[: len(ids)] = [self._number[token] for token in ids]
        return {"ecg_tokens": tokens, "token_mask": np.arange(len(tokens)) < len(ids)}

    def token_spans(self, ecg: Ecg) -> list[TokenSpan]:
        """Which lead and which seconds each token of a recording is about, in order.

        Raises:
            ValueError: The tokenizer lets tokens go from one lead into the next (`across`).
        """
        if self._byte.settings.across:
            raise ValueError("tokens of this tokenizer go from one lead into the next: no lead is theirs (across)")
        read = self._byte.read(ecg)
        return [TokenSpan(read.leads[row], start, stop) for ((row, start, stop),) in self._byte.spans(read)]

    def to_dict(self) -> dict[str, Any]:
        """What is saved: the tokenizer, not what was made of it."""
        return {name: value for name, value in super().to_dict().items() if name not in ("_byte", "_number")}
