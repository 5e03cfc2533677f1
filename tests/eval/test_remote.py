"""Against a server on this machine that speaks the part of vLLM's API that is used, with a model of its own making."""

from __future__ import annotations

import base64
import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

from data.conversations.rows import question_row
from data.ecg import LEADS, Ecg
from data.wire import ALTERED_URL, URL, from_wire, http
from eval.answerers.server import ServerError, ServerResponder

ECG, USER, ASSISTANT, END = 1, 2, 3, 4  # tokens; every other one is a character
SHOWN = {ECG: "<ecg>", USER: "<user>", ASSISTANT: "<assistant>", END: "<end>"}


class Server(ThreadingHTTPServer):
    """Answers with what it was asked; log p of a token is -0.01 times its id and the number in the first sample.

    Attributes:
        requests: Of the chat: authorization, and body.
        failures: Statuses of the next replies, in place of an answer.
        metrics: What /metrics says, if anything.
        busy, most: Requests being answered, now and at most.
    """

    daemon_threads, request_queue_size = True, 64

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.requests, self.failures, self.metrics = [], [], None
        self.busy = self.most = 0
        self.lock, self.delay = threading.Lock(), 0.0
        self.trailing, self.broken = [ord("\n")], None
        self.altered = []  # whether each recording was said to be

    def handle_error(self, request, client_address):
        """Clients that hang up are part of these tests."""

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}/v1"

    def tokens(self, body):
        ids, numbers = [], []
        for message in body["messages"]:
            ids.append(USER if message["role"] == "user" else ASSISTANT)
            content = message["content"]
            for part in [{"type": "text", "text": content}] if isinstance(content, str) else content:
                if part["type"] == "audio_url":
                    head, _, data = part["audio_url"]["url"].partition(",")
                    assert f"{head}," in (URL, ALTERED_URL)
                    self.altered.append(f"{head}," == ALTERED_URL)
                    numbers.append(float(from_wire(base64.b64decode(data)).signal[0, 0]))
                    ids += [ECG] * 3
                else:
                    ids += [ord(c) for c in part["text"]]
            if message["role"] == "assistant":
                ids += [END, *self.trailing]
        return ids + [ASSISTANT] * body.get("add_generation_prompt", True), numbers


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def reply(self, status, body, **headers):
        body = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in {**headers, "Content-Length": len(body)}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        assert self.path == "/metrics"
        if self.server.metrics is None:
            self.reply(404, {"detail": "Not Found"})
        else:
            self.reply(200, self.server.metrics.encode())

    def do_POST(self):
        server = self.server
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with server.lock:
            server.requests.append((self.headers["Authorization"], body))
            failure = server.failures.pop(0) if server.failures else None
            server.busy += 1
            server.most = max(server.most, server.busy)
        time.sleep(server.delay)
        with server.lock:
            server.busy -= 1
        if failure == "hang up":
            self.close_connection = True
            return
        if failure == 302:
            self.reply(302, b"", Location="http://127.0.0.1:9/elsewhere")
        elif failure is not None:
            self.reply(failure, {"error": {"message": f"no, because of {failure}", "code": failure}})
        else:
            self.reply(200, server.broken if server.broken is not None else self.answer(body))

    def answer(self, body):
        assert self.path == "/v1/chat/completions" and body["model"] == "ecg" and body["temperature"] == 0
        ids, numbers = self.server.tokens(body)
        said = f" {sum(numbers):g} {len(numbers)} {''.join(chr(i) for i in ids if i > 9)} "
        out = {"choices": [{"message": {"content": said[: body["max_tokens"]]}}]}
        if body.get("return_token_ids"):
            out["prompt_token_ids"] = ids
        if body.get("prompt_logprobs") is not None:
            entries = [
                {str(i): {"logprob": -0.01 * i - sum(numbers), "decoded_token": SHOWN.get(i, chr(i))}} for i in ids
            ]
            out["prompt_logprobs"] = [None, *entries[1:]]
        return out


@pytest.fixture
def server(monkeypatch, listening):
    monkeypatch.setattr(http, "WAIT", (0.01, 0.02))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with listening(Server()) as server:
        yield server


@pytest.fixture
def source():
    return {f"r{i}": Ecg(np.full((12, 20), i + 1), 100, LEADS, record_id=f"r{i}", patient_id="p") for i in range(8)}


@pytest.fixture
def rows():
    def row(i):
        ecgs = [f"r{(i + j) % 8}" for j in range(i % 3)]
        return question_row(
            id=f"q{i}", ecgs=ecgs, patient_ids=["p"], question_type="t", question=f"what, {i}?", answer=["yes"]
        )

    return [row(i) for i in range(20)]


@pytest.fixture
def make(server, source):
    def make(**settings):
        return ServerResponder(**{"url": server.url, "model": "ecg", "source": source} | settings)

    return make


def expected(source, row):
    numbers = [source[record].signal[0, 0] for record in row["ecgs"]]
    return f"{sum(numbers):g} {len(numbers)} {row['question']}"


def test_answers_come_in_the_order_of_the_rows(server, source, make, rows):
    server.delay = 0.02
    responder = make(concurrency=3, api_key="key", max_new_tokens=40)
    assert responder.ask(rows, "real") == [expected(source, row) for row in rows]
    assert server.most == 3
    assert {authorization for authorization, _ in server.requests} == {"Bearer key"}
    assert all(body["max_tokens"] == 40 for _, body in server.requests)
    assert [len(body["messages"]) for _, body in server.requests] == [1] * 20  # the answer is never shown


def test_altered_recordings_are_altered_before_they_are_sent(server, make, rows):
    row = {**rows[4], "ecgs": ["r5~flat"]}
    assert make(max_new_tokens=40).ask([row], "flat") == [f"0 1 {row['question']}"]
    make(max_new_tokens=40).ask([rows[4]], "real")
    assert server.altered == [True, False], "the server would refuse a flat line"


def test_without_a_key_none_is_sent(server, make, rows):
    make().ask(rows[:1], "real")
    assert server.requests[0][0] is None


def options_of(rows):
    return [(["yes", "no", "yes"], ["a, b"], [])[i % 3] for i in range(len(rows))]


@pytest.mark.parametrize("trailing", ["", "\n", "\n \n"])
def test_scores_are_of_the_options_tokens_and_the_end_of_turn(server, source, make, rows, trailing):
    server.trailing = [ord(c) for c in trailing]
    responder = make(prefix_caching_off=True)
    assert responder.scores and not make().scores
    scores = responder.score(rows, "real", options_of(rows))
    for row, options, found in zip(rows, options_of(rows), scores):
        shown = sum(float(source[record].signal[0, 0]) for record in row["ecgs"])
        want = [sum(-0.01 * i - shown for i in [*map(ord, text), END]) for text in options]
        assert found == pytest.approx(want)
    # Of every row the question, and each option once.
    assert len(server.requests) == len(rows) + sum(len(set(texts)) for texts in options_of(rows))


def test_scores_need_the_callers_word(make, rows):
    with pytest.raises(ValueError, match="--no-enable-prefix-caching, and say so with --prefix_caching_off"):
        make().score(rows, "real", options_of(rows))


def info(value):
    return f'# HELP\nvllm:cache_config_info{{block_size="16",enable_prefix_caching="{value}",x="y"}} 1.0\n'


def test_a_server_that_says_it_caches_prefixes_is_not_believed(server, make, rows):
    server.metrics = info("False") + info("True")
    with pytest.raises(ServerError, match=r"/metrics says that prefix caching is on.*--no-enable-prefix-caching"):
        make(prefix_caching_off=True).score(rows, "real", options_of(rows))
    assert not server.requests


def test_where_a_server_does_not_say_the_callers_word_stands(server, make, rows, caplog):
    server.metrics = info("False")
    make(prefix_caching_off=True).score(rows[:1], "real", [["yes"]])
    assert not caplog.records
    server.metrics = None
    make(prefix_caching_off=True).score(rows[:1], "real", [["yes"]])
    assert "cannot verify that prefix caching is off: GET" in caplog.text and "404" in caplog.text


def test_a_prompt_that_does_not_go_on_from_the_question_is_not_scored(server, make, rows, monkeypatch):
    tokens = server.tokens
    monkeypatch.setattr(server, "tokens", lambda body: ([9] * (len(body["messages"]) > 1) + tokens(body)[0], []))
    with pytest.raises(ServerError, match=r"cannot score the answer 'yes': its prompt of \d+ tokens.* does not go on"):
        make(prefix_caching_off=True).score(rows[:1], "real", [["yes"]])


@pytest.mark.parametrize("condition", ["zero", "mean"])
def test_a_server_cannot_be_asked_under_what_is_done_inside(server, make, rows, condition):
    responder = make(prefix_caching_off=True)
    for call in (
        lambda: responder.prepare(rows, condition),
        lambda: responder.ask(rows, condition),
        lambda: responder.score(rows, condition, options_of(rows)),
    ):
        with pytest.raises(
            ValueError, match=f"a server cannot be asked under '{condition}'.*take 'flat'.* ask the saved"
        ):
            call()
    assert not server.requests and responder.levels == {"row", "recording"}


def test_what_passes_is_tried_again(server, source, make, rows):
    server.failures = [503, "hang up", 429, 500]
    assert make(concurrency=1, max_new_tokens=40).ask(rows[:1], "real") == [expected(source, rows[0])]
    assert len(server.requests) == 5


def test_what_does_not_pass_is_reported(server, make, rows):
    server.failures = [503] * 9
    with pytest.raises(ServerError, match=r"completions: 503 .*: no, because of 503 \(4 attempts\)$"):
        make(concurrency=1, retries=3).ask(rows[:1], "real")
    server.failures = ["hang up"] * 9
    with pytest.raises(
        ServerError, match=r"POST http:.*completions: .*disconnected.* \(2 attempts\)\. Is the server run"
    ):
        make(concurrency=1, retries=1).ask(rows[:1], "real")


@pytest.mark.parametrize("status", [400, 401, 404])
def test_a_wrong_request_is_not_tried_again(server, make, rows, status):
    server.failures = [status]
    with pytest.raises(ServerError) as error:
        make(concurrency=1).ask(rows, "real")
    assert f"POST {server.url}/chat/completions: {status} " in str(error.value)
    assert str(error.value).endswith(f": no, because of {status}")
    assert len(server.requests) < len(rows)


def test_a_redirection_is_not_followed(server, make, rows):
    server.failures = [302]
    with pytest.raises(ServerError, match="302"):
        make(api_key="key").ask(rows[:1], "real")


def test_silence_ends(server, make, rows):
    server.delay = 0.5
    with pytest.raises(ServerError, match=r"timed out \(2 attempts\)"):
        make(timeout=0.05, retries=1).ask(rows[:1], "real")


@pytest.mark.parametrize(
    ("reply", "match"),
    [
        (b"<html>", "does not answer in JSON: b'<html>'"),
        ({"detail": "x"}, "has no 'choices'"),
        ({"choices": []}, "has no 0"),
        ([], "has no 'choices'"),
    ],
)
def test_another_kind_of_server_is_named(server, make, rows, reply, match):
    server.broken = reply
    with pytest.raises(ServerError, match=match) as error:
        make().ask(rows[:1], "real")
    assert server.url in str(error.value)


def test_a_server_that_gives_no_tokens_cannot_score(server, make, rows):
    server.broken = {"choices": [{"message": {"content": "x"}}]}
    with pytest.raises(ServerError, match="has no 'prompt_token_ids', which vLLM's has"):
        make(prefix_caching_off=True).score(rows[:1], "real", [["yes"]])


def test_an_empty_answer_is_one(server, make, rows):
    server.broken = {"choices": [{"message": {"content": None}}]}
    assert make().ask(rows[:1], "real") == [""]


def test_the_name_tells_servers_and_models_apart(make):
    names = {
        make().name,
        make(model="other").name,
        make(url="http://127.0.0.1:1/v1").name,
        make(max_new_tokens=3).name,
    }
    assert len(names) == 4 and make(api_key="key", concurrency=1).name in names


def test_wrong_arguments_are_named(make):
    with pytest.raises(ValueError, match="must begin with http:// or https://, got 'file:///etc'"):
        make(url="file:///etc")
    with pytest.raises(ValueError, match="concurrency must be positive, got 0"):
        make(concurrency=0)
