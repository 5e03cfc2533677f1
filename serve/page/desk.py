"""What lies on the desk of one visitor of the chat page: recordings, a conversation, and answers held side by side.

Everything the page does is done here, to a `Session`; `serve.page.view` says how that looks, `serve.page.build` which
button does what. A visitor's recordings and words are in memory alone, until his page is closed.
"""

from __future__ import annotations

import logging
import re
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event, Lock, Thread
from typing import Literal

import numpy as np

from data.ecg import LEADS, Ecg
from data.measure import Measurements, measure
from data.paper import SECONDS
from data.readers import read_ecg
from data.readers.staging import Budget, UploadError, read_uploaded
from data.synthetic import SyntheticCohort, categories, findings
from data.wire.http import ServerError
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
EXAMPLES = 3
MOST_SESSIONS = 200
MOST_TURNS = 40  # kept of a conversation
MOST_CHARACTERS = 2000  # of a question
_FLAT = 0.01  # mV between the highest and the lowest sample of a lead
_PLATEAU = 0.02  # s at the very same extreme value

Condition = Literal["none", "swap"]


# --- recordings -------------------------------------------------------------------------------------------------------


@dataclass
class Recording:
    """A recording on the desk.

    Attributes:
        ecg: It.
        name: What the page calls it.
        measured: What was measured in it; None until it was, and where that is not possible.
        unmeasured: Why that is not possible.
    """

    ecg: Ecg
    name: str
    measured: Measurements | None = None
    unmeasured: str = ""

    def measure(self) -> Recording:
        """Measure it, once."""
        if self.measured is None and not self.unmeasured:
            try:
                self.measured = measure(self.ecg)
            except (ModuleNotFoundError, RuntimeError) as error:
                self.unmeasured = str(error)
        return self


def remarks(ecg: Ecg) -> list[str]:
    """What is wrong with the signal, in sentences; empty where nothing is.

    Told are leads that are missing, flat (less than 0.01 mV from top to bottom), or cut off: 20 ms or more at the very
    same extreme value.
    """
    bare = {lead.removeprefix("-"): row for lead, row in zip(ecg.leads, ecg.signal, strict=True)}
    flat = [lead for lead, row in bare.items() if np.ptp(row) < _FLAT]
    cut = [lead for lead, row in bare.items() if lead not in flat and _is_cut(row, max(5, round(_PLATEAU * ecg.fs)))]
    told = []
    if missing := [lead for lead in LEADS if lead not in bare]:
        told.append(f"Not recorded: {', '.join(missing)}.")
    if flat:
        told.append(f"Flat: {', '.join(flat)}.")
    if cut:
        told.append(f"Cut off at the top or the bottom: {', '.join(cut)}. Amplitudes are too small there.")
    if ecg.duration < SECONDS - 0.05:
        told.append(f"Only {ecg.duration:.3g} s long.")
    return told


def _is_cut(row: np.ndarray, least: int) -> bool:
    for extreme in (row.max(), row.min()):
        ends = np.flatnonzero(np.diff(row == extreme, prepend=False, append=False)).reshape(-1, 2)
        if (ends[:, 1] - ends[:, 0]).max() >= least:
            return True
    return False


def _kinds(measured: Measurements | None) -> dict[str, str]:
    """What was measured, in classes: what tells one recording from another at a glance."""
    if measured is None or measured.quality == "failed":
        return {}
    m = measured
    kinds = {"P waves": "none" if m.pr is None else "long PR" if m.pr > 200 else "present"}
    if m.rate is not None:
        kinds["rate"] = "slow" if m.rate < 60 else "fast" if m.rate > 100 else "normal"
    if m.qrs is not None:
        kinds["QRS"] = "wide" if m.qrs >= 120 else "narrow"
    if m.axis is not None:
        kinds["axis"] = "left" if m.axis < -30 else "right" if m.axis > 90 else "normal"
    return kinds


def unlike(mine: Measurements | None, theirs: Measurements | None) -> int:
    """In how many classes of measurements two recordings differ."""
    a, b = _kinds(mine), _kinds(theirs)
    return sum(a[name] != b[name] for name in a.keys() & b.keys())


class Shelf:
    """Recordings the page brings along: examples to click on, and other patients' ECGs to ask with.

    Args:
        folder: A saved model, whose `examples/` are shown; without them, simulated recordings are.
    """

    def __init__(self, folder: Path | None = None) -> None:
        cohort = SyntheticCohort(60, records_per_patient=1, seed=11, fs=500)
        simulated = [
            Recording(cohort[record], f"simulated patient {int(cohort.patient_of[record][1:])}: {said}")
            for said, record in _told_apart(cohort).items()
        ]
        found = sorted((folder / "examples").glob("*.hea")) if folder is not None else []
        kept = [Recording(read_ecg(path), f"record {path.stem}") for path in found]
        self.examples = (kept or simulated)[:EXAMPLES]
        self.donors = [*kept, *simulated]

    def warm(self) -> None:
        """Measure all of them, so that the first visitor need not wait."""
        for recording in self.donors:
            recording.measure()

    def donor(self, instead_of: Recording, taken: Sequence[Recording] = ()) -> Recording:
        """Another patient's recording, as unlike as can be in what was measured; an example where one differs."""
        barred = [*taken, instead_of]

        def free(donor: Recording) -> bool:
            return not any(
                _same(donor.ecg, other.ecg) or (donor.ecg.patient_id and donor.ecg.patient_id == other.ecg.patient_id)
                for other in barred
            )

        candidates = [donor for donor in self.donors if free(donor)]
        return max(candidates, key=lambda donor: unlike(instead_of.measure().measured, donor.measure().measured))


def _same(one: Ecg, other: Ecg) -> bool:
    """Whether two recordings are one: an example may have been uploaded, too."""
    return one.signal.shape == other.signal.shape and bool(np.allclose(one.signal, other.signal, atol=1e-3))


def _told_apart(cohort: SyntheticCohort) -> dict[str, str]:
    """A few records of a cohort with one finding each, by what that is."""
    present = {name: flags for name, (flags, _) in findings(cohort.parameters).items()}
    quiet = categories(cohort.parameters)["noise"] == 0
    wanted = ("normal ECG", "atrial fibrillation", "left bundle branch block", "tachycardia", "bradycardia")
    chosen: dict[str, str] = {}
    for name in wanted:
        others = sum(present[other] for other in present if other != name and "voltage" not in other)
        score = np.where(present[name] & quiet, -others.astype(float), -np.inf)
        record = cohort.records[int(score.argmax())]
        if record not in chosen.values():
            chosen[name] = record
    return chosen


# --- a conversation ---------------------------------------------------------------------------------------------------


@dataclass
class Answer:
    """What the model said, or is saying.

    Attributes:
        words: So far.
        state: Whether it is at it, has finished, was stopped, or failed.
        about: Whose ECG it was asked with, where that is not the one in the question.
    """

    words: str = ""
    state: Literal["asking", "done", "stopped", "failed"] = "asking"
    about: str = ""


@dataclass
class Turn:
    """A question, its answer, and the answers to it under other conditions.

    Attributes:
        question: Its words.
        answer: The model's.
        history: Earlier turns the model was told.
        columns: The same question asked again, by condition: "real" where the first answer had a history.
    """

    question: str
    answer: Answer
    history: list[tuple[str, str]]
    columns: dict[str, Answer] = field(default_factory=dict)


@dataclass
class Session:
    """One visitor.

    Attributes:
        recordings: The first ECG, and the second.
        compare: Whether questions are about both.
        notes: What is to be said about each place: why an upload was not read.
        waiting: Uploaded files of each place that do not say what their numbers mean.
        turns: The conversation about these recordings. Other recordings begin another one.
        stop: Ends the answer that is being given.
        busy: Held while one is.
    """

    recordings: list[Recording | None] = field(default_factory=lambda: [None, None])
    compare: bool = False
    notes: list[str] = field(default_factory=lambda: ["", ""])
    waiting: list[list[tuple[str, bytes]]] = field(default_factory=lambda: [[], []])
    turns: list[Turn] = field(default_factory=list)
    stop: Event = field(default_factory=Event)
    busy: Lock = field(default_factory=Lock)

    def asked_about(self) -> list[Recording]:
        """The recordings questions are about."""
        return [each for each in self.recordings[: 2 if self.compare else 1] if each is not None]

    def put(self, place: int, recording: Recording | None) -> None:
        """Lay a recording on the desk: what was said about the one before is over."""
        self.stop.set()
        self.recordings[place] = recording
        self.waiting[place], self.notes[place] = [], ""
        self.turns = []


class Sessions:
    """The visitors, by Gradio's name for the open page. Of too many, the one who came first is forgotten."""

    def __init__(self) -> None:
        self._open: dict[str, Session] = {}
        self._lock = Lock()

    def __len__(self) -> int:
        return len(self._open)

    def __getitem__(self, name: str) -> Session:
        with self._lock:
            if name not in self._open:
                while len(self._open) >= MOST_SESSIONS:
                    self._close(next(iter(self._open)))
                self._open[name] = Session()
            return self._open[name]

    def close(self, name: str) -> None:
        """Forget a visitor, and stop what is computed for him."""
        with self._lock:
            self._close(name)

    def _close(self, name: str) -> None:
        if session := self._open.pop(name, None):
            session.stop.set()


class Desk:
    """What visitors can do.

    Args:
        engine: What answers.
        shelf: The page's own recordings.
    """

    def __init__(self, engine: Engine, shelf: Shelf) -> None:
        self.engine, self.shelf = engine, shelf
        self.sessions = Sessions()

    def warm(self) -> None:
        """Measure the shelf in the background."""
        Thread(target=self.shelf.warm, daemon=True, name="measure the examples").start()

    def example(self, session: Session, place: int, number: int) -> None:
        """Take one of the examples."""
        session.put(place, self.shelf.examples[number])

    def upload(self, session: Session, place: int, files: Sequence[tuple[str, bytes]]) -> None:
        """Take files a visitor sent; where they do not say what their numbers mean, keep them until he does."""
        session.put(place, None)
        session.waiting[place] = list(files)
        if not needs_words(session, place):
            self.read(session, place)
            session.waiting[place] = []

    def read(
        self, session: Session, place: int, fs: float | None = None, units: str | None = None, leads: str = ""
    ) -> None:
        """Read the files that wait.

        Args:
            session: Whose.
            place: 0 or 1.
            fs: Sampling rate, Hz.
            units: Of the samples.
            leads: Names, with spaces or commas between them; empty where the file has them.
        """
        files, named = session.waiting[place], [lead for lead in re.split(r"[\s,;]+", leads) if lead]
        try:
            ecg = read_uploaded(files, fs=fs, units=units, leads=named or None, budget=Budget())
        except UploadError as error:
            session.notes[place] = str(error)
            return
        session.put(place, Recording(ecg, "uploaded ECG"))

    def compare(self, session: Session, on: bool) -> None:
        """Ask about one recording, or about two. What was asked before was about other ones."""
        if on != session.compare:
            session.stop.set()
            session.compare, session.turns = on, []

    def problem(self, session: Session, question: str) -> str:
        """Why a question cannot be asked now, as a sentence; empty where it can."""
        if len(session.asked_about()) < (2 if session.compare else 1):
            return "Choose two ECGs first." if session.compare else "Choose an ECG first: an example, or upload one."
        if not question.strip():
            return "Type a question first."
        if len(question) > MOST_CHARACTERS:
            return f"The question has {len(question)} characters; {MOST_CHARACTERS} can be asked."
        return ""

    def ask(self, session: Session, question: str) -> Iterator[None]:
        """Ask; the session changes with every step.

        Raises:
            ValueError: It cannot be asked (`problem`).
        """
        if problem := self.problem(session, question):
            raise ValueError(problem)
        with _only(session):
            history = [(turn.question, turn.answer.words) for turn in session.turns if turn.answer.state == "done"]
            turn = Turn(question.strip(), Answer(), history)
            session.turns = [*session.turns, turn][-MOST_TURNS:]
            yield
            ecgs = [recording.ecg for recording in session.asked_about()]
            yield from self._say(session, turn.answer, ecgs, turn.question, history)

    def again(self, session: Session, condition: Condition) -> Iterator[None]:
        """Ask the last question again under a condition.

        It is asked by itself: earlier answers would tell what the ECG shows. Where there were some, the question about
        this ECG is asked by itself, too.

        Raises:
            ValueError: There is no answer to compare with.
        """
        with _only(session):
            if not can_ask_again(session):
                raise ValueError("Ask a question first, and let the model finish its answer.")
            turn, mine = session.turns[-1], session.asked_about()
            ecgs = [recording.ecg for recording in mine]
            if turn.history and turn.columns.get("real", Answer()).state != "done":
                turn.columns["real"] = Answer()
                yield
                yield from self._say(session, turn.columns["real"], ecgs, turn.question)
                if turn.columns["real"].state != "done":
                    return
            if condition == "none":
                turn.columns["none"], ecgs = Answer(), []
            else:
                donors: list[Recording] = []
                for recording in mine:
                    donors.append(self.shelf.donor(recording, [*mine, *donors]))
                about = " and ".join(described(donor) for donor in donors)
                turn.columns["swap"], ecgs = Answer(about=about), [donor.ecg for donor in donors]
            yield
            yield from self._say(session, turn.columns[condition], ecgs, turn.question)

    def _say(
        self,
        session: Session,
        answer: Answer,
        ecgs: Sequence[Ecg],
        question: str,
        history: Sequence[tuple[str, str]] = (),
    ) -> Iterator[None]:
        stop = session.stop
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
            # Not the message: it may quote what was asked, or the recording.
            logger.error("an answer failed: %s in %s, line %d", type(error).__name__, where.filename, where.lineno)
            answer.state, answer.words = "failed", f"The model failed ({type(error).__name__}). Ask again."
        else:
            answer.words = answer.words.strip()
            answer.state = "stopped" if stop.is_set() else "done"
        finally:
            if answer.state == "asking":  # nobody listens any more
                answer.state = "stopped"
        yield


def needs_words(session: Session, place: int) -> bool:
    """Whether the files that wait are bare numbers: their sender must say rate, units and leads."""
    files = session.waiting[place]
    return len(files) == 1 and files[0][0].lower().endswith((".npy", ".csv"))


def can_ask_again(session: Session) -> bool:
    """Whether there is a finished answer about the recordings on the desk."""
    return bool(session.turns) and session.turns[-1].answer.state == "done"


def agree(one: str, other: str) -> bool:
    """Whether two answers say the same: their words are the same, whatever stands between them."""
    return re.findall(r"\w+", one.casefold()) == re.findall(r"\w+", other.casefold())


def meaning(turn: Turn, condition: Condition) -> str:
    """What it says about the model that an answer stayed, or did not; empty while one is missing."""
    first, second = turn.columns.get("real", turn.answer), turn.columns.get(condition)
    if second is None or second.state != "done" or first.state != "done":
        return ""
    same = agree(first.words, second.words)
    if condition == "none" and same:
        return "The answer did not change without the ECG: it may be a guess from the question."
    if condition == "none":
        return "Without the ECG the answer is another one: the ECG matters to the model. That does not make it right."
    if same:
        return (
            "The answer did not change with another patient's ECG. Unless both ECGs show the same, it does not come "
            "from the ECG."
        )
    return "The answer changed with the ECG, as that of a model that reads it would. That does not make it right."


def described(recording: Recording) -> str:
    """Whose recording it is, and what was measured in it."""
    m = recording.measured
    if m is None or m.quality == "failed":
        return recording.name
    said = [f"rate {m.rate:.0f}/min"] if m.rate is not None else []
    said += [f"PR {m.pr:.0f} ms" if m.pr is not None else "no P waves found"]
    said += [f"QRS {m.qrs:.0f} ms"] if m.qrs is not None else []
    said += [f"axis {m.axis:.0f}\N{DEGREE SIGN}"] if m.axis is not None else []
    return f"{recording.name} ({', '.join(said)})"


@contextmanager
def _only(session: Session) -> Iterator[None]:
    """One answer at a time: one that is still being given is stopped."""
    session.stop.set()
    if not session.busy.acquire(timeout=60):
        raise ValueError("The answer before this one does not end. Wait a little, and ask again.")
    session.stop = Event()
    try:
        yield
    finally:
        session.busy.release()
