"""What every ECG encoder of the house keeps to: its configuration, its output, its feature extractor.

An encoder is one folder: a configuration, a model, a feature extractor. The three are saved together, and what the
weights depend on (sampling rate, duration, lead order, scaling) lives in the extractor, never in the caller.
"""

import logging
import math
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar, Self, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import BatchFeature, FeatureExtractionMixin, PreTrainedConfig, PreTrainedModel
from transformers.utils import ModelOutput

from data.ecg import Ecg

logger = logging.getLogger(__name__)

SLACK = 0.05  # s beyond what is read that nobody misses: 5,001 samples at 500 Hz are a recording of 10 s

Settings = dict[str, Any]  # fields of configurations, and settings of extractors, by name
Features = dict[str, NDArray[np.generic]]  # what becomes of one recording, by name


@dataclass
class EcgEncoderOutput(ModelOutput):
    """Tokens of a batch of ECGs."""

    last_hidden_state: torch.FloatTensor | None = None  # `[B, T, D]`, what the projector reads
    mask: torch.BoolTensor | None = None  # bool `[B, T]`, true where a token carries signal
    # `[B, P]`, what the encoder's paper gives to a linear probe of a recording; `None` where there is no such paper.
    probe: torch.FloatTensor | None = None


@dataclass(frozen=True)
class TokenSpan:
    """The part of a recording that a token is about, from second `start` to `end`."""

    lead: str | None  # `None` for all leads
    start: float
    end: float


class EcgEncoderConfig(PreTrainedConfig):
    """Settings of an encoder."""

    pretrained_on: str = ""  # what the weights have seen (corpora, splits, reports or labels), in words; empty for none

    @property
    def output_dim(self) -> int:
        """D of `last_hidden_state`."""
        raise NotImplementedError(f"{type(self).__name__} must state output_dim")

    @property
    def max_tokens(self) -> int:
        """Largest T of `last_hidden_state` for the input length the feature extractor gives."""
        raise NotImplementedError(f"{type(self).__name__} must state max_tokens")


class SignalConfig(EcgEncoderConfig):
    """Settings of an encoder of the signal itself."""

    sampling_rate: int = 100  # Hz of the input
    seconds: float = 10.0  # duration of the input
    in_channels: int = 12  # leads of the input

    @property
    def num_samples(self) -> int:
        """Samples of the input."""
        return round(self.seconds * self.sampling_rate)


def check_choice(name: str, value: object, choices: object) -> None:
    """Refuse, with a `ValueError`, a setting that is none of the choices of a `Literal` or of a tuple."""
    words = choices if isinstance(choices, tuple) else get_args(choices)
    if value not in words:
        raise ValueError(f"{name} must be one of {', '.join(words)}, got {value!r}")


class EcgEncoder(PreTrainedModel):
    """Base of the encoders: `forward(**features) -> EcgEncoderOutput` for the features its extractor makes."""

    # Names of the tensors of `forward`, as its feature extractor names them, without `token_mask`.
    ecg_inputs: ClassVar[tuple[str, ...]] = ("ecg_values",)
    zero_token: int | None = None  # where an ECG is tokens (ECG-Byte), the one that all become when it is set to zero
    main_input_name = "ecg_values"
    # Our encoders call torch's SDPA themselves, whatever is asked for. Without these three flags a language model
    # around an encoder could not choose its own implementation: transformers asks every sub-model for permission.
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True


def output_mask(tokens: torch.Tensor, token_mask: torch.Tensor | None) -> torch.Tensor:
    """The mask of tokens `[B, T, D]`: the extractor's `token_mask`, bool `[B, T]`, or all true without one.

    Raises:
        ValueError: `token_mask` is for another number of tokens.
    """
    if token_mask is None:
        return torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device)
    if token_mask.shape != tokens.shape[:2]:
        raise ValueError(
            f"token_mask is {tuple(token_mask.shape)} but the encoder gives {tuple(tokens.shape[:2])} tokens: "
            "was the feature extractor made for another `output` or duration?"
        )
    return token_mask.bool()


class EcgFeatureExtractor(FeatureExtractionMixin):
    """Turns recordings into the tensors of an encoder's `forward`, and owns all that its weights depend on.

    Sampling rate, duration, lead order by name, filter and normalisation belong here, so that preprocessing travels
    with the weights. A subclass says in `features` what one recording becomes; every record of a batch is treated on
    its own and has the same shapes, so its features do not depend on its neighbours.
    """

    # Names of the settings that do not follow from the encoder's configuration (`from_config`).
    own_settings: ClassVar[tuple[str, ...]] = ()
    varying: ClassVar[bool] = False  # whether recordings as long as each other can take different numbers of tokens

    def __init__(self, **kwargs: object) -> None:
        # transformers writes these two into preprocessor_config.json; any other name it would keep as an attribute that
        # nothing reads, so a misspelt setting would go unnoticed.
        if unknown := kwargs.keys() - {"feature_extractor_type", "processor_class"}:
            raise TypeError(f"{type(self).__name__} has no setting {', '.join(sorted(unknown))}")
        super().__init__()

    @classmethod
    def from_config(cls, config: EcgEncoderConfig, **extra: Any) -> Self:
        """The extractor that fits an encoder: what follows from `config`, and any of `own_settings`.

        Raises:
            ValueError: The settings contradict the configuration.
        """
        raise NotImplementedError(f"{cls.__name__} must say how it follows from a configuration")

    def with_leads(self, config: EcgEncoderConfig, count: str = "in_channels") -> Self:
        """The extractor itself; raises `ValueError` where the encoder takes another number of `leads`."""
        wanted, leads = vars(config)[count], vars(self)["leads"]
        if len(leads) != wanted:
            raise ValueError(f"the encoder takes {wanted} leads, not {', '.join(leads)}: set its {count}")
        return self

    def own_values(self) -> Settings:
        """The values of `own_settings`, by name."""
        values = self.to_dict()
        return {name: values[name] for name in self.own_settings}

    @property
    def seconds_read(self) -> float:
        """Seconds that it reads of a longer recording, the first ones: its setting `seconds`, infinite without one.

        A subclass that reads another number of them says so.
        """
        return float(vars(self).get("seconds") or math.inf)

    def features(self, ecg: Ecg) -> Features:
        """The encoder's inputs and `token_mask` of one recording, each without the batch dimension."""
        raise NotImplementedError(f"{type(self).__name__} must turn a recording into features")

    def __call__(self, ecgs: Ecg | list[Ecg], return_tensors: str | None = "pt") -> BatchFeature:
        """The encoder's inputs (`ecg_inputs`) and `token_mask`, bool `[B, T]`; `return_tensors` is `"pt"` or `"np"`.

        Raises:
            TypeError: Something is no `Ecg`.
            ValueError: No recording, or one that cannot be read (its record id is named).
        """
        batch = [ecgs] if isinstance(ecgs, Ecg) else list(ecgs)
        for ecg in batch:
            if not isinstance(ecg, Ecg):
                raise TypeError(f"expected data.ecg.Ecg (signal, rate, lead names), got {type(ecg).__name__}")
        if not batch:
            raise ValueError("no recording to extract features from")
        if any(ecg.duration > self.seconds_read + SLACK for ecg in batch):
            _say_once(f"{type(self).__name__} reads the first {self.seconds_read:g} s of longer recordings")
        rows = [self.features(ecg) for ecg in batch]
        return BatchFeature(
            {name: np.stack([row[name] for row in rows]) for name in rows[0]}, tensor_type=return_tensors
        )


@cache
def _say_once(sentence: str) -> None:
    """Log a sentence the first time it is said in this process: a corpus may have thousands of long recordings."""
    logger.warning(sentence)


def first_seconds(ecg: Ecg, leads: tuple[str, ...], sampling_rate: float, seconds: float) -> NDArray[np.float64]:
    """The named leads at `sampling_rate`, at most the first `seconds`: float64 `[leads, samples]` in millivolts.

    Raises:
        ValueError: A lead is missing, or a sample is not finite; the record is named.
    """
    ecg = ecg.select(leads)
    bad = [lead for lead, row in zip(ecg.leads, ecg.signal) if not np.isfinite(row).all()]
    if bad:
        raise ValueError(
            f"record {ecg.record_id!r} has samples that are not finite (NaN or infinite) in {', '.join(bad)}"
        )
    signal = ecg.resample(sampling_rate).signal[:, : round(seconds * sampling_rate)]
    # Files hold decimal millivolts, `Ecg` holds float32: the nearest nanovolt is the number the file had.
    return np.round(signal.astype(np.float64), 6)
