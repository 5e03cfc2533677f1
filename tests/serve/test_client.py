"""The client against a server on this machine that answers with what it was asked, in vLLM's words."""

from __future__ import annotations

import base64
import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

from data.ecg import LEADS, Ecg
from data.wire import from_wire
from serve.client import Answer, EcgChat, ServerError

HASHES = "ecg=0123-4567, reports=0123-4567-89ab"


class Server(ThreadingHTTPServer):
    """Says the numbers in the recordings' first samples, then what was asked, a word at a time where it streams.

    Attributes:
        requests: Method, path, authorization and body of each.
        failure: Status in place of an answer.
        reply: A body in place of an answer.
        sent, gone: Pieces of the last stream that were sent, and whether nobody was there to take the next.
    """

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.requests, self.failure, self.reply, self.hashes = [], None, None, HASHES
        self.pieces, self.last, self.endless = None, [b"data: [DONE]\n\n"], False
        self.sent, self.gone = 0, threading.Event()

    def handle_error(self, request, client_address):
        """Clients that hang up are part of these tests."""

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *args):
        pass

    def begin(self, status, **headers):
        self.send_response(status)
        if self.server.hashes is not None:
            self.send_header("X-Ecg-Model", self.server.hashes)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()

    def do_GET(self):
        self.answer(None)

    def do_POST(self):
        self.answer(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

    def answer(self, body):
        server = self.server
        server.requests.append((self.command, self.path, self.headers["Authorization"], body))
        if server.failure == 302:
            return self.begin(302, Location="http://127.0.0.1:9/elsewhere")
        if server.failure is not None:
            self.begin(server.failure)
            said = {"error": {"message": f"no, because of {server.failure}", "code": server.failure}}
            return self.wfile.write(json.dumps(said).encode())
        if body is not None and body.get("stream"):
            return self.stream(body)
        self.begin(200)
        self.wfile.write(server.reply if server.reply is not None else json.dumps(self.reply(body)).encode())

    def reply(self, body):
        if body is None:
            return {"data": [{"id": "ecg"}, {"id": "reports"}]}
        text = said(body)
        cut = "max_tokens" in body and len(text) > body["max_tokens"]
        return {
            "choices": [{"message": {"content": f" {text[: body.get('max_tokens')]}\n"},
                         "finish_reason": "length" if cut else "stop"}],
            "usage": {"prompt_tokens": 17, "completion_tokens": 5},
        }  # fmt: skip

    def stream(self, body):
        server = self.server
        self.begin(200, Content_Type="text/event-stream")
        try:
            words = [word + " " for word in said(body).split()]
            events = [{"choices": [{"delta": {"role": "assistant", "content": ""}}]}]
            events += [{"choices": [{"delta": {"content": word}}]} for word in words] + [{"choices": [], "usage": {}}]
            while True:
                for event in events:
                    self.wfile.write(b": keep-alive\n\ndata: " + json.dumps(event).encode() + b"\n\n")
                    self.wfile.flush()
                    server.sent += 1
                    time.sleep(0.005 if server.endless else 0)
                if not server.endless:
                    break
            for line in server.last:
                self.wfile.write(line)
        except OSError:
            server.gone.set()


def said(body):
    """What the conversation was, as the server read it."""
    out = []
    for message in body["messages"]:
        for part in message["content"]:
            if part["type"] == "audio_url":
                data = part["audio_url"]["url"].partition(";base64,")[2]
                out.append(f"{from_wire(base64.b64decode(data)).signal[0, 0]:g}")
            else:
                out.append(f"{message['role']}:{part['text']}")
    return " ".join(out)


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
