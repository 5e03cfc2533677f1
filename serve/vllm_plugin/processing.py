"""Recordings to the encoder's inputs inside vLLM, and one placeholder to as many as an ECG has tokens.

Preparation is that of the model's saved feature extractor. What it makes of a recording is cached by the recording's
content: samples, rate and leads.
"""

from collections.abc import Mapping, Sequence

from transformers import BatchFeature
from vllm.config.multimodal import BaseDummyOptions
from vllm.exceptions import VLLMValidationError
from vllm.inputs import MultiModalInput
from vllm.multimodal.inputs import MultiModalFieldConfig, MultiModalKwargsItems
from vllm.multimodal.parse import ModalityDataParser, MultiModalDataItems, MultiModalDataParser, ProcessorBatchItems
from vllm.multimodal.processing import (
    BaseDummyInputsBuilder,
    BaseMultiModalProcessor,
    BaseProcessingInfo,
    ProcessorInputs,
    PromptReplacement,
    TimingContext,
)

from data.ecg import Ecg
from elm import ElmConfig, ElmProcessor
from serve.vllm_plugin.messages import checked, example, refused
from serve.vllm_plugin.settings import processor_of


class EcgItems(ProcessorBatchItems[Ecg]):
    """The recordings of a prompt."""

    def __init__(self, data: Sequence[Ecg]) -> None:
        super().__init__(data, "ecg")

    def get_item_for_hash(self, index: int) -> dict[str, object]:
        """The content of a recording, without its name and its patient's."""
        ecg = self.data[index]
        return {"signal": ecg.signal, "fs": ecg.fs, "leads": list(ecg.leads)}


class EcgParser(MultiModalDataParser):
    """Reads `{"ecg": Ecg | [Ecg, ...]}`, and nothing else."""

    def _get_subparsers(self) -> Mapping[str, ModalityDataParser]:
        return {"ecg": self._parse_ecgs}

    def _parse_ecgs(self, data: object) -> EcgItems:
        ecgs = [data] if isinstance(data, Ecg) else data
        if not isinstance(ecgs, (list, tuple)) or not all(isinstance(ecg, Ecg) for ecg in ecgs):
            raise VLLMValidationError(
                "an ECG must be given as data.ecg.Ecg, several as a list of them", parameter="ecg"
            )
        try:
            return EcgItems([checked(ecg) for ecg in ecgs])
        except ValueError as error:
            raise VLLMValidationError(refused(error), parameter="ecg") from error


class ElmProcessingInfo(BaseProcessingInfo):
    """Answers vLLM's questions about our prompts."""

    def get_hf_config(self) -> ElmConfig:
        """The model's configuration."""
        return self.ctx.get_hf_config(ElmConfig)

    @property
    def processor(self) -> ElmProcessor:
        """The saved processor."""
        return processor_of(self.ctx.model_config)

    def get_data_parser(self) -> EcgParser:
        """A parser of recordings."""
        return EcgParser()

    def get_supported_mm_limits(self) -> Mapping[str, int | None]:
        """No limit to the ECGs; `--limit-mm-per-prompt '{"ecg": 2}'` sets a limit."""
        return {"ecg": None}

    def get_supported_mm_processor_kwargs(self) -> dict[str, set[str]]:
        """None: an ECG is prepared as the model was trained."""
        return {}

    def get_mm_max_tokens_per_item(self, seq_len: int, mm_counts: Mapping[str, int]) -> Mapping[str, int]:
        """The most tokens an ECG takes."""
        return {"ecg": self.get_hf_config().max_tokens_per_ecg}


class ElmDummyInputs(BaseDummyInputsBuilder[ElmProcessingInfo]):
    """A prompt by which vLLM measures how much memory the encoder takes."""

    def get_dummy_text(self, mm_counts: Mapping[str, int]) -> str:
        """Placeholders alone."""
        return self.info.processor.ecg_token * mm_counts.get("ecg", 0)

    def get_dummy_mm_data(
        self, seq_len: int, mm_counts: Mapping[str, int], mm_options: Mapping[str, BaseDummyOptions]
    ) -> dict[str, list[Ecg]]:
        """As many recordings as long as the model reads."""
        seconds = float(vars(self.info.get_hf_config().encoder_config).get("seconds", 10.0))
        return {"ecg": [example(seconds)] * mm_counts.get("ecg", 0)}


class ElmMultiModalProcessor(BaseMultiModalProcessor[ElmProcessingInfo]):
    """Calls our feature extractor where vLLM expects a processor of transformers."""

    def apply(self, inputs: ProcessorInputs, timing_ctx: TimingContext) -> MultiModalInput:
        """The prompt with its ECGs' tokens and the encoder's inputs.

        Raises:
            VLLMValidationError: There are more or fewer placeholders than ECGs, or an ECG cannot be read.
        """
        places = inputs.prompt.count(self.info.processor.ecg_token_id)
        ecgs = inputs.mm_data_items.get_count("ecg", strict=False)
        if places != ecgs:
            counts = f"{places} {self.info.processor.ecg_token} tokens but {ecgs} ECGs are given"
            raise VLLMValidationError(f"the prompt has {counts}: it must have one for each", parameter="ecg")
        return super().apply(inputs, timing_ctx)

    def _call_hf_processor(self, hf_data: Mapping[str, Sequence[Ecg]], hf_kwargs: Mapping[str, object]) -> BatchFeature:
        try:
            return self.info.processor.feature_extractor(list(hf_data["ecgs"]), return_tensors="pt")
        except ValueError as error:
            raise VLLMValidationError(refused(error), parameter="ecg") from error

    def _get_mm_fields_config(
        self, hf_inputs: BatchFeature, hf_processor_mm_kwargs: Mapping[str, object]
    ) -> Mapping[str, MultiModalFieldConfig]:
        return {name: MultiModalFieldConfig.batched("ecg") for name in hf_inputs}

    def _get_prompt_updates(
        self,
        mm_items: MultiModalDataItems,
        hf_processor_mm_kwargs: Mapping[str, object],
        out_mm_kwargs: MultiModalKwargsItems,
    ) -> list[PromptReplacement]:
        config = self.info.get_hf_config()

        def tokens(item: int) -> list[int]:
            (count,) = config.tokens_per_ecg(out_mm_kwargs["ecg"][item]["token_mask"].data[None])
            if not count:
                raise VLLMValidationError("the ECG has no beat or other token for the model to read", parameter="ecg")
            return [config.ecg_token_id] * count

        return [PromptReplacement(modality="ecg", target=[config.ecg_token_id], replacement=tokens)]
