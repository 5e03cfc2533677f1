"""All that recipes share: questions, a model built from parts, training stages that resume, and the saved folder."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import platform
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch
import transformers
import trl
from accelerate import PartialState
from datasets import Dataset
from peft import LoraConfig, PeftModel
from torch import nn
from torch.distributed.tensor import DTensor
from tqdm.auto import tqdm
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.integrations.deepspeed import unset_hf_deepspeed_config
from transformers.trainer_pt_utils import LengthGroupedSampler
from trl import ModelConfig, SFTConfig, SFTTrainer

from data.card import corpora_of
from data.conversations import load_questions
from data.conversations.rows import QuestionSet, Row
from data.ecg import EcgSource
from data.experiment import conditions
from data.experiment.conditions import Altered, apply
from data.experiment.donors import derangement
from data.experiment.leaks import check_leaks
from data.readers.wfdb import write_wfdb
from elm.inputs.collator import EcgCollator
from elm.inputs.features import FeatureStore
from elm.inputs.measured import MeasuredStore
from elm.inputs.processing import ElmProcessor
from elm.model import families, vocabulary
from elm.model.attention import refuse_unmasked
from elm.model.configuration import ElmConfig, tokens_per_ecg
from elm.model.modeling import ElmForConditionalGeneration
from elm.model.quantization import SAVED, is_quantized, merge_into_dequantized, nf4
from elm.saved.folder import resolve, save, save_adapter
from elm.training import dev, tiny
from elm.training.settings import ElmArguments, as_mapping
from encoders import load_encoder, new_encoder
from encoders.registry import find_config

logger = logging.getLogger(__name__)

# --- data -------------------------------------------------------------------------------------------------------------


def questions_for(arguments: ElmArguments) -> QuestionSet:
    """The question set of a run. Simulated recordings are cached with everything else.

    Raises:
        ValueError: Of one of the `question_types` there are no questions.
    """
    settings = as_mapping("dataset_args", arguments.dataset_args)
    if arguments.dataset in ("synthetic", "ecg_qa"):
        settings.setdefault("cache", arguments.cache_dir)
    questions = load_questions(arguments.dataset, **settings)
    if arguments.question_types is not None:
        questions = _of_types(questions, arguments.question_types)
    return dev.few(questions) if arguments.dev else questions


def _of_types(questions: QuestionSet, types: Sequence[str]) -> QuestionSet:
    present = {row["question_type"] for row in questions.train}
    if missing := sorted(set(types) - present):
        raise ValueError(f"{questions.name} has no training questions of type {missing[0]!r}: it has {sorted(present)}")
    train, test = ([row for row in rows if row["question_type"] in types] for rows in (questions.train, questions.test))
    return dataclasses.replace(questions, train=train, test=test)


def questions_of(folder: Path | str) -> QuestionSet:
    """The question set a saved model was trained on, as its training.json records it."""
    return questions_for(_arguments_of(folder))


def stores_of(
    folder: Path | str, model: ElmForConditionalGeneration, processor: ElmProcessor, questions: QuestionSet
) -> tuple[FeatureStore, FeatureStore, FeatureStore]:
    """Caches of a saved model's encoder output: for the recordings, for inputs set to zero, for altered recordings.

    The last one is for the ids that `data.experiment.conditions` makes, and for its present version: what an earlier
    one made of a recording is another recording.
    """
    arguments = _arguments_of(folder)
    features, zeros = (feature_store(arguments, model, processor, questions, zero=zero) for zero in (False, True))
    altered = dataclasses.replace(
        questions, source=Altered(questions.source), source_key=f"{questions.source_key}~{conditions.VERSION}"
    )
    return features, zeros, feature_store(arguments, model, processor, altered)


def _arguments_of(folder: Path | str) -> ElmArguments:
    record = resolve(folder) / "training.json"
    if not record.exists():
        raise FileNotFoundError(f"{folder} has no training.json: it does not say on which questions to ask this model")
    return ElmArguments(**json.loads(record.read_text())["arguments"])


def leaks_of(arguments: ElmArguments, questions: QuestionSet, model: ElmForConditionalGeneration) -> list[str]:
    """What the leak check finds, in sentences for the model card.

    Raises:
        ValueError: Patients or recordings are in training and in the test, and `allow_leaks` is not set.
    """
    leaks = check_leaks(questions, model.config.encoder_config.pretrained_on, arguments.cache_dir)
    if leaks.refusal() and not arguments.allow_leaks:
        raise ValueError(leaks.refusal())
    if leaks.refusal():
        logger.warning("%s", " ".join(leaks.sentences()))
    return leaks.sentences()


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
    """How long rows are, for putting those of like length into a batch: by ECGs, then by characters.

    Of the rows as they are before a training condition takes ECGs away or exchanges them: under each, rows come in the
    same order. Where recordings take different numbers of tokens, each token counts as four characters; they are not
    counted if rows are not to be grouped.
    """
    lengths = [_length(row) for row in rows]
    extractor = processor.feature_extractor
    if not (grouped and extractor.varying):
        return lengths
    records = list(dict.fromkeys(record for row in rows for record in row["ecgs"]))
    counts = {
        record: tokens_per_ecg(extractor([source[record]])["token_mask"], processor.pool)[0]
        for record in tqdm(records, desc="Counting tokens", unit="ECG")
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


def _length(row: Row) -> int:
    conversations = [row["messages"], *row.get("others", [])]
    words = sum(len(part["text"]) for messages in conversations for message in messages for part in message["content"])
    return (
        10_000 * len(row["patient_ids"]) + words
    )  # not `ecgs`: rows come in the same order where these are taken away


# --- model ------------------------------------------------------------------------------------------------------------


def build(
    arguments: ElmArguments, model_args: ModelConfig, questions: QuestionSet, seed: int
) -> tuple[ElmForConditionalGeneration, ElmProcessor]:
    """A model and its processor from a pretrained encoder, a new projector and a pretrained language model."""
    cache, tiny_seed = Path(arguments.cache_dir), seed if arguments.tiny_seed is None else arguments.tiny_seed
    text_path, encoder_path = model_args.model_name_or_path, arguments.encoder
    if arguments.dev:
        text_path = dev.language_model(text_path, model_args.model_revision, questions, cache, seed)
        encoder_path = dev.encoder(encoder_path, cache, seed)
    elif text_path == "tiny" and encoder_path in tiny.ENCODERS:
        text_path, encoder_path = map(str, tiny.both(questions, cache, tiny_seed, encoder_path))
    elif text_path == "tiny":
        text_path = str(tiny.language_model(questions, cache, tiny_seed))
    elif encoder_path in tiny.ENCODERS:
        encoder_path = str(tiny.encoder(questions, cache, tiny_seed, encoder_path))
    encoder_args = as_mapping("encoder_args", arguments.encoder_args)
    torch.manual_seed(seed)  # a new encoder's weights
    if encoder_path == "ecg_byte":
        encoder_path, encoder_args = str(vocabulary.encoder(questions, cache, **encoder_args)), {}
    made = load_encoder if find_config(encoder_path) is None else new_encoder
    encoder, extractor = made(encoder_path, **encoder_args)
    revision = model_args.model_revision if text_path == model_args.model_name_or_path else "main"
    tokenizer = AutoTokenizer.from_pretrained(text_path, revision=revision)
    text_config = AutoConfig.from_pretrained(text_path, revision=revision).get_text_config()
    family = families.family_of(text_config)
    if arguments.quantization and family.transposed:
        raise ValueError(
            f"quantization nf4 does not know the layers of {text_config.model_type} (Conv1D): leave it out"
        )
    tokenizer.chat_template = families.chat_template(tokenizer, family)
    token = families.ecg_token_of(tokenizer, family)
    dtype = getattr(torch, model_args.dtype) if model_args.dtype not in (None, "auto") else model_args.dtype or "auto"
    quantization = nf4() if arguments.quantization else None  # of the language model alone
    language = AutoModelForCausalLM.from_pretrained(
        text_path, revision=revision, dtype=dtype, attn_implementation=model_args.attn_implementation,
        quantization_config=quantization, device_map={"": PartialState().device} if quantization is not None else None,
    )  # fmt: skip
    families.fit_vocabulary(language, len(tokenizer))
    start = None
    if arguments.projector_type == "vocabulary":
        start = vocabulary.extend(language, tokenizer, extractor, seed)
    of_language = {
        "vocab_size": language.get_input_embeddings().num_embeddings,
        "tie_word_embeddings": language.config.tie_word_embeddings,
    }
    config = ElmConfig(
        text_config=text_config.to_dict() | of_language,
        encoder_config=encoder.config,
        ecg_token_id=tokenizer.convert_tokens_to_ids(token),
        projector_type=arguments.projector_type,
        projector_norm=arguments.projector_norm,
        projector_pool=arguments.projector_pool,
        projector_pool_mode=arguments.projector_pool_mode,
        vocabulary_start=start,
    )
    torch.manual_seed(seed)  # the projector's weights
    model = ElmForConditionalGeneration.from_parts(config, encoder, language)
    families.refuse_other_logits(model, language)
    processor = ElmProcessor(
        extractor,
        tokenizer,
        ecg_token=token,
        pool=arguments.projector_pool,
        measured=arguments.measured,
        measured_amplitudes=arguments.measured_amplitudes,
    )
    families.end_answers(model, tokenizer, processor.answer_ids("yes")[-1])
    return model, processor


def lora(model_args: ModelConfig, model: ElmForConditionalGeneration, train_encoder: bool) -> LoraConfig:
    """LoRA on the language model's layers (`elm.model.families`); projector, and encoder if asked, trained in full."""
    language = model.model.language_model
    targets = families.lora_targets(language, model_args.lora_target_modules)
    return LoraConfig(
        task_type="CAUSAL_LM",
        r=model_args.lora_r,
        lora_alpha=model_args.lora_alpha,
        lora_dropout=model_args.lora_dropout,
        use_rslora=model_args.use_rslora,
        # The path keeps layers of the encoder that have the same names out of it.
        target_modules=rf"model\.language_model\.(.*\.)?({'|'.join(targets)})",
        fan_in_fan_out=families.family_of(language.config).transposed,
        modules_to_save=["projector", *(["encoder"] if train_encoder else [])],
    )


def build_collator(
    arguments: ElmArguments, model: ElmForConditionalGeneration, processor: ElmProcessor, questions: QuestionSet
) -> EcgCollator:
    """A collator over the recordings, or over the frozen encoder's cached output."""
    zero = arguments.train_condition == "zero"
    if arguments.questions_per_row > 1:
        refuse_unmasked(model.model.language_model.config._attn_implementation)
    features = None if arguments.train_encoder else feature_store(arguments, model, processor, questions, zero=zero)
    return EcgCollator(
        processor,
        questions.source,
        features,
        zero_inputs=model.model.encoder.ecg_inputs if zero and features is None else (),
        zero_token=model.model.encoder.zero_token,
        measured=None if zero else measured_store(arguments, questions),
    )


def measured_store(arguments: ElmArguments, questions: QuestionSet) -> MeasuredStore | None:
    """What is measured in the recordings of a question set, where the model is to be told."""
    if not arguments.measured:
        return None
    return MeasuredStore(questions.source, questions.source_key, arguments.cache_dir)


def measured_of(folder: Path | str, questions: QuestionSet) -> MeasuredStore | None:
    """The same for a saved model."""
    return measured_store(_arguments_of(folder), questions)


def feature_store(
    arguments: ElmArguments,
    model: ElmForConditionalGeneration,
    processor: ElmProcessor,
    questions: QuestionSet,
    zero: bool = False,
) -> FeatureStore:
    """The encoder's output for the recordings of a question set."""
    encoder, extractor = model.model.encoder, processor.feature_extractor
    return FeatureStore(
        encoder, extractor, questions.source, questions.source_key, arguments.cache_dir, zero, arguments.cache_gb
    )


def share(arguments: ElmArguments, training_args: SFTConfig, model_args: ModelConfig, questions: QuestionSet) -> None:
    """Make what several runs on these questions then find in the cache: tiny models, and a frozen encoder's output."""
    model, processor = build(arguments, model_args, questions, training_args.seed)
    records = [record for row in (*questions.reports, *questions.train, *questions.test) for record in row["ecgs"]]
    if (measured := measured_store(arguments, questions)) is not None:
        measured.fill(records)
    if not arguments.train_encoder:
        for zero in (False, True):
            feature_store(arguments, model, processor, questions, zero=zero).fill(records, device=PartialState().device)


# --- stages -----------------------------------------------------------------------------------------------------------


def stage_args(training_args: SFTConfig, name: str, **changes: Any) -> SFTConfig:
    """The trainer's settings for one stage: its own checkpoints, and what an ECG collator needs of TRL.

    Without `skip_prepare_dataset` and a batch's columns left alone, TRL would tokenize the messages itself and train on
    placeholders without any ECG, and say nothing.
    """
    out = str(Path(training_args.output_dir) / "checkpoints" / name)
    fixed = {
        "remove_unused_columns": False,
        "dataset_kwargs": {"skip_prepare_dataset": True},
        "max_length": None,
        "length_column_name": "length",
        "push_to_hub": False,  # the trainer would publish checkpoints; the finished model is published with its audit
    }
    return dataclasses.replace(training_args, output_dir=out, **fixed, **changes)


def newest_whole_checkpoint(folder: Path | str) -> str | None:
    """The newest checkpoint that was written to its end: its `trainer_state.json`, written last, can be read."""
    found = sorted(Path(folder).glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]), reverse=True)
    for checkpoint in found:
        try:
            json.loads((checkpoint / "trainer_state.json").read_text())
        except (OSError, ValueError):
            logger.warning("%s was not written to its end: left aside", checkpoint)
            continue
        return str(checkpoint)
    return None


class LengthGrouped(LengthGroupedSampler):
    """Rows of like length together, in an order that follows from the seed and the epoch alone.

    The stock sampler draws from the global generator: what else was drawn from it, and where in an epoch a run was
    interrupted, would change the order.
    """

    def __init__(self, batch_size: int, lengths: list[int], seed: int) -> None:
        super().__init__(batch_size, lengths=lengths, generator=torch.Generator())
        self.seed, self.epoch = seed, 0

    def set_epoch(self, epoch: int) -> None:
        """The trainer says which epoch begins."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        """Indices of all rows."""
        self.generator.manual_seed(1_000_003 * self.seed + self.epoch)
        order: Iterator[int] = super().__iter__()
        return order


class ElmTrainer(SFTTrainer):
    """TRL's trainer, with rows of like length grouped over the global batch, and on a CPU only answers scored.

    The stock sampler groups over a process's own batch: the order of rows would depend on the number of processes. And
    the stock loss, on a CPU, asks the head for every position of a row, though most are an ECG's or a question's.
    """

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> Any:
        sampler = super()._get_train_sampler(train_dataset)
        if isinstance(sampler, LengthGroupedSampler):
            return LengthGrouped(sampler.batch_size * self.args.world_size, sampler.lengths, self.args.seed)
        return sampler

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """The stock loss, of answers alone."""
        labels: torch.Tensor = inputs["labels"]
        if labels.device.type == "cpu" and "shift_labels" not in inputs:
            said = labels[:, 1:] != -100
            most = max(1, int(said.sum(dim=1).max()))
            places = (~said).long().argsort(dim=1, stable=True)[:, :most]  # of each row, in order; then some others
            inputs = {**inputs, "scored": places, "shift_labels": labels[:, 1:].gather(1, places)}
        return super().compute_loss(model, inputs, *args, **kwargs)

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        """What is trained must be in a checkpoint. Tied and 4-bit weights are not, and need not be."""
        trained = {name for name, parameter in self.model.named_parameters() if parameter.requires_grad}
        if missing := sorted(trained.intersection(load_result.missing_keys)):
            raise ValueError(f"the checkpoint has no {missing[0]}, which is trained: give --resume false to start over")


class StepTimes(TrainerCallback):
    """Puts into each entry of the log the seconds of a step, the median of those since the last, and on what.

    From the end of one step to the end of the next: reading and collating counts, writing a checkpoint does not. The
    log is in the checkpoints, so that a run which was interrupted knows the times of its first part, too.
    """

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.since: float | None = None

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Not the first step of a process, in which much is set up."""
        now = time.perf_counter()
        if self.since is not None:
            self.seconds.append(now - self.since)
        self.since = now

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """What follows is another step."""
        self.since = time.perf_counter()

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """The entry was just made."""
        if self.seconds:
            device = torch.cuda.get_device_name(args.device) if args.device.type == "cuda" else _processor()
            state.log_history[-1] |= {"seconds_per_step": round(median(self.seconds), 6), "measured_on": device}
            self.seconds = []


def _processor() -> str:
    threads = torch.get_num_threads()
    return f"{platform.processor() or platform.machine()} CPU, {threads} thread{'s' if threads > 1 else ''}"


def train_stage(
    model: Any,
    processor: ElmProcessor,
    rows: Sequence[Row],
    collator: EcgCollator,
    args: SFTConfig,
    *,
    resume: bool,
    lengths: Sequence[int] | None = None,
    peft_config: LoraConfig | None = None,
) -> SFTTrainer:
    """Train one stage with TRL's `SFTTrainer`, from its newest whole checkpoint if there is one.

    `lengths` are those of the rows by `lengths_of`, if the rows are not what it should be told of.
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
    if peft_config is None and is_quantized(model):
        # Checkpoints of what is trained: 4-bit layers could not read theirs back.
        trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
        model._keys_to_ignore_on_save = model.state_dict().keys() - trained
    checkpoint = newest_whole_checkpoint(args.output_dir) if resume else None
    done = TrainerState.load_from_json(f"{checkpoint}/trainer_state.json") if checkpoint else None
    if done is not None and done.global_step >= done.max_steps:
        # `train` would take one step too many.
        logger.warning("already trained: %s", checkpoint)
        trainer._load_from_checkpoint(checkpoint)
        trainer.state = done
    else:
        if checkpoint:
            logger.warning("going on from %s", checkpoint)
        trainer.train(resume_from_checkpoint=checkpoint)
    # TRL patched the instance's forward for its fused head, accelerate for autocast; the class's own is what everyone
    # should meet. With its mark left on, accelerate would take the next stage's model for prepared: no autocast.
    base = trainer.accelerator.unwrap_model(trainer.model)
    base = base.get_base_model() if peft_config is not None else base
    for name in ("forward", "_original_forward", "_is_accelerate_prepared"):
        base.__dict__.pop(name, None)
    base._keys_to_ignore_on_save = set()
    base.model.mirror_rows()  # of the last step, or of a checkpoint
    return trainer


def whole(trainer: SFTTrainer, rebuild: Callable[[], nn.Module]) -> nn.Module:
    """The model of a finished stage with whole weights, on every process: the next stage and saving need it.

    Where FSDP or DeepSpeed has taken the model apart, that is a new one with what was trained; the rest never changed.

    Args:
        trainer: Of the stage.
        rebuild: Makes the model as it was before the stage.
    """
    model: nn.Module = trainer.accelerator.unwrap_model(trainer.model)
    if not (trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled):
        return model
    parameters = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    gathered: Any = contextlib.nullcontext()
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
    base: Any = model.get_base_model() if isinstance(model, PeftModel) else model
    base.model.mirror_rows()
    return model


# --- the saved folder -------------------------------------------------------------------------------------------------


def save_run(
    trainer: SFTTrainer,
    tuned: PeftModel,
    processor: ElmProcessor,
    questions: QuestionSet,
    arguments: ElmArguments,
    model_args: ModelConfig,
    training_args: SFTConfig,
    base_weights: str,
    leaks: Sequence[str] = (),
) -> Path:
    """Merge the adapter and write the model's folder: weights, processor, adapter, examples, records and card.

    `tuned` is the trained model with whole weights, `leaks` what `leaks_of` said.
    """
    training = {
        "dataset_name": questions.name,
        "corpora": corpora_of(questions),
        "notes": questions.notes,
        "leaks": list(leaks),
        "language_model": model_args.model_name_or_path,
        "train_condition": arguments.train_condition,
        "arguments": dataclasses.asdict(arguments),
        "processes": training_args.world_size,
        "lora": {"r": model_args.lora_r, "alpha": model_args.lora_alpha},
        "quantization": SAVED if arguments.quantization else None,
        "trainer": {k: v for k, v in training_args.to_dict().items() if isinstance(v, (int, float, str, bool))},
        "losses": [entry["loss"] for entry in trainer.state.log_history if "loss" in entry],
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "trl": trl.__version__,
                     "transformers": transformers.__version__},
    }  # fmt: skip
    # The adapter is written before the merge takes it into the weights.
    folder = Path(training_args.output_dir)
    with tempfile.TemporaryDirectory(dir=folder) as aside:
        save_adapter(tuned, Path(aside) / "adapter", base_weights)
        for record in _examples(questions):
            write_wfdb(questions.source[record], Path(aside) / "examples")
        if is_quantized(tuned):
            merged = merge_into_dequantized(tuned, Path(aside) / "adapter")
        else:
            merged = tuned.merge_and_unload()
        merged.to(merged.lm_head.weight.dtype)
        return save(merged, processor, folder, training=training, beside=Path(aside))


def _examples(questions: QuestionSet, count: int = 3) -> list[str]:
    """One recording of each of the first held-out patients."""
    by_patient: dict[str, str] = {}
    for record in sorted({record for row in questions.test for record in row["ecgs"]}):
        by_patient.setdefault(questions.patient_of[record], record)
    return list(by_patient.values())[:count]
