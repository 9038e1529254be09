"""A Hugging Face hub on the loopback interface, with the HTTP interface that huggingface_hub uses.

It has revisions, file trees, files with byte ranges, login, and uploads (regular files and LFS). It counts
the bytes that it serves. On a test's request it breaks connections and refuses requests.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import yaml

TOKEN = "hf_loopback"
_REPO = r"(?P<repo>[^/]+/[^/]+?)"


class Hub(ThreadingHTTPServer):
    """The server. `commits[repo][commit]` has files by path, `branches[repo][name]` is a commit."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.commits: dict[str, dict[str, dict[str, bytes]]] = {}
        self.branches: dict[str, dict[str, str]] = {}
        self.objects: dict[str, bytes] = {}  # LFS objects by sha256
        self.refusals: dict[str, tuple[int, dict[str, str]]] = {}  # repo -> status and headers of refusals
        self.gated: set[str] = set()  # repos whose files need the token
        self.cuts: dict[str, int] = {}  # path -> bytes after which its next answer breaks off
        self.stalls: set[str] = set()  # paths whose answers stop halfway with an open connection
        self.stalled = threading.Event()
        self.on_file: Callable[[str], None] = lambda path: None  # called before a file is served
        self.bytes_served: Counter[str] = Counter()  # path -> bytes of the bodies that were sent
        self.ranges: list[str] = []  # Range headers of requests
        self.requests: list[str] = []  # method and path of every request
        self.on_request: Callable[[], object] = lambda: None  # called before a request is answered

    def handle_error(self, *address: Any) -> None:
        if not isinstance(sys.exc_info()[1], ConnectionError):  # a client that was killed or has given up
            super().handle_error(*address)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def commit(self, repo: str, files: dict[str, bytes], branch: str = "main") -> str:
        """Make `files` the content of the branch. Return the commit."""
        digest = hashlib.sha1()
        for path, content in sorted(files.items()):
            digest.update(f"{path} {hashlib.sha1(content).hexdigest()}".encode())
        commit = digest.hexdigest()
        self.commits.setdefault(repo, {})[commit] = dict(files)
        self.branches.setdefault(repo, {})[branch] = commit
        return commit

    def files(self, repo: str, branch: str = "main") -> dict[str, bytes]:
        return self.commits[repo][self.branches[repo][branch]]

    def environment(self, home: Path, **more: str) -> dict[str, str]:
        """Return the environment of a process that uses only this hub, a cache in `home` and no token."""
        foreign = ("HF_", "HUGGING", "TRANSFORMERS_")
        kept = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
        ours = {"HF_ENDPOINT": self.url, "HF_HOME": str(home), "NO_PROXY": "127.0.0.1"}
        # The Xet storage protocol has its own client and server; without it the files go over HTTP.
        return kept | ours | {"HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1"} | more


@contextmanager
def running_hub() -> Iterator[Hub]:
    with Hub() as hub:
        threading.Thread(target=hub.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        try:
            yield hub
        finally:
            hub.shutdown()


def _is_large(path: str) -> bool:
    return path.endswith(".safetensors")


def _etag(path: str, content: bytes) -> str:
    if _is_large(path):
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        method = self.command
        self.body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        path = unquote(urlsplit(self.path).path)
        self.server.requests.append(f"{method} {path}")
        self.server.on_request()
        for methods, pattern, action in _ROUTES:
            match = re.fullmatch(pattern, path)
            if match and method in methods:
                status, headers = self.server.refusals.get(match.groupdict().get("repo", ""), (None, {}))
                if status is not None:
                    return self._answer(status, {"error": "refused"}, headers)
                return action(self, **match.groupdict())
        return self._answer(404, {"error": f"no such route: {method} {path}"})

    do_HEAD = do_POST = do_PUT = do_GET

    def _answer(self, status: int, value: Any, headers: dict[str, str] | None = None) -> None:
        body = json.dumps(value).encode()
        self.send_response(status)
        for name, text in ({"Content-Type": "application/json"} | (headers or {})).items():
            self.send_header(name, text)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _logged_in(self) -> bool:
        if self.headers.get("Authorization") == f"Bearer {TOKEN}":
            return True
        self._answer(401, {}, {"X-Error-Message": "Invalid credentials in Authorization header"})
        return False

    def _commit(self, repo: str, revision: str) -> str | None:
        """Return the commit of `revision`, or None after sending the error that it is unknown."""
        if repo not in self.server.commits:
            self._answer(404, {}, {"X-Error-Code": "RepoNotFound"})
            return None
        commit = self.server.branches[repo].get(revision, revision)
        if commit not in self.server.commits[repo]:
            self._answer(404, {}, {"X-Error-Code": "RevisionNotFound"})
            return None
        return commit

    # --- downloads ----------------------------------------------------------------------------------------

    def info(self, repo: str, revision: str | None = None) -> None:
        commit = self._commit(repo, revision or "main")
        if commit:
            siblings = [{"rfilename": path} for path in self.server.commits[repo][commit]]
            self._answer(200, {"id": repo, "modelId": repo, "sha": commit, "siblings": siblings})

    def tree(self, repo: str, revision: str) -> None:
        commit = self._commit(repo, revision)
        entries = []
        for path, content in self.server.commits[repo][commit].items() if commit else ():
            etag = _etag(path, content)
            entry: dict[str, Any] = {"type": "file", "oid": etag, "size": len(content), "path": path}
            if _is_large(path):
                entry["lfs"] = {"oid": etag, "size": len(content), "pointerSize": 100}
            entries.append(entry)
        if commit:
            self._answer(200, entries)

    def resolve(self, repo: str, revision: str, path: str) -> None:
        commit = self._commit(repo, revision)
        if commit is None:
            return
        content = self.server.commits[repo][commit].get(path)
        if content is None:
            self._answer(404, {}, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit})
            return
        if repo in self.server.gated and self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self._answer(401, {}, {"X-Error-Code": "GatedRepo"})
            return
        asked = self.headers.get("Range")
        first, _, last = asked.removeprefix("bytes=").partition("-") if asked else ("0", "", "")
        begin, end = int(first), min(int(last or len(content)) + 1, len(content))
        self.send_response(206 if asked else 200)
        if asked:
            self.server.ranges.append(asked)
            self.send_header("Content-Range", f"bytes {begin}-{end - 1}/{len(content)}")
        self.send_header("ETag", f'"{_etag(path, content)}"')
        self.send_header("X-Repo-Commit", commit)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(end - begin))
        self.end_headers()
        if self.command == "GET":
            self._send(path, content[begin:end])

    def _send(self, path: str, body: bytes) -> None:
        server = self.server
        server.on_file(path)
        cut = server.cuts.pop(path, None)
        if path in server.stalls:
            cut = len(body) // 2
        self.wfile.write(body[:cut])
        self.wfile.flush()
        server.bytes_served[path] += len(body[:cut])
        if path in server.stalls:
            server.stalled.set()
            self.rfile.read(1)  # until the other side hangs up
        if cut is not None:
            self.close_connection = True

    # --- login and uploads --------------------------------------------------------------------------------

    def whoami(self) -> None:
        if self._logged_in():
            self._answer(200, {"type": "user", "name": "me", "orgs": []})

    def create(self) -> None:
        if self._logged_in():
            asked = json.loads(self.body)
            repo = f"{asked.get('organization') or 'me'}/{asked['name']}"
            status = 409 if repo in self.server.commits else 200
            if status == 200:
                self.server.commit(repo, {".gitattributes": b""})
            self._answer(status, {"url": f"{self.server.url}/{repo}", "id": repo, "name": repo})

    def validate(self) -> None:
        """Check a model card as the hub does: front matter with a licence, and a valid base model if any."""
        parts = json.loads(self.body)["content"].split("---\n")
        fields = yaml.safe_load(parts[1]) if len(parts) > 2 and not parts[0] else None
        errors = [] if isinstance(fields, dict) else [{"message": "no metadata"}]
        if not errors and not re.fullmatch(r"[\w.-]+/[\w.-]+", fields.get("base_model", "no/ne")):
            errors = [{"message": '"base_model" must be a valid model id'}]
        self._answer(400 if errors else 200, {"errors": errors, "warnings": []})

    def preupload(self, repo: str, revision: str) -> None:
        if self._logged_in():
            paths = [file["path"] for file in json.loads(self.body)["files"]]
            modes = {path: "lfs" if _is_large(path) else "regular" for path in paths}
            answers = [{"path": p, "uploadMode": m, "shouldIgnore": False} for p, m in modes.items()]
            self._answer(200, {"files": answers})

    def batch(self, repo: str) -> None:
        answers = []
        for entry in json.loads(self.body)["objects"]:
            if entry["oid"] not in self.server.objects:
                entry["actions"] = {"upload": {"href": f"{self.server.url}/lfs/{entry['oid']}"}}
            answers.append(entry)
        self._answer(200, {"transfer": "basic", "objects": answers})

    def store(self, oid: str) -> None:
        if hashlib.sha256(self.body).hexdigest() != oid:
            self._answer(422, {"error": "wrong checksum"})
        else:
            self.server.objects[oid] = self.body
            self._answer(200, {})

    def push(self, repo: str, revision: str) -> None:
        if self._logged_in():
            files = dict(self.server.files(repo))
            for line in self.body.splitlines():
                entry = json.loads(line)
                value = entry["value"]
                if entry["key"] == "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                elif entry["key"] == "lfsFile":
                    files[value["path"]] = self.server.objects[value["oid"]]
                elif entry["key"] == "deletedFile":
                    del files[value["path"]]
            commit = self.server.commit(repo, files)
            self._answer(200, {"commitOid": commit, "commitUrl": f"{self.server.url}/{repo}/commit/{commit}"})


_ROUTES: list[tuple[tuple[str, ...], str, Callable[..., None]]] = [
    (("GET",), "/api/whoami-v2", _Handler.whoami),
    (("GET",), rf"/api/models/{_REPO}", _Handler.info),
    (("GET",), rf"/api/models/{_REPO}/revision/(?P<revision>.+)", _Handler.info),
    (("GET",), rf"/api/models/{_REPO}/tree/(?P<revision>.+)", _Handler.tree),
    (("HEAD", "GET"), rf"/{_REPO}/resolve/(?P<revision>[^/]+)/(?P<path>.+)", _Handler.resolve),
    (("POST",), "/api/repos/create", _Handler.create),
    (("POST",), "/api/validate-yaml", _Handler.validate),
    (("POST",), rf"/api/models/{_REPO}/preupload/(?P<revision>.+)", _Handler.preupload),
    (("POST",), rf"/{_REPO}\.git/info/lfs/objects/batch", _Handler.batch),
    (("PUT",), r"/lfs/(?P<oid>\w+)", _Handler.store),
    (("POST",), rf"/api/models/{_REPO}/commit/(?P<revision>.+)", _Handler.push),
]
