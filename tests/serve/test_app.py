"""The chat page without a browser: what visitors can do, what they see of it, and what the command refuses."""

import json
import os
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from data.ecg import LEADS, Ecg
from data.measure import Measurements
from data.paper import Paper
from data.quality import signal_quality
from data.readers import write_wfdb
from data.synthetic import SyntheticCohort
from data.wire.http import ServerError
from elm.saved.audit import AuditSummary
from helpers.page import Answering, Tags, done
from serve import app
from serve.page.desk import Desk
from serve.page.recordings import Recording, Shelf, unlike
from serve.page.session import MOST_SESSIONS, Session, Sessions, agree
from serve.page.settings import is_local
from serve.page.view import DISCLAIMER, chat_html, facts_html, head_html, paper_html, text, warning_html

ROOT = Path(__file__).parents[2]
HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(2)> ${alert(3)} {{alert(4)}} @children `a` \\u003c"
NORMAL = Measurements("good", rate=70, pr=160, qrs=90, qt=380, qtc=410, axis=40)
FIBRILLATING = Measurements("good", rate=130, qrs=92, qt=300, qtc=430, axis=50)


@pytest.fixture(scope="module")
def shelf():
    shelf = Shelf()
    for recording, measured in zip(shelf.donors, (NORMAL, FIBRILLATING, NORMAL, NORMAL, NORMAL), strict=True):
        recording.measured = measured
    return shelf


@pytest.fixture
def desk(shelf):
    return Desk(Answering(), shelf)


@pytest.fixture
def session(desk):
    session = Session()
    desk.example(session, 0, 0)
    return session


# --- asking -----------------------------------------------------------------------------------------------------------


def test_a_question_is_answered_piece_by_piece(desk, session):
    seen = []
    for _ in desk.ask(session, " What is the rhythm? "):
        seen.append(session.turns[-1].answer.words)
    record = session.recordings[0].ecg.record_id
    assert seen == ["", "about ", f"about {record} ", f"about {record}"]
    assert desk.engine.asked == [([record], "What is the rhythm?", [])]
    assert session.turns[-1].answer.state == "done"


def test_a_conversation_goes_on_until_the_recording_is_another(desk, session):
    done(desk.ask(session, "Is it?"))
    done(desk.ask(session, "Sure?"))
    assert desk.engine.asked[-1][2] == [("Is it?", session.turns[0].answer.words)]
    desk.example(session, 0, 1)
    done(desk.ask(session, "And this?"))
    assert desk.engine.asked[-1][2] == [] and len(session.turns) == 1


def test_stop_ends_the_answer_and_leaves_the_next_one_alone(desk, session):
    steps = desk.ask(session, "Describe it.")
    next(steps), next(steps)
    session.stop.set()
    done(steps)
    assert session.turns[-1].answer.state == "stopped"
    with pytest.raises(ValueError, match="let the model finish"):
        done(desk.again(session, "none"))
    done(desk.ask(session, "Describe it."))
    assert session.turns[-1].answer.state == "done" and desk.engine.asked[-1][2] == []


def test_a_visitor_who_leaves_stops_what_is_computed_for_him(desk):
    session = desk.sessions["a"]
    desk.example(session, 0, 0)
    steps = desk.ask(session, "Describe it.")
    next(steps)
    desk.sessions.close("a")
    assert session.stop.is_set() and len(desk.sessions) == 0
    done(steps)
    assert session.turns[-1].answer.state == "stopped"


def test_there_are_so_many_visitors_and_no_more():
    sessions = Sessions()
    first = sessions["0"]
    for i in range(MOST_SESSIONS):
        sessions[str(i + 1)].put(0, None)
    assert len(sessions) == MOST_SESSIONS and first.stop.is_set() and sessions["0"] is not first


def test_two_are_asked_about_in_their_order(desk, session):
    desk.compare(session, True)
    assert desk.problem(session, "Which?") == "Choose two ECGs first."
    desk.example(session, 1, 2)
    done(desk.ask(session, "Which?"))
    assert desk.engine.asked[-1][0] == [desk.shelf.examples[i].ecg.record_id for i in (0, 2)]
    desk.compare(session, False)
    assert session.turns == []


@pytest.mark.parametrize(
    ("words", "problem"),
    [("", "Type a question"), ("  ", "Type a question"), ("a" * 2001, "2000 can be asked")],
)
def test_what_cannot_be_asked_is_said(desk, session, words, problem):
    assert problem in desk.problem(session, words)
    with pytest.raises(ValueError, match=problem):
        done(desk.ask(session, words))
    assert "Choose an ECG first" in desk.problem(Session(), "Is it?")


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ValueError("record 'upload' has no lead V1; it has I, II"), "no lead V1"),
        (ServerError("no answer from http://127.0.0.1:1"), "no answer from"),
        (KeyError("the name of a patient"), "The model failed (KeyError)"),
    ],
)
def test_a_failed_answer_is_a_sentence(shelf, error, said, caplog):
    class Failing(Answering):
        def stream(self, *_):
            raise error
            yield

    desk, session = Desk(Failing(), shelf), Session()
    desk.example(session, 0, 0)
    done(desk.ask(session, "Is it?"))
    assert said in Tags(chat_html(session)).words and "Traceback" not in chat_html(session)
    assert "name of a patient" not in chat_html(session) + caplog.text
    done(desk.ask(session, "Is it?"))  # it can be asked again
    assert len(session.turns) == 2


# --- asking again -----------------------------------------------------------------------------------------------------


def test_asked_again_without_the_ecg_and_with_another_one(desk, session):
    done(desk.ask(session, "What is it?"))
    done(desk.again(session, "none"))
    done(desk.again(session, "swap"))
    mine, nothing, other = (asked for asked, _, _ in desk.engine.asked)
    assert nothing == [] and other == [desk.shelf.donors[1].ecg.record_id] != mine
    page = Tags(chat_html(session)).words
    for words in (
        "With this ECG", "Without this ECG", "With another patient's ECG", "about nothing", f"about {other[0]}",
        "atrial fibrillation (rate 130/min, no P waves found, QRS 92 ms, axis 50\N{DEGREE SIGN})",
        "the ECG matters to the model", "The answer changed with the ECG",
    ):  # fmt: skip
        assert words in page


def test_the_same_answer_is_called_what_it_may_be(shelf):
    desk, session = Desk(Answering("Yes."), shelf), Session()
    desk.example(session, 0, 0)
    done(desk.ask(session, "Is it?"))
    assert "did not change" not in chat_html(session)
    done(desk.again(session, "none"))
    assert "The answer did not change without the ECG: it may be a guess from the question." in chat_html(session)
    done(desk.again(session, "swap"))
    assert "Unless both ECGs show the same, it does not come from the ECG" in Tags(chat_html(session)).words


def test_earlier_answers_do_not_tell_what_the_ecg_shows(desk, session):
    done(desk.ask(session, "Is it?"))
    done(desk.ask(session, "Sure?"))
    done(desk.again(session, "none"))
    assert [(bool(ecgs), question, history) for ecgs, question, history in desk.engine.asked[2:]] == [
        (True, "Sure?", []), (False, "Sure?", []),
    ]  # fmt: skip
    done(desk.again(session, "swap"))
    assert len(desk.engine.asked) == 5  # the one about this ECG is there already


def test_answers_agree_by_their_words():
    assert agree("Yes.", " yes") and agree("sinus rhythm", "Sinus  rhythm.") and not agree("yes", "no")
    assert not agree("no left axis deviation", "left axis deviation")


def test_donors_are_others_and_as_unlike_as_can_be(shelf):
    first, fibrillating, *_ = shelf.donors
    assert shelf.donor(first) is fibrillating
    assert shelf.donor(first, [fibrillating]) not in (first, fibrillating)
    again = Recording(Ecg(first.ecg.signal, first.ecg.fs, LEADS, "upload"), "uploaded ECG", FIBRILLATING)
    assert shelf.donor(again) is not first  # the same recording under another name
    assert unlike(NORMAL, FIBRILLATING) == 2 and unlike(NORMAL, NORMAL) == unlike(None, NORMAL) == 0


def test_the_examples_of_a_model_are_shown(tmp_path):
    cohort = SyntheticCohort(4, records_per_patient=1)
    for record in cohort.records:
        write_wfdb(cohort[record], tmp_path / "examples")
    shelf = Shelf(tmp_path)
    assert [each.name for each in shelf.examples] == [f"record {record}" for record in cohort.records[:3]]
    assert len(Shelf(tmp_path / "none").examples) == 3


# --- uploads ----------------------------------------------------------------------------------------------------------


def wfdb_files(folder, record="rec"):
    write_wfdb(Ecg(SyntheticCohort(1)["s00000-1"].signal, 100, LEADS, record), folder)
    return [(f"{record}.{suffix}", (folder / f"{record}.{suffix}").read_bytes()) for suffix in ("hea", "dat")]


@pytest.mark.slow
def test_an_upload_is_read_and_not_kept(desk, tmp_path):
    pytest.importorskip("gradio")
    from serve.page.place import taken

    wfdb_files(tmp_path)
    paths = [tmp_path / "rec.hea", tmp_path / "rec.dat"]
    files = taken([str(path) for path in paths])
    assert not any(path.exists() for path in paths)
    session = Session()
    desk.upload(session, 0, files)
    assert session.notes == ["", ""] and session.waiting == [[], []]
    assert session.recordings[0].name == "uploaded ECG" and session.recordings[0].ecg.leads == LEADS


def test_bare_numbers_wait_for_words(desk, tmp_path):
    signal = SyntheticCohort(1)["s00000-1"].signal
    np.save(tmp_path / "ecg.npy", signal)
    session = Session()
    desk.upload(session, 1, [("ecg.npy", (tmp_path / "ecg.npy").read_bytes())])
    assert session.recordings[1] is None and session.notes[1] == ""
    desk.read(session, 1, None, "mV", " ".join(LEADS))
    assert "sampling rate" in session.notes[1] and session.waiting[1]
    desk.read(session, 1, 100, "mV", ", ".join(LEADS))
    assert session.notes[1] == "" and not session.waiting[1]
    np.testing.assert_allclose(session.recordings[1].ecg.signal, signal)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("<img src=x onerror=alert(1)>.exe", b"MZ\0\0"),
        ("ecg.png", b"\x89PNG\r\n"),
        ("rec.hea", b"rec 1 100 10\n../../etc/passwd 16 200 16 0 0 0 0 <script>\n"),
        ("\u202eaeh.zip", b"PK\x03\x04"),
        ("big.exe", b"a" * 5_000_001),
        ("empty.hea", b""),
    ],
)
def test_a_file_that_is_refused_is_a_sentence(desk, session, name, content):
    """The ECG that was there is gone: the next answer must not be about it."""
    desk.upload(session, 0, [(name, content)])
    assert session.recordings[0] is None and session.waiting[0] == []
    page = Tags(facts_html(None, session.notes[0]))
    assert len(page.words) > 20 and page.tags == {"p"} and "Traceback" not in page.words
    assert "Choose an ECG first" in desk.problem(session, "Is it?")


# --- what is seen -----------------------------------------------------------------------------------------------------


def test_words_of_others_are_text(shelf):
    """Neither a browser nor Gradio's templates make anything of them."""
    desk, session = Desk(Answering(HOSTILE), shelf), Session()
    desk.example(session, 0, 0)
    done(desk.ask(session, HOSTILE))
    done(desk.again(session, "swap"))
    session.turns[-1].columns["swap"].about = HOSTILE
    pages = [
        chat_html(session, HOSTILE),
        facts_html(Recording(shelf.donors[0].ecg, HOSTILE, Measurements("failed", HOSTILE)), HOSTILE),
        head_html(HOSTILE, HOSTILE, None),
    ]
    for page in pages:
        found = Tags(page)
        assert HOSTILE.split()[-1] in found.words
        assert not found.tags & {"script", "img"} and not {name for name in found.attributes if name.startswith("on")}
        assert not set("${}`@\\") & set(page)
    assert Tags(text(HOSTILE)).words == HOSTILE


def test_the_warning_is_there():
    assert DISCLAIMER in warning_html() and "emergency services" in warning_html()


@pytest.mark.parametrize(("digest", "shown"), [("abc", True), ("other", False)])
def test_the_audit_of_this_training_is_shown(tmp_path, digest, shown):
    verdict = {"verdict": "ignores", "sentence": "The model ignores the ECG.", "pairs": 90, "gap": 0.02}
    report = {"training": "abc", "dataset": "cohort", "verdict": {**verdict, "gap_interval": [-0.01, 0.05]}}
    (tmp_path / "ablation").mkdir()
    (tmp_path / "ablation" / "report.json").write_text(json.dumps(report))
    page = Tags(head_html("elm", digest, tmp_path)).words
    assert ("The model ignores the ECG." in page) == shown == ("Not audited" not in page)
    (tmp_path / "ablation" / "report.json").write_text("[]")
    assert "Not audited" in head_html("elm", digest, tmp_path)
    summary = AuditSummary("abc", "cohort", "reads", "The model reads the ECG.", "Audited on 90 pairs.", (), "")
    (tmp_path / "ablation" / "summary.json").write_text(json.dumps(summary.to_json()))
    page = Tags(head_html("elm", digest, tmp_path)).words
    assert ("The model reads the ECG. Audited on 90 pairs." in page) == shown == ("Not audited" not in page)


def test_the_quality_of_the_signal_is_told():
    """In the words of `data.quality`, each of them once."""
    ecg = SyntheticCohort(1, fs=500)["s00000-1"]
    assert "ecg-note" not in facts_html(Recording(ecg, "a", NORMAL))
    signal = ecg.signal.copy()
    signal[3], signal[7] = 0, np.clip(signal[7], -0.2, 0.2)
    poor = Ecg(signal[:-1], 500, LEADS[:-1], meta={"repaired_samples": {"I": 20}}).crop(0, 8)
    page = Tags(facts_html(Recording(poor, "a", NORMAL))).words
    notes = signal_quality(poor).notes
    assert len(notes) == 5 and all(page.count(words) == 1 for words in notes)
    for words in (
        "Not recorded: V6.",
        "Flat: aVR.",
        "top or the bottom: V2.",
        "Only 8 s long.",
        "bridged by a straight",
    ):
        assert words in page
    measured = Measurements("poor", "; ".join(["few beats", *(words.rstrip(".") for words in notes)]), rate=70)
    page = Tags(facts_html(Recording(poor, "a", measured))).words
    assert all(page.count(words.rstrip(".")) == 1 for words in notes) and "Measured with doubt: few beats." in page
    flat = Ecg(0 * signal, 500, LEADS)
    page = Tags(facts_html(Recording(flat, "a", Measurements("failed", str(signal_quality(flat)).rstrip("."))))).words
    assert "axis are not measurable.No model can read this recording: Flat: I, II" in page and page.count("Flat") == 1


def test_what_an_upload_left_out_is_told():
    ecg = SyntheticCohort(1, fs=500)["s00000-1"]
    one = replace(ecg, meta={"other_signals": ("another signal",), "files_left_out": 1})
    page = Tags(facts_html(Recording(one, "a", NORMAL))).words
    assert "1 of the file's signals is no ECG lead, and left out." in page
    assert "1 file is no part of the record, and left out." in page
    two = replace(ecg, meta={"other_signals": ("another signal",) * 2, "files_left_out": 3})
    page = Tags(facts_html(Recording(two, "a", NORMAL))).words
    assert "2 of the file's signals are no ECG lead" in page and "3 files are no part of the record" in page


def test_measurements_are_shown_and_so_is_their_lack(shelf):
    ecg = shelf.donors[0].ecg
    page = Tags(facts_html(Recording(ecg, "a", FIBRILLATING))).words
    assert "Rate130/min" in page and "PRnot measurable" in page and "Axis50\N{DEGREE SIGN}" in page
    failed = Measurements("failed", "all leads are flat")
    assert "not measurable: all leads are flat" in facts_html(Recording(ecg, "a", failed))
    assert "doubt: few beats" in facts_html(Recording(ecg, "a", Measurements("poor", "few beats", rate=60)))
    assert "Measuring" in facts_html(Recording(ecg, "a"))
    assert "Not measured: NeuroKit2" in facts_html(Recording(ecg, "a", unmeasured="NeuroKit2 is missing"))


def test_the_paper_is_drawn_where_there_is_signal(shelf):
    assert "ecg-segment" in paper_html(shelf.donors[0], Paper()) and "data-zoom" in paper_html(shelf.donors[0], Paper())
    long = Recording(Ecg(np.zeros((12, 3000)), 100, LEADS), "long")
    assert "from 20 s" in paper_html(long, Paper(), 29)  # the last page is a whole one
    odd = Recording(Ecg(np.zeros((1, 1000)), 100, ("VX",)), "odd")
    assert "nothing to draw" in paper_html(odd, Paper())
    assert "svg" not in paper_html(None, Paper())


# --- the page in Gradio, and the command ------------------------------------------------------------------------------


def test_the_page_keeps_to_itself(desk, monkeypatch):
    """No analytics, no way in beside the page, and nothing of it in the browser's storage."""
    gr = pytest.importorskip("gradio")
    from serve.page import build as page

    built = page.build(desk)
    assert not built.analytics_enabled and built.delete_cache is not None
    assert {fn.api_visibility for fn in built.fns.values() if fn.targets[0][1] != "unload"} == {"private"}
    assert {fn.concurrency_limit for fn in built.fns.values() if fn.concurrency_id == "answers"} == {16}
    given = {}
    monkeypatch.setattr(gr.Blocks, "launch", lambda self, **settings: given.update(settings))
    page.launch(built, "127.0.0.1", 0, "secret")
    assert given["auth"] == ("ecg", "secret") and given["max_file_size"] == "5mb" and given["allowed_paths"] == []
    for name in ("share", "enable_monitoring", "run_history", "show_error", "mcp_server", "pwa"):
        assert given[name] is False, name


def run(*arguments, python=(), **environment):
    return subprocess.run(
        [sys.executable, *python, "-m", "serve.app", *arguments],
        capture_output=True, text=True, cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"} | environment, timeout=120,
    )  # fmt: skip


@pytest.mark.slow
def test_help_does_not_wait_for_gradio_and_torch():
    done = run("--help", python=("-X", "importtime"))
    assert done.returncode == 0 and "not a medical device" in done.stdout and "--server" in done.stdout
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if line.startswith("import time")}
    assert "argparse" in imported and not imported & {"gradio", "torch", "transformers", "scipy", "pandas"}


@pytest.mark.parametrize("host", ["0.0.0.0", "192.168.1.7", "ecg.example.org", "::"])
def test_others_are_let_in_only_with_a_password(host, capsys, monkeypatch):
    monkeypatch.delenv("ECG_APP_PASSWORD", raising=False)
    with pytest.raises(SystemExit) as stopped:
        app.main(["--model", "nowhere", "--host", host])
    assert stopped.value.code == 2 and "give a --password" in capsys.readouterr().err
    assert all(map(is_local, ("127.0.0.1", "::1", "localhost")))


@pytest.mark.parametrize(("arguments", "said"), [(["--model", "no/such/model"], "no saved model"), ([], "required")])
def test_errors_of_the_command(arguments, said, capsys, monkeypatch):
    pytest.importorskip("gradio")
    monkeypatch.setenv("GRADIO_TEMP_DIR", "")
    with pytest.raises(SystemExit) as stopped:
        app.main(arguments)
    assert stopped.value.code == 2 and said in capsys.readouterr().err


def test_without_gradio_it_says_what_to_install(capsys, monkeypatch):
    monkeypatch.setattr(app, "find_spec", lambda name: None)
    with pytest.raises(SystemExit) as stopped:
        app.main(["--model", "nowhere"])
    assert stopped.value.code == 2 and 'pip install "ecg-elm[app]"' in capsys.readouterr().err


def test_a_port_that_is_taken_is_said_before_a_model_is_loaded(capsys, monkeypatch):
    pytest.importorskip("gradio")
    monkeypatch.setenv("GRADIO_TEMP_DIR", "")
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(SystemExit) as stopped:
            app.main(["--model", "no/such/model", "--port", str(port)])
    assert stopped.value.code == 2
    words = f"error: port {port} is taken: end the program that listens there, or choose another one (--port)\n"
    assert capsys.readouterr().err == words


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--port", "0"], "--port must be from 1 to 65535, got 0"),
        (["--port", "70000"], "--port must be from 1 to 65535, got 70000"),
        (["--host", "203.0.113.7", "--password", "x"], "203.0.113.7 is no address of this machine: choose another one"),
    ],
)
def test_what_cannot_be_listened_on_is_said(capsys, arguments, said):
    pytest.importorskip("gradio")
    with pytest.raises(SystemExit) as stopped:
        app.main(["--model", "no/such/model", *arguments])
    assert stopped.value.code == 2 and said in capsys.readouterr().err


def test_a_server_that_is_down_is_said(capsys, monkeypatch):
    pytest.importorskip("gradio")
    monkeypatch.setenv("GRADIO_TEMP_DIR", "")
    with pytest.raises(SystemExit):
        app.main(["--server", "http://127.0.0.1:9"])
    assert "Is the server running?" in capsys.readouterr().err
