"""A recording as bytes: what a client, the audit and a server hand to each other.

    {"fs": 500.0, "leads": ["I", "II", ...], "units": "mV", "signal": "AAAAAI0..."}

`signal` is base64 of little-endian float32 `[leads, samples]`, one lead after the other. Only the signal travels: whose
recording it is stays with the sender. In an HTTP request it is a `data:` URL of the type `application/x-ecg+json`, with
the parameter `altered` where an experiment made the recording: a server answers about it though nothing can be read in
it, such as a flat line.
"""

import base64
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data.ecg import Ecg
from data.units import millivolts, sampling_rate

Message = dict[str, Any]  # {"role": ..., "content": str | list of parts}

MEDIA_TYPE = "application/x-ecg+json"
URL = f"data:{MEDIA_TYPE};base64,"  # how the URL of a recording begins
ALTERED_URL = f"data:{MEDIA_TYPE};altered;base64,"
_KEYS = ("fs", "leads", "units", "signal")
_SAMPLE = np.dtype("<f4")


def to_wire(ecg: Ecg) -> bytes:
    """The recording as UTF-8 JSON, in millivolts.

    Raises:
        ValueError: A sample is not finite; names the record.
    """
    who = f"record {ecg.record_id!r}" if ecg.record_id else "ECG"
    _require_finite(ecg.signal, ecg.leads, who)
    signal = base64.b64encode(ecg.signal.astype(_SAMPLE).tobytes()).decode()
    return json.dumps(dict(zip(_KEYS, (ecg.fs, ecg.leads, "mV", signal)))).encode()


def from_wire(data: bytes) -> Ecg:
    """The recording that `to_wire` or another client wrote; its units may be V, mV, uV or nV.

    Raises:
        ValueError: The data is anything else; says which field is wrong, and what it must be.
    """
    try:
        fields = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{MEDIA_TYPE}: not JSON: {error}") from error
    if not isinstance(fields, dict) or set(fields) != set(_KEYS):
        got = sorted(fields) if isinstance(fields, dict) else type(fields).__name__
        raise ValueError(f"{MEDIA_TYPE}: must be an object of {', '.join(_KEYS)}, got {got}")
    fs, leads, units, signal = (fields[key] for key in _KEYS)
    if isinstance(fs, bool) or not isinstance(fs, (int, float)):
        raise ValueError(f"{MEDIA_TYPE}: fs must be a number, got {fs!r}")
    if not isinstance(leads, list) or not leads or not all(isinstance(lead, str) for lead in leads):
        raise ValueError(f"{MEDIA_TYPE}: leads must be a list of names, got {leads!r}")
    if not isinstance(units, str) or not isinstance(signal, str):
        raise ValueError(f"{MEDIA_TYPE}: units and signal must be strings")
    scale = millivolts(units, f"{MEDIA_TYPE}: units")
    try:
        samples = base64.b64decode(signal, validate=True)
    except ValueError as error:
        raise ValueError(f"{MEDIA_TYPE}: signal is not base64: {error}") from error
    if not samples or len(samples) % (len(leads) * _SAMPLE.itemsize):
        problem = f"which are not as many float32 samples in each of {len(leads)} leads"
        raise ValueError(f"{MEDIA_TYPE}: signal has {len(samples)} bytes, {problem}")
    with np.errstate(over="ignore"):
        values = np.frombuffer(samples, _SAMPLE).reshape(len(leads), -1) * np.float32(scale)
    _require_finite(values, leads, MEDIA_TYPE)
    try:
        return Ecg(values, sampling_rate(fs, "fs"), tuple(leads))
    except (ValueError, OverflowError) as error:
        raise ValueError(f"{MEDIA_TYPE}: {error}") from error


def data_url(ecg: Ecg, altered: bool = False) -> str:
    """The recording as a `data:` URL, for a content part of a chat request; `altered` ones are of an experiment."""
    beginning = ALTERED_URL if altered else URL
    return f"{beginning}{base64.b64encode(to_wire(ecg)).decode()}"


def chat_messages(messages: Sequence[Mapping[str, Any]], ecgs: Iterable[Ecg], altered: bool = False) -> list[Message]:
    """Messages as they are sent to a chat server: each ECG part holds its recording, in the order given.

    An experiment says that the recordings are `altered`. The part's kind is `audio_url`, which vLLM's chat API and
    every OpenAI client know and hand on unread.

    Raises:
        ValueError: There are fewer recordings than ECG parts, or a sample is not finite.
    """
    left = iter(ecgs)

    def sent(part: dict[str, str]) -> Message:
        if part["type"] != "ecg":
            return {"type": "text", "text": part["text"]}
        ecg = next(left, None)
        if ecg is None:
            raise ValueError("the messages have more ECG parts than ECGs are given")
        return {"type": "audio_url", "audio_url": {"url": data_url(ecg, altered)}}

    contents = (message["content"] for message in messages)
    changed = (content if isinstance(content, str) else [sent(part) for part in content] for content in contents)
    return [{**message, "content": content} for message, content in zip(messages, changed)]


def _require_finite(signal: NDArray[np.floating], leads: Sequence[str], where: str) -> None:
    if bad := [lead for lead, row in zip(leads, signal) if not np.isfinite(row).all()]:
        raise ValueError(f"{where}: samples that are not finite (NaN or infinite) in {', '.join(bad)}")
