"""The journal of an evaluation: answers are kept as soon as they are given, so that asking goes on where it stopped.

`asked-<hash of the settings>.jsonl` begins with the settings; each further line is one batch of one condition. What is
asked together is planned before anything is asked, and a line is written in one piece: a run that was interrupted and
started again leaves the bytes that an uninterrupted one leaves.
"""

from __future__ import annotations

import fcntl
import json
import math
import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from zlib import crc32

from eval.answerers.memory import Answered, Remembering
from eval.answerers.model import Responder, question_messages

if TYPE_CHECKING:
    from data.conversations.rows import Row

DIGITS = 5  # of a log-probability


class Answer(NamedTuple):
    """What was answered to one question under one condition.

    Attributes:
        text: The answer.
        logp: log p of each of the question's options, or `None` where it has none or the responder does not score.
        gold_logp: log p of the right answer's text, or `None` where the responder does not score.
    """

    text: str
    logp: list[float] | None
    gold_logp: float | None


class Journal:
    """The answers given so far under some settings. A context manager; one process at a time.

    Args:
        folder: Where the journals lie; made if missing.
        settings: All that answers depend on (model, questions, batch size, seed, ...), as JSON values. Other settings
            are another file.

    Attributes:
        path: The file.

    Raises:
        ValueError: The file is damaged before its end; names the line. A torn end is no damage, it is cut off.
        RuntimeError: Another process has it open.
    """

    def __init__(self, folder: Path | str, settings: Mapping[str, Any]) -> None:
        header = _line({"settings": settings})
        self.path = Path(folder) / f"asked-{sha256(header).hexdigest()[:8]}.jsonl"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._batches: dict[str, list[Any]] = defaultdict(list)
        self._file = open(self.path, "a+b")  # noqa: SIM115 (closed by `close`)
        try:
            self._open(header)
        except BaseException:
            self._file.close()
            raise

    def _open(self, header: bytes) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise RuntimeError(
                f"{self.path} is being written by another process: wait for it, or write to another folder"
            ) from error
        self._file.seek(0)
        *lines, torn = self._file.read().split(b"\n")
        if torn:  # cut in place: a new file would not have the lock
            self._file.truncate(sum(len(line) + 1 for line in lines))
        if not lines:
            self._write(header)
        elif lines[0] + b"\n" != header:
            raise ValueError(self._damage(1, "does not hold the settings that the file is named after"))
        for number, line in enumerate(lines[1:], start=2):
            try:
                batch = json.loads(line)
                condition, place, answers = batch["condition"], batch["batch"], batch["answers"]
            except (ValueError, TypeError, KeyError) as error:
                raise ValueError(self._damage(number, "is not a batch of answers")) from error
            if place != len(self._batches[condition]):
                raise ValueError(self._damage(number, f"is batch {place} of {condition!r}, out of turn"))
            self._batches[condition].append(answers)

    def _damage(self, number: int, what: str) -> str:
        return f"{self.path}, line {number} {what}: delete the file to ask everything again"

    def batches(self, condition: str) -> list[Any]:
        """What was added for this condition, in order."""
        return self._batches[condition]

    def add(self, condition: str, answers: Sequence[Any]) -> None:
        """Keep the answers (JSON values) to the next batch of a condition; on disk when this returns."""
        batches = self._batches[condition]
        self._write(_line({"condition": condition, "batch": len(batches), "answers": answers}))
        batches.append(answers)

    def _write(self, line: bytes) -> None:
        self._file.write(line)
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Let others open it."""
        self._file.close()

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def _line(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, sort_keys=True, separators=(",", ":")).encode() + b"\n"


def ask_all(
    responder: Responder,
    condition: str,
    rows: Sequence[Row],
    options: Sequence[Sequence[str] | None],
    gold: Sequence[str],
    journal: Journal,
    batch_size: int,
) -> list[Answer]:
    """Ask and score every row under one condition, but for what the journal holds already. Shows a progress bar.

    Args:
        responder: Who answers.
        condition: Its name.
        rows: Questions as the condition leaves them, each with an id of its own.
        options: Per row, the answers to be scored, or `None`.
        gold: Per row, the right answer's text, scored as well.
        journal: Takes the answers, batch by batch.
        batch_size: Questions asked together.

    Returns:
        One answer per row, in the order of the rows.

    Raises:
        ValueError: The journal answers other questions, or the responder gives too few answers or log-probabilities
            that are not finite; names the file or the question.
    """
    from tqdm import tqdm

    if not len(rows) == len(options) == len(gold):
        raise ValueError(f"{len(rows)} rows, but options of {len(options)} and right answers of {len(gold)}")
    plan = batches_of(rows, batch_size)
    done = journal.batches(condition)
    asked = [_digest(row, choices, right) for row, choices, right in zip(rows, options, gold)]
    planned = [[[rows[i]["id"], asked[i]] for i in batch] for batch in plan]
    if [[[a["id"], a["asked"]] for a in batch] for batch in done] != planned[: len(done)]:
        raise ValueError(
            f"{journal.path} holds answers to other questions under {condition!r} than are asked now (other ECGs, "
            "words or options): delete the file to ask everything again"
        )
    if isinstance(responder, Remembering):
        for batch, answers in zip(plan, done):
            told = [_answered(answer, options[i], gold[i]) for i, answer in zip(batch, answers)]
            responder.learn([rows[i] for i in batch], condition, told)
    if len(done) < len(plan):
        responder.prepare(rows, condition)
    first = sum(map(len, done))
    with tqdm(total=len(rows), initial=first, desc=f"asking, {condition}", unit="question", disable=None) as progress:
        for batch in plan[len(done) :]:
            given = _ask(
                responder, condition, [rows[i] for i in batch], [options[i] for i in batch], [gold[i] for i in batch]
            )
            kept = [{"id": rows[i]["id"], "asked": asked[i], **answer._asdict()} for i, answer in zip(batch, given)]
            journal.add(condition, kept)
            progress.update(len(batch))
    answers = {i: a for batch, kept in zip(plan, journal.batches(condition)) for i, a in zip(batch, kept)}
    return [Answer(*(answers[i][name] for name in Answer._fields)) for i in range(len(rows))]


def _answered(answer: Mapping[str, Any], options: Sequence[str] | None, gold: str) -> Answered:
    """What a journal says of a row, as a memory takes it over."""
    scores = dict(zip(options or (), answer["logp"] or ()))
    if answer["gold_logp"] is not None:
        scores[gold] = answer["gold_logp"]
    return answer["text"], scores


def batches_of(rows: Sequence[Row], batch_size: int) -> list[list[int]]:
    """Which rows are asked together: indices, the longest questions first, ties by id.

    What does not fit into memory fails at once. Equal under every condition that keeps the words, so that a question
    has the same neighbours and padding with and without its own ECG.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be positive, got {batch_size}")
    order = sorted(range(len(rows)), key=lambda i: (-_length(rows[i]), rows[i]["id"]))
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]


def _length(row: Row) -> int:
    """Characters of the question: good enough to sort by, the ECGs of a row being of like length."""
    return sum(
        len(part["text"])
        for message in question_messages(row)
        for part in ([{"text": message["content"]}] if isinstance(message["content"], str) else message["content"])
    )


def _digest(row: Row, options: Sequence[str] | None, gold: str) -> str:
    """Of all that is asked with a row."""
    return f"{crc32(_line([row['ecgs'], question_messages(row), options, gold])):08x}"


def _ask(
    responder: Responder,
    condition: str,
    rows: Sequence[Row],
    options: Sequence[Sequence[str] | None],
    gold: Sequence[str],
) -> list[Answer]:
    """The answers to one batch, log-probabilities rounded."""
    texts = responder.ask(rows, condition)
    if len(texts) != len(rows):
        raise ValueError(f"condition {condition!r}: {len(rows)} questions asked but {len(texts)} answers given")
    if not responder.scores:
        return [Answer(text, None, None) for text in texts]
    wanted = [list(dict.fromkeys([*(choices or []), right])) for choices, right in zip(options, gold)]
    scored = responder.score(rows, condition, wanted)
    answers = []
    for row, text, choices, right, names, values in zip(rows, texts, options, gold, wanted, scored, strict=True):
        logp = {name: round(float(value), DIGITS) for name, value in zip(names, values, strict=True)}
        if wrong := [name for name, value in logp.items() if not math.isfinite(value)]:
            raise ValueError(
                f"question {row['id']!r} under {condition!r}: the log-probability of {wrong[0]!r} is {logp[wrong[0]]}"
            )
        answers.append(Answer(text, None if choices is None else [logp[name] for name in choices], logp[right]))
    return answers
