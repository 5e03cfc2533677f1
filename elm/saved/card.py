"""The model card (README.md) of a saved model, written from what its folder records."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from data.card import source_lines, sources_of
from data.support.files import written_whole
from elm.model.configuration import ElmConfig
from elm.saved.audit import AuditSummary

DISCLAIMER = "**Research use only. Not a medical device. Not for diagnosis or treatment.**"
NOT_AUDITED = (
    "**Not audited.** Whether this model reads the ECG or guesses from the question is not known; a fluent answer is "
    "no evidence. `python -m eval.ablation` finds out."
)
REPORTS = ("report.html", "report.md")  # of an audit, for people; the first that is there is named


def write_card(folder: Path | str) -> None:
    """Write a model's README.md from its folder's config.json, training.json and, once there, ablation/summary.json."""
    folder = Path(folder)
    text = model_card(
        ElmConfig.of_folder(folder),
        json.loads((folder / "training.json").read_text(encoding="utf-8")),
        AuditSummary.of_folder(folder),
        name=folder.name,
        report_file=next((name for name in REPORTS if (folder / "ablation" / name).exists()), None),
    )
    with written_whole(folder / "README.md", "w") as file:
        file.write(text)


def model_card(
    config: ElmConfig,
    training: Mapping[str, Any],
    audit: AuditSummary | None = None,
    *,
    name: str = "ecg-elm",
    repo_id: str | None = None,
    licence: str | None = None,
    report_file: str | None = None,
) -> str:
    """The card, with the hub's metadata. What is not recorded is not said.

    Args:
        config: The model's.
        training: What training.json holds.
        audit: Summary of the audit, if there was one.
        name: What the model is called.
        repo_id: OWNER/NAME it has on the hub.
        licence: The hub's identifier of the licence its owner gives it; `"other"` if not given.
        report_file: The report in `ablation/` that the card points to.
    """
    where = f'"{repo_id}"' if repo_id else "FOLDER"
    encoder = config.encoder_config
    said = [training["dataset_name"], *training.get("corpora", ())]
    seen = [source for source in sources_of([encoder.pretrained_on]) if source not in sources_of(said)]
    lines = [
        "---", _metadata(training, audit, name, licence), "---", "",
        f"# ECG-language model ({encoder.model_type} encoder, {config.text_config.model_type} language model)", "",
        DISCLAIMER, "",
        "It answers questions about 12-lead ECGs. Its answers may be wrong, and fluent when they are.", "",
        "## Does it read the ECG?", "",
        _audit(audit, report_file), "",
        "## Intended use", "",
        "For research on models that answer questions about ECGs: to compare them, and to find out what they read.", "",
        "Out of scope: diagnosis, triage, monitoring or treatment, by anyone; advice to patients; ECGs other than "
        "12-lead recordings at rest; questions of another kind than those it was trained on; telling who a person is.",
        "",
        "## Parts", "",
        f"- Encoder: {encoder.model_type}, pretrained on: {encoder.pretrained_on or 'nothing stated'}.",
        _projector(config),
        f"- Language model: {training['language_model']} ({config.text_config.model_type}).",
        f"- {training['parameters']:,} parameters in all.", "",
        "## Training data", "",
        f"- Questions: {training['dataset_name']}.",
        *(f"- {note}" for note in training["notes"]), "",
        "Licences of the data:", "",
        *(source_lines(sources_of(said)) or ["- Not known: ask whoever trained the model."]),
        *(f"{line} Seen by the encoder." for line in source_lines(seen)), "",
        *_leaks(training),
        "## Training", "",
        *(f"- {sentence}" for sentence in _how(training)), "",
        "## Limits", "",
        "- It was trained and asked on the recordings named above. Other devices, patients and countries may differ.",
        "- It says nothing of how sure it is, and answers questions that the ECG cannot answer.",
        "- A language model may repeat its training text. What it was trained on may not leave those who may see it.",
        "",
        "## Use", "",
        "With the package `ecg-elm` installed:", "",
        "```python", "import elm", "", f"model, processor = elm.load({where})", "```", "",
        "```", f'python -m elm.ask {where.strip(chr(34))} RECORD "Is this a normal ECG?"', "```", "",
    ]  # fmt: skip
    if versions := training.get("versions"):
        lines += [f"Made with {', '.join(f'{package} {version}' for package, version in versions.items())}.", ""]
    return "\n".join(lines)


def _metadata(training: Mapping[str, Any], audit: AuditSummary | None, name: str, licence: str | None) -> str:
    """Metadata for the hub. No `pipeline_tag`: none of its tasks takes a recording, and its widgets would fail."""
    settings = training.get("arguments", {})
    parts = [part for part in (training["language_model"], settings.get("encoder", "")) if _is_hub_id(part)]
    results = [] if audit is None else _results(audit)
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


def _results(audit: AuditSummary) -> list[EvalResult]:
    """The audit's numbers as shares of 1, each with its 95 % interval."""
    return [
        EvalResult(
            task_type="question-answering",
            task_name="Questions about 12-lead ECGs",
            dataset_type=_slug(audit.dataset),
            dataset_name=audit.dataset,
            dataset_split="test",
            metric_type=result.kind,
            metric_name=result.label,
            metric_value=result.value,
            metric_args={"interval_95": result.interval, "n": result.n} if result.interval else {"n": result.n},
        )
        for result in audit.results
    ]


def _audit(audit: AuditSummary | None, report_file: str | None) -> str:
    """The audit's section, with the place of its report."""
    if audit is None:
        return NOT_AUDITED
    return audit.card + (f" Everything else, and how to read it: `ablation/{report_file}`." if report_file else "")


def _projector(config: ElmConfig) -> str:
    most = f"at most {config.max_tokens_per_ecg} language-model tokens per ECG."
    if config.vocabulary_start is not None:
        count = config.encoder_config.vocabulary
        return f"- No projector: an ECG is words of the language model, {count:,} added to its vocabulary; {most}"
    pool = f"{config.projector_pool} encoder tokens to one ({config.projector_pool_mode})"
    return f"- Projector: {config.projector_type}, {pool}; {most}"


def _leaks(training: Mapping[str, Any]) -> list[str]:
    """Findings of a check of the split."""
    told = training.get("leaks")
    return ["## Splits and leaks", "", *(f"- {sentence}" for sentence in told), ""] if told else []


def _how(training: Mapping[str, Any]) -> list[str]:
    """How it was trained, in sentences."""
    settings, trainer = training.get("arguments", {}), training.get("trainer", {})
    told = [f"ECGs given in training: {training['train_condition']}."]
    if settings.get("align_steps"):
        told.append(f"Align stage: {settings['align_steps']:,} steps of the projector on reports.")
    if lora := training.get("lora"):
        told.append(
            f"Then LoRA on the language model (r {lora['r']}, alpha {lora['alpha']}) and the projector on questions"
            f"{', the encoder in full' if settings.get('train_encoder') else ''}; LoRA is merged into the weights."
        )
    if training.get("quantization"):
        told.append(training["quantization"])
    if trainer:
        rows = trainer["per_device_train_batch_size"] * trainer["gradient_accumulation_steps"] * training["processes"]
        length = (
            f"{trainer['max_steps']:,} steps" if trainer["max_steps"] > 0 else f"{trainer['num_train_epochs']:g} epochs"
        )
        told.append(
            f"{length} of {rows} rows, learning rate {trainer['learning_rate']:g} ({trainer['lr_scheduler_type']}), "
            f"{'bfloat16' if trainer['bf16'] else 'float16' if trainer['fp16'] else 'float32'}, seed {trainer['seed']}."
        )
    if losses := training.get("losses"):
        told.append(f"Last training loss: {losses[-1]:.3f}. All settings: `training.json`.")
    return told


def _is_hub_id(name: str) -> bool:
    """Whether a part of the model came from the hub: a path that is here is what was read instead."""
    return bool(re.fullmatch(r"[\w][\w.-]*/[\w][\w.-]*", name)) and not Path(name).exists()


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
