"""ECG-QA: questions about one ECG or two of PTB-XL or MIMIC-IV-ECG, with sets of answers (Oh et al., NeurIPS 2023).

Source: https://github.com/Jwoo5/ecg-qa (CC BY 4.0), release 1.0.2. Expected layout, for each set:

    root/ecgqa/{ptbxl,mimic-iv-ecg}/{template,paraphrased}/{train,valid,test}/*.json    lists of questions
    root/ptbxl, root/mimic-iv-ecg                                                      the recordings, if not elsewhere

A question names its ECGs by PTB-XL's `ecg_id` or MIMIC-IV-ECG's `study_id`. Both wordings ask the same questions about
the same ECGs, sample by sample.

ECG-QA splits by patient, but not along PTB-XL's folds, which encoders are pretrained on: of its 3,214 test ECGs 2,324
lie in folds 1-8. By default both must agree: a training row comes from ECG-QA's `train` and its ECGs lie in training
folds; a test row comes from `valid` or `test` and its ECGs lie in test folds. What fits neither is dropped and counted
in the notes.
"""

import inspect
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from data.conversations.ecg_qa_files import read_questions, row_of
from data.conversations.reports import check_kinds, find_reports
from data.conversations.rows import QuestionSet, Row, question_row
from data.conversations.super_classes import super_class_rows
from data.corpora import corpus_named
from data.corpora.folder import CorpusFolder
from data.corpora.ptbxl import TRAIN_FOLDS, PtbXl
from data.support.translate import translate

DERIVED = "ecgqa-derived"  # questions in ECG-QA's schema that are not ECG-QA
SOURCES = {"ptbxl": ("ecgqa", DERIVED), "mimic-iv-ecg": ("ecgqa",)}  # and the sets of each
SPLITS = ("folds+own", "folds", "own")
_ASK_REPORT = (
    "Write the report of this ECG.",
    "Describe this ECG.",
    "What does this ECG show?",
    "Interpret this ECG.",
    "Give the findings of this ECG as a report.",
)


@dataclass(frozen=True)
class EcgQa:
    """Settings of the question set: the arguments of `load`.

    Attributes:
        version: `"template"` or `"paraphrased"`: the wording of the questions; `"both"` has each of them twice.
        split: `"folds+own"`: PTB-XL's folds and ECG-QA's own split must agree (PTB-XL's default). `"folds"`: the folds
            alone. `"own"`: ECG-QA's alone, as its makers published it (MIMIC-IV-ECG has no other).
        super_classes: Whether to train on all five of `SUPER_CLASSES` about every training record of PTB-XL, too.
        voltage: Whether reports may speak of voltage: only true millivolts show it, to an encoder that keeps them.
        reports: Where a record's report comes from; the first of these that a record has is taken. `"english"`: its
            English report. `"german"`: its German report as written. `"translated"`: its German report in English, by
            `translator`. `"labels"`: sentences made from its labels, for training records only. German stands alone.
    """

    root: Path | str  # folder that holds the sets
    recordings: CorpusFolder | Path | str | None = (
        None  # or their folder: `root/ptbxl` or `root/mimic-iv-ecg` by default
    )
    _: KW_ONLY
    source: str = "ptbxl"  # or `"mimic-iv-ecg"`: the ECGs that are asked about
    sets: Sequence[str] | None = None  # folders of `root`; by default `ecgqa` and, with PTB-XL, `ecgqa-derived`
    version: str = "template"
    split: str | None = None
    train_folds: Collection[int] = TRAIN_FOLDS  # of PTB-XL, of training rows
    test_folds: Collection[int] = (9,)  # of PTB-XL, of test rows
    held_out: str = "test"  # with `split="own"`, ECG-QA's split that is asked: `"test"` or `"valid"`
    super_classes: bool = False
    voltage: bool = False
    reports: Sequence[str] = ("english", "labels")
    translator: Path | str | None = None  # hub id or folder of a sequence-to-sequence model from German to English
    cache: Path | str | None = None  # folder for translations; `root/cache` by default
    rate: int | None = None  # Hz, at which PTB-XL's records are read from their folder: 100 (default) or 500

    @property
    def folder(self) -> Path:
        """`root`, as a path."""
        return Path(self.root).expanduser()

    @cached_property
    def corpus(self) -> type[CorpusFolder]:
        """The class of the recordings."""
        corpus = corpus_named(self.source.replace("-", "_"))
        assert issubclass(corpus, CorpusFolder)
        return corpus

    @property
    def split_kind(self) -> str:
        """One of `SPLITS`."""
        return self.split or ("folds+own" if self.corpus.train_folds else "own")

    @property
    def set_names(self) -> Sequence[str]:
        """Folders of the sets."""
        return self.sets or SOURCES[self.source]

    def check(self) -> None:
        """Refuse settings that are unknown or contradict each other, before anything is read."""
        if self.source not in SOURCES:
            raise ValueError(f"source must be one of {', '.join(SOURCES)}, got {self.source!r}")
        corpus, split = self.corpus, self.split_kind
        for name, value, choices in (
            ("version", self.version, ("template", "paraphrased", "both")),
            ("split", split, SPLITS),
            ("held_out", self.held_out, ("test", "valid")),
        ):
            if value not in choices:
                raise ValueError(f"{name} must be one of {', '.join(choices)}, got {value!r}")
        if self.held_out == "valid" and split != "own":
            raise ValueError(f"held_out='valid' needs split='own': with split={split!r} test_folds says what is asked")
        if not corpus.train_folds and split != "own":
            raise ValueError(f"{corpus.title} has no folds: split={split!r} is for PTB-XL, use split='own'")
        if self.super_classes and split == "own":
            which = f"source {self.source!r} split {split!r}"
            raise ValueError(f"super_classes are those of PTB-XL's folds: not for {which}")
        corpus.check_rate(self.rate)
        check_kinds(self.reports, self.translator, english_only="" if "de" in corpus.languages else corpus.title)
        if both := sorted(set(self.train_folds) & set(self.test_folds)):
            why = "a test patient must not be trained on"
            raise ValueError(f"folds {both} are both in train_folds and in test_folds: {why}")

    def open_recordings(self) -> CorpusFolder:
        """The recordings, which must be those of `source`."""
        recordings, corpus = self.recordings, self.corpus
        if recordings is None or isinstance(recordings, (str, Path)):
            return corpus(recordings or self.folder / self.source, self.rate or corpus.rates[0])
        if not isinstance(recordings, corpus):
            raise ValueError(
                f"source is {self.source!r}, but the recordings are of {recordings.root}: pass those it asks about"
            )
        return recordings

    def place(self, row: Row, published: str, fold_of: Mapping[str, int]) -> tuple[bool, str]:
        """Whether a row of a split of ECG-QA is for training, and why it is for nothing, in words after a count."""
        if self.split_kind == "own":
            if published in ("train", self.held_out):
                return published == "train", ""
            return False, f"questions of ECG-QA's own {published} split left out"
        folds = {fold_of[ecg] for ecg in row["ecgs"]}
        into = published == "train" if self.split_kind == "folds+own" else not folds & set(self.test_folds)
        split = {"folds": "", "folds+own": "training " if into else "test "}[self.split_kind]
        if folds <= set(self.train_folds if into else self.test_folds):
            return into, ""
        if folds & set(self.train_folds) and folds & set(self.test_folds):
            return into, f"{split}questions dropped: they compare an ECG of a training fold with one of a test fold"
        if folds & set(self.test_folds if into else self.train_folds):
            return into, f"{split}questions dropped: their ECGs are in a {'test' if into else 'training'} fold"
        return into, f"{split}questions dropped: their ECGs are in a fold that is used for neither split"


def load(*args: Any, **keywords: Any) -> QuestionSet:
    """Load the questions whose ECGs are there, split so that no test patient was trained on.

    Rows about noise have `control="noise"` (noise can be filtered out of the records) and rows about voltage
    `control="voltage"`. The rows for the align stage ask for the report of each training record.

    The arguments are the fields of `EcgQa`; the notes say what was dropped and why.

    Raises:
        ValueError: A folder is missing, a question breaks the schema (names file and index), settings contradict each
            other, or the folds overlap.
    """
    settings = EcgQa(*args, **keywords)
    settings.check()
    recordings = settings.open_recordings()
    train, test, notes = _split_questions(settings, recordings)
    if settings.super_classes:
        rows = super_class_rows(recordings, settings.train_folds)
        train += rows
        notes.append(f"{len(rows)} training questions about super-classes were made from PTB-XL's labels: NOT ECG-QA.")
    counts = Counter(row["id"] for row in (*train, *test))
    if repeated := [id for id, count in counts.items() if count > 1]:
        raise ValueError(f"sample_id is not unique: {len(repeated)} rows are named twice, such as {repeated[0]}")
    reports, test_reports, report_notes = _report_rows(settings, recordings, train, test)
    rows = [*train, *test, *reports, *test_reports]
    patient_of = {ecg: patient for row in rows for ecg, patient in zip(row["ecgs"], row["patient_ids"])}
    return QuestionSet(
        name="+".join(settings.set_names) + ("" if settings.source == "ptbxl" else f" ({settings.source})"),
        source=recordings,
        source_key=recordings.key,
        train=train,
        test=test,
        reports=reports,
        patient_of=patient_of,
        notes=[*_partial(recordings), *notes, *report_notes],
        traits={record: recordings.traits(record) for record in patient_of},
        test_reports=test_reports,
        fold_of={record: str(recordings.fold_of[record]) for record in patient_of if record in recordings.fold_of},
    )


setattr(load, "__signature__", inspect.signature(EcgQa))  # noqa: B010  the settings it has, for `load_questions`


def _partial(recordings: CorpusFolder) -> list[str]:
    """A note on a corpus of which only a part is there."""
    if not isinstance(recordings, PtbXl) or len(recordings) == recordings.listed:
        return []
    return [f"{len(recordings):,} of the {recordings.listed:,} records of PTB-XL's table are on disk."]


def _split_questions(settings: EcgQa, recordings: CorpusFolder) -> tuple[list[Row], list[Row], list[str]]:
    """Rows of training and test, and notes on what was dropped."""
    rows: dict[bool, list[Row]] = {True: [], False: []}  # by whether they are for training
    notes: list[str] = []
    for name in settings.set_names:
        dropped: Counter[str] = Counter()
        before = {training: len(some) for training, some in rows.items()}
        for wording in ("template", "paraphrased") if settings.version == "both" else (settings.version,):
            for published, question in read_questions(settings.folder / name / settings.source / wording):
                row = row_of(f"{name}/{wording}/{published}", question, recordings.patient_of)
                if all(row["patient_ids"]):
                    training, reason = settings.place(row, published, recordings.fold_of)
                else:
                    training = published == "train"
                    reason = f"{'training' if training else 'test'} questions dropped: their ECGs are not on disk"
                if reason:
                    dropped[reason] += 1
                else:
                    rows[training].append(row)
        what = f"{name} ({settings.version})"
        if name == DERIVED:
            notes.append(f"{name} is NOT ECG-QA: its questions were derived from PTB-XL's labels in ECG-QA's schema.")
        train, test = (len(rows[training]) - before[training] for training in (True, False))
        notes.append(f"{what}: {train} training and {test} test questions.")
        notes += [f"{what}: {count} {reason}." for reason, count in sorted(dropped.items())]
    return rows[True], rows[False], notes


def _report_rows(
    settings: EcgQa, recordings: CorpusFolder, train: Sequence[Row], test: Sequence[Row]
) -> tuple[list[Row], list[Row], list[str]]:
    """Rows that ask for the report of each training and each test record, and notes on where the reports came from."""

    def translated(texts: Iterable[str]) -> dict[str, str]:
        return translate(texts, settings.translator or "", settings.cache or settings.folder / "cache")

    def ask(rows: Sequence[Row], folds: Collection[int], kinds: Sequence[str]) -> tuple[list[Row], list[str]]:
        if settings.split_kind == "own":
            records = sorted({record for row in rows for record in row["ecgs"]}, key=int)
        else:  # a fold's records may have reports without being asked about
            records = [record for record, fold in recordings.fold_of.items() if fold in folds]
        texts, notes = find_reports(recordings, records, kinds, translated=translated, voltage=settings.voltage)
        return [
            question_row(
                id=f"report/{record}",
                ecgs=[record],
                patient_ids=[recordings.patient_of[record]],
                question_type="report",
                question=_ASK_REPORT[int(record) % len(_ASK_REPORT)],
                answer=[texts[record]],
            )
            for record in records
            if record in texts
        ], notes

    reports, notes = ask(train, settings.train_folds, settings.reports)
    # Sentences made from labels are no test of what a report says.
    test_reports, _ = ask(test, settings.test_folds, [kind for kind in settings.reports if kind != "labels"])
    if not settings.voltage:
        notes.append("Statements about voltage were left out of the reports.")
    return reports, test_reports, notes
