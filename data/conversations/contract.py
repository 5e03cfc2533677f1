"""What every question set keeps to, as checks: `load_questions` runs them, and so can whoever makes a set."""

from collections.abc import Sequence

from data.conversations.rows import QuestionSet, Row, answer_text, question_row

ROW_FIELDS = tuple(question_row(id="", ecgs=[], patient_ids=[], question_type="", question="", answer=[]))
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
