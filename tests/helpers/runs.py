"""What a training leaves behind."""

import json
from pathlib import Path

from data.readers import read_ecg


def losses(folder):
    return json.loads((Path(folder) / "training.json").read_text())["losses"]


def example_of(folder, processor):
    """The first recording kept with a model, and the model's inputs for a question about it."""
    ecg = read_ecg(sorted((Path(folder) / "examples").glob("*.hea"))[0])
    content = [{"type": "ecg"}, {"type": "text", "text": "Is it?"}]
    return ecg, processor([{"role": "user", "content": content}], [ecg])
