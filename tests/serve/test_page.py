"""What the chat page asks about, and what it leaves out: seconds, old turns, examples, files of an upload."""

from dataclasses import replace

import numpy as np
import pytest

from data.ecg import LEADS, Ecg
from data.paper import Paper
from data.readers import write_wfdb
from data.synthetic import SyntheticCohort
from helpers.page import Answering, Tags, done
from serve.page.desk import MOST_TURNS, Desk
from serve.page.recordings import Recording, Shelf
from serve.page.session import Session
from serve.page.view import chat_html, facts_html
from serve.serving.engine import TooLong
from serve.serving.local import LocalEngine

COHORT = SyntheticCohort(6, records_per_patient=1, fs=100)
ECG = COHORT[COHORT.records[0]]


def lasting(seconds):
    """Whole recordings of 10 s one after the other, cut to so many seconds."""
    signal = np.concatenate([COHORT[record].signal for record in COHORT.records], axis=1)
    return Ecg(signal[:, : round(seconds * 100)], 100, LEADS, "long")


class Shown(Answering):
    """An engine that keeps the signals it was shown."""

    def __init__(self, seconds=10.0):
        super().__init__("yes")
        self.shown, self.seconds = [], seconds

    def stream(self, ecgs, question, history=(), stop=None):
        self.shown.append([ecg.signal for ecg in ecgs])
        yield from super().stream(ecgs, question, history, stop)


@pytest.fixture(scope="module")
def shelf():
    return Shelf()


def desk_with(shelf, ecg, engine=None):
    desk, session = Desk(engine or Shown(), shelf), Session()
    session.put(0, Recording(ecg, "uploaded ECG"))
    return desk, session


# --- which seconds are asked about ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seconds", "start", "words"),
    [
        (30, 0, "10 s of these 30 s: 0 to 10 s"),
        (30, 12, "10 s of these 30 s: 12 to 22 s"),
        (25.5, 16, "10 s of these 25.5 s: 15.5 to 25.5 s"),  # the slider's last step
        (10.4, 0, "10 s of these 10.4 s: 0 to 10 s"),
    ],
)
def test_the_model_is_shown_the_seconds_that_the_page_names(shelf, seconds, start, words):
    ecg = lasting(seconds)
    desk, session = desk_with(shelf, ecg)
    desk.look(session, 0, start)
    done(desk.ask(session, "Is it?"))
    assert f"The model reads {words} (the slider chooses others)." in facts_html(session.recordings[0], start=start)
    first = round(min(start, seconds - 10) * 100)
    np.testing.assert_array_equal(desk.engine.shown[0][0], ecg.signal[:, first : first + 1000])


@pytest.mark.parametrize("seconds", [4, 10, 10.04])
def test_nothing_is_said_where_all_is_read(seconds):
    assert "The model reads" not in facts_html(Recording(lasting(seconds), "a"))


@pytest.mark.parametrize(("reads", "words"), [(5.0, "5 s of these 10 s: 3 to 8 s"), (float("inf"), "")])
def test_an_engine_that_reads_more_or_less_than_the_paper_shows(shelf, reads, words):
    desk, session = desk_with(shelf, lasting(10), Shown(reads))
    desk.look(session, 0, 3)
    page = facts_html(session.recordings[0], "", session.starts[0], desk.seconds)
    assert words in page and ("The model reads" in page) == bool(words)
    done(desk.ask(session, "Is it?"))
    assert desk.engine.shown[0][0].shape[1] == min(reads, 10) * 100


def test_another_window_begins_another_conversation(shelf):
    desk, session = desk_with(shelf, lasting(30))
    done(desk.ask(session, "Is it?"))
    desk.look(session, 0, 0)
    assert len(session.turns) == 1, "nothing has changed"
    stop = session.stop
    desk.look(session, 0, 20)
    assert session.turns == [] and stop.is_set()
    done(desk.ask(session, "And now?"))
    assert desk.engine.asked[-1][2] == [] and not np.array_equal(*(shown[0] for shown in desk.engine.shown))
    desk.look(session, 0, 20.5)  # beyond the last one
    assert len(session.turns) == 1
    session.put(0, session.recordings[0])
    assert session.starts == [0, 0], "another recording is shown from its beginning"


def test_each_of_two_recordings_has_its_window(shelf):
    desk, session = desk_with(shelf, lasting(30))
    session.put(1, Recording(lasting(40), "uploaded ECG"))
    done(desk.ask(session, "Is it?"))
    desk.look(session, 1, 30)
    assert len(session.turns) == 1, "the conversation is about the first one alone"
    desk.compare(session, True)
    done(desk.ask(session, "Which?"))
    first, second = desk.engine.shown[-1]
    np.testing.assert_array_equal(first, lasting(30).signal[:, :1000])
    np.testing.assert_array_equal(second, lasting(40).signal[:, 3000:])
    desk.look(session, 1, 5)
    assert session.turns == []


def test_asked_again_it_is_about_the_same_seconds(shelf):
    desk, session = desk_with(shelf, lasting(30))
    desk.look(session, 0, 7)
    done(desk.ask(session, "Is it?"))
    done(desk.ask(session, "Sure?"))
    done(desk.again(session, "swap"))
    asked, before, alone, other = (shown[0] for shown in desk.engine.shown)
    assert np.array_equal(asked, alone) and np.array_equal(asked, before) and other.shape[1] <= 5000


@pytest.mark.parametrize(
    ("signal", "words"),
    [
        (np.zeros((12, 1000)), "no model can read this recording: Flat: I, II"),
        (np.random.default_rng(0).normal(0, 1, (12, 1000)), "no model can read this recording: Noise alone: I, II"),
        (ECG.signal[:, :50], "Only 0.5 s long: it takes 1 s to read one"),
        (ECG.signal * 1000, "mV, an ECG less than 20 mV: check units"),
    ],
)
def test_nobody_is_asked_about_what_cannot_be_read(shelf, signal, words):
    desk, session = desk_with(shelf, Ecg(signal, 100, LEADS))
    assert words in desk.problem(session, "Is it?")
    with pytest.raises(ValueError, match="no model can read this recording"):
        done(desk.ask(session, "Is it?"))
    assert desk.engine.asked == []
    assert words.partition("recording: ")[2] in (page := Tags(facts_html(session.recordings[0])).words)
    assert "No model can read this recording: " in page


def test_the_seconds_that_are_shown_decide_whether_they_can_be_read(shelf):
    signal = lasting(30).signal.copy()
    signal[:, 2000:] = 0
    desk, session = desk_with(shelf, Ecg(signal, 100, LEADS))
    assert desk.problem(session, "Is it?") == ""
    desk.look(session, 0, 20)
    assert "no model can read this recording: Flat" in desk.problem(session, "Is it?")
    recording = session.recordings[0]
    assert "Flat" in facts_html(recording, start=20) and "Flat" not in facts_html(recording, start=5)


def test_the_examples_can_always_be_asked_about(shelf):
    desk = Desk(Answering(), shelf)
    for number in range(len(shelf.examples)):
        session = Session()
        desk.example(session, 0, number)
        assert desk.problem(session, "Is it?") == ""


# --- long conversations -----------------------------------------------------------------------------------------------


class Forgetful(Answering):
    """An engine that reads so many words of a conversation."""

    def __init__(self, most):
        super().__init__("yes")
        self.most = most

    def stream(self, ecgs, question, history=(), stop=None):
        words = [word for turn in history for part in turn for word in part.split()]
        if len(words) + len(question.split()) > self.most:
            raise TooLong("the question is too long for this model: shorten it")
        yield from super().stream(ecgs, question, history, stop)


def test_a_conversation_that_is_too_long_loses_its_oldest_turns_and_says_so(shelf):
    desk, session = desk_with(shelf, ECG, Forgetful(9))
    for number in range(3):
        done(desk.ask(session, f"Is it {number}?"))
    assert [len(history) for _, _, history in desk.engine.asked] == [0, 1, 1]
    assert "The first question is no longer part of the conversation: it has become too long." in chat_html(session)
    done(desk.ask(session, "And what of it now?"))
    assert [turn.answer.state for turn in session.turns] == ["done"] * 4
    assert "The first 2 questions are no longer part of the conversation: it has become too long." in chat_html(session)
    desk.example(session, 0, 0)
    assert session.forgotten() == 0 and "no longer part" not in chat_html(session)


def test_a_question_that_is_too_long_by_itself_takes_nothing_with_it(shelf):
    desk, session = desk_with(shelf, ECG, Forgetful(9))
    done(desk.ask(session, "Is it?"))
    done(desk.ask(session, "a " * 10))
    assert session.turns[-1].answer.words == (
        "This cannot be answered: the question is too long for this model: shorten it"
    )
    assert session.forgotten() == 0
    done(desk.ask(session, "Sure?"))
    assert desk.engine.asked[-1][2] == [("Is it?", "yes")]


def test_turns_beyond_those_that_are_kept_are_counted(shelf):
    desk, session = desk_with(shelf, ECG, Answering("yes"))
    for _ in range(MOST_TURNS + 2):
        done(desk.ask(session, "Is it?"))
    assert len(session.turns) == MOST_TURNS and len(desk.engine.asked[-1][2]) == MOST_TURNS
    assert "The first 2 questions are no longer part of the conversation" in chat_html(session)


@pytest.fixture(scope="module")
def small(make_pair):
    """An engine whose model has few positions."""
    pair = make_pair(pool=2)
    engine = LocalEngine("random", 16, loaded=tuple(pair))
    pair.model.config.get_text_config().max_position_embeddings = 64
    return engine


def test_a_local_model_is_asked_with_as_many_turns_as_it_reads(shelf, small):
    desk, session = desk_with(shelf, ECG, small)
    for _ in range(4):
        done(desk.ask(session, "What is the rhythm?"))
    assert [turn.answer.state for turn in session.turns] == ["done"] * 4 and session.forgotten() > 0


def test_a_question_that_no_model_of_this_size_reads_is_said_to_a_visitor(shelf, small):
    desk, session = desk_with(shelf, ECG, small)
    done(desk.ask(session, "What is the rhythm? " * 60))
    words = session.turns[-1].answer.words
    assert "the question is too long for this model: shorten it to about" in words
    assert int(words.split()[-2]) < 1200 and "projector_pool" not in words and "--" not in words
    done(desk.ask(session, ("What is the rhythm? " * 60)[: int(words.split()[-2])]))
    assert session.turns[-1].answer.state == "done"
    with pytest.raises(TooLong, match="the ECG alone is too long for this model, whatever is asked"):
        list(small.stream([ECG] * 25, "Which?"))


# --- examples ---------------------------------------------------------------------------------------------------------


def saved(folder, count=2):
    for record in COHORT.records[:count]:
        write_wfdb(COHORT[record], folder / "examples")
    return sorted((folder / "examples").glob("*.hea"))


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("hidden", "a hidden file is no recording"),
        ("cut off", "the file is cut off"),
        ("no samples", "missing: the header"),
        ("no header", "record line"),
        ("flat", "no model can read this recording"),
    ],
)
def test_an_example_that_cannot_be_read_is_left_out_and_logged(tmp_path, caplog, what, words):
    first, second = saved(tmp_path)
    if what == "hidden":
        first.rename(first.with_name(f"._{first.name}"))
    elif what == "cut off":
        first.with_suffix(".dat").write_bytes(b"\0" * 100)
    elif what == "no samples":
        first.with_suffix(".dat").unlink()
    elif what == "no header":
        first.write_bytes(b"\x00\x05\x16\x07")
    else:
        write_wfdb(replace(ECG, signal=np.zeros_like(ECG.signal), record_id=first.stem), first.parent)
    shelf = Shelf(tmp_path)
    assert [each.name for each in shelf.examples] == [f"record {second.stem}"]
    assert first.name in caplog.text and words in caplog.text and "is left out" in caplog.text


def test_without_any_good_example_simulated_ones_are_shown(tmp_path, caplog):
    for header in saved(tmp_path):
        header.write_bytes(b"")
    shelf = Shelf(tmp_path)
    assert len(shelf.examples) == 3 and all("simulated" in each.name for each in shelf.examples)
    assert caplog.text.count("is left out") == 2


# --- uploads and the form ---------------------------------------------------------------------------------------------


def wfdb_files(folder, change=str, ecg=ECG):
    header = write_wfdb(replace(ecg, record_id="rec", meta={}), folder)
    return [("rec.hea", change(header.read_text()).encode()), ("rec.dat", header.with_suffix(".dat").read_bytes())]


def renamed(header):
    """A header whose signals are called A1, A2, ..."""
    lines = header.splitlines()
    return "\n".join([lines[0], *(f"{line.rpartition(' ')[0]} A{i}" for i, line in enumerate(lines[1:], start=1))])


def test_leads_without_names_are_asked_for_in_the_form(shelf, tmp_path):
    desk, session = Desk(Answering(), shelf), Session()
    desk.upload(session, 0, wfdb_files(tmp_path, renamed))
    assert "12 signals, none named like an ECG lead" in session.notes[0] and session.needs_words(0)
    desk.read(session, 0, None, None, "I II V1")
    assert "leads: 3 names for 12 signals" in session.notes[0] and session.needs_words(0)
    desk.read(session, 0, None, None, ",".join(LEADS))
    assert session.notes[0] == "" and not session.needs_words(0)
    np.testing.assert_allclose(session.recordings[0].ecg.signal, ECG.signal, atol=1e-3)


def test_a_short_gap_is_bridged_and_said(shelf, tmp_path):
    desk, session = Desk(Answering(), shelf), Session()
    (name, header), (_, samples) = wfdb_files(tmp_path)
    stored = np.frombuffer(samples, "<i2").reshape(-1, 12).copy()
    stored[100:112, 6] = -32768
    lines = [" ".join([*line.split()[:6], "0", *line.split()[7:]]) for line in header.decode().splitlines()[1:]]
    header = "\n".join([header.decode().splitlines()[0], *lines]).encode()
    desk.upload(session, 0, [(name, header), ("rec.dat", stored.tobytes())])
    page = Tags(facts_html(session.recordings[0])).words
    assert "Missing samples, bridged by a straight line: V1 (0.12 s)." in page and desk.problem(session, "Is it?") == ""


def test_files_that_are_not_needed_are_left_out_and_said(shelf, tmp_path):
    desk, session = Desk(Answering(), shelf), Session()
    desk.upload(session, 0, [("._rec.hea", b"\0\5\26\7"), *wfdb_files(tmp_path), (".DS_Store", b"\0")])
    assert "2 files are no part of the record, and left out." in facts_html(session.recordings[0], session.notes[0])


def test_an_upload_in_which_nothing_can_be_read_is_refused(shelf, tmp_path):
    desk, session = Desk(Answering(), shelf), Session()
    desk.upload(session, 0, wfdb_files(tmp_path, ecg=replace(ECG, signal=np.zeros_like(ECG.signal))))
    assert session.recordings[0] is None and not session.needs_words(0)
    assert "no model can read this recording: Flat: I, II" in Tags(facts_html(None, session.notes[0])).words


@pytest.mark.slow
def test_the_slider_of_the_page_moves_what_is_asked_about(shelf):
    """The events of the page, as Gradio calls them."""
    pytest.importorskip("gradio")
    from types import SimpleNamespace

    from serve.page.build import build
    from serve.page.place import Place

    desk = Desk(Shown(), shelf)
    page = build(desk)
    moves = [fn.fn for fn in page.fns.values() if getattr(fn.fn, "__name__", "") == "_on_move"]
    places = {move.__self__.number: move.__self__ for move in moves}
    place, request = places[0], SimpleNamespace(session_hash="a")
    session = desk.sessions["a"]
    session.put(0, Recording(lasting(30), "uploaded ECG"))
    assert isinstance(place, Place)
    changed = place._changed(session, Paper())
    assert changed[place.start]["maximum"] == 20 and changed[place.start]["visible"]
    moved = place._on_move(12, "3x4", 25, 10, request)
    assert "12 to 22 s" in moved[place.facts] and "from 12 s" in moved[place.paper]
    assert place._on_look("3x4", 25, 10, request) == moved[place.paper]
    assert "12 to 22 s" in place._on_measure(request)
