"""The client against a server on this machine that answers with what it was asked, in vLLM's words."""

from __future__ import annotations

import json

import numpy as np
import pytest

from data.ecg import LEADS, Ecg
from helpers.chat_server import Server
from serve.client import Answer, EcgChat, ServerError


@pytest.fixture
def server(monkeypatch, listening):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with listening(Server()) as server:
        yield server


def ecg(number):
    return Ecg(np.full((12, 20), number), 100, LEADS, record_id="name", patient_id="patient")


def test_an_answer_says_who_gave_it(server):
    answer = EcgChat(server.url).ask(ecg(3), "normal?")
    assert answer == Answer("3 user:normal?", "ecg", "0123-4567", cut=False, prompt_tokens=17, tokens=5)
    _, path, authorization, body = server.requests[-1]
    assert path == "/v1/chat/completions" and authorization is None
    assert body["model"] == "ecg" and body["temperature"] == 0 and "max_tokens" not in body
    assert "patient" not in json.dumps(body) and "name" not in json.dumps(body), "only the signal travels"


@pytest.mark.parametrize(
    ("ecgs", "history", "want"),
    [
        (ecg(1), [], "1 user:q"),
        ([ecg(1), ecg(2)], [], "1 2 user:q"),
        ([], [], "user:q"),
        ([ecg(2), ecg(1)], [("a", "b"), ("c", "d")], "2 1 user:a assistant:b user:c assistant:d user:q"),
    ],
)
def test_recordings_stand_before_what_is_asked_first(server, ecgs, history, want):
    chat = EcgChat(server.url)
    assert chat.ask(ecgs, "q", history).text == want
    assert "".join(chat.stream(ecgs, "q", history)).strip() == want


def test_another_model_and_a_key(server):
    chat = EcgChat(f"{server.url}/v1/", "secret", "reports")
    assert chat.ask(ecg(1), "q", max_tokens=4).text == "1 us"
    answer = chat.ask(ecg(1), "q", max_tokens=4)
    assert answer.cut and answer.model == "reports" and answer.model_hash == "0123-4567-89ab" == chat.hash()
    assert {(authorization, path) for _, path, authorization, _ in server.requests} == {
        ("Bearer secret", "/v1/chat/completions"), ("Bearer secret", "/v1/models"),
    }  # fmt: skip
    assert chat.models() == ["ecg", "reports"]
    server.hashes = None
    assert chat.ask(ecg(1), "q").model_hash == "" == chat.hash()


def test_closing_a_stream_ends_the_servers_work(server):
    server.endless = True
    pieces = EcgChat(server.url).stream(ecg(1), "one two")
    assert [next(pieces) for _ in range(3)] == ["1 ", "user:one ", "two "]
    pieces.close()
    assert server.gone.wait(5)
    for piece in EcgChat(server.url).stream(ecg(1), "q"):
        assert piece == "1 "
        break  # the generator is dropped
    del piece
    assert server.gone.wait(5)


@pytest.mark.parametrize("notes", [[["Flat: V2."], []], [["Flat: V2.", "Only 7 s long."]]])
def test_what_the_server_says_of_the_ecgs_comes_with_the_answer(server, notes):
    chat = EcgChat(server.url)
    assert chat.ask(ecg(1), "q").notes == ()
    server.notes = notes
    assert chat.ask(ecg(1), "q").notes == tuple(map(tuple, notes))
    pieces = chat.stream(ecg(1), "q")
    assert pieces.notes == ()
    assert "".join(pieces).strip() == "1 user:q" and pieces.notes == tuple(map(tuple, notes))


@pytest.mark.parametrize(
    ("last", "match"),
    [
        ([], "broke off: the server closed the connection"),
        ([b'data: {"error": {"message": "engine dead"}}\n\n'], "broke off: engine dead"),
        ([b"data: {\n\n"], "does not answer in JSON"),
        ([b"data: {}\n\n"], "has no 'choices'"),
    ],
)
def test_an_answer_that_breaks_off_is_no_answer(server, last, match):
    server.last = last
    with pytest.raises(ServerError, match=match):
        list(EcgChat(server.url).stream(ecg(1), "q"))


@pytest.mark.parametrize("status", [400, 401, 404, 503])
def test_refusals_are_the_servers_own_words(server, status):
    chat = EcgChat(server.url, model="ecg")
    server.failure = status
    for call in (lambda: chat.ask(ecg(1), "q"), lambda: list(chat.stream(ecg(1), "q")), chat.models):
        with pytest.raises(ServerError, match=f"{server.url}/v1/.*: {status} .*: no, because of {status}$") as error:
            call()
        assert error.value.status == status


def test_a_redirection_is_not_followed(server):
    server.failure = 302
    with pytest.raises(ServerError, match="302"):
        EcgChat(server.url, "secret", "ecg").ask(ecg(1), "q")


def test_nobody_there(server):
    for call in (lambda chat: chat.ask(ecg(1), "q"), lambda chat: list(chat.stream(ecg(1), "q"))):
        with pytest.raises(
            ServerError,
            match=r"http://127.0.0.1:9/v1/.*: no answer: .*refused.*Is the server running.*python -m serve.server",
        ):
            call(EcgChat("http://127.0.0.1:9"))


@pytest.mark.parametrize(
    ("reply", "match"),
    [(b"<html>", "does not answer in JSON: b'<html>'"), (b"{}", "has no 'usage'"), (b"[]", "has no 'usage'")],
)
def test_another_kind_of_server_is_named(server, reply, match):
    server.reply = reply
    with pytest.raises(ServerError, match=match):
        EcgChat(server.url, model="ecg").ask(ecg(1), "q")


def test_what_cannot_be_sent_is_refused_here(server):
    with pytest.raises(ValueError, match="must begin with http:// or https://, got 'file:///etc'"):
        EcgChat("file:///etc")
    signal = np.ones((12, 20))
    signal[3, 4] = np.nan
    broken = Ecg(signal, 100, LEADS, record_id="name")
    with pytest.raises(ValueError, match="record 'name': samples that are not finite .* in aVR"):
        EcgChat(server.url, model="ecg").ask(broken, "q")
    assert not server.requests
