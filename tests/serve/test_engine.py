"""Engines: the pieces of an answer are the answer, and stopping ends the work, not only the listening."""

import threading
import time
from threading import Event

import pytest

from data.conversations.rows import assistant, user
from data.wire.http import ServerError
from elm.ask import ask
from serve.serving.client import EcgChat, conversation
from serve.serving.engine import RemoteEngine, TooLong
from serve.serving.local import LocalEngine

QUESTION = "What is the rhythm?"


@pytest.fixture(scope="module")
def answering(make_pair, tokenizer):
    """An engine that talks until it is cut off, and its model."""
    pair = make_pair(pool=2)
    ends = pair.model.generation_config.suppress_tokens
    pair.model.generation_config.suppress_tokens = [*ends, tokenizer.eos_token_id]
    return LocalEngine("random", 40, loaded=tuple(pair)), pair


@pytest.mark.parametrize("ecgs", [0, 1, 2])
def test_the_pieces_are_the_answer(answering, make_ecg, ecgs):
    """With the ECG, with two, and without any: what `elm.ask` says."""
    engine, pair = answering
    shown = [make_ecg(seed) for seed in range(ecgs)]
    pieces = list(engine.stream(shown, QUESTION))
    assert len(pieces) > 1
    assert "".join(pieces).strip() == ask(*pair, shown, QUESTION, max_new_tokens=40)


def test_another_patients_ecg_is_another_answer(answering, make_ecg):
    engine, _ = answering
    said = {"".join(engine.stream(ecgs, QUESTION)) for ecgs in ([make_ecg(1)], [make_ecg(2)], [])}
    assert len(said) == 3


def test_the_recordings_stand_in_the_first_question():
    said = conversation(2, "And now?", [("Is it?", "yes"), ("Sure?", "no")])
    assert said == [user(2, "Is it?"), assistant("yes"), user(0, "Sure?"), assistant("no"), user(0, "And now?")]
    assert conversation(1, "Is it?") == [user(1, "Is it?")]


def test_what_was_said_before_counts(answering, make_ecg):
    engine, pair = answering
    ecg, history = make_ecg(1), [("Is it?", "yes")]
    batch = pair.processor(conversation(1, QUESTION, history), [ecg], add_generation_prompt=True)
    tokens = pair.model.generate(**batch, do_sample=False, max_new_tokens=40)[0, batch["input_ids"].shape[1] :]
    want = pair.processor.tokenizer.decode(tokens, skip_special_tokens=True)
    assert "".join(engine.stream([ecg], QUESTION, history)) == want


@pytest.fixture
def steps(answering):
    """Counts the forward passes of the model, and makes each take 20 ms."""
    count = []

    def counted(*_):
        count.append(1)
        time.sleep(0.02)

    hook = answering[1].model.register_forward_pre_hook(counted)
    yield count
    hook.remove()


def ended(engine):
    """The engine takes the next question."""
    taken = engine._lock.acquire(timeout=5)
    engine._lock.release()
    return taken


@pytest.mark.parametrize("how", ["stop", "close"])
def test_stopping_ends_the_generation_within_a_few_tokens(answering, make_ecg, steps, how):
    engine, stop = LocalEngine("random", 300, loaded=tuple(answering[1])), Event()
    answer = engine.stream([make_ecg(1)], QUESTION, stop=stop)
    next(answer)
    before = len(steps)
    if how == "stop":
        stop.set()
        assert list(answer) == []
    else:
        answer.close()
    assert ended(engine)
    assert len(steps) - before <= 3


def test_two_visitors_do_not_disturb_each_other(answering, make_ecg):
    engine, pair = answering
    shown = [[make_ecg(1)], [make_ecg(2), make_ecg(3)], []]
    said: dict[int, str] = {}
    threads = [
        threading.Thread(target=lambda i=i, e=e: said.__setitem__(i, "".join(engine.stream(e, QUESTION)).strip()))
        for i, e in enumerate(shown)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert [said[i] for i in range(3)] == [ask(*pair, e, QUESTION, max_new_tokens=40) for e in shown]


def test_who_waits_for_the_model_can_be_stopped(answering, make_ecg, monkeypatch):
    engine, _ = answering
    generated, stop = [], Event()
    monkeypatch.setattr(engine, "_generate", lambda *_: generated.append(1))
    with engine._lock:
        waiting = threading.Thread(target=lambda: list(engine.stream([make_ecg(1)], QUESTION, stop=stop)))
        waiting.start()
        stop.set()
        waiting.join(5)
        assert not waiting.is_alive()
    assert ended(engine) and not generated


def test_a_recording_the_model_cannot_take_is_said_to_whoever_asked(answering, make_ecg):
    engine, _ = answering
    with pytest.raises(ValueError, match="no lead III"):
        list(engine.stream([make_ecg(1).select(["I", "II"])], QUESTION))
    assert "".join(engine.stream([make_ecg(1)], QUESTION))


class Chat:
    """A client whose answer is endless."""

    model = "elm"

    def __init__(self):
        self.asked, self.closed, self.said = [], threading.Event(), 0

    def hash(self):
        return "abc"

    def stream(self, ecgs, question, history=()):
        self.asked.append((ecgs, question, history))
        try:
            while True:
                self.said += 1
                yield f"{self.said} "
                time.sleep(0.01)
        finally:
            self.closed.set()


@pytest.mark.parametrize("how", ["stop", "close"])
def test_stopping_closes_the_stream_of_a_server(make_ecg, how):
    chat, stop = Chat(), Event()
    engine = RemoteEngine(chat)
    assert (engine.name, engine.digest) == ("elm", "abc")
    answer = engine.stream([make_ecg(1)], QUESTION, [("Is it?", "yes")], stop)
    assert next(answer) == "1 "
    if how == "stop":
        stop.set()
    else:
        answer.close()
    assert chat.closed.wait(5)
    ((ecgs, question, history),) = chat.asked
    assert [ecg.record_id for ecg in ecgs] == ["r1"] and question == QUESTION and history == [("Is it?", "yes")]


def test_what_a_server_says_of_its_failure_is_passed_on(make_ecg):
    class Failing(Chat):
        def stream(self, ecgs, question, history=()):
            yield "a "
            raise ServerError("no answer from http://127.0.0.1:1", 503)

    answer = RemoteEngine(Failing()).stream([make_ecg(1)], QUESTION)
    assert next(answer) == "a "
    with pytest.raises(ServerError, match="no answer from"):
        next(answer)


@pytest.mark.parametrize(
    "words",
    [
        "This model's maximum context length is 1024 tokens. However, you requested 16 output tokens and your prompt",
        "You passed 2000 input tokens, with a maximum input length of 1024",
        "The decoder prompt (length 1200) is longer than the maximum model length of 1024",
        "the conversation has 40000 characters of text, more than 32768",
    ],
)
def test_a_server_whose_model_reads_less_is_understood(make_ecg, words):
    class Short(Chat):
        def stream(self, ecgs, question, history=()):
            raise ServerError(f"POST http://127.0.0.1:1/v1: 400 Bad Request: {words}", self.status)
            yield

    engine = RemoteEngine(Short())
    engine._chat.status = 400
    with pytest.raises(TooLong, match="^the question is too long for this model: shorten it$"):
        list(engine.stream([make_ecg(1)], QUESTION))
    engine._chat.status = 500
    with pytest.raises(ServerError, match="400 Bad Request"):
        list(engine.stream([make_ecg(1)], QUESTION))


def test_another_refusal_of_a_server_is_handed_on(make_ecg):
    class Refusing(Chat):
        def stream(self, ecgs, question, history=()):
            raise ServerError("400 Bad Request: ECG: no model can read this recording: Flat", 400)
            yield

    with pytest.raises(ServerError, match="no model can read this recording: Flat"):
        list(RemoteEngine(Refusing()).stream([make_ecg(1)], QUESTION))


def test_a_visitor_is_not_told_to_run_commands(make_ecg, caplog):
    chat = EcgChat("http://127.0.0.1:9", model="elm")
    chat.hash = lambda: ""
    with pytest.raises(ServerError, match="^there is no answer. Is the server running") as error:
        list(RemoteEngine(chat).stream([make_ecg(1)], QUESTION))
    assert "python" not in str(error.value) and "python -m serve.server" in caplog.text
