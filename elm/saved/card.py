"""The model card (README.md) of a saved model, written from what its folder records."""

import re
from pathlib import Path

from huggingface_hub import EvalResult, ModelCardData
from jinja2 import Environment, StrictUndefined, Template

from data.card import source_lines, sources_of
from data.support.files import read_json, written_whole
from elm.model.configuration import ElmConfig
from elm.saved.arguments import TrainingRecord, trained_before
from elm.saved.audit import AuditSummary

DISCLAIMER = "**Research use only. Not a medical device. Not for diagnosis or treatment.**"
REPORTS = ("report.html", "report.md")  # of an audit, for people; the first that is there is named


def template(file: Path) -> Template:
    """A text to be filled in; names that it does not get are errors."""
    return Environment(undefined=StrictUndefined, keep_trailing_newline=True).from_string(file.read_text("utf-8"))


def write_card(folder: Path | str) -> None:
    """Write a model's README.md from its folder's config.json, training.json and, once there, ablation/summary.json."""
    folder = Path(folder)
    text = model_card(
        ElmConfig.of_folder(folder),
        read_json(folder / "training.json"),
        AuditSummary.of_folder(folder),
        name=folder.name,
        report_file=next((name for name in REPORTS if (folder / "ablation" / name).exists()), None),
    )
    with written_whole(folder / "README.md", "w") as file:
        file.write(text)


def model_card(
    config: ElmConfig,
    training: TrainingRecord,
    audit: AuditSummary | None = None,
    *,
    name: str = "ecg-elm",
    repo_id: str | None = None,
    licence: str | None = None,
    report_file: str | None = None,
) -> str:
    """The card, with the hub's metadata. It leaves out what is not recorded.

    `licence` is the hub's identifier, `"other"` if not given; `report_file` the report in `ablation/` to point to.
    """
    encoder = config.encoder_config
    earlier = trained_before(training)
    names = [name for one in (training, *earlier) for name in (one["dataset_name"], *one.get("corpora", ()))]
    sources = sources_of(names)
    seen = [source for source in sources_of([encoder.pretrained_on]) if source not in sources]
    return template(Path(__file__).with_name("card.md.jinja")).render(
        config=config,
        encoder=encoder,
        text=config.text_config,
        tokens=f"at most {config.max_tokens_per_ecg} language-model tokens per ECG.",
        training=dict.fromkeys(("leaks", "versions", "lora", "quantization", "trainer", "losses")) | training,
        settings=training.get("arguments", {}),
        earlier=earlier,
        metadata=_metadata(training, audit, name, licence),
        disclaimer=DISCLAIMER,
        audit=audit,
        report_file=report_file,
        licences=source_lines(sources),
        encoder_licences=source_lines(seen),
        repo_id=repo_id,
    )


def _metadata(training: TrainingRecord, audit: AuditSummary | None, name: str, licence: str | None) -> str:
    """Metadata for the hub. No `pipeline_tag`: none of its tasks takes a recording, and its widgets would fail."""
    settings = training.get("arguments", {})
    earlier = trained_before(training)
    parts = [*(one["name_or_path"] for one in earlier[:1]), training["language_model"], settings.get("encoder", "")]
    parts = [part for part in parts if _is_hub_id(part)]
    datasets = [part for one in (training, *earlier) for part in one["dataset_name"].split("+")]
    results = [] if audit is None else _results(audit)
    data = ModelCardData(
        license=licence or "other",
        library_name="transformers",
        tags=["ecg", "multimodal", "medical"],
        base_model=parts or None,
        datasets=list(dict.fromkeys(map(_slug, datasets))),
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


def _is_hub_id(name: str) -> bool:
    """Whether a part of the model came from the hub: a path that is here is what was read instead."""
    return bool(re.fullmatch(r"[\w][\w.-]*/[\w][\w.-]*", name)) and not Path(name).exists()


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
