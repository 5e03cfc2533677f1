"""The model card (README.md) of a saved model, written from what its folder records."""

from __future__ import annotations

import json
from pathlib import Path

from data.files import written_whole
from elm.configuration import ElmConfig

DISCLAIMER = "**Research use only. Not a medical device. Not for diagnosis or treatment.**"


def write_card(folder: Path | str) -> None:
    """Write a model's README.md from its folder's config.json, training.json and, once there, ablation/report.json."""
    folder = Path(folder)
    config = ElmConfig.from_pretrained(folder)
    training = json.loads((folder / "training.json").read_text())
    encoder = config.encoder_config
    lines = [
        "---", "library_name: transformers", "tags: [ecg, multimodal]", "---", "",
        f"# ECG-language model ({encoder.model_type} encoder, {config.text_config.model_type} language model)", "",
        DISCLAIMER, "",
        "It answers questions about 12-lead ECGs. Its answers may be wrong, and fluent when they are.", "",
        "## Parts", "",
        f"- Encoder: {encoder.model_type}, pretrained on: {encoder.pretrained_on or 'nothing stated'}.",
        f"- Projector: {config.projector_type}, {config.projector_pool} encoder tokens to one "
        f"({config.projector_pool_mode}); at most {config.max_tokens_per_ecg} language-model tokens per ECG.",
        f"- Language model: {training['language_model']} ({config.text_config.model_type}).",
        f"- {training['parameters']:,} parameters in all.", "",
        "## Training", "",
        f"- Questions: {training['dataset_name']}.",
        *(f"- {note}" for note in training["notes"]),
        f"- ECGs given in training: {training['train_condition']}.", "",
        "## Use", "", "```python", "import elm", "", "model, processor = elm.load(FOLDER)", "```", "",
        "```", 'python -m elm.ask FOLDER RECORD "Is this a normal ECG?"', "```", "",
    ]  # fmt: skip
    report = folder / "ablation" / "report.json"
    if report.exists():
        found = json.loads(report.read_text())
        lines += ["## Does it read the ECG?", "", "| ECG given | accuracy |", "|---|---|"]
        lines += [f"| {name} | {value['accuracy']:.3f} |" for name, value in found["conditions"].items()]
        lines += [f"| (majority answer by question) | {found['majority_by_question']:.3f} |", ""]
        lines += ["Intervals, question types and how to read this: `ablation/report.md`.", ""]
    with written_whole(folder / "README.md", "w") as file:
        file.write("\n".join(lines))
