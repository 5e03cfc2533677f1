"""The model card (README.md) of a saved model, written from what its folder records."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from data.conditions import CONDITIONS, FAST
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
        lines += ["## Does it read the ECG?", "", *_audit(json.loads(report.read_text(encoding="utf-8")))]
    with written_whole(folder / "README.md", "w") as file:
        file.write("\n".join(lines))


def _audit(found: Mapping[str, Any]) -> list[str]:
    """The audit's verdict, the three numbers it rests on, and right answers under the conditions that matter most."""
    lines, verdict = [], found["verdict"]
    if verdict is not None:
        lines += [f"**{verdict['sentence']}**", ""]
    if verdict is not None and verdict["pairs"] > 0:
        p = "unknown" if verdict["p"] is None else "< 0.001" if verdict["p"] < 0.001 else f"= {verdict['p']:.3f}"
        lines += [
            f"- Swap-flip gap: {_points(verdict['gap'], verdict['gap_interval'])}. So much more often an answer is "
            "given about the ECG it is right about than about one whose right answer is another: "
            f"{verdict['pairs']:,} pairs of ECGs, {verdict['patients']:,} patients.",
            f"- Both answers of a pair right: {_percent(verdict['paired_flip'])}; with the two ECGs exchanged "
            f"{_percent(verdict['exchanged'])}, p {p}.",
            "- Over the most common answer to each question: "
            f"{_points(verdict['over_majority'], verdict['over_majority_interval'])}.",
            "",
        ]
    lines += ["| the model is given | right about the question's own ECG |", "|---|---|"]
    for name in FAST:
        if told := found["conditions"].get(name):
            lines.append(f"| {CONDITIONS[name].label} | {_percent(told['accuracy'])}{_interval(told['interval'])} |")
    if told := found["conditions"].get("text-only"):
        lines.append(f"| (a model trained without ECGs) | {_percent(told['accuracy'])}{_interval(told['interval'])} |")
    majority = _percent(found["majority_by_question"]) + _interval(found["majority_interval"])
    lines += [f"| (most common answer to each question) | {majority} |", ""]
    return [*lines, "Intervals are 95 %, by patient. Everything else, and how to read it: `ablation/report.html`.", ""]


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _points(value: float, limits: Sequence[float | None]) -> str:
    return f"{100 * value:+.1f} points{_interval(limits, '+')}".replace("-", "−")


def _interval(limits: Sequence[float | None], sign: str = "") -> str:
    low, high = limits
    return "" if low is None or high is None else f" ({100 * low:{sign}.1f} to {100 * high:{sign}.1f})"
