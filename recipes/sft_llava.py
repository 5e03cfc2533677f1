"""Train a LLaVA-style ECG-language model: pretrained encoder, projector, LoRA-tuned language model.

    accelerate launch recipes/sft_llava.py
    accelerate launch recipes/sft_llava.py --config recipes/configs/ecg_qa_llama_1b.yaml --output_dir out/llama-melp
    accelerate launch recipes/sft_llava.py --train_condition shuffled --output_dir out/shuffled
    python recipes/sft_llava.py --config recipes/configs/ecg_qa_llama_1b.yaml --plan    # what would it need?
    python recipes/sft_llava.py --config recipes/configs/ecg_qa_llama_1b.yaml --dev     # does it run?

Without --config it takes recipes/configs/tiny_cpu.yaml: simulated ECGs, a tiny Llama and a tiny encoder, in minutes on
two CPU cores. Any field of a config can be given as a flag; a flag wins over the file, and an unknown key is an error.

Stages: `align` trains the projector on reports, `sft` projector and LoRA on questions. A run that was interrupted goes
on from its newest whole checkpoint when started again. With `text_only`, the same is trained once more without ECGs.
Ends with the audit: the held-out questions, asked with and without the ECG. Research use only; not a medical device.
"""

import dataclasses
import sys
from pathlib import Path

import torch
from peft import get_peft_model
from transformers import enable_full_determinism
from trl import ModelConfig, SFTConfig, TrlParser

from data.conversations.rows import QuestionSet, balanced, dialogues, packed
from elm.inputs.features import weights_hash
from elm.saved import publish as hub
from elm.training import dev
from elm.training import plan as planning
from elm.training import run as training
from elm.training.plan import PlanArguments
from elm.training.run import lengths_of, stage_args, train_stage, under_condition
from elm.training.settings import ElmArguments, check_launch, check_settings, claim, for_dev
from eval.audit.run import run as audit
from eval.audit.settings import AuditSettings
from eval.report.headline import finding
from eval.report.write import table

DEFAULT_CONFIG = Path(__file__).parent / "configs" / "tiny_cpu.yaml"


def main(
    arguments: ElmArguments,
    training_args: SFTConfig,
    model_args: ModelConfig,
    plan_args: PlanArguments | None = None,
) -> None:
    """Trains one model, then asks it the held-out questions."""
    if plan_args is not None and plan_args.plan:
        print("\n".join(planning.plan(arguments, training_args, model_args, plan_args)))
        return
    check_launch()
    check_settings(arguments, training_args, model_args)
    if arguments.dev:
        arguments, training_args = for_dev(arguments, training_args)
    if training_args.push_to_hub:
        hub.check(training_args.hub_model_id, audited=arguments.ablation)
    with training_args.main_process_first(desc="questions"):
        questions = training.questions_for(arguments)
    folder = train(arguments, training_args, model_args, questions)
    if arguments.text_only:
        print("The same without ECGs: what it answers right, an ECG is not needed for")
        none = dataclasses.replace(arguments, train_condition="none")
        aside = dataclasses.replace(training_args, output_dir=str(folder / "text-only"))
        train(none, aside, model_args, questions)
    if not arguments.ablation or training_args.process_index > 0:
        return
    report = audit(AuditSettings(model=folder, batch_size=256), questions=questions)
    print(f"\n{table(report.overall)}\n\n{finding(report)}\n\nTo read: {folder / 'ablation' / 'report.html'}")
    if training_args.push_to_hub:
        name, token = training_args.hub_model_id, training_args.hub_token
        print(f"Published: {hub.push(folder, name, private=bool(training_args.hub_private_repo), token=token)}")


def train(arguments: ElmArguments, training_args: SFTConfig, model_args: ModelConfig, questions: QuestionSet) -> Path:
    """Runs the stages and saves one folder, `output_dir`."""
    claim(arguments, training_args, model_args)
    seed, condition = training_args.seed, arguments.train_condition
    if arguments.deterministic:
        enable_full_determinism(seed)

    # Model: what is computed once is computed by the first process and read from the cache by the others.
    with training_args.main_process_first(desc="model"):
        model, processor = training.build(arguments, model_args, questions, seed)
        leaks = training.leaks_of(arguments, questions, model)
        collator = training.build_collator(arguments, model, processor, questions)
        records = [ecg for row in (*questions.reports, *questions.train) for ecg in row["ecgs"] if condition != "none"]
        if collator.measured is not None:
            collator.measured.fill(records)
    if collator.features is not None:  # here the processes share the work
        collator.features.fill(records, device=training_args.device)

    # Training
    if arguments.threads:  # `accelerate launch` leaves a process one thread unless told otherwise
        torch.set_num_threads(arguments.threads)
    model.requires_grad_(False)
    model.model.projector.requires_grad_(True)
    grouped = training_args.train_sampling_strategy == "group_by_length"
    if arguments.align_steps and condition != "none":  # without ECGs a projector has nothing to learn from
        lengths = lengths_of(questions.reports, processor, questions.source, grouped=grouped)
        rows = under_condition(questions.reports, questions, condition, seed)
        args = stage_args(
            training_args, "align", max_steps=arguments.align_steps, learning_rate=arguments.align_learning_rate,
            full_determinism=arguments.deterministic,
        )  # fmt: skip
        print(f"Stage align: the projector learns to have the language model write {len(rows)} reports")
        trainer = train_stage(model, processor, rows, collator, args, resume=arguments.resume, lengths=lengths)
        model = training.whole(trainer, lambda: training.build(arguments, model_args, questions, seed)[0])
    base_weights = weights_hash(model)
    rows = [
        row for some in balanced(questions.train, arguments.balance) for row in dialogues(some, arguments.turns, seed)
    ]
    rows += questions.reports if arguments.reports_in_sft else []
    rows = packed(rows, arguments.questions_per_row)
    lengths = lengths_of(rows, processor, questions.source, grouped=grouped)
    rows = under_condition(rows, questions, condition, seed)
    lora = training.lora(model_args, model, arguments.train_encoder)
    args = stage_args(training_args, "sft", full_determinism=arguments.deterministic)
    print(f"Stage sft: projector and LoRA learn to answer, {len(rows)} dialogues of {questions.name}")
    trainer = train_stage(
        model, processor, rows, collator, args, resume=arguments.resume, lengths=lengths, peft_config=lora
    )

    tuned = training.whole(
        trainer, lambda: get_peft_model(training.build(arguments, model_args, questions, seed)[0], lora)
    )

    folder = Path(training_args.output_dir)
    if trainer.accelerator.is_main_process:
        training.save_run(
            trainer, tuned, processor, questions, arguments, model_args, training_args, base_weights, leaks
        )
        print(f"The model is in {folder}")
    return folder


def parse(
    argv: list[str], default: Path = DEFAULT_CONFIG
) -> tuple[ElmArguments, SFTConfig, ModelConfig, PlanArguments]:
    """The settings on a command line; those of `default` where it names no config."""
    argv = argv if "--config" in argv else ["--config", str(default), *argv]
    parser = TrlParser((ElmArguments, SFTConfig, ModelConfig, PlanArguments))
    return parser.parse_args_and_config(dev.with_flags(argv))


if __name__ == "__main__":
    main(*parse(sys.argv[1:]))
