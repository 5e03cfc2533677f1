"""The audit as people read it: `report.html` (one page), `report.md`, figures, `report.json`, `predictions.jsonl`."""

import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from data.support.files import written_whole
from eval.report.figures import FIGURES, draw
from eval.report.headline import DISCLAIMER, headline, model_name, question_count, reasons
from eval.report.page import page
from eval.report.parts import Command, Facts, Items, Part, Picture, Section, Table, Terms, markdown_table
from eval.report.sections import sections
from eval.report.strips import Example
from eval.report.summary import summary
from eval.report.tables import main_table, super_class_sentences, super_class_table, without_text_only
from eval.scoring.lines import Line
from eval.scoring.results import Block, Report, SuperClasses


def write(out: Path, report: Report, predictions: Iterable[Line], examples: Sequence[Example] = ()) -> list[Path]:
    """Write a report into a folder; each file appears whole or not at all, `report.json` last.

    Figures of an earlier report that this one has no data for are removed. Returns the paths of what was written.

    Raises:
        ValueError: A number is not finite, which JSON cannot hold.
    """
    pictures = draw(report)
    parts = sections(report, pictures)
    texts = {
        "report.md": markdown(report, parts),
        "report.html": page(report, parts, pictures, examples),
        "summary.json": _json(summary(report).to_json()),
        "report.json": _json(report.to_json()),
    }
    with written_whole(out / "predictions.jsonl", "w") as file:
        for number, line in enumerate(predictions, start=1):
            try:
                file.write(json.dumps(line.to_json(), ensure_ascii=False, allow_nan=False) + "\n")
            except ValueError as error:
                where = f"line {number} of the predictions, {line.id!r} under {line.condition!r}"
                raise ValueError(f"{where}: {error}") from error
    for name, picture in pictures.items():
        with written_whole(out / name) as file:
            file.write(picture)
    for name in FIGURES:
        if name not in pictures:
            (out / name).unlink(missing_ok=True)
    for name, text in texts.items():
        with written_whole(out / name, "w") as file:
            file.write(text)
    return [out / name for name in ("predictions.jsonl", *pictures, *texts)]


def _json(data: object) -> str:
    return json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def table(block: Block) -> str:
    """The main table of a report, or of one of its groups, in Markdown."""
    return "\n\n".join(filter(None, [_table(main_table(block)), without_text_only(block)]))


def super_classes_text(numbers: SuperClasses) -> str:
    """The super-classes by themselves, in Markdown."""
    about, *others = super_class_sentences(numbers)
    return "\n\n".join([about, _table(super_class_table(numbers)), *others])


def markdown(report: Report, sections: Sequence[Section]) -> str:
    """`report.md`."""
    parts = [
        f"# Does {_safe(model_name(report))} read the ECG?",
        _safe(" ".join([f"**{headline(report)}**", *reasons(report)])),
        _safe(f"Asked: {question_count(report)}."),
        f"**{DISCLAIMER}**",
    ]
    for section in sections:
        parts += [f"## {section.title}", *map(_part, section.parts)]
    return "\n\n".join(parts) + "\n"


def _part(part: Part) -> str:
    match part:
        case str():
            return _safe(part)
        case Table():
            return _table(part)
        case Picture():
            return f"![{part.alt}]({part.name})\n\n*{part.caption}*"
        case Facts():
            return "\n".join(
                f"* **{fact.name}: {fact.value}** ({fact.detail}). Asked of a reader: {fact.needed}; "
                f"{'holds' if fact.holds else 'does not hold'}. {fact.meaning}"
                for fact in part.facts
            )
        case Terms():
            return "\n".join(f"* **{word}**: {_safe(meaning)}" for word, meaning in part.terms.items())
        case Items():
            return "\n".join(f"* {_safe(item)}" for item in part.items)
        case Command():
            return f"```\n{part.text}\n```"


def _table(table: Table) -> str:
    cells = [[_safe(cell).replace("|", "\\|") for cell in row] for row in (table.head, *table.rows)]
    return markdown_table(cells, table.words)


def _safe(text: str) -> str:
    """Text on one line that opens no HTML tag."""
    return re.sub(r"<(?=[a-zA-Z/!?])", "&lt;", " ".join(text.split()))
