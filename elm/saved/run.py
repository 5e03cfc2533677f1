"""`SavedRun`: a saved model's folder, read once. And the questions and caches that it shares with its training."""

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from hashlib import sha256
from pathlib import Path

from data.conversations import load_questions
from data.conversations.rows import QuestionSet, Row
from data.experiment import conditions
from data.experiment.conditions import Altered
from elm.inputs.features import FeatureStore
from elm.inputs.measured import MeasuredStore
from elm.inputs.processing import ElmProcessor
from elm.model.modeling import ElmForConditionalGeneration
from elm.saved.arguments import ElmArguments, TrainingRecord, as_mapping
from elm.saved.folder import load, resolve

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
    """A saved model (a folder or a hub id) and the run it came from; each part is read when needed, and only once."""

    def __init__(self, name_or_path: Path | str) -> None:
        self.name = str(name_or_path)

    @cached_property
    def folder(self) -> Path:
        """Where its files are. Raises `FileNotFoundError` as `elm.saved.folder.resolve` does."""
        return resolve(self.name)

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
        """What training.json holds. Raises `FileNotFoundError` where there is none."""
        if not self._record:
            raise FileNotFoundError(
                f"{self.name} has no training.json: it does not say on which questions to ask this model"
            )
        record: TrainingRecord = json.loads(self._record)
        return record

    @cached_property
    def arguments(self) -> ElmArguments:
        """The arguments it was trained with."""
        return ElmArguments(**self.training["arguments"])

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


def questions_for(arguments: ElmArguments) -> QuestionSet:
    """The question set of a run. Simulated recordings are cached with everything else.

    Raises:
        ValueError: Of one of the `question_types` there are no questions.
    """
    settings = dict(as_mapping("dataset_args", arguments.dataset_args))
    if arguments.dataset in ("synthetic", "ecg_qa"):
        settings.setdefault("cache", arguments.cache_dir)
    questions = load_questions(arguments.dataset, **settings)
    if arguments.question_types is not None:
        questions = of_types(questions, arguments.question_types)
    return few(questions) if arguments.dev else questions


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
