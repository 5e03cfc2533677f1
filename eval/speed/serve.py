"""A chat server: many chats at once against one after the other, the wait for the first word, and a long soak.

    python -m eval.speed serve --url http://127.0.0.1:8000 [--api_key KEY] [--chats 64] [--soak 1000]
    python -m eval.speed serve --model out/sft-llava [--soak 1000] [-- options of serve.server]

With --model a server is started for it, and ended. It is only spoken to over HTTP, as `python -m serve.server` is.

Chats are questions about simulated ECGs, no two alike, with answers of a fixed length. In every repeat as many are
asked one after the other and at once; the ratio is taken within the repeat. The first word is waited for after an ECG
the server has not seen, and after one it has: its tokens are then in the server's prefix cache, if they fill a block.
The soak mixes questions with requests that must be refused and clients that hang up, and fails if a reply is missing or
other than it must be.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import random
import re
import signal
import socket
import statistics
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data.wire.http import bearer, opener

if TYPE_CHECKING:
    from data.conversations.rows import Message
    from data.ecg import Ecg

QUESTION = "Is this a normal ECG?"
START = 1800.0  # s that a server may take to start
AT_ONCE = 16  # requests of the soak
BAD = ("nan", "leads", "fetched", "many", "long", "unknown", "hang up")  # of every two requests of the soak one is such


@dataclass(frozen=True)
class Server:
    """Where it listens, and the process, if it was started here."""

    url: str
    api_key: str | None
    model: str = ""
    pid: int | None = None

    def open(self, path: str, body: dict[str, Any] | None = None) -> Any:
        """The reply to a request, to be closed."""
        headers = {**bearer(self.api_key), "Content-Type": "application/json"}
        data = None if body is None else json.dumps(body).encode()
        return opener().open(urllib.request.Request(self.url + path, data, headers), timeout=600)

    def chat(self, messages: Sequence[Message], tokens: int, **settings: Any) -> dict[str, Any]:
        """What is sent to ask for an answer of exactly so many tokens."""
        fixed = {"max_tokens": tokens, "temperature": 0, "ignore_eos": True}
        return {"model": self.model, "messages": messages, **fixed, **settings}

    def ask(self, ecg: Ecg, tokens: int) -> int:
        """Tokens of an answer."""
        with self.open("/v1/chat/completions", self.chat(question(ecg), tokens)) as reply:
            return int(json.load(reply)["usage"]["completion_tokens"])

    def first(self, ecg: Ecg) -> float:
        """Seconds to the first word of an answer."""
        body = self.chat(question(ecg), 8, stream=True)
        start = time.perf_counter()
        with self.open("/v1/chat/completions", body) as reply:
            while not reply.readline().startswith(b"data:"):
                pass
            took = time.perf_counter() - start
            reply.read()
        return took

    def memory(self) -> int:
        """Bytes in memory: of the processes that were started here, else of the one that answers."""
        if self.pid is not None:
            return sum(_resident(pid) for pid in _tree(self.pid))
        with self.open("/metrics") as reply:
            found = re.search(r"^process_resident_memory_bytes (\S+)", reply.read().decode(), re.M)
        return int(float(found[1])) if found else 0


def question(ecg: Ecg, text: str = QUESTION, ecgs: int = 1) -> list[Message]:
    """One turn, as it is sent."""
    from data.conversations.rows import user
    from data.wire import chat_messages

    return chat_messages([user(ecgs, text)], [ecg] * ecgs)


def ecgs_without_end() -> Iterator[Ecg]:
    """Simulated recordings, no two alike: of a few, at other amplitudes."""
    from data.ecg import Ecg
    from data.synthetic import SyntheticCohort

    cohort = SyntheticCohort(8, records_per_patient=1)
    seeds = [cohort[record] for record in cohort.records]
    number = random.SystemRandom().randrange(10**6)  # else the server may have seen them in a run before
    while True:
        number += 1
        ecg = seeds[number % len(seeds)]
        yield Ecg(ecg.signal * (1 + number * 1e-7), ecg.fs, ecg.leads)


def at_once(server: Server, ecgs: Iterator[Ecg], chats: int, tokens: int) -> tuple[float, float]:
    """Tokens per second of chats one after the other, and of as many at once."""
    rates = []
    for workers in (1, chats):
        given = [next(ecgs) for _ in range(chats)]
        with ThreadPoolExecutor(workers) as pool:
            start = time.perf_counter()
            said = sum(pool.map(lambda ecg: server.ask(ecg, tokens), given))
            rates.append(said / (time.perf_counter() - start))
    return rates[0], rates[1]


def soak(server: Server, ecgs: Iterator[Ecg], requests: int) -> Counter[str]:
    """Mixed requests, and how many of each kind got the reply they must.

    Raises:
        RuntimeError: A reply is missing or another one than it must be; names the first ones.
    """
    kinds = ["good" if i % 2 else BAD[i // 2 % len(BAD)] for i in range(requests)]
    random.Random(0).shuffle(kinds)
    given = [next(ecgs) for _ in range(8)]
    with ThreadPoolExecutor(AT_ONCE) as pool:
        replies = list(pool.map(lambda i: _reply(server, given[i % 8], kinds[i]), range(requests)))
    want = {"good": "200", "unknown": "404", "hang up": "gone"}
    faults = [f"{kind}: {got}" for kind, got in zip(kinds, replies) if got != want.get(kind, "400")]
    if faults:
        raise RuntimeError(f"{len(faults)} of {requests} replies are not what they must be: {'; '.join(faults[:5])}")
    return Counter(kinds)


def _reply(server: Server, ecg: Ecg, kind: str) -> str:
    """The status, or what went wrong."""
    messages = question(
        ecg, QUESTION if kind != "long" else "word " * 40_000, ecgs=1 if kind != "many" else 20
    ) if kind not in ("nan", "leads", "fetched") else _broken(ecg, kind)  # fmt: skip
    body = server.chat(messages, 8, stream=kind == "hang up")
    if kind == "unknown":
        body["model"] = "no-such-model"
    try:
        with server.open("/v1/chat/completions", body) as reply:
            if kind == "hang up":
                reply.readline()
                return "gone"
            said = json.load(reply)["usage"]["completion_tokens"]
            return str(reply.status) if said == 8 else f"{said} tokens instead of 8"
    except urllib.error.HTTPError as error:
        error.read()
        return str(error.code)
    except (OSError, ValueError, KeyError, http.client.HTTPException) as error:
        return f"{type(error).__name__}: {error}"


def _broken(ecg: Ecg, kind: str) -> list[Message]:
    """A question about a recording that is none."""
    import base64

    from data.wire import MEDIA_TYPE

    samples = ecg.signal.astype("<f4")
    if kind == "nan":
        samples[0, 0] = float("nan")
    leads = ["I", "II"] if kind == "leads" else list(ecg.leads)
    signal = base64.b64encode((samples[:2] if kind == "leads" else samples).tobytes()).decode()
    wire = json.dumps({"fs": ecg.fs, "leads": leads, "units": "mV", "signal": signal}).encode()
    url = f"data:{MEDIA_TYPE};base64,{base64.b64encode(wire).decode()}"
    part = {"type": "audio_url", "audio_url": {"url": "http://127.0.0.1/" if kind == "fetched" else url}}
    return [{"role": "user", "content": [part, {"type": "text", "text": QUESTION}]}]


def _resident(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0


def _tree(pid: int) -> list[int]:
    """A process and those it has started, by /proc."""
    parents: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            own, rest = stat.read_text().split(" (", 1)
        except OSError:
            continue
        parents.setdefault(int(rest.rsplit(")", 1)[1].split()[1]), []).append(int(own))
    found, left = [], [pid]
    while left:
        found.append(left.pop())
        left += parents.get(found[-1], [])
    return found


@contextmanager
def started(model: str, options: Sequence[str]) -> Iterator[Server]:
    """A server of the model on a free port, ended with the block.

    Raises:
        RuntimeError: It does not start; what it wrote is on the screen.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "serve.server", "--model", model, "--port", str(port), *options]
    process = subprocess.Popen(command, stdout=sys.stderr, env={**os.environ, "ECG_API_KEY": "speed"})
    server, end = Server(f"http://127.0.0.1:{port}", "speed", pid=process.pid), time.monotonic() + START
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # or the server would outlive us
    try:
        while not _answers(server):
            if process.poll() is not None or time.monotonic() > end:
                raise RuntimeError(f"the server of {model} did not start")
            time.sleep(0.5)
        yield server
    finally:
        process.terminate()
        process.wait()
        signal.signal(signal.SIGTERM, before)


def _answers(server: Server) -> bool:
    try:
        with server.open("/health"):
            return True
    except OSError:
        return False


def main(argv: Sequence[str]) -> None:
    """Print a table: both rates and their ratio, both waits and theirs, and what the soak found."""
    parser = argparse.ArgumentParser(prog="python -m eval.speed serve", description=(__doc__ or "").split("\n")[0])
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--url", help="a server that runs")
    where.add_argument("--model", help="folder of a model to start one for")
    parser.add_argument("--api_key", help="of the server that runs")
    parser.add_argument("--chats", type=int, default=64, help="asked at once (default %(default)s)")
    parser.add_argument("--tokens", type=int, default=64, help="of an answer (default %(default)s)")
    parser.add_argument("--repeats", type=int, default=3, help="(default %(default)s)")
    parser.add_argument("--soak", type=int, default=0, metavar="N", help="mixed requests behind it (default none)")
    parser.add_argument("options", nargs="*", metavar="-- OPTION", help="of serve.server, with --model")
    args = parser.parse_args(argv)
    if args.model is None:
        _measure(Server(args.url.rstrip("/").removesuffix("/v1"), args.api_key), args)
    else:
        with started(args.model, args.options) as server:
            _measure(server, args)


def _measure(server: Server, args: argparse.Namespace) -> None:
    with server.open("/v1/models") as reply:
        models = [one["id"] for one in json.load(reply)["data"]]
        told = reply.headers.get("X-Ecg-Model") or ", ".join(models)
    server = Server(server.url, server.api_key, models[0], server.pid)
    ecgs = ecgs_without_end()
    server.ask(next(ecgs), args.tokens)
    rates = [at_once(server, ecgs, args.chats, args.tokens) for _ in range(args.repeats)]
    waits = []
    for _ in range(max(10, args.repeats)):
        ecg = next(ecgs)
        waits.append((server.first(ecg) * 1e3, server.first(ecg) * 1e3))

    print(f"{told}. Medians; least and greatest ratio in brackets.")
    _row(f"{args.chats} chats, tokens/s", "in turn", "at once", rates, lambda turn, once: once / turn)
    _row("first word, ms", "new ECG", "known ECG", waits, lambda new, known: new / known)
    if args.soak:
        held, kinds = [server.memory()], Counter[str]()
        for requests in (args.soak // 2, args.soak - args.soak // 2):  # caches fill in the first half; a leak goes on
            kinds += soak(server, ecgs, requests)
            held.append(server.memory())
        said = ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items()))
        print(f"soak: {args.soak} requests ({said}), every reply as it must be")
        before, half, after = (f"{size / 2**20:.0f} MiB" for size in held)
        print(f"memory of the server: {before} before, {half} after half of it, {after} after it")


def _row(
    name: str, first: str, second: str, pairs: list[tuple[float, float]], ratio: Callable[[float, float], float]
) -> None:
    one, other = (statistics.median(side) for side in zip(*pairs, strict=True))
    ratios = sorted(ratio(*pair) for pair in pairs)
    spread = f"({ratios[0]:.3g}-{ratios[-1]:.3g})"
    print(f"{name:<24}{first:>10}{one:>9.4g}{second:>12}{other:>9.4g}{statistics.median(ratios):>9.3g}x  {spread}")
