"""Chat requests as messages that `ElmProcessor` takes, and the recordings that are sent with them.

    {"role": "user", "content": [
        {"type": "audio_url", "audio_url": {"url": "data:application/x-ecg+json;base64,..."}},
        {"type": "text", "text": "Is this a normal ECG?"}]}

`audio_url` is a kind of part that every OpenAI client can send. Here it holds a recording, written out (`data.wire`);
nothing is ever fetched from anywhere. A `uuid` beside it is not read: a recording is what its samples are.
"""

import base64
import binascii
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from data.conversations.rows import Message, Part
from data.ecg import LEADS, Ecg
from data.quality import require_readable, signal_quality
from data.wire import ALTERED_URL, URL, from_wire
from elm.inputs.window import read_window
from serve.vllm_plugin.notes import Notes

ROLES = ("system", "user", "assistant")
MAX_BYTES = 16 * 2**20  # of an ECG in a request: ten minutes of twelve leads at 250 Hz
MAX_SECONDS = 600.0  # a recording is resampled whole before its first seconds are taken
MAX_MILLIVOLTS = 1000.0  # from there on float32 overflows inside encoders, and the answer would be a row of one token
MAX_VALUES = 1000  # of its JSON: small ones take many times their size in memory
MAX_SENTENCE = 500  # characters
_ALTERED = "altered"  # in `Ecg.meta`: an experiment made it


def read_messages(messages: Sequence[Mapping[str, object]]) -> tuple[list[Message], list[Ecg]]:
    """The conversation of a chat request, and its recordings in order.

    Raises:
        ValueError: Something in it is not understood, or no recording; says where it stands.
    """
    if not messages:
        raise ValueError("messages: there are none")
    out: list[Message] = []
    ecgs: list[Ecg] = []
    for i, message in enumerate(messages):
        where = f"messages[{i}]"
        if message.get("role") not in ROLES:
            raise ValueError(f"{where}: role must be one of {', '.join(ROLES)}, got {message.get('role')!r}")
        if odd := [name for name, value in message.items() if value and name not in ("role", "content")]:
            raise ValueError(f"{where}: this model does not read {', '.join(sorted(odd))}")
        out.append({"role": message["role"], "content": _parts(message.get("content"), where, ecgs)})
    return out, ecgs


def _parts(content: object, where: str, ecgs: list[Ecg]) -> list[Part]:
    if isinstance(content, str):
        return [{"type": "text", "text": content}]
    if not isinstance(content, Iterable) or isinstance(content, Mapping):
        raise ValueError(f"{where}: content must be text or a list of parts, got {type(content).__name__}")
    parts: list[Part] = []
    for j, part in enumerate(content):
        place = f"{where}.content[{j}]"
        kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
        if kind == "text" and isinstance(part.get("text"), str):
            parts.append({"type": "text", "text": part["text"]})
        elif kind == "audio_url":
            audio = part.get("audio_url")
            ecgs.append(_from_url(audio.get("url") if isinstance(audio, Mapping) else audio, place))
            parts.append({"type": "ecg", "text": ""})
        else:
            raise ValueError(
                f"{place}: a part must be text ({{'type': 'text', 'text': ...}}) or an ECG ({{'type': 'audio_url', "
                f"'audio_url': {{'url': '{URL}...'}}}}), got one of type {kind!r}"
            )
    return parts


def _from_url(url: object, where: str) -> Ecg:
    altered = isinstance(url, str) and url.startswith(ALTERED_URL)
    if not isinstance(url, str) or not (altered or url.startswith(URL)):
        shown = repr(url[:40]) if isinstance(url, str) else type(url).__name__
        raise ValueError(f"{where}: an ECG must be sent as a URL that begins with '{URL}', got {shown}")
    if len(url) > MAX_BYTES:
        size, most = len(url) / 2**20, MAX_BYTES / 2**20
        raise ValueError(f"{where}: the ECG has {size:.1f} MiB, more than {most:g}: send a shorter one")
    try:
        wire = base64.b64decode(url[len(ALTERED_URL if altered else URL) :], validate=True)
        if sum(map(wire.count, (b",", b"[", b"{"))) > MAX_VALUES:
            raise ValueError(f"the ECG has more than {MAX_VALUES} fields and leads")
        return checked(replace(from_wire(wire), meta={_ALTERED: altered}))
    except binascii.Error as error:
        raise ValueError(f"{where}: the ECG is not base64: {error}") from error
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def refused(error: ValueError) -> str:
    """The message of an error, not too long: vLLM looks for paths in it, in quadratic time."""
    return str(error)[:MAX_SENTENCE]


def checked(ecg: Ecg) -> Ecg:
    """The recording, if a model can be asked about it.

    Raises:
        ValueError: It is not finite, too long, nothing can be read in it, which an experiment may mean, or a spike is
            beyond what encoders compute.
    """
    if not np.isfinite(ecg.signal).all():
        raise ValueError("the ECG has samples that are not finite (NaN or infinite)")
    if ecg.duration > MAX_SECONDS:
        raise ValueError(f"the ECG lasts {ecg.duration:g} s, more than {MAX_SECONDS:g}: send a part of it")
    if not ecg.meta.get(_ALTERED):
        require_readable(ecg)
    if (most := float(np.abs(ecg.signal).max())) > MAX_MILLIVOLTS:
        raise ValueError(f"the ECG reaches {most:g} mV, more than {MAX_MILLIVOLTS:g}: are its units right?")
    return ecg


def notes_on(ecgs: Sequence[Ecg], seconds: float) -> Notes:
    """Sentences about each recording, of which a model reads so many seconds: what is wrong, and what is not read."""
    spans = [read_window(ecg, seconds)[1] for ecg in ecgs]
    return [[*signal_quality(ecg).notes, *filter(None, [span])] for ecg, span in zip(ecgs, spans)]


def example(seconds: float) -> Ecg:
    """A recording to start vLLM with: two beats per second, so that an encoder that looks for beats finds some."""
    fs = 500
    time = np.arange(round(fs * max(1.0, seconds))) / fs
    beats = np.exp(-(((time % 0.5 - 0.25) / 0.01) ** 2)) + 0.1 * np.sin(4 * np.pi * time)
    return Ecg(np.tile(beats, (len(LEADS), 1)), fs, LEADS)
