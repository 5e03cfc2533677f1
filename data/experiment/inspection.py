"""What `python -m data.check` finds in a question set, a corpus or a folder of records, before anything is trained."""

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from data.conversations import load_questions, question_sets
from data.conversations.readable import PARTS, records_of, without_unreadable
from data.corpora import GROUP as CORPORA
from data.corpora import load_corpus, registered
from data.corpora.verdicts import NAMED, common_notes, counted, first_of, read_recordings
from data.ecg import EcgSource
from data.experiment.leaks import check_leaks
from data.experiment.recordings import fold_order
from data.readers.wfdb import WfdbFolder
from data.support import plugins
from data.support.files import hidden_files, visible_files


@dataclass(frozen=True)
class Inspection:
    """All that there is to say."""

    name: str
    recordings: int
    patients: int | None = None  # None where it is not known whose the recordings are
    rows: Mapping[str, Mapping[str, int]] = field(default_factory=dict)  # of a question set, by part and type
    folds: Mapping[str, int] = field(default_factory=dict)  # of a corpus: recordings by fold
    unreadable: Mapping[str, str] = field(default_factory=dict)  # why, by record
    signals: Mapping[str, Sequence[str]] = field(default_factory=dict)  # records by what else is wrong with the signal
    notes: Sequence[str] = ()  # of the question set
    leaks: Sequence[str] = ()  # sentences of the leak check
    hidden: Sequence[str] = ()  # files that are passed over
    refusals: Sequence[str] = ()  # why a training would be refused

    def to_json(self) -> dict[str, object]:
        """The object in the file of `--out`."""
        return asdict(self)

    @property
    def text(self) -> str:
        """Everything in words, a section for each kind."""
        whose = "" if self.patients is None else f" of {self.patients:,} patients"
        many = f"{self.recordings:,} recording{'s' * (self.recordings != 1)}{whose}"
        first = "".join(f"  {line}\n" for line in self._counts())
        sections = {
            f"Recordings that cannot be read: {len(self.unreadable):,}": _first_lines(
                [f"{record}: {reason}" for record, reason in self.unreadable.items()]
            ),
            "Signals": [f"{note}: {counted(records)} ({first_of(records)})" for note, records in self.signals.items()],
            "Notes, which would go into the model card": self.notes,
            "Training and test": self.leaks,
            f"Hidden files, passed over: {len(self.hidden):,}": _first_lines(self.hidden),
            "A training would be refused": self.refusals,
        }
        others = [f"{title}\n" + "".join(f"  {line}\n" for line in some) for title, some in sections.items() if some]
        return "\n".join(
            [f"{self.name}: {many}\n{first}", *others, *([] if self.refusals else ["A training would start."])]
        )

    def _counts(self) -> Iterator[str]:
        for part, by_type in self.rows.items():
            kinds = ", ".join(f"{kind} {count:,}" for kind, count in by_type.items())
            yield f"{sum(by_type.values()):,} {PARTS[part]}" + (f": {kinds}" if len(by_type) > 1 else "")
        yield from (f"{count:,} in fold {fold}" for fold, count in self.folds.items())


def _first_lines(lines: Sequence[str]) -> list[str]:
    """The first of some lines, and how many more there are."""
    return [*lines[:NAMED], *([f"and {len(lines) - NAMED:,} more"] if len(lines) > NAMED else [])]


def inspect(name: str, settings: str, unreadable: str, cache: Path) -> Inspection:
    """Look at a question set, a corpus, or a folder of WFDB records, whichever `name` is first.

    `settings` is a JSON object; `unreadable` and `cache` are those of a training.

    Raises:
        ImportError: An installed package provides it, but cannot be imported.
        ValueError: It is none of the three, or cannot be loaded.
    """
    values = _mapping(settings)
    hidden = [str(file) for value in values.values() if _is_folder(value) for file in hidden_files(value)]
    if name in question_sets():
        return _question_set(name, values, hidden, unreadable, cache)
    if name in registered() or name in plugins.providers(CORPORA):
        corpus = load_corpus(name, **values)
        records = list(corpus.records)
        folds = Counter(str(corpus.fold_of[record]) for record in records if record in corpus.fold_of)
        about = Inspection(
            corpus.title,
            len(records),
            len({corpus.patient_of[record] for record in records}),
            folds={fold: folds[fold] for fold in sorted(folds, key=fold_order)},
            hidden=hidden,
        )
        return _read(about, corpus, corpus.key, records, unreadable, cache)
    if _is_folder(name):
        headers = visible_files(name, "*.hea", below=True)
        records = [header.relative_to(name).with_suffix("").as_posix() for header in headers]
        if not records:
            raise ValueError(f"{name}: no WFDB record (.hea) in it or below")
        about = Inspection(name, len(records), hidden=[str(file) for file in hidden_files(name)])
        return _read(about, WfdbFolder(name), f"folder {Path(name).resolve()}", records, unreadable, cache)
    names = ", ".join(dict.fromkeys([*question_sets(), *registered()]))
    raise ValueError(f"{name!r} is no question set or corpus ({names}), and no folder")


def _mapping(settings: str) -> dict[str, Any]:
    with suppress(ValueError):
        if isinstance(values := json.loads(settings), dict):
            return values
    raise ValueError(f'--dataset_args must be JSON such as \'{{"root": "data-root"}}\', got {settings!r}')


def _is_folder(value: object) -> bool:
    return isinstance(value, str) and Path(value).is_dir()


def _read(
    about: Inspection, source: EcgSource, key: str, records: Sequence[str], unreadable: str, cache: Path
) -> Inspection:
    """What reading the recordings adds."""
    verdicts = read_recordings(source, key, records, cache)
    reasons = {record: verdict.reason for record, verdict in verdicts.items() if verdict.reason}
    refusals = [*about.refusals]
    if reasons and unreadable == "refuse":
        refusals.append(f"{counted(reasons)} cannot be read: repair them, or give --unreadable leave_out.")
    if records and len(reasons) == len(records):
        refusals.append("No recording can be read.")
    return replace(about, unreadable=reasons, signals=common_notes(verdicts), refusals=refusals)


def _question_set(
    name: str, settings: Mapping[str, Any], hidden: Sequence[str], unreadable: str, cache: Path
) -> Inspection:
    questions = load_questions(name, unreadable=None, **settings)
    records = records_of(questions)
    patients = {questions.patient_of[record] for record in records}
    rows = {part: dict(Counter(row["question_type"] for row in getattr(questions, part))) for part in PARTS}
    about = Inspection(questions.name, len(records), len(patients), rows, hidden=hidden)
    about = _read(about, questions.source, questions.source_key, records, unreadable, cache)
    questions = without_unreadable(questions, about.unreadable, "leave_out")
    refusals = [*about.refusals]
    if not questions.train:
        refusals.append("No training question is left.")
    leaks = check_leaks(questions, cache=cache)
    if leaks.refusal():
        refusals.append(leaks.refusal())
    # What the encoder was pretrained on is not known here.
    sentences = [sentence for sentence in leaks.sentences() if "pretrained on: nothing stated" not in sentence]
    return replace(about, notes=questions.notes, leaks=sentences, refusals=refusals)
