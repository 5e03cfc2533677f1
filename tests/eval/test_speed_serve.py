"""The times of a server, of one on this machine that answers as slowly as it is told."""

from __future__ import annotations

import base64
import itertools
import json
import re
import subprocess
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from data.wire import from_wire
from eval.speed import __main__ as speed
from eval.speed import serve

DELAY = 0.05


class Server(ThreadingHTTPServer):
    """Answers after `DELAY`, a known ECG's first word at once; refuses what must be refused, unless it is lenient."""

    daemon_threads, request_queue_size = True, 64

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.known, self.again, self.lenient, self.lost, self.numbers = set(), 0, None, 0, itertools.count(1)

    def handle_error(self, request, client_address):
        """Clients that hang up are part of these tests."""

    def refusal(self, body):
        parts = body["messages"][0]["content"]
        urls = [part["audio_url"]["url"] for part in parts if part["type"] == "audio_url"]
        if body["model"] != "ecg":
            return 404, "unknown"
        if len(urls) > 2:
            return 400, "many"
        if len(parts[-1]["text"]) > 1000:
            return 400, "long"
        if not urls[0].startswith("data:"):
            return 400, "fetched"
        try:
            ecg = from_wire(base64.b64decode(urls[0].partition(",")[2]))
        except ValueError:
            return 400, "nan"
        return (400, "leads") if len(ecg.leads) < 12 else None


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *args):
        pass

    def begin(self, status):
        self.send_response(status)
        self.send_header("X-Ecg-Model", "ecg=0123-4567")
        self.end_headers()

    def do_GET(self):
        self.begin(200)
        replies = {
            "/v1/models": b'{"data": [{"id": "ecg"}]}',
            "/metrics": b"process_resident_memory_bytes 3.3554432e7\n",
        }
        self.wfile.write(replies.get(self.path, b""))

    def do_POST(self):
        server = self.server
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        number = next(server.numbers)  # one each: requests come in several threads
        refused = server.refusal(body)
        if refused and refused[1] != server.lenient:
            self.begin(refused[0])
            return
        if number == server.lost:
            return
        ecg = json.dumps(body["messages"])
        server.again += bool(body.get("stream")) and ecg in server.known
        time.sleep(0.005 if ecg in server.known else DELAY)
        server.known.add(ecg)
        self.begin(200)
        if body.get("stream"):
            self.wfile.write(b"data: {}\n\ndata: [DONE]\n\n")
        else:
            assert body["ignore_eos"] and body["temperature"] == 0
            self.wfile.write(json.dumps({"usage": {"completion_tokens": body["max_tokens"]}}).encode())


@pytest.fixture
def server(monkeypatch, listening):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with listening(Server()) as server:
        yield server


def run(server, *options):
    speed.main(["serve", "--url", f"http://127.0.0.1:{server.server_port}/v1", "--repeats", "2", *options])


@pytest.mark.slow
def test_ratios_stand_beside_both_times(server, capsys):
    run(server, "--chats", "8", "--tokens", "5", "--soak", "28")
    told, chats, waits, soak, memory = capsys.readouterr().out.splitlines()
    assert told.startswith("ecg=0123-4567.")
    fields = chats.removeprefix("8 chats, tokens/s").split()
    turn, once, ratio = float(fields[2]), float(fields[5]), float(fields[6][:-1])
    assert turn <= 5 / DELAY * 1.01 and once <= 8 * 5 / DELAY * 1.01 and ratio > 0
    fields = waits.removeprefix("first word, ms").split()
    new, known = float(fields[2]), float(fields[5])
    assert fields[:2] == ["new", "ECG"] and fields[3:5] == ["known", "ECG"] and new >= DELAY * 1e3 and known > 0
    assert float(fields[6][:-1]) > 0 and server.again >= 10  # each ECG of the second row was sent twice
    assert soak == (
        "soak: 28 requests (2 fetched, 14 good, 2 hang up, 2 leads, 2 long, 2 many, 2 nan, 2 unknown), every reply as "
        "it must be"
    )
    assert memory == "memory of the server: 32 MiB before, 32 MiB after half of it, 32 MiB after it"


@pytest.mark.parametrize("kind", ["nan", "leads", "fetched", "many", "long", "unknown"])
def test_a_server_that_takes_what_it_must_not_fails_the_soak(server, kind):
    server.lenient = kind
    with pytest.raises(RuntimeError, match=f"2 of 28 replies are not what they must be: {kind}: 200; {kind}: 200$"):
        serve.soak(at(server), serve.ecgs_without_end(), 28)


def test_a_lost_reply_fails_the_soak(server):
    server.lost = 1
    while server.lost <= 10:  # the first good request is among the first ones
        server.numbers = itertools.count(1)
        try:
            serve.soak(at(server), serve.ecgs_without_end(), 28)
        except RuntimeError as error:
            assert re.search(
                "^1 of 28 replies are not what they must be: .*(disconnected|Connection reset)", str(error)
            )
            return
        server.lost += 1
    pytest.fail("nobody missed a reply")


def at(server):
    return serve.Server(f"http://127.0.0.1:{server.server_port}", None, "ecg")


def test_no_two_ecgs_are_alike():
    ecgs = serve.ecgs_without_end()
    seen = {next(ecgs).signal.tobytes() for _ in range(50)}
    assert len(seen) == 50


@pytest.mark.slow
def test_the_memory_of_a_process_holds_that_of_its_children():
    child = "import time; x = bytearray(60_000_000); print(1, flush=True); time.sleep(60)"
    code = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    try:
        assert process.stdout.readline() == b"1\n"
        tree = serve._tree(process.pid)
        assert len(tree) == 2 and serve.Server("", None, pid=process.pid).memory() > 60e6
    finally:
        for pid in reversed(tree):
            subprocess.run(["kill", str(pid)], check=False)
        process.wait()


def test_a_server_that_does_not_start_is_an_error(tmp_path, capfd):
    with pytest.raises(SystemExit) as stopped:
        speed.main(["serve", "--model", str(tmp_path)])
    assert stopped.value.code == 2 and f"error: the server of {tmp_path} did not start" in capfd.readouterr().err


@pytest.mark.slow
def test_its_help_waits_for_no_torch():
    code = "import sys, eval.speed.serve; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
