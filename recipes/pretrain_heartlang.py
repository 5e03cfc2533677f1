"""Pretrain HeartLang on recordings alone: a vocabulary of heart beats (VQ-HBR), then masked sentences of it.

    accelerate launch recipes/pretrain_heartlang.py --stage vqhbr
    accelerate launch recipes/pretrain_heartlang.py --stage sentence
    accelerate launch recipes/pretrain_heartlang.py --stage vqhbr --config recipes/configs/heartlang_mimic.yaml
    python recipes/pretrain_heartlang.py --stage sentence --config recipes/configs/heartlang_mimic.yaml --dev

Without --config it takes recipes/configs/heartlang_ptbxl_cpu.yaml. Settings of one stage stand in the config under
`stages`; any field can be given as a flag, a flag wins over the file, and an unknown key is an error. A run that was
interrupted goes on from its newest whole checkpoint when started again.

Writes a folder for `load_encoder`, and in it metrics.json: what was measured on held-out patients, beside baselines.
"""

from pathlib import Path

import torch
from transformers import TrainingArguments

from data.support.status import training_command
from elm.training import command_line
from elm.training.heartlang import HeartLangArguments, for_dev, pretrained_on
from elm.training.pretraining import begin, recordings_of, save_run, trainer_args
from elm.training.resume import train_to_end
from encoders import load_encoder, new_encoder
from encoders.heartlang import pretraining
from encoders.heartlang.pretraining import HeartLangTrainer, MaskedSentences
from encoders.heartlang.sentences import sentences_of
from eval.probing.numbers import Measure, as_lines

DEFAULT_CONFIG = Path(__file__).parent / "configs" / "heartlang_ptbxl_cpu.yaml"
STAGES = ("vqhbr", "sentence")


def main(arguments: HeartLangArguments, training_args: TrainingArguments) -> None:
    """Trains one stage, measures it on held-out patients and saves it."""
    arguments, training_args = begin(arguments, training_args, for_dev)
    folder, vqhbr = Path(training_args.output_dir), None

    # Model
    torch.manual_seed(training_args.seed)
    encoder_args, extractor_args = arguments.mapping("encoder_args"), arguments.mapping("extractor_args")
    if arguments.stage == "vqhbr":
        model, tokenizer = new_encoder("ecg_heartlang_vq", **encoder_args, **extractor_args)
    else:
        if not arguments.vqhbr:
            raise ValueError("stage sentence needs vqhbr: the folder that stage vqhbr wrote, or a published VQ-HBR")
        vqhbr, tokenizer = load_encoder(arguments.vqhbr)
        model, tokenizer = pretraining.new_masked_model(vqhbr, tokenizer, encoder_args, extractor_args)

    # Data: the first process cuts the recordings, the others read what it cut.
    with training_args.main_process_first(desc="sentences"):
        recordings = recordings_of(arguments)
        cut = (recordings.source, recordings.key, tokenizer, arguments.cache_dir, arguments.jobs)
        train, held_out = (sentences_of(records, *cut) for records in recordings.sides)
    some, batch_size = train.spread(arguments.baseline_records), training_args.per_device_eval_batch_size
    refused = train.refused | held_out.refused
    if vqhbr is None:
        measurement = pretraining.Reconstruction(some, held_out, batch_size)
    else:
        vqhbr.to(training_args.device)
        train, held_out = (
            MaskedSentences(each, arguments.mask_share, arguments.mask_padding, training_args.seed)
            for each in (train, held_out)
        )
        measurement = pretraining.Guesses(some, held_out, batch_size, vqhbr, arguments.target_positions)
    model.config.pretrained_on = pretrained_on(arguments, recordings, vqhbr)
    measure = Measure(measurement, [recordings.patient_of[record] for record in held_out.records])

    # Training
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    # Each process moves the codebook by what all of them saw.
    args = trainer_args(training_args, ddp_broadcast_buffers=False)
    trainer = HeartLangTrainer(
        measure, vqhbr, arguments.target_positions, model=model, args=args, train_dataset=train, eval_dataset=held_out
    )
    print(f"Stage {arguments.stage}: {len(train):,} recordings of {recordings.name}; {len(held_out):,} are held out")
    train_to_end(trainer, resume=arguments.resume)
    if not trainer.is_world_process_zero():
        return
    model = trainer.accelerator.unwrap_model(trainer.model).eval()
    measure(model)
    encoder = model if vqhbr is None else pretraining.encoder_of(model)
    if vqhbr is not None:
        model.save_pretrained(folder / "masked")  # with the head: to be trained further
    save_run(encoder, tokenizer, trainer, arguments, training_args, measure.numbers, refused)
    print("\n".join(as_lines(measure.numbers)))
    print(f"The encoder is in {folder}, what was measured in {folder / 'metrics.json'}")


def parse(argv: list[str]) -> tuple[HeartLangArguments, TrainingArguments]:
    """The settings on a command line."""
    settings: tuple[HeartLangArguments, TrainingArguments] = command_line.parse(
        argv, (HeartLangArguments, TrainingArguments), DEFAULT_CONFIG, stages=STAGES
    )
    return settings


if __name__ == "__main__":
    training_command(lambda argv: main(*parse(argv)))()
