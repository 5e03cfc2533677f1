"""The model card (README.md) of a saved model, written from what its folder records."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCardData
from jinja2 import Environment, StrictUndefined

from data.card import source_lines, sources_of
from data.experiment.conditions import CONDITIONS, FAST
from data.support.files import written_whole
from elm.model.configuration import ElmConfig
from elm.saved.arguments import TrainingRecord

DISCLAIMER = "**Research use only. Not a medical device. Not for diagnosis or treatment.**"
NOT_AUDITED = (
    "**Not audited.** Whether this model reads the ECG or guesses from the question is not known; a fluent answer is "
    "no evidence. `python -m eval.ablation` finds out."
)
REPORTS = ("report.html", "report.md")  # of an audit, for people; the first that is there is named


def write_card(folder: Path | str) -> None:
    """Write a model's README.md from its folder's config.json, training.json and, once there, ablation/report.json."""
    folder = Path(folder)
    report = folder / "ablation" / "report.json"
    text = model_card(
        ElmConfig.of_folder(folder),
        json.loads((folder / "training.json").read_text(encoding="utf-8")),
        json.loads(report.read_text(encoding="utf-8")) if report.exists() else None,
        name=folder.name,
        report_file=next((name for name in REPORTS if (report.parent / name).exists()), None),
    )
    with written_whole(folder / "README.md", "w") as file:
        file.write(text)


def model_card(
    config: ElmConfig,
    training: TrainingRecord,
    report: Mapping[str, Any] | None = None,
    *,
    name: str = "ecg-elm",
    repo_id: str | None = None,
    licence: str | None = None,
    report_file: str | None = None,
) -> str:
    """The card, with the hub's metadata. It leaves out what is not recorded.

    Args:
        config: The model's.
        training: What training.json holds.
        report: What the audit's report.json holds, if there was one.
        name: What the model is called.
        repo_id: OWNER/NAME it has on the hub.
        licence: The hub's identifier of the licence its owner gives it; `"other"` if not given.
        report_file: The report in `ablation/` that the card points to.
    """
    encoder = config.encoder_config
    sources = sources_of([training["dataset_name"], *training.get("corpora", ())])
    seen = [source for source in sources_of([encoder.pretrained_on]) if source not in sources]
    template = Environment(undefined=StrictUndefined, trim_blocks=False, keep_trailing_newline=True).from_string(
        Path(__file__).with_name("card.md.jinja").read_text(encoding="utf-8")
    )
    return template.render(
        config=config,
        encoder=encoder,
        text=config.text_config,
        tokens=f"at most {config.max_tokens_per_ecg} language-model tokens per ECG.",
        training={"leaks": [], "versions": {}, **training},
        metadata=_metadata(training, report, name, licence),
        disclaimer=DISCLAIMER,
        audit="\n".join(_audit(report, report_file)).rstrip("\n") if report else NOT_AUDITED,
        licences=source_lines(sources),
        encoder_licences=source_lines(seen),
        sentences=_how(training),
        repo_id=repo_id,
    )


def _metadata(training: TrainingRecord, report: Mapping[str, Any] | None, name: str, licence: str | None) -> str:
    """What the hub reads. No `pipeline_tag`: none of its tasks takes a recording, and its widgets would fail."""
    settings = training.get("arguments", {})
    parts = [part for part in (training["language_model"], settings.get("encoder", "")) if _is_hub_id(part)]
    results = [] if report is None else _results(report)
    data = ModelCardData(
        license=licence or "other",
        library_name="transformers",
        tags=["ecg", "multimodal", "medical"],
        base_model=parts or None,
        datasets=[_slug(part) for part in training["dataset_name"].split("+")],
        model_name=name if results else None,
        eval_results=results or None,
    )
    return str(data.to_yaml())


def _results(report: Mapping[str, Any]) -> list[EvalResult]:
    """The audit's numbers as shares of 1, each with its 95 % interval."""
    found = []

    def add(kind: str, label: str, value: float | None, limits: Sequence[float | None], n: int) -> None:
        if value is not None:
            interval = None if None in limits else list(limits)
            found.append(
                EvalResult(
                    task_type="question-answering", task_name="Questions about 12-lead ECGs",
                    dataset_type=_slug(report["dataset"]), dataset_name=report["dataset"], dataset_split="test",
                    metric_type=kind, metric_name=label, metric_value=value,
                    metric_args={"interval_95": interval, "n": n} if interval else {"n": n},
                )
            )  # fmt: skip

    # Under names of their own: right answers without the ECG are what the model's result is held against.
    for condition in FAST:
        if told := report["conditions"].get(condition):
            kind = "accuracy" if condition == "real" else f"accuracy_{condition.replace('-', '_')}"
            label = f"right answers, given {CONDITIONS[condition].label}"
            add(kind, label, told["accuracy"], told["interval"], told["n"])
    if (verdict := report["verdict"]) is not None and verdict["pairs"] > 0:
        add("swap_flip_gap", "swap-flip gap", verdict["gap"], verdict["gap_interval"], verdict["pairs"])
        add("paired_flip", "both answers of a flip pair right", verdict["paired_flip"], (None, None), verdict["pairs"])
        over, limits, n = verdict["over_majority"], verdict["over_majority_interval"], verdict["questions"]
        add("over_majority", "right answers, over the most common answer to each question", over, limits, n)
    return found


def _rows(report: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    """What was given to the model, and how often it was right: the conditions that matter most, then the references."""
    rows = [(CONDITIONS[name].label, told) for name in FAST if (told := report["conditions"].get(name))]
    if told := report["conditions"].get("text-only"):
        rows.append(("(a model trained without ECGs)", told))
    majority = {"accuracy": report["majority_by_question"], "interval": report["majority_interval"]}
    return [*rows, ("(most common answer to each question)", majority)]


def _audit(report: Mapping[str, Any], report_file: str | None) -> list[str]:
    """The audit's verdict, the three numbers it rests on, and right answers under the conditions that matter most."""
    lines, verdict = [], report["verdict"]
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
    lines += [
        f"| {label} | {_percent(told['accuracy'])}{_interval(told['interval'])} |" for label, told in _rows(report)
    ]
    asked = f"{report['n']:,} questions about {report['patients']:,} held-out patients"
    if report["limit"] is not None:
        asked += f", a sample of {report['available']:,}"
    more = f" Everything else, and how to read it: `ablation/{report_file}`." if report_file else ""
    return [*lines, "", f"{asked}. Intervals are 95 %, by patient.{more}", ""]


def _how(training: TrainingRecord) -> list[str]:
    """Sentences about how it was trained."""
    settings, trainer = training.get("arguments", {}), training.get("trainer", {})
    sentences = [f"ECGs given in training: {training['train_condition']}."]
    if settings.get("align_steps"):
        sentences.append(f"Align stage: {settings['align_steps']:,} steps of the projector on reports.")
    if lora := training.get("lora"):
        sentences.append(
            f"Then LoRA on the language model (r {lora['r']}, alpha {lora['alpha']}) and the projector on questions"
            f"{', the encoder in full' if settings.get('train_encoder') else ''}; LoRA is merged into the weights."
        )
    if quantization := training.get("quantization"):
        sentences.append(quantization)
    if trainer:
        rows = trainer["per_device_train_batch_size"] * trainer["gradient_accumulation_steps"] * training["processes"]
        length = (
            f"{trainer['max_steps']:,} steps" if trainer["max_steps"] > 0 else f"{trainer['num_train_epochs']:g} epochs"
        )
        sentences.append(
            f"{length} of {rows} rows, learning rate {trainer['learning_rate']:g} ({trainer['lr_scheduler_type']}), "
            f"{'bfloat16' if trainer['bf16'] else 'float16' if trainer['fp16'] else 'float32'}, seed {trainer['seed']}."
        )
    if losses := training.get("losses"):
        sentences.append(f"Last training loss: {losses[-1]:.3f}. All settings: `training.json`.")
    return sentences


def _is_hub_id(name: str) -> bool:
    """Whether a part of the model came from the hub: a path that is here is what was read instead."""
    return bool(re.fullmatch(r"[\w][\w.-]*/[\w][\w.-]*", name)) and not Path(name).exists()


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _points(value: float, limits: Sequence[float | None]) -> str:
    return f"{100 * value:+.1f} points{_interval(limits, '+')}".replace("-", "−")


def _interval(limits: Sequence[float | None], sign: str = "") -> str:
    low, high = limits
    return "" if low is None or high is None else f" ({100 * low:{sign}.1f} to {100 * high:{sign}.1f})"
