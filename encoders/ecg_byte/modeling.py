"""ECG-Byte's tokens where other models have an encoder: nothing is computed, a recording *is* its tokens.

What a token means to a language model is a row of that model's vocabulary (`elm.model.vocabulary`), not of this class.
"""

from typing import Self

import torch
from torch import nn
from transformers.utils import can_return_tuple

from encoders.base import EcgEncoder, EcgEncoderOutput, output_mask
from encoders.ecg_byte.configuration import EcgByteConfig
from encoders.ecg_byte.feature_extraction import EcgByteFeatureExtractor
from encoders.ecg_byte.tokenizer import EcgByteTokenizer


def as_bytes(numbers: torch.Tensor, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Numbers below 65,536 as their high and low byte: `[...]` to `[..., 2]`.

    Bytes are exact in every floating-point type; whole numbers above 256 are not in bfloat16.
    """
    return torch.stack([numbers // 256, numbers % 256], dim=-1).to(dtype)


def from_bytes(pairs: torch.Tensor) -> torch.Tensor:
    """The numbers again, int64: `[..., 2]` to `[...]`."""
    high, low = pairs.long().unbind(-1)
    return 256 * high + low


class EcgByteEncoder(EcgEncoder):
    """Token numbers `[B, T]` to their two bytes `[B, T, 2]`, which are cached like any encoder's output."""

    config_class = EcgByteConfig
    ecg_inputs = ("ecg_tokens",)
    main_input_name = "ecg_tokens"
    _input_embed_layer = "none"

    def __init__(self, config: EcgByteConfig):
        super().__init__(config)
        self.none = nn.Parameter(torch.empty(0), requires_grad=False)  # says on which device, and in which precision
        self.post_init()

    @classmethod
    def for_tokenizer(cls, byte: EcgByteTokenizer, lead_tokens: bool = False) -> tuple[Self, EcgByteFeatureExtractor]:
        """The encoder and the feature extractor of a tokenizer. Raises as `EcgByteFeatureExtractor` does."""
        extractor = EcgByteFeatureExtractor(byte.to_dict(), lead_tokens)
        vocabulary, budget, zero_token = extractor.config()
        return cls(EcgByteConfig(vocabulary=vocabulary, budget=budget, zero_token=zero_token)), extractor

    @property
    def zero_token(self) -> int:
        """What a token becomes where the ECG is set to zero."""
        return int(self.config.zero_token)

    @can_return_tuple
    def forward(self, ecg_tokens: torch.Tensor, token_mask: torch.Tensor | None = None) -> EcgEncoderOutput:
        """Hand on tokens, int `[B, T]`, numbers in the table's `llm_order`, and their mask, bool `[B, T]`.

        Raises:
            ValueError: A number is none of a token, or the mask is for another number of tokens.
        """
        if bool(((ecg_tokens < 0) | (ecg_tokens >= self.config.vocabulary)).any()):
            raise ValueError(
                f"ecg_tokens must be numbers from 0 to {self.config.vocabulary - 1}: was the feature extractor made "
                "for another tokenizer?"
            )
        tokens = as_bytes(ecg_tokens, self.dtype)
        return EcgEncoderOutput(last_hidden_state=tokens, mask=output_mask(tokens, token_mask))
