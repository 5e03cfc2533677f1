"""Questions of a run, by its arguments: all, those of some types, or the few of a `--dev` run."""

import dataclasses
from collections.abc import Sequence

from data.conversations import load_questions
from data.conversations.rows import QuestionSet, Row
from elm.saved.arguments import ElmArguments, as_mapping

DEV_NOTE = (
    "A --dev run: small parts with random weights, few questions, a few steps. It shows that the config runs, no more."
)
TRAIN_ROWS, TEST_ROWS, REPORTS = 48, 12, 12  # of a --dev run


def questions_for(arguments: ElmArguments) -> QuestionSet:
    """The question set of a run. Simulated recordings are cached with everything else.

    Raises:
        ValueError: Of one of the `question_types` there are no questions.
    """
    settings = as_mapping("dataset_args", arguments.dataset_args)
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
