"""Actions of the chat page's visitors on a `Session`. `view` says how that looks, `build` which button does what."""

import logging
import re
import traceback
from collections.abc import Iterator, Sequence
from threading import Event

from data.ecg import Ecg
from data.paper import SECONDS
from data.quality import require_readable
from data.readers.budget import Budget, UploadError, WordsNeeded
from data.readers.staging import read_uploaded
from data.wire.http import ServerError
from serve.page.recordings import Recording, Shelf, described, window
from serve.page.session import Answer, Condition, Session, Sessions, Turn
from serve.serving.engine import Engine, TooLong

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
        # A server does not say how many seconds its model reads: it is asked about those that the paper shows.
        self.seconds: float = getattr(engine, "seconds", SECONDS)

    def example(self, session: Session, place: int, number: int) -> None:
        """Take one of the examples."""
        session.put(place, self.shelf.examples[number])

    def upload(self, session: Session, place: int, files: Sequence[tuple[str, bytes]]) -> None:
        """Take files that a visitor sent; keep those that do not say what their numbers mean until he does."""
        session.put(place, None)
        session.waiting[place] = list(files)
        try:
            self._read(session, place)
        except WordsNeeded as error:
            # The form says that of bare numbers by itself.
            session.notes[place] = "" if len(files) == 1 else str(error)
        except UploadError as error:
            session.notes[place], session.waiting[place] = str(error), []

    def read(
        self, session: Session, place: int, fs: float | None = None, units: str | None = None, leads: str = ""
    ) -> None:
        """Read the files that wait: `fs` in Hz, `leads` with spaces or commas between, empty where a file has them."""
        try:
            self._read(session, place, fs, units, [lead for lead in re.split(r"[\s,;]+", leads) if lead] or None)
        except UploadError as error:
            session.notes[place] = str(error)

    def _read(
        self,
        session: Session,
        place: int,
        fs: float | None = None,
        units: str | None = None,
        leads: list[str] | None = None,
    ) -> None:
        ecg = read_uploaded(session.waiting[place], fs=fs, units=units, leads=leads, budget=Budget())
        session.put(place, Recording(ecg, "uploaded ECG"))

    def compare(self, session: Session, on: bool) -> None:
        """Ask about one recording, or about two; the conversation so far was about others."""
        if on != session.compare:
            session.compare = on
            session.begin()

    def look(self, session: Session, place: int, start: float) -> None:
        """Show another part of a recording; the conversation about other seconds is over."""
        before = self.asked_about(session)
        session.starts[place] = start
        after = self.asked_about(session)
        if [ecg.signal.tobytes() for ecg in before] != [ecg.signal.tobytes() for ecg in after]:
            session.begin()

    def asked_about(self, session: Session) -> list[Ecg]:
        """The seconds of the recordings that a question is about now."""
        places = zip(session.recordings[: 2 if session.compare else 1], session.starts)
        return [window(recording.ecg, self.seconds, start)[0] for recording, start in places if recording is not None]

    def problem(self, session: Session, question: str) -> str:
        """Sentence on why a question cannot be asked now; empty where it can."""
        if len(session.subjects()) < (2 if session.compare else 1):
            return "Choose two ECGs first." if session.compare else "Choose an ECG first: an example, or upload one."
        if not question.strip():
            return "Type a question first."
        if len(question) > MOST_CHARACTERS:
            return f"The question has {len(question)} characters; {MOST_CHARACTERS} can be asked."
        for ecg in self.asked_about(session):
            try:
                require_readable(ecg)
            except ValueError as error:
                return str(error)
        return ""

    def ask(self, session: Session, question: str) -> Iterator[None]:
        """Ask a question; the session changes with every step. Raises `ValueError` where there is a `problem`."""
        if problem := self.problem(session, question):
            raise ValueError(problem)
        with session.answering():
            history = [turn for turn in session.turns if turn.answer.state == "done" and not turn.forgotten]
            turn = Turn(question.strip(), Answer(), history)
            session.turns = [*session.turns, turn]
            if (more := len(session.turns) - MOST_TURNS) > 0:
                session.turns, session.dropped = session.turns[more:], session.dropped + more
            ecgs = self.asked_about(session)
            yield
            yield from self._answer(session, turn.answer, ecgs, turn.question, history)

    def again(self, session: Session, condition: Condition) -> Iterator[None]:
        """Ask the last question again under a condition.

        It is asked by itself: earlier answers would tell what the ECG shows. Where there were some, the question about
        this ECG is asked by itself, too. Raises `ValueError` where there is no answer to compare with.
        """
        with session.answering():
            if not session.can_ask_again():
                raise ValueError("Ask a question first, and let the model finish its answer.")
            turn, recordings, ecgs = session.turns[-1], session.subjects(), self.asked_about(session)
            had_history = not all(earlier.forgotten for earlier in turn.history)
            if had_history and turn.columns.get("real", Answer()).state != "done":
                turn.columns["real"] = Answer()
                yield
                yield from self._answer(session, turn.columns["real"], ecgs, turn.question)
                if turn.columns["real"].state != "done":
                    return
            donors: list[Recording] = []
            if condition == "swap":
                for recording in recordings:
                    donors.append(self.shelf.donor(recording, [*recordings, *donors]))
            turn.columns[condition] = Answer(about=" and ".join(map(described, donors)))
            yield
            others = [window(donor.ecg, self.seconds, 0)[0] for donor in donors]
            yield from self._answer(session, turn.columns[condition], others, turn.question)

    def _answer(
        self, session: Session, answer: Answer, ecgs: Sequence[Ecg], question: str, history: list[Turn] | None = None
    ) -> Iterator[None]:
        """Let the engine answer; a failure becomes the words of the answer."""
        stop = session.stop
        try:
            for piece in self._pieces(ecgs, question, history or [], stop):
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

    def _pieces(self, ecgs: Sequence[Ecg], question: str, history: list[Turn], stop: Event) -> Iterator[str]:
        """Pieces of the answer; the oldest turns of a conversation that is too long are left out, and forgotten."""
        turns = list(history)
        while True:
            try:
                for piece in self.engine.stream(ecgs, question, [(t.question, t.answer.words) for t in turns], stop):
                    for turn in history[: len(history) - len(turns)]:
                        turn.forgotten = True
                    yield piece
                return
            except TooLong:
                if not turns:
                    raise
                turns.pop(0)
