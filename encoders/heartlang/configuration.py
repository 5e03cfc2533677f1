"""Configurations of HeartLang (Jin et al., "Reading Your Heart", ICLR 2025, arXiv 2502.10707)."""

from __future__ import annotations

from typing import Literal, get_args

from encoders.base import EcgEncoderConfig, check_choice

HeartLangOutputName = Literal["words", "beats", "leads", "compact"]


class HeartLangConfig(EcgEncoderConfig):
    """Sizes of a HeartLang transformer and which tokens it gives.

    An ECG is a sentence of words: 0.96 s around each heart beat, lead after lead. The defaults are those of the
    published encoder (38 M parameters, 100 Hz, 10 s). Heads times `head_dim` is the width of attention, 512, which is
    not `hidden_size`; what is not named here is as in BERT's configuration.

    Raises:
        ValueError: An unknown output, or more leads than words.
    """

    model_type = "ecg_heartlang"

    # `"words"` (CLS and every word, `[B, 257, 768]`), `"beats"` (one token per beat, the mean of its words in all
    # leads, `[B, 21, 768]`), `"leads"` (one per lead, the mean of its words, `[B, 12, 768]`) or `"compact"` (CLS,
    # leads, beats: `[B, 34, 768]`).
    output: HeartLangOutputName = "words"
    sampling_rate: int = 100  # Hz of the words
    seconds: float = 10.0  # duration of the input
    num_leads: int = 12  # leads of a sentence
    max_words: int = 256  # words of a sentence; the positions are learned, so the model takes exactly so many
    word_length: int = 96  # samples of a word
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 8
    head_dim: int = 64  # width of a head
    intermediate_size: int = 1024
    lead_positions: int = 16  # rows of the table of leads; 0 is padding, 1 to 12 are the leads
    time_positions: int = 16  # rows of the table of times; 0 is padding, 1 is the first second
    dropout: float = 0.1  # dropout in the transformer; that of its input is `embedding_dropout`
    embedding_dropout: float = 0.1
    attend_padding: bool = True  # whether words attend to padding, as in the published weights
    # Whether a masked word is hidden from its neighbours too. In the published training it is not: the convolution over
    # words comes before the mask, so each neighbour holds some of the word to be guessed.
    hide_masked_words: bool = False
    vocab_size: int = 8192  # codes that `HeartLangForMaskedSentence` chooses from
    initializer_range: float = 0.02

    def __post_init__(self, **kwargs: object) -> None:
        check_choice("output", self.output, self.outputs())
        if not 1 <= self.num_leads <= self.max_words:
            raise ValueError(f"{self.num_leads} leads do not share {self.max_words} words")
        super().__post_init__(**kwargs)

    @classmethod
    def outputs(cls) -> tuple[str, ...]:
        """The choices of `output`."""
        return get_args(HeartLangOutputName)

    @property
    def max_beats(self) -> int:
        """Words that each lead has room for."""
        return self.max_words // self.num_leads

    @property
    def output_dim(self) -> int:
        """D of the tokens."""
        return self.hidden_size

    @property
    def max_tokens(self) -> int:
        """T of the chosen output."""
        return {
            "words": 1 + self.max_words,
            "beats": self.max_beats,
            "leads": self.num_leads,
            "compact": 1 + self.num_leads + self.max_beats,
            "codes": self.max_words,
        }[self.output]


class HeartLangVQConfig(HeartLangConfig):
    """Sizes of VQ-HBR, which writes each word as one of `codebook_size` codes and words back from codes.

    Encoder and decoder are the transformers of `HeartLangConfig`; the defaults are those of the published weights.
    """

    model_type = "ecg_heartlang_vq"

    # `"codes"`: the vector of each word's code, `[B, 256, 128]`.
    output: Literal["codes"] = "codes"  # type: ignore[assignment]
    num_hidden_layers: int = 4
    num_attention_heads: int = 2
    intermediate_size: int = 2048
    dropout: float = 0.0
    embedding_dropout: float = 0.0
    decoder_layers: int = 2  # layers of the decoder; those of the encoder are `num_hidden_layers`
    codebook_size: int = 8192  # number of codes
    code_dim: int = 128  # D of a code, a vector of unit length
    ema_decay: float = 0.99  # how much of a code stays in each training step
    commitment: float = 1.0  # weight of the commitment loss
    count_padding: bool = False  # whether padding counts in the losses and moves codes, as upstream

    @classmethod
    def outputs(cls) -> tuple[str, ...]:
        """The choices of `output`."""
        return ("codes",)

    @property
    def output_dim(self) -> int:
        """D of the tokens."""
        return self.code_dim
