"""A server on 127.0.0.1 that answers with what it was asked, in vLLM's words."""

from __future__ import annotations

import base64
import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from data.wire import from_wire

HASHES = "ecg=0123-4567, reports=0123-4567-89ab"


class Server(ThreadingHTTPServer):
    """Says the numbers in the recordings' first samples, then what was asked, a word at a time where it streams.

    Attributes:
        requests: Method, path, authorization and body of each.
        failure: Status in place of an answer.
        reply: A body in place of an answer.
        notes: What the server says of the recordings, if anything.
        sent, gone: Pieces of the last stream that were sent, and whether nobody was there to take the next.
    """

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.requests, self.failure, self.reply, self.hashes = [], None, None, HASHES
        self.notes = None
        self.pieces, self.last, self.endless = None, [b"data: [DONE]\n\n"], False
        self.sent, self.gone = 0, threading.Event()

    def handle_error(self, request, client_address):
        """Clients that hang up are part of these tests."""

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *args):
        pass

    def begin(self, status, **headers):
        self.send_response(status)
        if self.server.hashes is not None:
            self.send_header("X-Ecg-Model", self.server.hashes)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()

    def do_GET(self):
        self.answer(None)

    def do_POST(self):
        self.answer(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

    def answer(self, body):
        server = self.server
        server.requests.append((self.command, self.path, self.headers["Authorization"], body))
        if server.failure == 302:
            return self.begin(302, Location="http://127.0.0.1:9/elsewhere")
        if server.failure is not None:
            self.begin(server.failure)
            said = {"error": {"message": f"no, because of {server.failure}", "code": server.failure}}
            return self.wfile.write(json.dumps(said).encode())
        if body is not None and body.get("stream"):
            return self.stream(body)
        self.begin(200)
        self.wfile.write(server.reply if server.reply is not None else json.dumps(self.reply(body)).encode())

    def reply(self, body):
        if body is None:
            return {"data": [{"id": "ecg"}, {"id": "reports"}]}
        text = said(body)
        cut = "max_tokens" in body and len(text) > body["max_tokens"]
        return {
            **({} if self.server.notes is None else {"ecg_notes": self.server.notes}),
            "choices": [{"message": {"content": f" {text[: body.get('max_tokens')]}\n"},
                         "finish_reason": "length" if cut else "stop"}],
            "usage": {"prompt_tokens": 17, "completion_tokens": 5},
        }  # fmt: skip

    def stream(self, body):
        server = self.server
        self.begin(200, Content_Type="text/event-stream")
        try:
            words = [word + " " for word in said(body).split()]
            events = [{"choices": [{"delta": {"role": "assistant", "content": ""}}]}]
            events[0] |= {} if server.notes is None else {"ecg_notes": server.notes}
            events += [{"choices": [{"delta": {"content": word}}]} for word in words] + [{"choices": [], "usage": {}}]
            while True:
                for event in events:
                    self.wfile.write(b": keep-alive\n\ndata: " + json.dumps(event).encode() + b"\n\n")
                    self.wfile.flush()
                    server.sent += 1
                    time.sleep(0.005 if server.endless else 0)
                if not server.endless:
                    break
            for line in server.last:
                self.wfile.write(line)
        except OSError:
            server.gone.set()


def said(body):
    """What the conversation was, as the server read it."""
    out = []
    for message in body["messages"]:
        for part in message["content"]:
            if part["type"] == "audio_url":
                data = part["audio_url"]["url"].partition(";base64,")[2]
                out.append(f"{from_wire(base64.b64decode(data)).signal[0, 0]:g}")
            else:
                out.append(f"{message['role']}:{part['text']}")
    return " ".join(out)
