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

import argparse
import base64
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
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from data.conversations.rows import Message, user
from data.ecg import Ecg
from data.support.sentences import Refused
from data.synthetic import SyntheticCohort
from data.wire import MEDIA_TYPE, chat_messages, data_url, to_wire
from data.wire.http import Client, ServerError

QUESTION = "Is this a normal ECG?"
CHAT = "/v1/chat/completions"
START = 1800.0  # s that a server may take to start
SILENCE = 600.0  # s that a server may take to reply
AT_ONCE = 16  # requests of the soak
BAD = ("nan", "leads", "fetched", "many", "long", "unknown", "hang up")  # of every two requests of the soak one is such
WANTED = {"good": "200", "unknown": "404", "hang up": "gone"}  # replies in the soak; 400 to everything else


@dataclass(frozen=True)
class Server:
    """Address and model of a server, and its process, if that was started here."""

    url: str
    api_key: str | None
    model: str = ""
    pid: int | None = None

    @cached_property
    def client(self) -> Client:
        """Sends requests to it."""
        return Client(self.url, self.api_key, timeout=SILENCE)

    def body(self, messages: Sequence[Message], tokens: int) -> dict[str, object]:
        """Request for an answer of exactly so many tokens."""
        return {"model": self.model, "messages": messages, "max_tokens": tokens, "temperature": 0, "ignore_eos": True}

    def ask(self, ecg: Ecg, tokens: int) -> int:
        """Tokens of an answer."""
        return int(self.client.json(CHAT, self.body(question(ecg), tokens)).at("usage", "completion_tokens"))

    def first(self, ecg: Ecg) -> float:
        """Seconds to the first word of an answer."""
        events = self.client.events(CHAT, self.body(question(ecg), 8))  # asks when the first is wanted
        start = time.perf_counter()
        next(events, None)
        seconds = time.perf_counter() - start
        for _ in events:
            pass
        return seconds

    def memory(self) -> int:
        """Bytes in memory: of the processes that were started here, else of the one that answers."""
        if self.pid is not None:
            return sum(_resident(pid) for pid in _tree(self.pid))
        size = re.search(r"^process_resident_memory_bytes (\S+)", self.client.text("/metrics"), re.M)
        return int(float(size[1])) if size else 0


def question(ecg: Ecg, text: str = QUESTION, ecgs: int = 1) -> list[Message]:
    """One turn, as it is sent."""
    return chat_messages([user(ecgs, text)], [ecg] * ecgs)


def ecgs_without_end() -> Iterator[Ecg]:
    """Simulated recordings, no two alike: of a few, at other amplitudes."""
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
        recordings = [next(ecgs) for _ in range(chats)]
        with ThreadPoolExecutor(workers) as pool:
            start = time.perf_counter()
            total = sum(pool.map(lambda ecg: server.ask(ecg, tokens), recordings))
            rates.append(total / (time.perf_counter() - start))
    return rates[0], rates[1]


def soak(server: Server, ecgs: Iterator[Ecg], requests: int) -> Counter[str]:
    """Mixed requests, and how many of each kind got the reply they must.

    Raises `Refused` where a reply is missing or another one than it must be; names the first ones.
    """
    kinds = ["good" if i % 2 else BAD[i // 2 % len(BAD)] for i in range(requests)]
    random.Random(0).shuffle(kinds)
    recordings = [next(ecgs) for _ in range(8)]
    with ThreadPoolExecutor(AT_ONCE) as pool:
        replies = list(pool.map(lambda i: _reply(server, recordings[i % 8], kinds[i]), range(requests)))
    faults = [f"{kind}: {reply}" for kind, reply in zip(kinds, replies) if reply != WANTED.get(kind, "400")]
    if faults:
        raise Refused(f"{len(faults)} of {requests} replies are not what they must be: {'; '.join(faults[:5])}")
    return Counter(kinds)


def _reply(server: Server, ecg: Ecg, kind: str) -> str:
    """The status, or what went wrong."""
    messages = question(ecg, "word " * 40_000 if kind == "long" else QUESTION, 20 if kind == "many" else 1)
    if kind in ("nan", "leads", "fetched"):
        messages[0]["content"][0]["audio_url"]["url"] = _unfit(ecg, kind)
    body = server.body(messages, 8)
    if kind == "unknown":
        body["model"] = "no-such-model"
    try:
        if kind == "hang up":
            with closing(server.client.events(CHAT, body)) as events:
                next(events, None)
            return "gone"
        tokens = server.client.json(CHAT, body).at("usage", "completion_tokens")
        return "200" if tokens == 8 else f"{tokens} tokens instead of 8"
    except ServerError as error:
        return str(error.status or error)


def _unfit(ecg: Ecg, kind: str) -> str:
    """URL of a recording that no server may take."""
    if kind == "fetched":
        return "http://127.0.0.1/"
    if kind == "leads":
        return data_url(ecg.select(["I", "II"]))
    signal = np.full(ecg.signal.shape, np.nan, "<f4").tobytes()
    wire = json.loads(to_wire(ecg)) | {"signal": base64.b64encode(signal).decode()}
    return f"data:{MEDIA_TYPE};base64,{base64.b64encode(json.dumps(wire).encode()).decode()}"


def _resident(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0


def _tree(pid: int) -> list[int]:
    """A process and those it has started, by /proc."""
    children: dict[int, list[int]] = defaultdict(list)
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            children[int(stat.read_text().rpartition(")")[2].split()[1])].append(int(stat.parent.name))
    tree = [pid]
    for process in tree:  # which grows
        tree += children[process]
    return tree


@contextmanager
def started(model: str, options: Sequence[str]) -> Iterator[Server]:
    """A server of the model on a free port, ended with the block.

    Raises `Refused` where it does not start; what it wrote is on the screen.
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
                raise Refused(f"the server of {model} did not start")
            time.sleep(0.5)
        yield server
    finally:
        process.terminate()
        process.wait()
        signal.signal(signal.SIGTERM, before)


def _answers(server: Server) -> bool:
    with suppress(ServerError):
        server.client.text("/health")
        return True
    return False


def main(argv: Sequence[str]) -> None:
    """Print a table: both rates and their ratio, both waits and their ratio, and the result of the soak."""
    parser = argparse.ArgumentParser(prog="python -m eval.speed serve", description=(__doc__ or "").split("\n")[0])
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--url", help="a server that runs")
    where.add_argument("--model", help="folder of a model to start one for")
    parser.add_argument("--api_key", help="key of the server that runs")
    parser.add_argument("--chats", type=int, default=64, help="chats at once (default %(default)s)")
    parser.add_argument("--tokens", type=int, default=64, help="tokens of an answer (default %(default)s)")
    parser.add_argument("--repeats", type=int, default=3, help="rounds of every measurement (default %(default)s)")
    parser.add_argument("--soak", type=int, default=0, metavar="N", help="mixed requests at the end (default none)")
    parser.add_argument("options", nargs="*", metavar="-- OPTION", help="options of serve.server, with --model")
    args = parser.parse_args(argv)
    if args.model is None:
        _measure(Server(args.url.rstrip("/").removesuffix("/v1"), args.api_key), args)
    else:
        with started(args.model, args.options) as server:
            _measure(server, args)


def _measure(server: Server, args: argparse.Namespace) -> None:
    reply = server.client.json("/v1/models")
    models = [model["id"] for model in reply.at("data")]
    title = reply.headers.get("X-Ecg-Model") or ", ".join(models)
    server = replace(server, model=models[0])
    ecgs = ecgs_without_end()
    server.ask(next(ecgs), args.tokens)
    rates = [at_once(server, ecgs, args.chats, args.tokens) for _ in range(args.repeats)]
    unseen = [next(ecgs) for _ in range(max(10, args.repeats))]
    waits = [(server.first(ecg) * 1e3, server.first(ecg) * 1e3) for ecg in unseen]

    print(f"{title}. Medians; least and greatest ratio in brackets.")
    _row(f"{args.chats} chats, tokens/s", "in turn", "at once", rates, [once / turn for turn, once in rates])
    _row("first word, ms", "new ECG", "known ECG", waits, [new / again for new, again in waits])
    if args.soak:
        sizes, kinds = [server.memory()], Counter[str]()
        for requests in (args.soak // 2, args.soak - args.soak // 2):  # caches fill in the first half; a leak goes on
            kinds += soak(server, ecgs, requests)
            sizes.append(server.memory())
        counts = ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items()))
        print(f"soak: {args.soak} requests ({counts}), every reply as it must be")
        before, half, after = (f"{size / 2**20:.0f} MiB" for size in sizes)
        print(f"memory of the server: {before} before, {half} after half of it, {after} after it")


def _row(name: str, first: str, second: str, pairs: list[tuple[float, float]], ratios: list[float]) -> None:
    one, other = (statistics.median(side) for side in zip(*pairs, strict=True))
    spread = f"({min(ratios):.3g}-{max(ratios):.3g})"
    print(f"{name:<24}{first:>10}{one:>9.4g}{second:>12}{other:>9.4g}{statistics.median(ratios):>9.3g}x  {spread}")
