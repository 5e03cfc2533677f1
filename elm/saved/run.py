"""`SavedRun`: a saved model's folder, read once. And the questions and caches that it shares with its training."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from hashlib import sha256
from pathlib import Path
from typing import cast

from data.conversations import load_questions
from data.conversations.readable import readable_questions, without_unreadable
from data.conversations.rows import QuestionSet, Row
from data.ecg import Ecg
from data.experiment import conditions
from data.experiment.conditions import Altered
from data.support.files import is_writable
from data.synthetic import SyntheticCohort
from elm.inputs.features import FeatureStore
from elm.inputs.measured import MeasuredStore
from elm.inputs.processing import ElmProcessor
from elm.model.modeling import ElmForConditionalGeneration
from elm.saved.arguments import ElmArguments, TrainingRecord, as_mapping, with_cache
from elm.saved.check import json_object
from elm.saved.folder import load, resolve
from encoders.base import EcgFeatureExtractor

DEV_NOTE = (
    "A --dev run: small parts with random weights, few questions, a few steps. It shows that the config runs, no more."
)
TRAIN_ROWS, TEST_ROWS, REPORTS = 48, 12, 12  # of a --dev run


@dataclass(frozen=True)
class Stores:
    """Caches of an encoder's output: for recordings, for inputs set to zero, for altered recordings."""

    features: FeatureStore
    zeros: FeatureStore
    altered: FeatureStore


class SavedRun:
    """A saved model (a folder or a hub id) and the run it came from; each part is read when needed, and only once.

    What is computed once goes to `cache`, without it to the training's cache if that is there and can be written, else
    to `spare_cache`: never into the model's folder, and never by a path that was relative to where it was trained.
    `revision` is that of a hub id.
    """

    def __init__(
        self,
        name_or_path: Path | str,
        cache: Path | None = None,
        spare_cache: Path = Path("~/.cache/ecg-elm"),
        revision: str | None = None,
    ) -> None:
        self.name, self._cache, self._spare_cache, self.revision = str(name_or_path), cache, spare_cache, revision

    @cached_property
    def folder(self) -> Path:
        """Where its files are. Raises `FileNotFoundError` as `elm.saved.folder.resolve` does."""
        return resolve(self.name, self.revision)

    @cached_property
    def _record(self) -> bytes:
        file = self.folder / "training.json"
        return file.read_bytes() if file.is_file() else b""

    @cached_property
    def digest(self) -> str:
        """Tells one training from another: a hash of training.json, losses and settings among it; "" without one."""
        return sha256(self._record).hexdigest()[:16] if self._record else ""

    @cached_property
    def training(self) -> TrainingRecord:
        """What training.json holds. Raises `FileNotFoundError` without one, `ValueError` where it is damaged."""
        if not self._record:
            raise FileNotFoundError(
                f"{self.name} has no training.json: it does not say on which questions to ask this model"
            )
        return cast("TrainingRecord", json_object(self._record, "training.json", self.name))

    @cached_property
    def arguments(self) -> ElmArguments:
        """The arguments it was trained with, but for where the cache is.

        Raises `ValueError` where there are none, or those of another version; names them.
        """
        if (recorded := self.training.get("arguments")) is None:
            raise ValueError(f"{self.folder / 'training.json'} does not say on which questions to ask this model")
        if unknown := sorted(recorded.keys() - {field.name for field in dataclasses.fields(ElmArguments)}):
            raise ValueError(
                f"{self.folder / 'training.json'} names arguments that this version does not have "
                f"({', '.join(unknown)}): use the version it was trained with, {self.training.get('versions', {})}"
            )
        arguments = ElmArguments(**recorded)
        if self._cache is None and is_writable(arguments.cache_dir):
            return arguments
        return with_cache(arguments, (self._cache or self._spare_cache).expanduser())

    @cached_property
    def questions(self) -> QuestionSet:
        """The question set it was trained on."""
        return questions_for(self.arguments)

    @cached_property
    def _loaded(self) -> tuple[ElmForConditionalGeneration, ElmProcessor]:
        return load(self.folder)

    @property
    def model(self) -> ElmForConditionalGeneration:
        """The model, ready to answer. Raises as `elm.load` does."""
        return self._loaded[0]

    @property
    def processor(self) -> ElmProcessor:
        """Processor of the model."""
        return self._loaded[1]

    def stores(self, questions: QuestionSet) -> Stores:
        """Caches of its encoder's output for the recordings of a question set.

        That of altered recordings is for the ids that `data.experiment.conditions` makes, and for its present version:
        what an earlier one made of a recording is another recording.
        """
        key = f"{questions.source_key}~{conditions.VERSION}"
        altered = dataclasses.replace(questions, source=Altered(questions.source), source_key=key)
        store = partial(feature_store, self.arguments, self.model, self.processor)
        return Stores(store(questions), store(questions, zero=True), store(altered))

    def fitting(self, questions: QuestionSet) -> QuestionSet:
        """The questions whose recordings have the leads that the encoder needs (`fitting`), where that is recorded."""
        if not questions.leads or not self._record:
            return questions
        extractor = ElmProcessor.from_pretrained(self.folder).feature_extractor
        return fitting(questions, extractor, self.arguments.unreadable)

    def measured(self, questions: QuestionSet) -> MeasuredStore | None:
        """What is measured in the recordings of a question set, where the model reads that."""
        return measured_store(self.arguments, questions)


def feature_store(
    arguments: ElmArguments,
    model: ElmForConditionalGeneration,
    processor: ElmProcessor,
    questions: QuestionSet,
    zero: bool = False,
) -> FeatureStore:
    """Cache of the encoder's output for the recordings of a question set."""
    encoder, extractor = model.model.encoder, processor.feature_extractor
    return FeatureStore(
        encoder, extractor, questions.source, questions.source_key, arguments.cache_dir, zero, arguments.cache_gb
    )


def measured_store(arguments: ElmArguments, questions: QuestionSet) -> MeasuredStore | None:
    """What is measured in the recordings of a question set, where the model reads that."""
    if not arguments.measured:
        return None
    return MeasuredStore(questions.source, questions.source_key, arguments.cache_dir)


def questions_for(arguments: ElmArguments, *, read: bool = True) -> QuestionSet:
    """The question set of a run, all of whose recordings can be read. Simulated ones are cached with everything else.

    Which recordings were read, and were sound, is remembered in `cache_dir`. Without `read` none is looked at.

    Raises:
        ValueError: There is nothing to train on, or of one of the `question_types`; or a recording cannot be read, and
            is not to be left out.
    """
    settings = dict(as_mapping("dataset_args", arguments.dataset_args))
    if "unreadable" in settings:
        raise ValueError("dataset_args: unreadable is no setting of a question set: give --unreadable beside it")
    if arguments.dataset in ("synthetic", "ecg_qa"):
        settings.setdefault("cache", arguments.cache_dir)
    questions = load_questions(arguments.dataset, unreadable=None, **settings)
    _refuse_nothing(questions)
    if arguments.question_types is not None:
        questions = of_types(questions, arguments.question_types)
    if arguments.dev:
        questions = few(questions)
    if read:
        questions = readable_questions(questions, arguments.unreadable, arguments.cache_dir)
    _refuse_nothing(questions)
    return questions


def _refuse_nothing(questions: QuestionSet) -> None:
    """Refuse, with a `ValueError`, a question set without a training question; its notes say where they went."""
    if not questions.train:
        left = f"no training question is left, and {len(questions.test):,} of the test"
        raise ValueError(" ".join([f"{questions.name}: there is nothing to train on: {left}.", *questions.notes]))


def fitting(questions: QuestionSet, extractor: EcgFeatureExtractor, unreadable: str) -> QuestionSet:
    """The question set without recordings that lack a lead the encoder needs; `unreadable` is that of a run.

    What an encoder needs is found by showing it a simulated recording with the leads of each kind that were read.

    Raises:
        ValueError: There are such, and they are not to be left out; names them.
    """
    if not questions.leads:
        return questions
    cohort = SyntheticCohort(1, records_per_patient=1, fs=500)
    whole = dataclasses.replace(cohort[cohort.records[0]], record_id="")
    if _refusal(extractor, whole):  # of what has nothing to do with leads
        return questions
    reasons: dict[tuple[str, ...], str] = {}
    for leads in dict.fromkeys(questions.leads.values()):
        standard = [lead for lead in leads if lead.removeprefix("-") in whole.leads]
        why = _refusal(extractor, whole.select(standard)) if standard else f"it has {', '.join(leads)}"
        if why:
            reasons[leads] = f"the encoder cannot take it: {why}"
    lacking = {record: reasons[leads] for record, leads in questions.leads.items() if leads in reasons}
    questions = without_unreadable(questions, lacking, unreadable)
    _refuse_nothing(questions)
    return questions


def _refusal(extractor: EcgFeatureExtractor, ecg: Ecg) -> str:
    """Why an extractor does not take a recording; empty where it does."""
    try:
        extractor(ecg)
    except ValueError as error:
        return str(error).removeprefix(f"{ecg.who} ")
    return ""


def of_types(questions: QuestionSet, types: Sequence[str]) -> QuestionSet:
    """Questions of some types alone. Raises `ValueError` where there are none of one of them to train on."""
    present = {row["question_type"] for row in questions.train}
    if missing := sorted(set(types) - present):
        raise ValueError(f"{questions.name} has no training questions of type {missing[0]!r}: it has {sorted(present)}")
    train, test = ([row for row in rows if row["question_type"] in types] for rows in (questions.train, questions.test))
    return dataclasses.replace(questions, train=train, test=test)


def few(questions: QuestionSet) -> QuestionSet:
    """Questions and reports of a `--dev` run, spread over all there are."""

    def spread(rows: list[Row], count: int) -> list[Row]:
        return rows[:: -(-len(rows) // count)] if rows else rows

    return dataclasses.replace(
        questions,
        train=spread(questions.train, TRAIN_ROWS),
        test=spread(questions.test, TEST_ROWS),
        reports=spread(questions.reports, REPORTS),
        test_reports=spread(questions.test_reports, REPORTS),
        notes=[DEV_NOTE, *questions.notes],
    )
