"""The journal of an evaluation: answers are kept as soon as they are given, so that asking goes on where it stopped.

`asked-<hash of the settings>.jsonl` begins with the settings; each further line is one batch of one condition. What is
asked together is planned before anything is asked, and a line is written in one piece: a run that was interrupted and
started again leaves the bytes that an uninterrupted one leaves.
"""

import json
import math
import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple, Self, TypedDict
from zlib import crc32

from filelock import FileLock, Timeout
from tqdm import tqdm

from data.conversations.rows import Row
from data.support.files import disk_errors_of
from data.support.sentences import Refused
from eval.answerers.base import Responder, question_messages
from eval.answerers.memory import Answered, Remembering
from eval.scoring.lines import Answer

DIGITS = 5  # of a log-probability


class Entry(TypedDict):
    """One answer in the journal; `asked` is a digest of the question, its ECGs and its options."""

    id: str
    asked: str
    text: str
    logp: list[float] | None
    gold_logp: float | None


class Question(NamedTuple):
    """A question as a condition leaves it, with the answers whose log-probabilities are asked for."""

    row: Row  # the question, with an id of its own
    options: Sequence[str] | None  # the options of a closed question
    gold: str  # the right answer's text


class Journal:
    """The answers given so far under some settings, in the file `path`. A context manager; one process at a time.

    The settings are all that answers depend on (model, questions, batch size, ...), as JSON values: other settings are
    another file.

    Raises:
        ValueError: The file is damaged before its end; names the line. A torn end is no damage, it is cut off.
        Refused: Another process has it open.
        OSError: It cannot be written; names the file.
    """

    def __init__(self, folder: Path | str, settings: Mapping[str, object]) -> None:
        header = _line({"settings": settings})
        self.path = Path(folder) / f"asked-{sha256(header).hexdigest()[:8]}.jsonl"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._batches: dict[str, list[list[Entry]]] = defaultdict(list)
        self._lock = FileLock(self.path.with_name(f".{self.path.name}.lock"), timeout=0)
        try:
            self._lock.acquire()
        except Timeout as error:
            busy = "is being written by another process: wait for it, or write to another folder"
            raise Refused(f"{self.path} {busy}") from error
        self._file = open(self.path, "a+b")  # noqa: SIM115 (closed by `close`)
        try:
            self._read(header)
        except BaseException:
            self.close()
            raise

    def _read(self, header: bytes) -> None:
        self._file.seek(0)
        *lines, torn = self._file.read().split(b"\n")
        if torn:
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

    def batches(self, condition: str) -> list[list[Entry]]:
        """The batches that were added for this condition, in order."""
        return self._batches[condition]

    def add(self, condition: str, answers: list[Entry]) -> None:
        """Keep the answers to the next batch of a condition; on disk when this returns."""
        batches = self._batches[condition]
        self._write(_line({"condition": condition, "batch": len(batches), "answers": answers}))
        batches.append(answers)

    def _write(self, line: bytes) -> None:
        with disk_errors_of(self.path):
            self._file.write(line)
            self._file.flush()
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Let others open it."""
        self._file.close()
        self._lock.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def _line(value: object) -> bytes:
    return json.dumps(value, ensure_ascii=False, sort_keys=True, separators=(",", ":")).encode() + b"\n"


def ask_all(
    responder: Responder, condition: str, questions: Sequence[Question], journal: Journal, batch_size: int
) -> list[Answer]:
    """Ask and score every question under one condition, but for what the journal holds already. Shows a progress bar.

    The journal takes the answers batch by batch, `batch_size` questions at a time.

    Returns:
        One answer per question, in their order.

    Raises:
        ValueError: The journal answers other questions, or the responder gives too few answers or log-probabilities
            that are not finite; names the file or the question.
    """
    rows = [question.row for question in questions]
    plan = batches_of(rows, batch_size)
    done = journal.batches(condition)
    digests = [_digest(question) for question in questions]
    planned = [[(rows[i]["id"], digests[i]) for i in batch] for batch in plan]
    if [[(entry["id"], entry["asked"]) for entry in batch] for batch in done] != planned[: len(done)]:
        raise ValueError(
            f"{journal.path} holds answers to other questions under {condition!r} than are asked now (other ECGs, "
            "words or options): delete the file to ask everything again"
        )
    if isinstance(responder, Remembering):
        for batch, entries in zip(plan, done):
            earlier = [_answered(entry, questions[i]) for i, entry in zip(batch, entries)]
            responder.learn([rows[i] for i in batch], condition, earlier)
    if len(done) < len(plan):
        responder.prepare(rows, condition)
    first = sum(map(len, done))
    with tqdm(total=len(rows), initial=first, desc=f"asking, {condition}", unit="question", disable=None) as progress:
        for batch in plan[len(done) :]:
            answers = _ask(responder, condition, [questions[i] for i in batch])
            entries = [
                Entry(id=rows[i]["id"], asked=digests[i], text=a.text, logp=a.logp, gold_logp=a.gold_logp)
                for i, a in zip(batch, answers)
            ]
            journal.add(condition, entries)
            progress.update(len(batch))
    by_place = {i: e for batch, entries in zip(plan, journal.batches(condition)) for i, e in zip(batch, entries)}
    return [Answer(e["text"], e["logp"], e["gold_logp"]) for e in (by_place[i] for i in range(len(rows)))]


def _answered(entry: Entry, question: Question) -> Answered:
    """What a journal says of a question, as a memory takes it over."""
    scores = dict(zip(question.options or (), entry["logp"] or ()))
    if entry["gold_logp"] is not None:
        scores[question.gold] = entry["gold_logp"]
    return entry["text"], scores


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


def _digest(question: Question) -> str:
    """Digest of all that is asked with a question."""
    row = question.row
    return f"{crc32(_line([row['ecgs'], question_messages(row), question.options, question.gold])):08x}"


def _ask(responder: Responder, condition: str, questions: Sequence[Question]) -> list[Answer]:
    """The answers to one batch, log-probabilities rounded."""
    rows = [question.row for question in questions]
    texts = responder.ask(rows, condition)
    if len(texts) != len(rows):
        raise ValueError(f"condition {condition!r}: {len(rows)} questions asked but {len(texts)} answers given")
    if not responder.scores:
        return [Answer(text, None, None) for text in texts]
    wanted = [list(dict.fromkeys([*(q.options or []), q.gold])) for q in questions]
    scores = responder.score(rows, condition, wanted)
    answers = []
    for question, text, names, values in zip(questions, texts, wanted, scores, strict=True):
        logp = {name: round(float(value), DIGITS) for name, value in zip(names, values, strict=True)}
        if wrong := [name for name, value in logp.items() if not math.isfinite(value)]:
            what = f"the log-probability of {wrong[0]!r} is {logp[wrong[0]]}"
            raise ValueError(f"question {question.row['id']!r} under {condition!r}: {what}")
        options = None if question.options is None else [logp[name] for name in question.options]
        answers.append(Answer(text, options, logp[question.gold]))
    return answers
