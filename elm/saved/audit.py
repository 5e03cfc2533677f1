"""The summary of an audit in a saved model's folder: `eval.ablation` writes it, the card and the chat page show it."""

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

SUMMARY, REPORT = "ablation/summary.json", "ablation/report.json"
EARLIER = (
    "The audit was made by an earlier version, so that its numbers are not repeated here: they are in its report. "
    "`python -m eval.ablation --model FOLDER --rescore` adds them where the answers are still there."
)


@dataclass(frozen=True)
class Result:
    """One number of an audit, for the hub's metadata: a share of 1, its 95 % interval, and of how many questions."""

    kind: str
    label: str
    value: float
    interval: Sequence[float] | None
    n: int


@dataclass(frozen=True)
class AuditSummary:
    """The outcome of an audit."""

    training: str | None  # digest of the training that was audited; None where it is not known
    dataset: str  # name of the questions
    verdict: str | None  # one of `eval.scoring.verdict.Verdict`, or None where there is none
    sentence: str  # the verdict in words
    detail: str  # the numbers it rests on, in a line
    results: Sequence[Result]  # for the hub
    card: str  # the section of the model card, in Markdown, without its heading and the place of the report

    def to_json(self) -> dict[str, object]:
        """The object in summary.json."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, data: object) -> Self:
        """The summary in summary.json, or the verdict alone in an earlier version's report.json; else `ValueError`."""
        if not isinstance(data, dict):
            raise ValueError("not a summary of an audit: no JSON object")
        try:
            if "card" in data:
                return cls(**{**data, "results": [Result(**result) for result in data["results"]]})
            verdict = data["verdict"] or {"verdict": None, "sentence": "The audit has no verdict."}
            return cls(
                training=data.get("training"),
                dataset=data["dataset"],
                verdict=verdict["verdict"],
                sentence=verdict["sentence"],
                detail=f"Audited on {data['dataset']} by an earlier version.",
                results=(),
                card=f"**{verdict['sentence']}**\n\n{EARLIER}",
            )
        except (KeyError, TypeError) as error:
            raise ValueError(f"not a summary of an audit: {error!r}") from error

    @classmethod
    def of_folder(cls, folder: Path) -> Self | None:
        """The summary in a model's folder, None where it was not audited; a damaged file raises `ValueError`."""
        for path in (folder / SUMMARY, folder / REPORT):
            if path.is_file():
                try:
                    return cls.from_json(json.loads(path.read_text(encoding="utf-8")))
                except ValueError as error:
                    raise ValueError(f"{path}: {error}") from error
        return None
