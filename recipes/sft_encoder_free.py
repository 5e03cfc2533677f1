"""Train an ECG-language model without an encoder: the language model reads patches of the signal through linear layers.

    accelerate launch recipes/sft_encoder_free.py
    accelerate launch recipes/sft_encoder_free.py --train_condition shuffled --output_dir out/encoder-free-shuffled
    accelerate launch recipes/sft_encoder_free.py --config recipes/configs/tiny_encoder_free_cpu.yaml --dev

Without --config it takes recipes/configs/tiny_encoder_free_cpu.yaml: simulated ECGs and a tiny Llama, in minutes on two
CPU cores. The job is that of recipes/sft_llava.py, which says all else; what is trained in place of an encoder and a
projector is in the config (`encoder: ecg_patch`, `train_encoder`; docs/encoders.md has the variants, ECG-Bench's single
token among them). Nothing pretrained says what matters in an ECG, so that learning it takes longer.
"""

from pathlib import Path

from data.support.status import training_command
from recipes.sft_llava import main, parse

DEFAULT_CONFIG = Path(__file__).parent / "configs" / "tiny_encoder_free_cpu.yaml"

if __name__ == "__main__":
    training_command(lambda argv: main(*parse(argv, DEFAULT_CONFIG)))()
