"""The leak check of a run: of its split, and of its test against what a saved model was trained on before."""

import dataclasses
import logging
from collections.abc import Sequence

from data.conversations.rows import QuestionSet, Row
from data.experiment.leaks import check_leaks
from elm.model.modeling import ElmForConditionalGeneration
from elm.saved.arguments import BaseRecord, ElmArguments, Settings
from elm.saved.run import questions_for
from elm.training.base import QUESTIONS

logger = logging.getLogger(__name__)

_NAMED = 5  # in a refusal


def leaks_of(
    arguments: ElmArguments,
    questions: QuestionSet,
    model: ElmForConditionalGeneration,
    earlier: Sequence[BaseRecord] = (),
) -> list[str]:
    """Sentences of the leak check, for the model card; `earlier` are the trainings that this one goes on from.

    Raises:
        ValueError: There are leaks, and `allow_leaks` is not set.
    """
    leaks = check_leaks(questions, model.config.encoder_config.pretrained_on, arguments.cache_dir)
    sentences, faults = leaks.sentences(), [leaks.refusal()] if leaks.refusal() else []
    for record in earlier:
        sentence, is_fault = _seen_before(record, arguments, questions)
        sentences.append(sentence)
        if is_fault:
            faults.append(
                f"{sentence} Scores on this test would not be those of new patients. Leave them out of the test, or "
                "pass allow_leaks: true to train all the same; the model card then says so."
            )
    if faults and not arguments.allow_leaks:
        raise ValueError(" ".join(faults))
    if faults:
        logger.warning("%s", " ".join(sentences))
    return sentences


def _seen_before(record: BaseRecord, arguments: ElmArguments, questions: QuestionSet) -> tuple[str, bool]:
    """Whether patients of the test were in an earlier training, in a sentence; True where some were.

    By their names within a corpus, not by content: recordings that another corpus holds under other names are not
    found.
    """
    name, dataset = record["name_or_path"], record["dataset_name"]
    try:
        before = _questions_of(record, arguments, questions)
    except (OSError, ValueError, TypeError, ImportError) as error:
        corpora = sorted(set(record["corpora"]) & {_place(questions, row["ecgs"][0]) for row in questions.test})
        same = f" Both have recordings of {', '.join(corpora)}." if corpora else ""
        why = str(error).rstrip(".")
        sentence = (
            f"{name} was trained on {dataset}, which cannot be read here ({why}): whether it has seen patients of this "
            f"test is not known.{same}"
        )
        logger.warning("%s", sentence)
        return sentence, False
    trained = (*before.train, *before.reports)
    tested = (*questions.test, *questions.test_reports)
    seen = sorted(who for _, who in _patients(before, trained) & _patients(questions, tested))
    if not seen:
        return f"No patient of the test was in the training of {name} ({dataset}), compared by name.", False
    some = ", ".join(seen[:_NAMED]) + (", ..." if len(seen) > _NAMED else "")
    many = f"{len(seen):,} patient of the test was" if len(seen) == 1 else f"{len(seen):,} patients of the test were"
    return f"{many} in the training of {name} ({dataset}): {some}.", True


def _questions_of(record: BaseRecord, arguments: ElmArguments, questions: QuestionSet) -> QuestionSet:
    """The questions of an earlier training, from the places that its record names."""
    before = record.get("arguments", {})
    if _which(before) == _which(dataclasses.asdict(arguments)):
        return questions
    if "dataset" not in before:
        raise ValueError("its record does not say where they are")
    changes = {"question_types": None, "dev": False, **before, "dataset_args": _without_cache(before)}
    return questions_for(dataclasses.replace(arguments, **changes))


def _which(arguments: Settings) -> list[object]:
    """What of a run's arguments says which its questions are; where they are cached does not matter."""
    return [_without_cache(arguments), *(arguments.get(name) or None for name in QUESTIONS if name != "dataset_args")]


def _without_cache(arguments: Settings) -> Settings:
    """Settings of the question set without the folder that another run cached in."""
    return {name: value for name, value in (arguments.get("dataset_args") or {}).items() if name != "cache"}


def _patients(questions: QuestionSet, rows: Sequence[Row]) -> set[tuple[str, str]]:
    """Corpus and patient of the recordings of rows; one without a known patient stands for itself."""
    records = {record for row in rows for record in row["ecgs"]}
    patient = questions.patient_of.get
    return {(_place(questions, record), patient(record) or f"of record {record}") for record in records}


def _place(questions: QuestionSet, record: str) -> str:
    """Where a recording's names are from: its corpus, or else the very set of recordings."""
    return str(questions.traits.get(record, {}).get("corpus", questions.source_key))
