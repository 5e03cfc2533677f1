"""Train an ECG-Byte language model: an ECG is a sentence of tokens, words of the language model's own vocabulary.

    accelerate launch recipes/sft_ecg_byte.py
    accelerate launch recipes/sft_ecg_byte.py --train_condition shuffled --output_dir out/ecg-byte-shuffled
    accelerate launch recipes/sft_ecg_byte.py --config recipes/configs/tiny_ecg_byte_cpu.yaml --dev

Without --config it takes recipes/configs/tiny_ecg_byte_cpu.yaml: simulated ECGs and a tiny Llama, in minutes on two CPU
cores. The job is that of recipes/sft_llava.py, which says all else. The tokens are learned from the training ECGs, or
come from a file (`encoder_args: {tokenizer: FILE}`); their rows of the vocabulary are trained, LoRA does the rest. What
is saved is a plain language model with a bigger vocabulary, which any engine serves (docs/ecg_byte.md).
"""

from pathlib import Path

from data.support.status import training_command
from recipes.sft_llava import main, parse

DEFAULT_CONFIG = Path(__file__).parent / "configs" / "tiny_ecg_byte_cpu.yaml"

if __name__ == "__main__":
    training_command(lambda argv: main(*parse(argv, DEFAULT_CONFIG)))()
