"""Pretrain MELP on ECGs and their reports: contrast of recordings and reports, captions, beats against sentences.

    accelerate launch recipes/pretrain_melp.py
    accelerate launch recipes/pretrain_melp.py --config recipes/configs/melp_mimic.yaml
    accelerate launch recipes/pretrain_melp.py --pretraining_args '{"caption_weight": 0}' --output_dir out/no-captions
    python recipes/pretrain_melp.py --config recipes/configs/melp_mimic.yaml --dev    # does it run?

Without --config it takes recipes/configs/melp_tiny_cpu.yaml: simulated ECGs, in minutes on two CPU cores. Any field of
a config can be given as a flag; a flag wins over the file, and an unknown key is an error. A run that was interrupted
goes on from its newest whole checkpoint when started again.

Writes a folder for `load_encoder`, in it metrics.json (what was measured on held-out patients) and pretraining/, the
whole model with its text side, for `load_pretraining`, zero-shot classification and further training.
"""

from pathlib import Path

import torch
from transformers import TrainingArguments

from data.support.status import training_command
from elm.training import command_line
from elm.training.melp import MelpArguments, check, for_dev, new_model, pretrained_on, reports, usable
from elm.training.pretraining import begin, recordings_of, save_run, trainer_args
from elm.training.resume import train_to_end
from encoders import load_encoder, new_encoder
from encoders.melp import MelpModel
from encoders.melp.alignment import Alignment
from encoders.melp.files import save_pretraining
from encoders.melp.training import MelpTrainer, PairCollator, Pairs
from eval.probing.numbers import Measure, as_lines

DEFAULT_CONFIG = Path(__file__).parent / "configs" / "melp_tiny_cpu.yaml"


def main(arguments: MelpArguments, training_args: TrainingArguments) -> None:
    """Trains the model, measures it on held-out patients and saves it."""
    check(arguments, training_args)
    arguments, training_args = begin(arguments, training_args, for_dev)
    folder = Path(training_args.output_dir)

    torch.manual_seed(training_args.seed)  # new weights
    encoder_args, extractor_args = arguments.mapping("encoder_args"), arguments.mapping("extractor_args")
    if arguments.encoder:
        encoder, extractor = load_encoder(arguments.encoder, **encoder_args, **extractor_args)
        if not isinstance(encoder, MelpModel):
            raise ValueError(f"encoder {arguments.encoder} is of type {encoder.config.model_type}: give a MELP")
    else:
        encoder, extractor = new_encoder("ecg_melp", **encoder_args, **extractor_args)

    # Data: the first process tries to read the recordings, the others read which it could.
    with training_args.main_process_first(desc="recordings"):
        recordings = recordings_of(arguments)
        texts, notes = reports(arguments, recordings)
        recordings, refused = usable(arguments, recordings, texts, extractor)
    train, held_out = recordings.sides
    encoder.config.pretrained_on = pretrained_on(arguments, recordings, encoder.config.pretrained_on)

    # Model
    model, tokenizer = new_model(arguments, encoder, [texts[record] for record in train])
    collator = PairCollator(tokenizer, model.config.text_length)
    pairs = Pairs(train, recordings.source, extractor, texts, arguments.lead_mask, training_args.seed)
    unmasked = Pairs(held_out, recordings.source, extractor, texts)
    patients = [recordings.patient_of[record] for record in held_out]
    measure = Measure(Alignment(unmasked, patients, collator, training_args.per_device_eval_batch_size), patients)

    # Training
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    args = trainer_args(training_args)
    trainer = MelpTrainer(
        measure, anew=True, model=model, args=args, data_collator=collator, train_dataset=pairs, eval_dataset=unmasked
    )
    print(f"{len(train):,} recordings with reports of {recordings.name}; {len(held_out):,} are held out. {notes[0]}")
    train_to_end(trainer, resume=arguments.resume)
    if not trainer.is_world_process_zero():
        return
    trainer.evaluate()
    model = trainer.accelerator.unwrap_model(trainer.model).eval()
    save_pretraining(model, extractor, tokenizer, folder / "pretraining")
    save_run(model.encoder, extractor, trainer, arguments, training_args, measure.numbers, refused)
    print("\n".join(as_lines(measure.numbers)))
    print(f"The encoder is in {folder}, with its text side in {folder / 'pretraining'}")


def parse(argv: list[str]) -> tuple[MelpArguments, TrainingArguments]:
    """The settings on a command line."""
    settings: tuple[MelpArguments, TrainingArguments] = command_line.parse(
        argv, (MelpArguments, TrainingArguments), DEFAULT_CONFIG, stages=()
    )
    return settings


if __name__ == "__main__":
    training_command(lambda argv: main(*parse(argv)))()
