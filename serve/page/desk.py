"""Actions of the chat page's visitors on a `Session`. `view` says how that looks, `build` which button does what."""

import logging
import re
import traceback
from collections.abc import Iterator, Sequence

from data.readers.budget import Budget, UploadError
from data.readers.staging import read_uploaded
from data.wire.http import ServerError
from serve.page.recordings import Recording, Shelf, described
from serve.page.session import Answer, Condition, Session, Sessions, Turn
from serve.serving.client import Turns
from serve.serving.engine import Engine

logger = logging.getLogger(__name__)

QUESTIONS = (  # about one recording
    "Is this a normal ECG?",
    "What is the rhythm of this ECG?",
    "Is the heart rate normal, slow or fast in this ECG?",
    "What is the direction of the electrical axis of this ECG?",
    "How is the intraventricular conduction of this ECG?",
    "Describe this ECG.",
)
COMPARISONS = (  # of two
    "Is there new atrial fibrillation in the second ECG compared to the first?",
    "Does the second ECG show tachycardia that the first ECG does not show?",
    "Which of the two ECGs shows left bundle branch block?",
    "Which of the two ECGs shows atrial fibrillation?",
)
MOST_TURNS = 40  # of a conversation that are kept
MOST_CHARACTERS = 2000  # of a question


class Desk:
    """Actions of visitors: answers come from the engine, examples and other patients' recordings from the shelf."""

    def __init__(self, engine: Engine, shelf: Shelf) -> None:
        self.engine, self.shelf, self.sessions = engine, shelf, Sessions()

    def example(self, session: Session, place: int, number: int) -> None:
        """Take one of the examples."""
        session.put(place, self.shelf.examples[number])

    def upload(self, session: Session, place: int, files: Sequence[tuple[str, bytes]]) -> None:
        """Take files that a visitor sent; keep those that do not say what their numbers mean until he does."""
        session.put(place, None)
        session.waiting[place] = list(files)
        if not session.needs_words(place):
            self.read(session, place)
            session.waiting[place] = []

    def read(
        self, session: Session, place: int, fs: float | None = None, units: str | None = None, leads: str = ""
    ) -> None:
        """Read the files that wait: `fs` in Hz, `leads` with spaces or commas between, empty where a file has them."""
        files, names = session.waiting[place], [lead for lead in re.split(r"[\s,;]+", leads) if lead]
        try:
            ecg = read_uploaded(files, fs=fs, units=units, leads=names or None, budget=Budget())
        except UploadError as error:
            session.notes[place] = str(error)
            return
        session.put(place, Recording(ecg, "uploaded ECG"))

    def compare(self, session: Session, on: bool) -> None:
        """Ask about one recording, or about two; the conversation so far was about others."""
        if on != session.compare:
            session.stop.set()
            session.compare, session.turns = on, []

    def problem(self, session: Session, question: str) -> str:
        """Sentence on why a question cannot be asked now; empty where it can."""
        if len(session.subjects()) < (2 if session.compare else 1):
            return "Choose two ECGs first." if session.compare else "Choose an ECG first: an example, or upload one."
        if not question.strip():
            return "Type a question first."
        if len(question) > MOST_CHARACTERS:
            return f"The question has {len(question)} characters; {MOST_CHARACTERS} can be asked."
        return ""

    def ask(self, session: Session, question: str) -> Iterator[None]:
        """Ask a question; the session changes with every step. Raises `ValueError` where there is a `problem`."""
        if problem := self.problem(session, question):
            raise ValueError(problem)
        with session.answering():
            history = [(turn.question, turn.answer.words) for turn in session.turns if turn.answer.state == "done"]
            turn = Turn(question.strip(), Answer(), history)
            session.turns = [*session.turns, turn][-MOST_TURNS:]
            yield
            yield from self._answer(session, turn.answer, session.subjects(), turn.question, history)

    def again(self, session: Session, condition: Condition) -> Iterator[None]:
        """Ask the last question again under a condition.

        It is asked by itself: earlier answers would tell what the ECG shows. Where there were some, the question about
        this ECG is asked by itself, too. Raises `ValueError` where there is no answer to compare with.
        """
        with session.answering():
            if not session.can_ask_again():
                raise ValueError("Ask a question first, and let the model finish its answer.")
            turn, recordings = session.turns[-1], session.subjects()
            if turn.history and turn.columns.get("real", Answer()).state != "done":
                turn.columns["real"] = Answer()
                yield
                yield from self._answer(session, turn.columns["real"], recordings, turn.question)
                if turn.columns["real"].state != "done":
                    return
            donors: list[Recording] = []
            if condition == "swap":
                for recording in recordings:
                    donors.append(self.shelf.donor(recording, [*recordings, *donors]))
            turn.columns[condition] = Answer(about=" and ".join(map(described, donors)))
            yield
            yield from self._answer(session, turn.columns[condition], donors, turn.question)

    def _answer(
        self, session: Session, answer: Answer, recordings: Sequence[Recording], question: str, history: Turns = ()
    ) -> Iterator[None]:
        """Let the engine answer; a failure becomes the words of the answer."""
        stop, ecgs = session.stop, [recording.ecg for recording in recordings]
        try:
            for piece in self.engine.stream(ecgs, question, history, stop):
                if stop.is_set():
                    break
                answer.words += piece
                yield
        except (ValueError, ServerError) as error:
            answer.state, answer.words = "failed", f"This cannot be answered: {error}"
        except Exception as error:
            where = traceback.extract_tb(error.__traceback__)[-1]
            # Not the message: it may quote the question or the recording.
            logger.error("an answer failed: %s in %s, line %d", type(error).__name__, where.filename, where.lineno)
            answer.state, answer.words = "failed", f"The model failed ({type(error).__name__}). Ask again."
        else:
            answer.words = answer.words.strip()
            answer.state = "stopped" if stop.is_set() else "done"
        finally:
            if answer.state == "asking":  # nobody listens any more
                answer.state = "stopped"
        yield
