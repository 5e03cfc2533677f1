"""What every question set keeps to, as checks: `load_questions` runs them, and so can whoever makes a set.

`check_questions` refuses what would be trained or counted wrongly. `consistent` leaves out what would count twice, or
could not be answered rightly, and says so.
"""

import dataclasses
from collections.abc import Sequence

from data.conversations.rows import Message, QuestionSet, Row, answer_text, question_row

ROW_FIELDS = tuple(question_row(id="", ecgs=[], patient_ids=[], question_type="", question="", answer=[]))
_NAMED = 5  # rows in a note
_BUILD = "build rows with data.conversations.rows.question_row"


def check_questions(questions: QuestionSet) -> None:
    """Refuse a question set that would be trained or counted wrongly rather than fail. Recordings are not read.

    Whether patients are on both sides of the split is looked at before a training (`data.experiment.leaks`).

    Raises:
        ValueError: A row breaks the schema, an id is used twice, or a record's patient is not known or another one
            than its row says; names the row.
    """
    name = questions.name
    for rows in (questions.train, questions.reports, questions.test, questions.test_reports):
        check_rows(name, rows)
        for row in rows:
            for record, patient in zip(row["ecgs"], row["patient_ids"]):
                if questions.patient_of.get(record) != patient:
                    raise ValueError(
                        f"{name}: question {row['id']!r} says record {record!r} is of patient {patient!r}, "
                        f"patient_of says {questions.patient_of.get(record)!r}"
                    )


def check_rows(name: str, rows: Sequence[Row]) -> None:
    """Refuse single-turn rows whose id, recordings, messages or answers are not what `Row` says.

    Raises:
        ValueError: Names the set, the row, and what is wrong in it.
    """
    seen: set[str] = set()
    for place, row in enumerate(rows):
        if missing := [field for field in ROW_FIELDS if field not in row]:
            raise ValueError(f"{name}: question number {place} has no field {missing[0]!r}: {_BUILD}")
        if row["id"] in seen:
            raise ValueError(f"{name}: two questions have the id {row['id']!r}")
        seen.add(row["id"])
        if fault := _fault(row):
            raise ValueError(f"{name}: question {row['id']!r} {fault}")


def consistent(questions: QuestionSet) -> QuestionSet:
    """The question set without repetitions, and without test questions whose answers contradict each other.

    Two rows ask the same where their wording and their ECGs are the same. A repetition is kept once. Two answers to one
    question are kept in training, where reports and free text may well differ, and left out of the test, where nobody
    could be right about both. A question that compares an ECG with itself stays. Notes count and name all three.
    """
    train, test = _Once(questions.train), _Once(questions.test)
    notes = [*questions.notes]
    for part, words in ((train, "training question"), (test, "test question")):
        if part.repeated:
            notes.append(f"{_counted(part.repeated, words, 'is repeated', 'are repeated')}: kept once.")
        if part.contradicting:
            what = "left out, since nobody can be right about both" if part is test else "kept"
            many = _counted(part.contradicting, words, "contradicts another", "contradict each other")
            notes.append(f"{many}: same question, same ECG, different answers: {what}.")
        if part.with_itself:
            many = _counted(part.with_itself, words, "compares an ECG with itself", "compare an ECG with itself")
            notes.append(f"{many}: kept.")
    if notes == questions.notes:
        return questions
    left_out = {row["id"] for row in test.contradicting}
    return dataclasses.replace(
        questions, train=train.rows, test=[row for row in test.rows if row["id"] not in left_out], notes=notes
    )


class _Once:
    """Rows of one part of a question set, each question and answer once."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self.rows: list[Row] = []
        self.repeated: list[Row] = []  # rows that are left out of `rows`
        self.with_itself = [row for row in rows if len(row["ecgs"]) > 1 and len(set(row["ecgs"])) < len(row["ecgs"])]
        numbers: dict[int | str, int] = {}  # of what is asked: many rows share their messages, many messages a text
        answers: dict[tuple[object, ...], list[Row]] = {}
        for row in rows:
            messages = row["messages"]
            if (number := numbers.get(id(messages))) is None:
                number = numbers[id(messages)] = numbers.setdefault(_asked(messages), len(numbers))
            alike = answers.get(key := (number, *row["ecgs"]))
            if alike is None:
                answers[key] = [row]
            elif any(row["answer"] == other["answer"] for other in alike):
                self.repeated.append(row)
                continue
            else:
                alike.append(row)
            self.rows.append(row)
        self.contradicting = [row for alike in answers.values() if len(alike) > 1 for row in alike]


def _asked(messages: Sequence[Message]) -> str:
    """All texts before the answer, without what does not change their meaning."""
    parts = [part["text"] for message in messages[:-1] for part in message["content"]]
    return " ".join(" ".join(parts).casefold().split())


def _counted(rows: Sequence[Row], words: str, singular: str, plural: str) -> str:
    """How many rows are so, and which."""
    many = f"1 {words} {singular}" if len(rows) == 1 else f"{len(rows):,} {words}s {plural}"
    return f"{many} ({', '.join(row['id'] for row in rows[:_NAMED])}{', ...' if len(rows) > _NAMED else ''})"


def _fault(row: Row) -> str | None:
    """What is wrong with a row, as the end of a sentence about it."""
    if not row["patient_ids"]:
        return "names no patient, so it cannot be resampled"
    if len(row["patient_ids"]) != len(row["ecgs"]):
        return f"is about {len(row['ecgs'])} ECGs and names {len(row['patient_ids'])} patients: one for each ECG"
    if not row["answer"] or not all(isinstance(word, str) and word.strip() for word in row["answer"]):
        return f"has the answer {row['answer']!r}: a list of one or more strings that are not empty"
    contents = [message["content"] for message in row["messages"]]
    parts = [part for content in contents for part in (content if isinstance(content, list) else [content])]
    if bad := [part for part in parts if not isinstance(part, dict) or part.keys() != {"type", "text"}]:
        return f"has the message part {bad[0]!r}, which is not {{'type': ..., 'text': ...}}: {_BUILD}"
    shown = sum(part["type"] == "ecg" for part in parts)
    if shown != len(row["ecgs"]):
        return f"has {shown} ecg parts in its messages and {len(row['ecgs'])} ECGs: {_BUILD}"
    last = row["messages"][-1]
    text = "".join(part["text"] for part in last["content"])
    if last["role"] != "assistant" or text != answer_text(row["answer"]):
        return f"ends with {last['role']} {text!r}, but what is scored is {answer_text(row['answer'])!r}: {_BUILD}"
    return None
