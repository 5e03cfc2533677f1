"""Configuration of ECG-Byte's tokens as the input of a language model."""

from __future__ import annotations

from encoders.base import EcgEncoderConfig


class EcgByteConfig(EcgEncoderConfig):
    """Sizes of an `EcgByteEncoder`.

    Raises:
        ValueError: A size is not positive, or the zero token is none of the vocabulary.
    """

    model_type = "ecg_byte"

    vocabulary: int = 26  # how many tokens a recording is made of: the length of the table's `llm_order`
    budget: int = 1024  # the most tokens of one recording
    # The token of one sample at 0 mV (or at what 0 is in the tokenizer's range), as a number in that order: what all
    # tokens become where an ECG is set to zero.
    zero_token: int = 0

    def __post_init__(self, **kwargs: object) -> None:
        if self.budget < 1 or not 0 <= self.zero_token < self.vocabulary <= 2**16:
            raise ValueError(
                f"{self.vocabulary} tokens, of which {self.zero_token} is that of zero, and at most {self.budget} of "
                "them in a recording: these must be positive, and at most 65,536 tokens"
            )
        super().__post_init__(**kwargs)

    @property
    def output_dim(self) -> int:
        """Two: a token's number is handed on as two bytes."""
        return 2

    @property
    def max_tokens(self) -> int:
        """The most tokens of one recording."""
        return self.budget
