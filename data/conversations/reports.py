"""Reports of recordings of any corpus: where they may come from, and which of them a record has."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np

from data.conversations.synthetic import report
from data.corpora.mimic_iv_ecg import MimicIvEcg
from data.corpora.ptbxl import VOLTAGE_WORDS, PtbXl
from data.synthetic import SyntheticCohort

KINDS = {
    "english": "in English as written",
    "german": "in German as written",
    "translated": "translated from German",
    "labels": "sentences made from labels",
}  # where a report may come from, and what is said of it


def check_kinds(kinds: Sequence[str], translator: Path | str | None, english_only: str = "") -> None:
    """Refuse kinds of reports that are unknown or do not go together, before anything is read.

    Args:
        kinds: Names in `KINDS`.
        translator: Hub id or folder of a translator, where there is one.
        english_only: The corpus, where it has English reports alone.

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
    source: PtbXl | MimicIvEcg | SyntheticCohort,
    records: Sequence[str],
    kinds: Sequence[str],
    *,
    translated: Callable[[Iterable[str]], dict[str, str]],
    voltage: bool = True,
) -> tuple[dict[str, str], list[str]]:
    """The report of each record that has one, and notes on where they came from.

    Simulated recordings have English reports, whose wording follows from the cohort's seed and the record.

    Args:
        source: The corpus.
        records: Of it.
        kinds: Names in `KINDS`, checked by `check_kinds`: the first of these that a record has is taken.
        translated: English by German text, for `"translated"`.
        voltage: Whether to keep what is said of voltage, which only true millivolts show, to an encoder that keeps
            them.
    """
    texts: dict[str, str] = {}
    used: list[str] = []
    lost = 0
    for kind in kinds:
        left = [record for record in records if record not in texts]
        if isinstance(source, SyntheticCohort):
            found = _simulated(source, left, voltage) if kind == "english" else {}
        elif isinstance(source, MimicIvEcg):
            found = source.reports(left, voltage=voltage) if kind == "english" else {}
        elif kind == "labels":
            made = {record: source.statements(record, voltage=voltage) for record in left}
            found = {record: text for record, text in made.items() if text}
        else:
            found = source.reports(left, "en" if kind == "english" else "de", voltage=voltage)
        if kind == "translated":
            english = translated(found.values())
            lost = sum(text not in english for text in found.values())
            found = {record: english[text] for record, text in found.items() if text in english}
        texts |= found
        used.append(f"{len(found)} {KINDS[kind]}")
    notes = [f"Reports of {len(texts)} of {len(records)} training records: {', '.join(used)}."]
    if lost:
        notes.append(f"{lost} German reports were left out: their translation was empty, unfinished or still German.")
    return texts, notes


def _simulated(cohort: SyntheticCohort, records: Iterable[str], voltage: bool) -> dict[str, str]:
    texts = {}
    for record in records:
        text = report(cohort, record, np.random.default_rng([cohort.seed, 7, cohort.index(record)]))
        kept = [sentence for sentence in text[:-1].split(". ") if voltage or not VOLTAGE_WORDS.search(sentence)]
        texts[record] = ". ".join(kept) + "."
    return texts
