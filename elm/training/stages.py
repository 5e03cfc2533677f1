"""One stage of a training: its rows, the trainer's settings, training that resumes, the model with whole weights."""

import contextlib
import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel
from torch import nn
from torch.distributed.tensor import DTensor
from tqdm.auto import tqdm
from transformers.integrations.deepspeed import unset_hf_deepspeed_config
from trl import SFTConfig

from data.conversations.rows import QuestionSet, Row
from data.ecg import EcgSource
from data.experiment.conditions import apply
from data.experiment.donors import derangement
from elm.inputs.collator import EcgCollator
from elm.inputs.processing import ElmProcessor
from elm.model.configuration import tokens_per_ecg
from elm.model.modeling import ElmForConditionalGeneration
from elm.model.quantization import is_quantized
from elm.training import hooks, progress
from elm.training.resume import train_to_end
from elm.training.trainer import ElmTrainer, StepTimes

# What an ECG collator needs of TRL. Without `skip_prepare_dataset` and a batch's columns left alone, TRL would tokenize
# the messages itself and train on placeholders without any ECG, and say nothing.
FIXED = {
    "remove_unused_columns": False,
    "dataset_kwargs": {"skip_prepare_dataset": True},
    "max_length": None,
    "length_column_name": "length",
    "push_to_hub": False,  # the trainer would publish checkpoints; the finished model is published with its audit
}


def under_condition(rows: Sequence[Row], questions: QuestionSet, condition: str, seed: int) -> list[Row]:
    """Training rows with the ECGs of a training condition (zeroing is done to the model's inputs, not to rows)."""
    if condition == "none":
        return apply("none", rows)
    if condition == "shuffled":
        patients = {e: questions.patient_of[e] for row in rows for e in row["ecgs"]}
        other = derangement(patients, seed=seed)
        return [{**row, "ecgs": [other[e] for e in row["ecgs"]]} for row in rows]
    return list(rows)


def lengths_of(rows: Sequence[Row], processor: ElmProcessor, source: EcgSource, *, grouped: bool = True) -> list[int]:
    """Lengths of rows, for putting those of like length into a batch: by ECGs, then by characters.

    They are counted before a training condition takes ECGs away or exchanges them: under each, rows come in the same
    order. Where recordings take different numbers of tokens, each token counts as four characters; they are not counted
    if rows are not to be grouped.
    """
    lengths = [_length(row) for row in rows]
    extractor = processor.feature_extractor
    if not (grouped and extractor.varying):
        return lengths
    records = list(dict.fromkeys(record for row in rows for record in row["ecgs"]))
    counts = {
        record: tokens_per_ecg(extractor([source[record]])["token_mask"], processor.pool)[0]
        for record in tqdm(records, desc="Counting tokens", unit="ECG", disable=None)
    }
    return [n + 4 * sum(counts[record] for record in row["ecgs"]) for n, row in zip(lengths, rows)]


def as_dataset(rows: Sequence[Row], lengths: Sequence[int] | None = None) -> Dataset:
    """Rows as the trainer wants them; `length` (`lengths_of`) lets it put rows of like length into a batch."""
    lengths = lengths or [_length(row) for row in rows]
    return Dataset.from_list(
        [
            {"messages": row["messages"], "others": row.get("others", []), "ecgs": row["ecgs"], "length": length}
            for row, length in zip(rows, lengths, strict=True)
        ]
    )


def characters(row: Row) -> int:
    """Characters of all texts of a row."""
    conversations = [row["messages"], *row.get("others", [])]
    return sum(len(part["text"]) for messages in conversations for message in messages for part in message["content"])


def _length(row: Row) -> int:
    """Patients count, and not `ecgs`: rows come in the same order where these are taken away."""
    return 10_000 * len(row["patient_ids"]) + characters(row)


def stage_args(training_args: SFTConfig, name: str, **changes: object) -> SFTConfig:
    """The trainer's settings for one stage, with its own checkpoints."""
    out = str(Path(training_args.output_dir) / "checkpoints" / name)
    pin = training_args.dataloader_pin_memory and torch.cuda.is_available()  # else PyTorch warns of it
    return dataclasses.replace(training_args, output_dir=out, dataloader_pin_memory=pin, **FIXED, **changes)


def train_stage(
    model: ElmForConditionalGeneration,
    processor: ElmProcessor,
    rows: Sequence[Row],
    collator: EcgCollator,
    args: SFTConfig,
    *,
    resume: bool,
    lengths: Sequence[int] | None = None,
    peft_config: LoraConfig | None = None,
    label: str | None = None,
) -> ElmTrainer:
    """Train one stage, from its newest whole checkpoint if there is one.

    `lengths` are those of `lengths_of`, if they are not to be counted on the rows themselves. `label` is what its bar
    is called, if not like the folder of its checkpoints.
    """
    trainer = ElmTrainer(
        model=model,
        args=args,
        train_dataset=as_dataset(rows, lengths),
        processing_class=processor,
        data_collator=collator,
        peft_config=peft_config,
        callbacks=[StepTimes()],
    )
    progress.show(trainer, label or Path(args.output_dir).name)
    if peft_config is None and is_quantized(model):
        # Checkpoints hold what is trained: 4-bit layers could not read theirs back.
        trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
        hooks.save_without(model, model.state_dict().keys() - trained)
    train_to_end(trainer, resume)
    base = _base(trainer.accelerator.unwrap_model(trainer.model))
    hooks.restore(base)
    base.model.mirror_rows()  # of the last step, or of a checkpoint
    return trainer


def whole(trainer: ElmTrainer, rebuild: Callable[[], nn.Module]) -> nn.Module:
    """The model of a finished stage with whole weights, on every process: the next stage and saving need it.

    Where FSDP or DeepSpeed has taken the model apart, that is a new one with what was trained; all else never changed.
    `rebuild` makes the model as it was before the stage.
    """
    model: nn.Module = trainer.accelerator.unwrap_model(trainer.model)
    if not (trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled):
        return model
    parameters = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    gathered: contextlib.AbstractContextManager[object] = contextlib.nullcontext()
    if trainer.is_deepspeed_enabled:
        import deepspeed

        gathered = deepspeed.zero.GatheredParameters(list(parameters.values()))
    with gathered:
        trained = {
            name: (parameter.full_tensor() if isinstance(parameter, DTensor) else parameter).detach().cpu().clone()
            for name, parameter in parameters.items()
        }
    unset_hf_deepspeed_config()  # else ZeRO-3 would take the new model apart while it is built
    model = rebuild()
    unexpected = model.load_state_dict(trained, strict=False).unexpected_keys
    assert not unexpected, unexpected
    _base(model).model.mirror_rows()
    return model


def _base(model: nn.Module) -> ElmForConditionalGeneration:
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    assert isinstance(base, ElmForConditionalGeneration)
    return base
