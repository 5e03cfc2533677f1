"""`SavedRun`: a saved model's folder, read once. And the caches that a training and its saved model share."""

import dataclasses
import json
from dataclasses import dataclass
from functools import cached_property, partial
from hashlib import sha256
from pathlib import Path

from data.conversations.rows import QuestionSet
from data.experiment import conditions
from data.experiment.conditions import Altered
from elm.inputs.features import FeatureStore
from elm.inputs.measured import MeasuredStore
from elm.inputs.processing import ElmProcessor
from elm.model.modeling import ElmForConditionalGeneration
from elm.saved.arguments import ElmArguments, TrainingRecord
from elm.saved.folder import load, resolve
from elm.saved.questions import questions_for


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
                f"{self.name} has no training.json, which says on which questions to ask this model"
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
        """Its processor."""
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
