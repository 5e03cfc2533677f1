"""Configurations of MELP's encoder and pretraining (Wang, Xu and Yu, "From Token to Rhythm", arXiv 2506.21803)."""

from __future__ import annotations

import math
from typing import Any, Literal

from transformers import BertConfig, PreTrainedConfig

from encoders.base import SignalConfig, check_choice

MelpOutputName = Literal["features", "beats", "tokens", "rhythm"]
SingleSentence = Literal["cosine", "uniform"]


class MelpConfig(SignalConfig):
    """Sizes of a MELP encoder and which of its four outputs is `last_hidden_state`.

    The defaults are those of the published checkpoint (65 M parameters, 500 Hz, 10 s); the model takes any length
    of at least one frame. What is not named here is as in BERT's configuration.

    Raises:
        ValueError: The sizes do not fit together.
    """

    model_type = "ecg_melp"  # upstream's remote code calls itself "melp": its config.json must not pass for ours

    # `"features"` (one frame per 32 ms, `[B, 312, 768]`), `"beats"` (contrast queries, `[B, 14, 256]`), `"tokens"`
    # (caption queries, `[B, 128, 768]`) or `"rhythm"` (their mean, `[B, 1, 256]`). "Beats" are learned queries over the
    # whole recording, not segmented heart beats.
    output: MelpOutputName = "tokens"
    sampling_rate: int = 500
    conv_dim: tuple[int, ...] | list[int] = (256, 256, 256, 256)  # channels of each convolution
    conv_kernel: tuple[int, ...] | list[int] = (2, 2, 2, 2)
    conv_stride: tuple[int, ...] | list[int] = (2, 2, 2, 2)
    hidden_size: int = 768
    num_hidden_layers: int = 8
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    conv_pos_kernel: int = 128  # kernel of the convolution that adds positions, in frames
    conv_pos_groups: int = 16  # its groups
    shared_dim: int = 256  # D of beats and rhythm, the space shared with text
    caption_dim: int = 768  # D of the caption tokens
    pooler_heads: int = 8  # heads of both attention poolers
    n_queries_contrast: int = 14  # number of beats
    n_queries_caption: int = 128  # number of caption tokens
    dropout_input: float = 0.1  # dropout after the projection of the frames
    dropout: float = 0.1
    attention_dropout: float = 0.1
    initializer_range: float = 0.02

    def __post_init__(self, **kwargs: object) -> None:
        check_choice("output", self.output, MelpOutputName)
        if not len(self.conv_dim) == len(self.conv_kernel) == len(self.conv_stride) > 0:
            raise ValueError(
                f"conv_dim {self.conv_dim}, conv_kernel {self.conv_kernel} and conv_stride {self.conv_stride} "
                "must have one entry per convolution"
            )
        for part, name in (
            ("num_attention_heads", "hidden_size"),
            ("conv_pos_groups", "hidden_size"),
            ("pooler_heads", "shared_dim"),
            ("pooler_heads", "caption_dim"),
        ):
            if vars(self)[name] % vars(self)[part]:
                raise ValueError(f"{name} {vars(self)[name]} is not divisible by {part} {vars(self)[part]}")
        if self.num_frames(self.num_samples) < 1:
            raise ValueError(
                f"{self.seconds} s at {self.sampling_rate} Hz is shorter than one frame of {self.hop} samples"
            )
        super().__post_init__(**kwargs)

    @property
    def hop(self) -> int:
        """Samples from one frame to the next."""
        return math.prod(self.conv_stride)

    def num_frames(self, samples: int) -> int:
        """Frames of an input of so many samples; a tail shorter than a frame is dropped."""
        for kernel, stride in zip(self.conv_kernel, self.conv_stride):
            samples = (samples - kernel) // stride + 1
        return max(samples, 0)

    def frame_seconds(self, frame: int) -> tuple[float, float]:
        """Begin and end of what the convolutions of a frame see, in seconds of the input."""
        width = 1
        for index, kernel in enumerate(self.conv_kernel):
            width += (kernel - 1) * math.prod(self.conv_stride[:index])
        start = frame * self.hop
        return start / self.sampling_rate, (start + width) / self.sampling_rate

    @property
    def output_dim(self) -> int:
        """D of the chosen output."""
        return {"features": self.hidden_size, "tokens": self.caption_dim}.get(self.output, self.shared_dim)

    @property
    def max_tokens(self) -> int:
        """T of the chosen output."""
        return {
            "features": self.num_frames(self.num_samples),
            "beats": self.n_queries_contrast,
            "tokens": self.n_queries_caption,
            "rhythm": 1,
        }[self.output]


class MelpPretrainingConfig(PreTrainedConfig):
    """Sizes of `MelpForPretraining`, the weights of its losses, and what it must know of its tokenizer.

    The defaults are those of upstream's training with MedCPT's query encoder, whose vocabulary [BOS] was added to.

    Raises:
        ValueError: The sizes do not fit together, or no loss is left.
    """

    model_type = "ecg_melp_pretraining"
    sub_configs = {"encoder_config": MelpConfig, "text_config": BertConfig}

    encoder_config: Any = None  # given as a configuration, a dict or nothing; a configuration from then on
    text_config: Any = None  # the text tower's, a BERT; it is made causal
    text_length: int = 128  # tokens of a text with [BOS], [SEP] and the [CLS] at its end: the position of that [CLS]
    text_hidden_dim: int = 256  # width between the two layers that take a text's [CLS] to the shared space
    decoder_layers: int = 6  # layers of the caption decoder, each a causal one over the text and one that reads the ECG
    decoder_heads: int = 8  # its heads
    frozen_text_layers: int = 6  # how many of the text tower's first layers are not trained; its embeddings are
    contrast_weight: float = 1.0  # weight of the loss between recordings and reports; 0 leaves it out
    caption_weight: float = 2.0  # weight of the loss on the report's words given the recording; 0 leaves it out
    local_weight: float = 0.2  # weight of the loss between beats and sentences; 0 leaves it out
    # How a report's only sentence chooses among the beats: by `"cosine"`, or `"uniform"`, which is upstream's: its
    # softmax over sentences is 1 for the only one, so all beats count the same.
    single_sentence: SingleSentence = "cosine"
    cls_token_id: int = 2  # id of the [CLS] that the model puts behind each text
    special_token_ids: tuple[int, ...] | list[int] = (0, 2, 3, 4, 30522)  # ids that belong to no sentence
    sentence_end_ids: tuple[int, ...] | list[int] = (18,)  # ids that end a sentence
    initializer_range: float = 0.02
    tie_word_embeddings: bool = False

    def __post_init__(self, **kwargs: object) -> None:
        """Builds the parts' configurations, and makes the text tower causal."""
        if self.encoder_config is None or isinstance(self.encoder_config, dict):
            self.encoder_config = MelpConfig(**(self.encoder_config or {}))
        if self.text_config is None or isinstance(self.text_config, dict):
            self.text_config = BertConfig(**({"vocab_size": 30523} | (self.text_config or {})))
        self.text_config.is_decoder, self.text_config.use_cache = True, False
        text, width = self.text_config, self.text_config.hidden_size
        if self.encoder_config.caption_dim != width:
            raise ValueError(
                f"the encoder's caption_dim {self.encoder_config.caption_dim} is not the text tower's hidden_size "
                f"{width}: the caption decoder reads both"
            )
        if width % self.decoder_heads:
            raise ValueError(f"hidden_size {width} is not divisible by decoder_heads {self.decoder_heads}")
        if not 4 <= self.text_length <= text.max_position_embeddings:
            raise ValueError(
                f"text_length must be at least 4 and at most the text tower's {text.max_position_embeddings} positions,"
                f" got {self.text_length}"
            )
        if not 0 <= self.frozen_text_layers <= text.num_hidden_layers:
            raise ValueError(
                f"frozen_text_layers {self.frozen_text_layers}: the text tower has {text.num_hidden_layers} layers"
            )
        check_choice("single_sentence", self.single_sentence, SingleSentence)
        weights = (self.contrast_weight, self.caption_weight, self.local_weight)
        if min(weights) < 0 or not any(weights):
            raise ValueError(
                "contrast_weight, caption_weight and local_weight must be 0 or more, and one of them more than 0, got "
                f"{', '.join(map(str, weights))}"
            )
        super().__post_init__(**kwargs)
