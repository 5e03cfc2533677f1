"""All that recipes share: arguments, building a model from parts, training stages that resume, and the saved folder."""

from __future__ import annotations

import dataclasses
import inspect
import json
import logging
import os
import platform
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from zlib import crc32

import torch
import transformers
import trl
from accelerate import PartialState
from datasets import Dataset
from peft import LoraConfig
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase, TrainerState
from transformers.trainer_pt_utils import LengthGroupedSampler
from trl import ModelConfig, SFTConfig, SFTTrainer, get_quantization_config

from data.conditions import Altered, apply
from data.conversations import load_questions
from data.conversations.rows import QuestionSet, Row
from data.donors import derangement
from data.files import written_whole
from data.readers.wfdb import write_wfdb
from data.synthetic import SyntheticCohort
from elm import tiny
from elm.collator import EcgCollator
from elm.configuration import ElmConfig
from elm.features import FeatureStore
from elm.folder import save, save_adapter
from elm.modeling import ElmForConditionalGeneration
from elm.processing import ElmProcessor
from encoders import load_encoder
from encoders.patch import patch_encoder

logger = logging.getLogger(__name__)

# Settings of the trainer without which a checkpoint is one of another run.
_OF_A_RUN = (
    "seed",
    "max_steps",
    "num_train_epochs",
    "learning_rate",
    "lr_scheduler_type",
    "warmup_steps",
    "weight_decay",
)
_NOT_OF_A_RUN = ("resume", "text_only", "ablation", "cache_dir", "threads")
TRAIN_CONDITIONS = ("real", "zero", "none", "shuffled")


@dataclass
class ElmArguments:
    """What is trained on what. The language model is `model_name_or_path`; its LoRA settings are `lora_*`."""

    dataset: str = field(default="synthetic", metadata={"help": "Question set: synthetic or ecg_qa."})
    dataset_args: dict[str, Any] | str | None = field(
        default=None, metadata={"help": "Settings of the question set, as JSON (a mapping in YAML)."}
    )
    question_types: list[str] | None = field(
        default=None, metadata={"help": "Train and ask only questions of these types, e.g. single-verify."}
    )
    encoder: str = field(
        default="tiny",
        metadata={
            "help": "ECG encoder: a folder, a hub id, 'tiny' to train a small one from the reports first, or 'patch' "
            "for patches of the signal itself."
        },
    )
    encoder_args: dict[str, Any] | str | None = field(
        default=None, metadata={"help": 'Settings of the encoder to change, as JSON, e.g. {"output": "features"}.'}
    )
    train_encoder: bool = field(default=False, metadata={"help": "Train the encoder in full, too."})
    tiny_seed: int | None = field(default=None, metadata={"help": "Seed of what is 'tiny', if not that of the run."})
    projector_type: str = field(default="mlp", metadata={"help": "linear or mlp."})
    projector_norm: bool = field(default=True, metadata={"help": "Put a LayerNorm before the projector."})
    projector_pool: int = field(default=1, metadata={"help": "Encoder tokens that become one language-model token."})
    projector_pool_mode: str = field(default="stack", metadata={"help": "stack or mean."})
    align_steps: int = field(default=0, metadata={"help": "Steps of the align stage: projector only, report text."})
    align_learning_rate: float = field(default=1e-3, metadata={"help": "Its learning rate."})
    train_condition: str = field(
        default="real", metadata={"help": "ECGs given in training: real, zero, none or shuffled (another patient's)."}
    )
    reports_in_sft: bool = field(default=False, metadata={"help": "Keep the reports among the rows of the sft stage."})
    turns: int = field(default=1, metadata={"help": "Questions about the same ECGs joined into one dialogue."})
    cache_dir: str = field(default="out/cache", metadata={"help": "Folder for what is computed once."})
    threads: int = field(
        default=0, metadata={"help": "CPU threads of a process in training; 0 leaves it to PyTorch and the launcher."}
    )
    resume: bool = field(default=True, metadata={"help": "Go on from the newest whole checkpoint of the same run."})
    text_only: bool = field(
        default=False,
        metadata={"help": "Train the same without ECGs, too, into text-only/: a row of reference in the audit."},
    )
    ablation: bool = field(
        default=True, metadata={"help": "Ask the held-out questions at the end, with and without ECG."}
    )

    def __post_init__(self) -> None:
        self.dataset_args = _mapping("dataset_args", self.dataset_args)
        self.encoder_args = _mapping("encoder_args", self.encoder_args)
        if self.train_condition not in TRAIN_CONDITIONS:
            raise ValueError(
                f"train_condition must be one of {', '.join(TRAIN_CONDITIONS)}, got {self.train_condition!r}"
            )


def _mapping(name: str, value: dict[str, Any] | str | None) -> dict[str, Any]:
    """A setting that is a mapping in YAML and JSON on the command line."""
    try:
        found = json.loads(value) if isinstance(value, str) else value or {}
    except json.JSONDecodeError as error:
        raise ValueError(f'--{name} must be JSON such as \'{{"output": "features"}}\', got {value!r}') from error
    if not isinstance(found, dict):
        raise ValueError(f"{name} must be a mapping, got {found!r}")
    return found


def check_launch() -> None:
    """Refuse a launch that silently runs one process where several were asked for.

    `accelerate launch --cpu --num_processes 2` sets the address of a process group and then starts a single process
    outside of any group.
    """
    if "MASTER_ADDR" in os.environ and "WORLD_SIZE" not in os.environ:
        raise RuntimeError(
            "several processes were asked for but only one was started: on CPUs use "
            "`torchrun --nproc_per_node 2` or `accelerate launch --config_file recipes/accelerate/two_cpus.yaml`"
        )


def claim(arguments: ElmArguments, training_args: SFTConfig, model_args: ModelConfig) -> None:
    """Note in `checkpoints/run.json` which run the output folder belongs to. Raises as `claim_folder` does."""
    folder = Path(training_args.output_dir) / "checkpoints"
    settings = settings_of_a_run(arguments, training_args, model_args)
    claim_folder(folder, settings, resume=arguments.resume, write=training_args.process_index == 0)


def settings_of_a_run(arguments: ElmArguments, training_args: SFTConfig, model_args: ModelConfig) -> dict[str, Any]:
    """All settings without which a checkpoint is one of another run, as JSON knows them."""
    settings = {
        **{k: v for k, v in dataclasses.asdict(arguments).items() if k not in _NOT_OF_A_RUN},
        **{k: v for k, v in dataclasses.asdict(model_args).items() if v is not None},
        "batch_size": training_args.train_batch_size
        * training_args.gradient_accumulation_steps
        * training_args.world_size,
        **{name: training_args.to_dict()[name] for name in _OF_A_RUN},
    }
    return dict(json.loads(json.dumps(settings)))


def claim_folder(folder: Path, settings: dict[str, Any], *, resume: bool, write: bool = True) -> None:
    """Note in `folder/run.json` what a folder of results was made with; without `resume`, empty it first.

    Raises:
        ValueError: It was made with other settings; names the first that differ.
    """
    record = folder / "run.json"
    if resume and record.exists():
        found = json.loads(record.read_text())
        differ = [f"{k} {found.get(k)!r} but now {settings.get(k)!r}" for k in settings if found.get(k) != settings[k]]
        if differ:
            raise ValueError(
                f"{folder} holds checkpoints of another run ({'; '.join(differ[:3])}): "
                "give another output_dir, or --resume false to start over"
            )
    if write:
        if not resume:  # of what is there nothing may be taken for a checkpoint of this run
            shutil.rmtree(folder, ignore_errors=True)
        with written_whole(record, "w") as file:
            json.dump(settings, file, indent=2)


# --- data -------------------------------------------------------------------------------------------------------------


def questions_for(arguments: ElmArguments) -> QuestionSet:
    """The question set of a run. Simulated recordings are cached with everything else.

    Raises:
        ValueError: Of one of the `question_types` there are no questions.
    """
    settings = _mapping("dataset_args", arguments.dataset_args)
    if arguments.dataset == "synthetic":
        settings.setdefault("cache", arguments.cache_dir)
    questions = load_questions(arguments.dataset, **settings)
    if arguments.question_types is None:
        return questions
    present = {row["question_type"] for row in questions.train}
    if missing := sorted(set(arguments.question_types) - present):
        raise ValueError(f"{questions.name} has no training questions of type {missing[0]!r}: it has {sorted(present)}")
    train, test = (
        [row for row in rows if row["question_type"] in arguments.question_types]
        for rows in (questions.train, questions.test)
    )
    return dataclasses.replace(questions, train=train, test=test)


def questions_of(folder: Path | str) -> QuestionSet:
    """The question set a saved model was trained on, as its training.json records it."""
    return questions_for(_arguments_of(folder))


def stores_of(
    folder: Path | str, model: ElmForConditionalGeneration, processor: ElmProcessor, questions: QuestionSet
) -> tuple[FeatureStore, FeatureStore, FeatureStore]:
    """Caches of a saved model's encoder output: for the recordings, for inputs set to zero, for altered recordings.

    The last one is for the ids that `data.conditions` makes, and for its present version: what an earlier one made of a
    recording is another recording.
    """
    arguments = _arguments_of(folder)
    features, zeros = (feature_store(arguments, model, processor, questions, zero=zero) for zero in (False, True))
    made_by = b"".join(Path(inspect.getfile(kind)).read_bytes() for kind in (Altered, SyntheticCohort))
    version = f"{crc32(made_by):08x}"
    altered = dataclasses.replace(
        questions, source=Altered(questions.source), source_key=f"{questions.source_key}~{version}"
    )
    return features, zeros, feature_store(arguments, model, processor, altered)


def _arguments_of(folder: Path | str) -> ElmArguments:
    record = Path(folder) / "training.json"
    if not record.exists():
        raise FileNotFoundError(f"{folder} has no training.json: it does not say on which questions to ask this model")
    return ElmArguments(**json.loads(record.read_text())["arguments"])


def under_condition(rows: Sequence[Row], questions: QuestionSet, condition: str, seed: int) -> list[Row]:
    """Training rows with the ECGs of a training condition (zeroing is done to the model's inputs, not to rows)."""
    if condition == "none":
        return apply("none", rows)
    if condition == "shuffled":
        patients = {e: questions.patient_of[e] for row in rows for e in row["ecgs"]}
        other = derangement(patients, seed=seed)
        return [{**row, "ecgs": [other[e] for e in row["ecgs"]]} for row in rows]
    return list(rows)


def as_dataset(rows: Sequence[Row]) -> Dataset:
    """Rows as the trainer wants them; `length` (ECGs, then characters) lets it put rows of like length into a batch."""
    return Dataset.from_list(
        [{"messages": row["messages"], "ecgs": row["ecgs"], "length": _length(row)} for row in rows]
    )


def _length(row: Row) -> int:
    words = sum(len(part["text"]) for message in row["messages"] for part in message["content"])
    return (
        10_000 * len(row["patient_ids"]) + words
    )  # not `ecgs`: rows come in the same order where these are taken away


# --- model ------------------------------------------------------------------------------------------------------------


def ecg_token_of(tokenizer: PreTrainedTokenizerBase) -> str:
    """The placeholder token: `<ecg>`, or a reserved one of the tokenizer, or `<ecg>` added to it.

    A reserved token needs no new embedding row; the row itself is never read, an ECG's tokens stand in its place.
    """
    vocabulary = tokenizer.get_vocab()
    for token in ("<ecg>", "<|reserved_special_token_0|>"):
        if token in vocabulary:
            return token
    tokenizer.add_special_tokens({"additional_special_tokens": ["<ecg>"]}, replace_additional_special_tokens=False)
    return "<ecg>"


def build(
    arguments: ElmArguments, model_args: ModelConfig, questions: QuestionSet, seed: int
) -> tuple[ElmForConditionalGeneration, ElmProcessor]:
    """A model and its processor from a pretrained encoder, a new projector and a pretrained language model."""
    cache, tiny_seed = Path(arguments.cache_dir), seed if arguments.tiny_seed is None else arguments.tiny_seed
    text_path, encoder_path = model_args.model_name_or_path, arguments.encoder
    if text_path == encoder_path == "tiny":
        text_path, encoder_path = map(str, tiny.both(questions, cache, tiny_seed))
    elif text_path == "tiny":
        text_path = str(tiny.language_model(questions, cache, tiny_seed))
    elif encoder_path == "tiny":
        encoder_path = str(tiny.encoder(questions, cache, tiny_seed))
    encoder_args = _mapping("encoder_args", arguments.encoder_args)
    torch.manual_seed(seed)  # a new encoder's weights
    new = encoder_path == "patch"
    encoder, extractor = patch_encoder(**encoder_args) if new else load_encoder(encoder_path, **encoder_args)
    revision = model_args.model_revision if text_path == model_args.model_name_or_path else "main"
    tokenizer = AutoTokenizer.from_pretrained(text_path, revision=revision)
    if tokenizer.chat_template is None:
        raise ValueError(f"{text_path} has no chat template: use an instruction-tuned language model")
    token = ecg_token_of(tokenizer)
    dtype = getattr(torch, model_args.dtype) if model_args.dtype not in (None, "auto") else model_args.dtype or "auto"
    quantization = get_quantization_config(model_args)  # of the language model alone
    language = AutoModelForCausalLM.from_pretrained(
        text_path, revision=revision, dtype=dtype, attn_implementation=model_args.attn_implementation,
        quantization_config=quantization, device_map={"": PartialState().device} if quantization is not None else None,
    )  # fmt: skip
    if len(tokenizer) > language.get_input_embeddings().num_embeddings:
        language.resize_token_embeddings(len(tokenizer))
    config = ElmConfig(
        text_config=AutoConfig.from_pretrained(text_path, revision=revision).to_dict()
        | {"vocab_size": language.get_input_embeddings().num_embeddings},
        encoder_config=encoder.config,
        ecg_token_id=tokenizer.convert_tokens_to_ids(token),
        projector_type=arguments.projector_type,
        projector_norm=arguments.projector_norm,
        projector_pool=arguments.projector_pool,
        projector_pool_mode=arguments.projector_pool_mode,
    )
    torch.manual_seed(seed)  # the projector's weights
    model = ElmForConditionalGeneration.from_parts(config, encoder, language)
    processor = ElmProcessor(extractor, tokenizer, ecg_token=token, pool=arguments.projector_pool)
    return model, processor


def lora(model_args: ModelConfig, model: ElmForConditionalGeneration, train_encoder: bool) -> LoraConfig:
    """LoRA on every linear layer of the language model; projector, and encoder if asked, trained in full."""
    linear = (nn.Linear,) if not model_args.load_in_4bit and not model_args.load_in_8bit else _linear_classes()
    names = {n.rpartition(".")[2] for n, m in model.model.language_model.named_modules() if isinstance(m, linear)}
    wanted = model_args.lora_target_modules or sorted(names)
    return LoraConfig(
        task_type="CAUSAL_LM",
        r=model_args.lora_r,
        lora_alpha=model_args.lora_alpha,
        lora_dropout=model_args.lora_dropout,
        use_rslora=model_args.use_rslora,
        # The path keeps layers of the encoder that have the same names out of it.
        target_modules=rf"model\.language_model\..*\.({'|'.join(wanted)})",
        modules_to_save=["projector", *(["encoder"] if train_encoder else [])],
    )


def _linear_classes() -> tuple[type, ...]:
    import bitsandbytes  # the `quant` extra

    return (nn.Linear, bitsandbytes.nn.Linear4bit, bitsandbytes.nn.Linear8bitLt)


def build_collator(
    arguments: ElmArguments, model: ElmForConditionalGeneration, processor: ElmProcessor, questions: QuestionSet
) -> EcgCollator:
    """A collator over the recordings, or over the frozen encoder's cached output."""
    zero = arguments.train_condition == "zero"
    if arguments.train_encoder:
        return EcgCollator(processor, questions.source, zero_inputs=model.model.encoder.ecg_inputs if zero else ())
    return EcgCollator(processor, questions.source, feature_store(arguments, model, processor, questions, zero=zero))


def feature_store(
    arguments: ElmArguments,
    model: ElmForConditionalGeneration,
    processor: ElmProcessor,
    questions: QuestionSet,
    zero: bool = False,
) -> FeatureStore:
    """The encoder's output for the recordings of a question set."""
    encoder, extractor = model.model.encoder, processor.feature_extractor
    return FeatureStore(encoder, extractor, questions.source, questions.source_key, arguments.cache_dir, zero=zero)


def share(arguments: ElmArguments, training_args: SFTConfig, model_args: ModelConfig, questions: QuestionSet) -> None:
    """Make what several runs on these questions then find in the cache: tiny models, and a frozen encoder's output."""
    model, processor = build(arguments, model_args, questions, training_args.seed)
    if not arguments.train_encoder:
        records = [record for row in (*questions.reports, *questions.train, *questions.test) for record in row["ecgs"]]
        for zero in (False, True):
            feature_store(arguments, model, processor, questions, zero=zero).fill(records)


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
    """TRL's trainer, with rows of like length grouped over the global batch.

    The stock sampler groups over a process's own batch: the order of rows would depend on the number of processes.
    """

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> Any:
        sampler = super()._get_train_sampler(train_dataset)
        if isinstance(sampler, LengthGroupedSampler):
            return LengthGrouped(sampler.batch_size * self.args.world_size, sampler.lengths, self.args.seed)
        return sampler


def train_stage(
    model: Any,
    processor: ElmProcessor,
    rows: Sequence[Row],
    collator: EcgCollator,
    args: SFTConfig,
    *,
    resume: bool,
    peft_config: LoraConfig | None = None,
) -> SFTTrainer:
    """Train one stage with TRL's `SFTTrainer`, from its newest whole checkpoint if there is one."""
    trainer = ElmTrainer(
        model=model,
        args=args,
        train_dataset=as_dataset(rows),
        processing_class=processor,
        data_collator=collator,
        peft_config=peft_config,
    )
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
    # TRL patched the instance's forward for its fused head; the class's own is what everyone else should meet.
    base = trainer.accelerator.unwrap_model(trainer.model)
    base = base.get_base_model() if peft_config is not None else base
    base.__dict__.pop("forward", None)
    return trainer


# --- the saved folder -------------------------------------------------------------------------------------------------


def save_run(
    trainer: SFTTrainer,
    processor: ElmProcessor,
    questions: QuestionSet,
    arguments: ElmArguments,
    model_args: ModelConfig,
    training_args: SFTConfig,
    base_weights: str,
) -> Path:
    """Merge the adapter and write the model's folder: weights, processor, adapter, examples, records and card."""
    tuned = trainer.accelerator.unwrap_model(trainer.model)

    training = {
        "dataset_name": questions.name,
        "notes": questions.notes,
        "language_model": model_args.model_name_or_path,
        "train_condition": arguments.train_condition,
        "arguments": dataclasses.asdict(arguments),
        "processes": training_args.world_size,
        "lora": {"r": model_args.lora_r, "alpha": model_args.lora_alpha},
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
        merged = tuned.merge_and_unload()
        merged.to(merged.lm_head.weight.dtype)
        return save(merged, processor, folder, training=training, beside=Path(aside))


def _examples(questions: QuestionSet, count: int = 3) -> list[str]:
    """One recording of each of the first held-out patients."""
    by_patient: dict[str, str] = {}
    for record in sorted({record for row in questions.test for record in row["ecgs"]}):
        by_patient.setdefault(questions.patient_of[record], record)
    return list(by_patient.values())[:count]
