"""Train a LLaVA-style ECG-language model: pretrained encoder, projector, LoRA-tuned language model.

    accelerate launch recipes/sft_llava.py
    accelerate launch recipes/sft_llava.py --config recipes/configs/ecg_qa_llama_1b.yaml --output_dir out/llama-melp
    accelerate launch recipes/sft_llava.py --train_condition shuffled --output_dir out/shuffled
    accelerate launch recipes/sft_llava.py --model_name_or_path out/sft-llava --output_dir out/second    # goes on
    python recipes/sft_llava.py --config recipes/configs/ecg_qa_llama_1b.yaml --plan    # what would it need?
    python recipes/sft_llava.py --config recipes/configs/ecg_qa_llama_1b.yaml --dev     # does it run?

Without --config it takes recipes/configs/tiny_cpu.yaml: simulated ECGs, a tiny Llama and a tiny encoder, in minutes on
two CPU cores. Any field of a config can be given as a flag; a flag wins over the file, and an unknown key is an error.

Stages: `align` trains the projector on reports, `sft` projector and LoRA on questions; with `text_only`, the same once
more without ECGs. Interrupted, a run goes on from its newest whole checkpoint when started again. It ends with the
audit: the held-out questions, asked with and without the ECG. Research use only; not a medical device.
"""

import dataclasses
from contextlib import nullcontext
from pathlib import Path

from trl import ModelConfig, SFTConfig

from data.conversations.rows import QuestionSet
from data.support.files import visible_files
from data.support.parallel import beside
from data.support.status import training_command
from elm.saved import publish as hub
from elm.saved.arguments import ElmArguments
from elm.saved.run import questions_for
from elm.training import command_line
from elm.training.base import explicit_settings, settled
from elm.training.build import parts
from elm.training.plan import PlanArguments, plan
from elm.training.progress import quiet
from elm.training.run import Run, for_training, share
from elm.training.settings import check_folders, check_launch, check_settings, claim, for_dev, without_workers
from elm.training.sources import check_sources
from eval.audit.run import run as audit
from eval.audit.settings import AuditSettings
from eval.report.headline import finding
from eval.report.write import table
from eval.scoring.results import TEXT_ONLY

NEXT = """Next: python -m elm.ask {0} {1} "Is this a normal ECG?"
      python -m serve.app --model {0}
      python -m eval.ablation --model {0} --full"""
DEFAULT_CONFIG = Path(__file__).parent / "configs" / "tiny_cpu.yaml"


def main(
    arguments: ElmArguments, training_args: SFTConfig, model_args: ModelConfig, plan_args: PlanArguments | None = None
) -> None:
    """Trains one model, then asks it the held-out questions."""
    arguments = settled(arguments, model_args)
    if plan_args is not None and plan_args.plan:
        print("\n".join(plan(arguments, training_args, model_args, plan_args)))
        return
    quiet()
    check_launch()
    check_settings(arguments, training_args, model_args)
    if arguments.dev:
        arguments, training_args = for_dev(arguments, training_args)
    if training_args.push_to_hub:
        hub.check(training_args.hub_model_id, audited=arguments.ablation, token=training_args.hub_token)
    check_sources(arguments, model_args)
    check_folders(training_args.output_dir, arguments.cache_dir)
    claim(arguments, training_args, model_args)
    with training_args.main_process_first(desc="questions"):
        questions = for_training(arguments, questions_for(arguments))
    two = arguments.processes > 1 == training_args.world_size
    with beside(companion, arguments, training_args, model_args) if two else nullcontext():
        folder = train(arguments, training_args, model_args, questions)
    if arguments.text_only and not two:
        train_without_ecgs(arguments, training_args, model_args, questions)
    if not arguments.ablation or training_args.process_index > 0:
        return
    report = audit(AuditSettings(model=folder, batch_size=256), questions=questions)
    print(f"\n{table(report.overall)}\n\n{finding(report)}\n\nTo read: {folder / 'ablation' / 'report.html'}\n")
    print(NEXT.format(folder, next(iter(visible_files(folder / "examples", "*.hea")), Path("RECORD")).with_suffix("")))
    if training_args.push_to_hub:
        how = hub.Publication(private=bool(training_args.hub_private_repo))
        print(f"Published: {hub.push(folder, training_args.hub_model_id, how, training_args.hub_token)}")


def train(arguments: ElmArguments, training_args: SFTConfig, model_args: ModelConfig, questions: QuestionSet) -> Path:
    """Runs the stages and saves one folder, `output_dir`."""
    run = Run.build(arguments, training_args, model_args, questions, log=print)
    run.align()
    run.sft()
    return run.save()


def train_without_ecgs(
    arguments: ElmArguments, training_args: SFTConfig, model_args: ModelConfig, questions: QuestionSet
) -> None:
    """The same without ECGs, into `text-only`: what this model answers right, an ECG is not needed for."""
    training_args = dataclasses.replace(training_args, output_dir=str(Path(training_args.output_dir) / TEXT_ONLY))
    train(dataclasses.replace(arguments, train_condition="none"), training_args, model_args, questions)


def companion(arguments: ElmArguments, training_args: SFTConfig, model_args: ModelConfig) -> None:
    """What a second process does beside `train`: all that needs no trained model, the tiny language model first."""
    quiet()
    training_args = without_workers(training_args)  # this process has time left
    questions = for_training(arguments, questions_for(arguments))
    parts(arguments, model_args, questions, training_args.seed, text_first=True)
    if arguments.text_only:
        train_without_ecgs(arguments, training_args, model_args, questions)
    if arguments.ablation:
        share(arguments, training_args, model_args, questions, questions.test)


def parse(
    argv: list[str], default: Path = DEFAULT_CONFIG
) -> tuple[ElmArguments, SFTConfig, ModelConfig, PlanArguments]:
    """The settings on a command line; those of `default` where it names no config."""
    arguments, training_args, model_args, plan_args = command_line.parse(
        argv, (ElmArguments, SFTConfig, ModelConfig, PlanArguments), default
    )
    return settled(arguments, model_args, explicit_settings(argv)), training_args, model_args, plan_args


if __name__ == "__main__":
    training_command(lambda argv: main(*parse(argv)))()
