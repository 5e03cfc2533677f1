"""`Run`: one training. It is built once; then its stages are trained, and the result is saved."""

import dataclasses
import logging
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import torch
from accelerate import PartialState
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import enable_full_determinism
from transformers.models.auto.feature_extraction_auto import FEATURE_EXTRACTOR_MAPPING
from trl import ModelConfig, SFTConfig

from data.card import corpora_of
from data.conversations.rows import QuestionSet, Row, balanced, dialogues, packed
from data.readers.wfdb import write_wfdb
from elm.inputs.collator import EcgCollator
from elm.inputs.features import weights_hash
from elm.inputs.processing import ElmProcessor
from elm.model.modeling import ElmForConditionalGeneration
from elm.model.quantization import SAVED, is_quantized, merge_into_dequantized
from elm.saved.arguments import ElmArguments, Settings, TrainingRecord, with_cache
from elm.saved.folder import save, save_adapter
from elm.saved.run import SavedRun, feature_store, fitting, measured_store
from elm.training.base import base_of, earlier_trainings, record_of, sentence_of, settled
from elm.training.build import build, build_collator, encode_early, lora
from elm.training.claim import CANNOT_MATTER, release
from elm.training.leaks import leaks_of
from elm.training.resume import losses_of, plain_settings, versions
from elm.training.settings import REFUSED, checkpoints_of, claim
from elm.training.stages import lengths_of, stage_args, train_stage, under_condition, whole
from elm.training.tiny_encoder import ENCODERS
from elm.training.trainer import ElmTrainer

logger = logging.getLogger(__name__)


@dataclass
class Run:
    """One training: its settings, its questions, and the model in its present state (built, aligned, with LoRA on it).

    `output_dir` of `training_args` is where the saved model goes, `log` where a line about each stage goes.
    """

    arguments: ElmArguments
    training_args: SFTConfig
    model_args: ModelConfig
    questions: QuestionSet
    model: ElmForConditionalGeneration | PeftModel
    processor: ElmProcessor
    collator: EcgCollator
    leaks: list[str]  # sentences of the leak check, for the model card
    log: Callable[[str], object]
    base: SavedRun | None = None  # the saved model that it goes on from
    base_weights: str = ""  # hash of the weights that LoRA was put on
    trainer: ElmTrainer | None = None  # of the last stage
    steps: dict[str, int] = field(default_factory=dict)  # that each stage was trained

    @classmethod
    def build(
        cls,
        arguments: ElmArguments,
        training_args: SFTConfig,
        model_args: ModelConfig,
        questions: QuestionSet,
        log: Callable[[str], object] = logger.info,
    ) -> Self:
        """Claim the output folder, build the model, and compute once what is needed for every step.

        Raises:
            ValueError: The folder holds another run, or the saved model that this one goes on from; settings contradict
                that model; a recording lacks a lead that the encoder needs, and is not to be left out; or patients or
                recordings are in training and in the test, and `allow_leaks` is not set.
        """
        if (base := base_of(model_args)) is not None:
            arguments = settled(arguments, model_args)
            log(sentence_of(base))
        claim(arguments, training_args, model_args)
        if arguments.threads:  # `accelerate launch` leaves a process one thread by default
            torch.set_num_threads(arguments.threads)
        if arguments.deterministic:
            enable_full_determinism(training_args.seed)
        # What is computed once is computed by the first process and read from the cache by the others.
        with training_args.main_process_first(desc="model"):
            if base is None and arguments.processes > 1 and arguments.train_condition == "real":
                encode_early(arguments, questions, training_args.seed, _records(arguments, questions))
            model, processor = build(arguments, model_args, questions, training_args.seed)
            questions = fitting(questions, processor.feature_extractor, arguments.unreadable)
            records = _records(arguments, questions)
            leaks = leaks_of(arguments, questions, model, earlier_trainings(base))
            collator = build_collator(arguments, model, processor, questions)
            if collator.measured is not None:
                collator.measured.fill(records)
        if collator.features is not None:  # the processes share this work
            collator.features.fill(records, device=training_args.device)
        model.requires_grad_(False)
        model.model.projector.requires_grad_(True)
        return cls(arguments, training_args, model_args, questions, model, processor, collator, leaks, log, base)

    def rebuild(self) -> ElmForConditionalGeneration:
        """The model as it was built, before any stage."""
        return build(self.arguments, self.model_args, self.questions, self.training_args.seed)[0]

    def align(self) -> None:
        """Train the projector on reports, for `align_steps`; without ECGs it has nothing to learn from."""
        steps, reports = self.arguments.align_steps, self.questions.reports
        if not steps or self.arguments.train_condition == "none":
            return
        self.log(f"Stage align: the projector learns to have the language model write {len(reports)} reports")
        trainer = self._train("align", reports, max_steps=steps, learning_rate=self.arguments.align_learning_rate)
        self.model = whole(trainer, self.rebuild)

    def sft(self) -> None:
        """Train projector and LoRA on questions and answers."""
        rows = self._sft_rows()
        self.base_weights = weights_hash(self.model)
        config = lora(self.model_args, self.model, self.arguments.train_encoder)
        self.log(f"Stage sft: projector and LoRA learn to answer, {len(rows)} dialogues of {self.questions.name}")
        self.trainer = self._train("sft", rows, peft_config=config)
        self.model = whole(self.trainer, lambda: get_peft_model(self.rebuild(), config))

    def save(self) -> Path:
        """Merge LoRA and write the model's folder: weights, processor, adapter, examples, records and card.

        One process writes it.
        """
        folder = Path(self.training_args.output_dir)
        if self.trainer is None:
            raise RuntimeError("there is nothing to save before the sft stage")
        if not self.trainer.accelerator.is_main_process:
            return folder
        # The adapter is written before the merge takes it into the weights.
        with tempfile.TemporaryDirectory(dir=folder) as beside:
            save_adapter(self.model, Path(beside) / "adapter", self.base_weights)
            for record in _examples(self.questions):
                write_wfdb(self.questions.source[record], Path(beside) / "examples")
            if is_quantized(self.model):
                merged = merge_into_dequantized(self.model, Path(beside) / "adapter")
            else:
                merged = self.model.merge_and_unload()
            merged.to(merged.lm_head.weight.dtype)
            save(merged, self.processor, folder, training=self._record(), beside=Path(beside))
        release(checkpoints_of(self.training_args))
        self.log(f"The model is in {folder}")
        return folder

    def _train(
        self, stage: str, rows: list[Row], peft_config: LoraConfig | None = None, **changes: object
    ) -> ElmTrainer:
        source, seed = self.questions.source, self.training_args.seed
        condition = self.arguments.train_condition
        grouped = self.training_args.train_sampling_strategy == "group_by_length"
        trainer = train_stage(
            self.model,
            self.processor,
            under_condition(rows, self.questions, condition, seed),
            self.collator,
            stage_args(self.training_args, stage, full_determinism=self.arguments.deterministic, **changes),
            resume=self.arguments.resume,
            lengths=lengths_of(rows, self.processor, source, grouped=grouped),
            peft_config=peft_config,
            label=stage if condition == "real" else f"{stage}, ECGs {condition}",
        )
        self.steps[stage] = trainer.state.global_step
        return trainer

    def _sft_rows(self) -> list[Row]:
        seed, arguments, questions = self.training_args.seed, self.arguments, self.questions
        rows = [
            row
            for some in balanced(questions.train, arguments.balance)
            for row in dialogues(some, arguments.turns, seed)
        ]
        rows += questions.reports if arguments.reports_in_sft else []
        return packed(rows, arguments.questions_per_row)

    def _record(self) -> TrainingRecord:
        model_name = self.model_args.model_name_or_path
        return {
            "dataset_name": self.questions.name,
            "corpora": corpora_of(self.questions),
            "notes": self.questions.notes,
            "leaks": list(self.leaks),
            "language_model": model_name if self.base is None else self.base.training["language_model"],
            "base": None if self.base is None else record_of(self.base),
            "train_condition": self.arguments.train_condition,
            # Absolute: the model will be audited by commands that are started elsewhere.
            "arguments": dataclasses.asdict(with_cache(self.arguments, Path(self.arguments.cache_dir).absolute())),
            "processes": self.training_args.world_size,
            "lora": {"r": self.model_args.lora_r, "alpha": self.model_args.lora_alpha},
            "quantization": SAVED if self.arguments.quantization else None,
            "model": _model_settings(self.model_args),
            "trainer": plain_settings(self.training_args),
            "steps": self.steps,
            "losses": losses_of(self.trainer),
            "versions": versions("torch", "trl", "transformers"),
        }


def _records(arguments: ElmArguments, questions: QuestionSet) -> list[str]:
    """Recordings that the stages show to the encoder, as often as they do."""
    rows = () if arguments.train_condition == "none" else (*questions.reports, *questions.train)
    return [record for row in rows for record in row["ecgs"]]


def for_training(arguments: ElmArguments, questions: QuestionSet) -> QuestionSet:
    """The question set of a run, once it is known to have what the stages and the audit need.

    Raises:
        ValueError: There are no reports for the align stage, or no question for the audit; or a recording lacks a lead
            that a tiny encoder needs, which is trained before the model is built.
    """
    if arguments.align_steps and arguments.train_condition != "none" and not questions.reports:
        raise ValueError(f"{questions.name} has no reports for the align stage: give --align_steps 0")
    if arguments.ablation and not any(row["control"] == "" for row in questions.test):
        why = " ".join(questions.notes)
        raise ValueError(
            f"{questions.name} has no held-out question for the audit: give --ablation false. {why}".strip()
        )
    if arguments.encoder not in ENCODERS:
        return questions
    config = ENCODERS[arguments.encoder].config()
    return fitting(questions, FEATURE_EXTRACTOR_MAPPING[type(config)].from_config(config), arguments.unreadable)


def _model_settings(model_args: ModelConfig) -> Settings:
    """Settings of LoRA and precision that were given or have a default; the model's name stands by itself."""
    values = dataclasses.asdict(model_args)
    unsaid = {"model_name_or_path", *CANNOT_MATTER, *REFUSED}
    return {name: value for name, value in values.items() if value is not None and name not in unsaid}


def share(
    arguments: ElmArguments,
    training_args: SFTConfig,
    model_args: ModelConfig,
    questions: QuestionSet,
    rows: Sequence[Row] | None = None,
) -> None:
    """Cache what several runs on these questions need: tiny models, and a frozen encoder's output for `rows` (all)."""
    model, processor = build(arguments, model_args, questions, training_args.seed)
    questions = fitting(questions, processor.feature_extractor, arguments.unreadable)
    rows = (*questions.reports, *questions.train, *questions.test) if rows is None else rows
    records = [record for row in rows for record in row["ecgs"] if record in questions.patient_of]
    if (measured := measured_store(arguments, questions)) is not None:
        measured.fill(records)
    if not arguments.train_encoder:
        for zero in (False, True):
            feature_store(arguments, model, processor, questions, zero=zero).fill(records, device=PartialState().device)


def _examples(questions: QuestionSet, count: int = 3) -> list[str]:
    """One recording of each of the first held-out patients."""
    by_patient: dict[str, str] = {}
    for record in sorted({record for row in questions.test for record in row["ecgs"]}):
        by_patient.setdefault(questions.patient_of[record], record)
    return list(by_patient.values())[:count]
