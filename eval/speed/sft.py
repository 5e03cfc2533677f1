"""Training: cached encoder output against encoding for every question, and questions that share a row.

A MELP encoder of the published size and the tiny Llama of the default job, both with random weights, are trained by the
recipe's trainer (projector and LoRA; collator, forward, backward and optimizer are timed). Ratios are taken within a
repeat. The encoder costs the same for every question that is not cached: that way is timed over fewer of them.
"""

import copy
import statistics
import tempfile
import time
from dataclasses import dataclass
from functools import partial
from itertools import cycle, islice
from pathlib import Path

import torch
from tqdm.auto import tqdm
from transformers.trainer_callback import PrinterCallback, TrainerCallback
from trl import ModelConfig, SFTConfig

from data.conversations.rows import Row, packed, question_row
from data.conversations.synthetic import load
from data.ecg import Ecg
from elm import ElmConfig, ElmForConditionalGeneration, ElmProcessor
from elm.inputs.collator import EcgCollator
from elm.inputs.features import FeatureStore
from elm.training.build import lora
from elm.training.stages import as_dataset, stage_args
from elm.training.tiny_llama import llama_config, train_tokenizer
from elm.training.trainer import ElmTrainer
from encoders.melp import MelpConfig, MelpFeatureExtractor
from eval.speed import Training
from eval.speed._rows import spread

RECORDS_PER_STEP = 2  # whose questions are an optimizer step
STEPS, ENCODING_STEPS = 13, 2  # the first one warms up and is not timed


@dataclass(frozen=True)
class Job:
    """What is trained: a copy of the model, on the same number of questions about each recording, one per row."""

    model: ElmForConditionalGeneration
    processor: ElmProcessor
    source: dict[str, Ecg]
    rows: list[Row]
    records_per_step: int  # whose questions are an optimizer step


@dataclass(frozen=True)
class Trained:
    """Questions per second, from the end of the first step to the end of the last, and the loss of every step."""

    rate: float
    losses: list[float]


def job(encoder_config: MelpConfig, records: int, questions: int) -> Job:
    """Questions about simulated recordings, in the words of the default job, and an untrained model of this encoder."""
    cohort = load(patients=max(records, 20), held_out_patients=1, questions=10, held_out_questions=1)
    answers = {row["question"]: row["answer"] for row in cohort.train if len(row["ecgs"]) == 1}
    source = {row["ecgs"][0]: cohort.source[row["ecgs"][0]] for row in cohort.reports[:records]}
    about = partial(question_row, question_type="t")
    rows = [
        about(id=f"{record}/{i}", ecgs=[record], patient_ids=[record], question=text, answer=answer)
        for record in source
        for i, (text, answer) in enumerate(islice(cycle(answers.items()), questions))
    ]
    tokenizer = train_tokenizer([f"{text} {' '.join(answer)}" for text, answer in answers.items()])
    text_config, token = llama_config(tokenizer), tokenizer.convert_tokens_to_ids("<ecg>")
    torch.manual_seed(0)
    model = ElmForConditionalGeneration(
        ElmConfig(text_config=text_config, encoder_config=encoder_config, ecg_token_id=token)
    )
    model.requires_grad_(False)
    model.model.projector.requires_grad_(True)
    processor = ElmProcessor(MelpFeatureExtractor.from_config(encoder_config), tokenizer)
    return Job(model, processor, source, rows, min(RECORDS_PER_STEP, records))


def fill(job: Job, root: Path) -> tuple[FeatureStore, float]:
    """A new cache with the encoder's output for all recordings, and the seconds it took to make."""
    start = time.perf_counter()
    store = FeatureStore(job.model.model.encoder, job.processor.feature_extractor, job.source, "speed", root)
    store.fill(job.source)
    return store, time.perf_counter() - start


def train(job: Job, collator: EcgCollator, steps: int, questions_per_row: int, folder: Path) -> Trained:
    """Train a copy of the model for so many steps, each on the questions about `records_per_step` recordings."""
    ends: list[float] = []

    class Clock(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, *_: object, **__: object) -> None:
            ends.append(time.perf_counter())

    rows = packed(job.rows, questions_per_row)
    per_step = len(job.rows) * job.records_per_step // len(job.source)
    quiet = {"save_strategy": "no", "report_to": "none", "disable_tqdm": True, "logging_steps": 1}
    plain = {"use_cpu": True, "bf16": False, "gradient_checkpointing": False, "seed": 0}
    size = len(rows) * job.records_per_step // len(job.source)
    batches = {"per_device_train_batch_size": size, "dataloader_drop_last": True, "max_steps": steps}
    args = SFTConfig(output_dir=str(folder), **batches, **quiet, **plain)
    model = copy.deepcopy(job.model)
    trainer = ElmTrainer(
        model=model,
        args=stage_args(args, "speed"),
        train_dataset=as_dataset(rows),
        processing_class=job.processor,
        data_collator=collator,
        peft_config=lora(ModelConfig(lora_dropout=0.0), model, train_encoder=False),
        callbacks=[Clock()],
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return Trained(per_step * (len(ends) - 1) / (ends[-1] - ends[0]), losses)


def main(args: Training) -> None:
    """Print a table of three ratios, each the median of the repeats and their least and greatest."""
    torch.set_num_threads(args.threads)
    # Without dropout, so that a frozen encoder says the same in training as in the cache.
    todo = job(MelpConfig(dropout=0.0, dropout_input=0.0, attention_dropout=0.0), args.records, args.questions)
    count = len(todo.rows)
    rates: dict[str, list[tuple[float, float]]] = {}
    bar = tqdm(total=3 * args.repeats, desc="Timing", unit="run")
    with tempfile.TemporaryDirectory() as temporary, bar as progress:
        folder = Path(temporary)

        def timed(collator: EcgCollator, steps: int, questions_per_row: int = 1) -> float:
            rate = train(todo, collator, steps, questions_per_row, folder).rate
            progress.update()
            return rate

        for repeat in range(args.repeats):
            encoding = timed(EcgCollator(todo.processor, todo.source), ENCODING_STEPS)
            store, seconds = fill(todo, folder / f"cache-{repeat}")
            cached = timed(EcgCollator(todo.processor, {}, store), STEPS)
            shared = timed(EcgCollator(todo.processor, {}, store), STEPS, args.questions)
            for name, rate, baseline in (
                ("cache, filled in one epoch", count / (seconds + count / cached), encoding),
                ("cache, once filled", cached, encoding),
                (f"{args.questions} questions share a row", shared, cached),
            ):
                rates.setdefault(name, []).append((rate, baseline))

    size, text = (sum(p.numel() for p in part.parameters()) for part in (todo.model.model.encoder, todo.model))
    print(f"{args.records} ECGs, {args.questions} questions about each, {args.threads} threads; parameters: encoder")
    print(f"{size:,}, all {text:,}. Medians of {args.repeats} repeats; least and greatest ratio in brackets.")
    print(f"{'':<28}{'questions/s':>12}{'baseline':>12}{'ratio':>9}")
    for name, pairs in rates.items():
        rate, baseline = (statistics.median(side) for side in zip(*pairs, strict=True))
        print(f"{name:<28}{rate:>12.4g}{baseline:>12.4g}{spread(rate / other for rate, other in pairs)}")
    print("Baselines: no cache; no cache; the cache with one question per row.")
