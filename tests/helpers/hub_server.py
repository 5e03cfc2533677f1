"""A Hugging Face hub on 127.0.0.1: what the real client asks of it to create, upload, list and download.

Repositories live in memory as lists of whole commits. Small text files are kept in git, others in LFS storage, which
has another host name and is reached by a redirect, as on the hub. `requests` is the log; `broken` names files whose
download is refused, and `full` storage takes no more.
"""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

WRITER, READER = "hf_writer", "hf_reader"  # tokens: `owner` may write below owner/, `reader` may not
USERS = {WRITER: "owner", READER: "reader"}
GIT_BYTES = 10_000  # of a text file, above which it is kept in LFS


def git_oid(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def is_lfs(path: str, content_size: int, sample: bytes) -> bool:
    return content_size > GIT_BYTES or b"\0" in sample or path.endswith((".safetensors", ".parquet", ".png"))


@dataclass
class Repo:
    private: bool
    commits: dict[str, dict[str, tuple[bytes, bool]]] = field(default_factory=dict)  # oid -> path -> content, is it LFS
    refs: dict[str, str] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)

    def commit(self, files: dict[str, tuple[bytes, bool]], message: str) -> str:
        told = json.dumps([len(self.commits), message, sorted((p, git_oid(c)) for p, (c, _) in files.items())])
        oid = hashlib.sha1(told.encode()).hexdigest()
        self.commits[oid] = files
        self.refs["main"] = oid
        self.messages.append(message)
        return oid

    def resolved(self, revision: str) -> str | None:
        oid = self.refs.get(revision, revision)
        return oid if oid in self.commits else None

    @property
    def files(self) -> dict[str, bytes]:
        """What stands on main."""
        return {path: content for path, (content, _) in self.commits[self.refs["main"]].items()}


class Hub:
    """The server, and what it holds: `repos["model", "owner/name"]`."""

    def __init__(self) -> None:
        self.repos: dict[tuple[str, str], Repo] = {}
        self.lfs: dict[str, bytes] = {}
        self.requests: list[tuple[str, str]] = []
        self.broken: set[str] = set()
        self.full = False
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (_Handler,), {"hub": self}))
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self.storage = f"http://localhost:{self._server.server_address[1]}/lfs"
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def environment(self, home: object, token: str | None = None) -> dict[str, str]:
        """Variables under which a process talks to this hub alone, with a cache of its own."""
        told = {"HF_ENDPOINT": self.url, "HF_HOME": str(home), "HF_HUB_OFFLINE": "0", "TRANSFORMERS_OFFLINE": "0"}
        told |= {"HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "NO_PROXY": "127.0.0.1,localhost"}
        return told | {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_TOKEN": token or ""}

    def downloads(self) -> list[str]:
        """Paths whose content was fetched since the log was cleared."""
        return [path for method, path in self.requests if method == "GET" and ("/resolve/" in path or "/lfs/" in path)]


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        self._serve()

    do_HEAD = do_POST = do_PUT = do_GET

    # --- answers ---

    def _send(self, status: int, body: bytes = b"", headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _json(self, found: object, status: int = 200) -> None:
        self._send(status, json.dumps(found).encode(), {"Content-Type": "application/json"})

    def _error(self, status: int, code: str = "", message: str = "", **headers: str) -> None:
        told = {"X-Error-Code": code, "X-Error-Message": message or code, **headers}
        self._send(status, json.dumps({"error": message or code}).encode(), told)

    # --- what is asked ---

    def _serve(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        split = urlsplit(self.path)
        path = unquote(split.path)
        self.hub.requests.append((self.command, path))
        self.query = {name: values[0] for name, values in parse_qs(split.query).items()}
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        if token and token not in USERS:
            return self._error(401, message="Invalid credentials in Authorization header")
        self.user = USERS.get(token)
        parts = path.strip("/").split("/")
        if parts[0] == "lfs":
            return self._storage(parts[1], body)
        if parts[0] == "api":
            return self._api(parts[1:], body)
        kind = "dataset" if parts[0] == "datasets" else "model"
        parts = parts[1:] if kind == "dataset" else parts
        if parts[1].endswith(".git"):
            return self._lfs_batch(json.loads(body))
        repo = self._repo(kind, "/".join(parts[:2]))
        if repo is not None and parts[2] == "resolve":
            self._resolve(repo, parts[3], "/".join(parts[4:]))

    def _repo(self, kind: str, name: str) -> Repo | None:
        """None, and the hub's answer sent, where it may not be known to the asking user."""
        repo = self.hub.repos.get((kind, name))
        if repo is None or (repo.private and self.user != name.split("/")[0]):
            self._error(404 if self.user else 401, "RepoNotFound", "Repository not found")
            return None
        return repo

    def _may_write(self, name: str) -> bool:
        if self.user is None:
            self._error(401, message="Invalid username or password.")
        elif self.user != name.split("/")[0]:
            self._error(403, message=f"You don't have the rights to create a model under the namespace {name}")
        else:
            return True
        return False

    def _api(self, parts: list[str], body: bytes) -> None:
        if parts == ["repos", "create"]:
            told = json.loads(body)
            name, kind = f"{told['organization']}/{told['name']}", told.get("type", "model")
            if not self._may_write(name):
                return None
            if (kind, name) in self.hub.repos:
                return self._error(409, message="You already created this repo")
            repo = self.hub.repos[kind, name] = Repo(private=told.get("visibility") == "private")
            repo.commit({".gitattributes": (b"*.safetensors filter=lfs\n", False)}, "initial commit")
            return self._json({"url": f"{self.hub.url}/{'datasets/' if kind == 'dataset' else ''}{name}", "name": name})
        if parts == ["validate-yaml"]:
            return self._validate(json.loads(body)["content"])
        if parts == ["whoami-v2"]:
            return self._json({"name": self.user, "type": "user"}) if self.user else self._error(401)
        kind, name, rest = parts[0].removesuffix("s"), "/".join(parts[1:3]), parts[3:]
        repo = self._repo(kind, name)
        if repo is None:
            return None
        action, revision = (rest[0], rest[1]) if rest else ("revision", "main")
        oid = repo.resolved(revision)
        if oid is None:
            return self._error(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        files = repo.commits[oid]
        if action == "revision":
            siblings = [{"rfilename": path} for path in files]
            return self._json({"id": name, "sha": oid, "private": repo.private, "siblings": siblings, "tags": []})
        if action == "tree":
            return self._tree(files, "/".join(rest[2:]))
        if action == "paths-info":
            wanted = parse_qs(body.decode())["paths"] if b"=" in body[:12] else json.loads(body)["paths"]
            entries = [self._entry(path, *files[path]) for path in wanted if path in files]
            folders = [path for path in wanted if any(file.startswith(f"{path}/") for file in files)]
            return self._json(entries + [{"type": "directory", "path": path, "oid": "0" * 40} for path in folders])
        if not self._may_write(name):
            return None
        if action == "preupload":
            return self._json({"files": [self._upload_mode(files, told) for told in json.loads(body)["files"]]})
        if action == "commit":
            return self._commit(repo, name, [json.loads(line) for line in body.splitlines()])
        return self._error(404, "EntryNotFound")

    def _validate(self, content: str) -> None:
        """The block's syntax, and the two fields without which the hub rejects or warns."""
        try:
            told = yaml.safe_load(content.split("---")[1])
            assert isinstance(told["license"], str)
            for model in told.get("model-index", []):
                assert model["name"] and all(r["task"]["type"] and r["dataset"]["type"] for r in model["results"])
        except (IndexError, KeyError, TypeError, AssertionError, yaml.YAMLError) as error:
            return self._json({"errors": [{"message": repr(error)}], "warnings": []}, 400)
        return self._json({"errors": [], "warnings": []})

    @staticmethod
    def _entry(path: str, content: bytes, lfs: bool) -> dict[str, object]:
        told = {"type": "file", "path": path, "size": len(content), "oid": git_oid(content)}
        if lfs:
            told["lfs"] = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 130}
        return told

    def _tree(self, files: dict[str, tuple[bytes, bool]], below: str) -> None:
        inside = [path for path in files if not below or path.startswith(f"{below}/")]
        if below and not inside:
            return self._error(404, "EntryNotFound", f"{below} does not exist")
        depth = below.count("/") + 2 if below else 1
        folders = {"/".join(p.split("/")[:i]) for p in inside for i in range(depth, p.count("/") + 1)}
        if self.query.get("recursive", "").lower() not in ("true", "1"):
            inside = [path for path in inside if path.count("/") == depth - 1]
            folders = {path for path in folders if path.count("/") == depth - 1}
        told = [self._entry(path, *files[path]) for path in inside]
        return self._json(told + [{"type": "directory", "path": path, "oid": "0" * 40} for path in sorted(folders)])

    @staticmethod
    def _upload_mode(files: dict[str, tuple[bytes, bool]], told: dict[str, str | int]) -> dict[str, object]:
        path, size = str(told["path"]), int(told["size"])
        lfs = is_lfs(path, size, base64.b64decode(str(told["sample"])))
        found: dict[str, object] = {"path": path, "uploadMode": "lfs" if lfs else "regular", "shouldIgnore": False}
        if path in files:
            content, was_lfs = files[path]
            found["oid"] = hashlib.sha256(content).hexdigest() if was_lfs else git_oid(content)
        return found

    def _lfs_batch(self, told: dict[str, list[dict[str, object]]]) -> None:
        objects = []
        for wanted in told["objects"]:
            oid = str(wanted["oid"])
            there = {} if oid in self.hub.lfs else {"actions": {"upload": {"href": f"{self.hub.storage}/{oid}"}}}
            objects.append({**wanted, **there})
        self._json({"transfer": "basic", "objects": objects})

    def _commit(self, repo: Repo, name: str, lines: list[dict[str, dict[str, str]]]) -> None:
        head, files = lines[0]["value"], dict(repo.commits[repo.refs["main"]])
        if head.get("parentCommit") not in (None, repo.refs["main"]):
            return self._error(412, message="A commit has happened since. Please refresh and try again.")
        for line in lines[1:]:
            told = line["value"]
            if line["key"] == "file":
                files[told["path"]] = base64.b64decode(told["content"]), False
            elif line["key"] == "lfsFile":
                if told["oid"] not in self.hub.lfs:
                    return self._error(400, message=f"LFS object {told['oid']} was not uploaded")
                files[told["path"]] = self.hub.lfs[told["oid"]], True
            else:
                del files[told["path"]]
        oid = repo.commit(files, head["summary"])
        return self._json({"commitUrl": f"{self.hub.url}/{name}/commit/{oid}", "commitOid": oid})

    def _storage(self, oid: str, body: bytes) -> None:
        """Content by its SHA-256: what a signed address of the hub's storage leads to."""
        if self.command == "PUT":
            if self.hub.full or hashlib.sha256(body).hexdigest() != oid:
                return self._error(403, message="no room" if self.hub.full else "content does not fit its hash")
            self.hub.lfs[oid] = body
            return self._send(200, headers={"ETag": oid})
        if oid not in self.hub.lfs:
            return self._error(403, message="expired")
        return self._content(self.hub.lfs[oid], {"ETag": f'"{oid}"'})

    def _resolve(self, repo: Repo, revision: str, path: str) -> None:
        oid = repo.resolved(revision)
        if oid is None:
            return self._error(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        told = {"X-Repo-Commit": oid}
        if path not in repo.commits[oid]:
            return self._error(404, "EntryNotFound", "Entry not found", **told)
        content, lfs = repo.commits[oid][path]
        if not lfs:
            return self._content(content, {"ETag": f'"{git_oid(content)}"', **told})
        sha = hashlib.sha256(content).hexdigest()
        told |= {"X-Linked-ETag": f'"{sha}"', "X-Linked-Size": str(len(content))}
        if path in self.hub.broken:
            return self._send(302, headers={**told, "Location": f"{self.hub.storage}/gone"})
        return self._send(302, headers={**told, "Location": f"{self.hub.storage}/{sha}"})

    def _content(self, content: bytes, headers: dict[str, str]) -> None:
        wanted = self.headers.get("Range")
        if wanted is None or self.command == "HEAD":
            self.send_response(200)
        else:
            first, _, last = wanted.removeprefix("bytes=").partition("-")
            end = min(int(last) + 1 if last else len(content), len(content))
            headers = {**headers, "Content-Range": f"bytes {first}-{end - 1}/{len(content)}"}
            content = content[int(first) : end]
            self.send_response(206)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)
