import base64
import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from data.conversations.rows import assistant, user
from data.ecg import LEADS, Ecg
from data.wire import MEDIA_TYPE, chat_messages, data_url, from_wire, to_wire

finite = st.floats(width=32, allow_nan=False, allow_infinity=False)


@settings(max_examples=50, deadline=None)
@given(
    arrays(np.float32, st.tuples(st.integers(1, 12), st.integers(1, 50)), elements=finite),
    st.floats(0.01, 100_000),
    st.permutations(LEADS),
)
def test_what_is_sent_arrives_bit_for_bit(signal, fs, leads):
    ecg = Ecg(signal, fs, tuple(leads[: len(signal)]), record_id="r1", patient_id="p1", meta={"age": 70})
    back = from_wire(to_wire(ecg))
    assert back.signal.tobytes() == ecg.signal.tobytes()
    assert (back.fs, back.leads) == (ecg.fs, ecg.leads)
    assert to_wire(back) == to_wire(ecg)


def fields(**changes):
    signal = base64.b64encode(np.arange(6, dtype="<f4").tobytes()).decode()
    return {"fs": 500, "leads": ["I", "avr"], "units": "mV", "signal": signal} | changes


def test_the_layout_is_the_documented_one():
    ecg = from_wire(json.dumps(fields()).encode())
    assert ecg.signal.tolist() == [[0, 1, 2], [3, 4, 5]] and ecg.leads == ("I", "aVR") and ecg.fs == 500
    sent = json.loads(to_wire(ecg))
    assert sent == fields(leads=["I", "aVR"])
    url = data_url(ecg)
    head, _, body = url.partition(",")
    assert head == f"data:{MEDIA_TYPE};base64" and base64.b64decode(body) == to_wire(ecg)


def test_whose_recording_it_is_stays_here():
    ecg = Ecg(np.zeros((1, 3)), 100, ("II",), record_id="secret-r", patient_id="secret-p", meta={"name": "secret-m"})
    assert b"secret" not in to_wire(ecg)


def test_units_are_converted_to_millivolts():
    for units, scale in (("uV", 1e-3), ("V", 1e3), ("nv", 1e-6)):
        ecg = from_wire(json.dumps(fields(units=units)).encode())
        np.testing.assert_allclose(ecg.signal[1], np.array([3, 4, 5]) * scale, rtol=1e-6)


def of(values):
    return base64.b64encode(np.asarray(values, "<f4").tobytes()).decode()


@pytest.mark.parametrize(
    ("data", "match"),
    [
        (b"\xff\xfe\x00", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b"[1]", "must be an object of fs, leads, units, signal, got list"),
        ({k: v for k, v in fields().items() if k != "fs"}, r"got \['leads', 'signal', 'units'\]"),
        (fields(patient="x"), r"must be an object of .* 'patient'"),
        (fields(fs="500"), "fs must be a number, got '500'"),
        (fields(fs=True), "fs must be a number, got True"),
        (fields(fs=0), "fs: sampling rate 0 Hz"),
        (fields(fs=math.nan), "fs: sampling rate nan Hz"),
        (fields(fs=10**400), "too large"),
        (fields(leads=[]), "leads must be a list of names"),
        (fields(leads="I"), "leads must be a list of names, got 'I'"),
        (fields(leads=["I", 2]), "leads must be a list of names"),
        (fields(leads=["I", "X9"]), "unknown lead 'X9'"),
        (fields(leads=["I", "i"]), "a lead is named twice"),
        (fields(units="furlong"), "units: unknown units 'furlong'"),
        (fields(units=1), "units and signal must be strings"),
        (fields(signal=[0.0]), "units and signal must be strings"),
        (fields(signal="@@@"), "signal is not base64"),
        (fields(signal="é"), "signal is not base64"),
        (fields(signal=""), "signal has 0 bytes"),
        (fields(signal=of([1, 2, 3])), "signal has 12 bytes, which are not as many float32 samples in each of 2 leads"),
        (fields(signal=of([1, np.nan])), r"not finite \(NaN or infinite\) in avr"),
        (fields(units="V", signal=of([1, 3e38])), "not finite"),
    ],
)
def test_anything_else_is_refused(data, match):
    with pytest.raises(ValueError, match=match) as refused:
        from_wire(data if isinstance(data, bytes) else json.dumps(data).encode())
    assert str(refused.value).startswith(MEDIA_TYPE)


def test_a_recording_with_missing_samples_is_not_sent():
    with pytest.raises(ValueError, match=r"record 'r7': samples that are not finite \(NaN or infinite\) in II"):
        to_wire(Ecg(np.array([[0, 0], [0, np.nan]]), 100, ("I", "II"), record_id="r7"))


def test_messages_are_sent_with_their_recordings_in_order():
    ecgs = [Ecg(np.full((1, 4), number), 100, ("I",)) for number in (1, 2, 3)]
    system = {"role": "system", "content": "Be brief."}
    messages = [system, user(2, "Compare"), assistant("alike"), user(1, "And this?")]
    sent = chat_messages(messages, iter(ecgs))
    assert sent[0] == system and [message["role"] for message in sent] == ["system", "user", "assistant", "user"]
    parts = [part for message in sent[1:] for part in message["content"]]
    assert [part["text"] for part in parts if part["type"] == "text"] == ["Compare", "alike", "And this?"]
    assert [part["type"] for part in parts[:2]] == ["audio_url", "audio_url"]
    assert [part["audio_url"]["url"] for part in parts if part["type"] != "text"] == [data_url(ecg) for ecg in ecgs]
    with pytest.raises(ValueError, match="the messages have more ECG parts than ECGs are given"):
        chat_messages(messages, ecgs[:2])
