"""Settings of HeartLang's pretraining, its data, and what the weights have seen."""

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from transformers import TrainingArguments

from data.experiment.recordings import Recordings
from elm.saved.arguments import setting
from elm.training import dev
from elm.training.pretraining import PretrainingArguments
from encoders import new_encoder, save_encoder
from encoders.heartlang import HeartLangVQ, pretraining


@dataclass(kw_only=True)
class HeartLangArguments(PretrainingArguments):
    """Settings of HeartLang's pretraining."""

    stage: Literal["vqhbr", "sentence"] = field(metadata={"help": "Codebook first, then masked sentences."})
    vqhbr: str = setting("", "Stage sentence: folder, hub id or file of the VQ-HBR.")
    target_positions: bool = setting(True, "Give leads and times to the VQ-HBR for the codes, unlike upstream.")
    mask_share: float = setting(0.5, "Share of the words that is hidden.")
    mask_padding: bool = setting(False, "Hide and guess padding like words, as upstream.")
    baseline_records: int = setting(10_000, "Recordings trained on that baselines are computed from, evenly over all.")


def pretrained_on(arguments: HeartLangArguments, recordings: Recordings, vqhbr: HeartLangVQ | None) -> str:
    """Data that the weights have seen, in words: the audit looks there for the recordings it asks about."""
    seen = f"{recordings.name}: recordings without reports or labels (HeartLang)"
    if vqhbr is None or vqhbr.config.pretrained_on == seen:
        return seen
    return f"{seen}; codes of a VQ-HBR pretrained on: {vqhbr.config.pretrained_on or 'nothing stated'}"


def for_dev(
    arguments: HeartLangArguments, training_args: TrainingArguments
) -> tuple[HeartLangArguments, TrainingArguments]:
    """The settings of a `--dev` run; where there is no VQ-HBR, one with random weights gives the codes."""
    sizes = pretraining.SMALL_VQ if arguments.stage == "vqhbr" else pretraining.SMALL
    sizes = arguments.mapping("encoder_args") | sizes
    arguments, training_args = dev.in_temporary_folder(arguments, training_args, encoder_args=sizes)
    if arguments.stage == "sentence" and not Path(arguments.vqhbr).exists():
        folder = Path(arguments.cache_dir) / "vqhbr"
        with training_args.main_process_first(desc="codebook"):
            if not folder.exists():
                extractor_args = arguments.mapping("extractor_args")
                save_encoder(*new_encoder("ecg_heartlang_vq", **pretraining.SMALL_VQ, **extractor_args), folder)
        arguments = dataclasses.replace(arguments, vqhbr=str(folder))
    return arguments, training_args
