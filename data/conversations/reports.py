"""Reports of recordings of any corpus: where they may come from, and which of them a record has."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from data.corpus import Corpus

KINDS = {
    "english": "in English as written",
    "german": "in German as written",
    "translated": "translated from German",
    "labels": "sentences made from labels",
}  # where a report may come from, and how notes call it


def check_kinds(kinds: Sequence[str], translator: Path | str | None, english_only: str = "") -> None:
    """Refuse kinds of reports that are unknown or do not go together, before anything is read.

    `english_only` is what to call the corpus, where it has English reports alone.

    Raises:
        ValueError: No kind, an unknown one, one that the corpus cannot have, two languages, or a translator that is
            missing or has nothing to do.
    """
    unknown = [kind for kind in kinds if kind not in KINDS]
    if unknown or not kinds or isinstance(kinds, str):
        raise ValueError(f"reports must be a list of some of {', '.join(KINDS)}, got {kinds!r}")
    if "german" in kinds and len(kinds) > 1:
        others = " and ".join(repr(kind) for kind in kinds if kind != "german")
        raise ValueError(
            f"reports: 'german' together with {others}, which are English, would mix two languages: ask for 'german' "
            "alone, or for 'translated' in its place"
        )
    if english_only and {"german", "translated"} & set(kinds):
        raise ValueError(f"reports: those of {english_only} are English: ask for 'english'")
    if "translated" in kinds and not translator:
        raise ValueError(
            "reports: 'translated' needs a translator: the hub id or folder of a model from German to English, such as "
            "Helsinki-NLP/opus-mt-de-en"
        )
    if translator and "translated" not in kinds:
        raise ValueError(f"translator {translator} has nothing to translate: name 'translated' in reports")


def find_reports(
    source: Corpus,
    records: Sequence[str],
    kinds: Sequence[str],
    *,
    translated: Callable[[Iterable[str]], dict[str, str]],
    voltage: bool = True,
) -> tuple[dict[str, str], list[str]]:
    """The report of each record that has one, and notes on where they came from.

    The first of the kinds that a record has is taken. `translated` gives English by German text. Without `voltage` they
    leave out what is said of it, which only true millivolts show, and only to an encoder that keeps them.
    """
    texts: dict[str, str] = {}
    used: list[str] = []
    lost = 0
    for kind in kinds:
        missing = [record for record in records if record not in texts]
        if kind == "labels":
            statements = {record: source.statements(record, voltage=voltage) for record in missing}
            reports = {record: text for record, text in statements.items() if text}
        else:
            reports = source.reports(missing, "en" if kind == "english" else "de", voltage=voltage)
        if kind == "translated":
            english = translated(reports.values())
            lost = sum(text not in english for text in reports.values())
            reports = {record: english[text] for record, text in reports.items() if text in english}
        texts |= reports
        used.append(f"{len(reports)} {KINDS[kind]}")
    notes = [f"Reports of {len(texts)} of {len(records)} training records: {', '.join(used)}."]
    if lost:
        notes.append(f"{lost} German reports were left out: their translation was empty, unfinished or still German.")
    return texts, notes
