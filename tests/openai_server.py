"""A server of OpenAI's chat completions on the loopback interface: it says what it is told to say.

It keeps every request, and refuses, breaks off or stays silent when it is told to.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass(frozen=True)
class Said:
    """One answer. body: JSON, or bytes as they are. breaks: the connection ends in the middle of it."""

    body: Any
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    breaks: bool = False
    silent: bool = False


@dataclass(frozen=True)
class Asked:
    method: str
    path: str
    headers: dict[str, str]
    body: Any


class OpenAI(ThreadingHTTPServer):
    """`says` is used up from the front; its last entry stays. What asks for "Hello" is a warm-up: it gets
    `warm_up`, and is kept in `warm_ups`."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.models: Said = Said({"object": "list", "data": [{"id": "the-model", "object": "model"}]})
        self.says: list[Said] = [Said(completion("fine"))]
        self.warm_up: Said = Said(completion("Hello!"))
        self.asked: list[Asked] = []
        self.warm_ups: list[Asked] = []
        self.closing = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"

    def next(self) -> Said:
        return self.says.pop(0) if len(self.says) > 1 else self.says[0]


@contextmanager
def running_openai() -> Iterator[OpenAI]:
    with OpenAI() as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        try:
            yield server
        finally:
            server.closing.set()
            server.shutdown()


def completion(
    content: Any, finish_reason: str | None = "stop", usage: Any = None, **message: Any
) -> dict[str, Any]:
    """The JSON of a chat completion; `message`: more of its fields."""
    said = {"role": "assistant", "content": content, **message}
    choice = {"index": 0, "message": said, "finish_reason": finish_reason}
    whole: dict[str, Any] = {"id": "1", "object": "chat.completion", "choices": [choice]}
    return whole | ({"usage": usage} if usage is not None else {})


class _Handler(BaseHTTPRequestHandler):
    server: OpenAI

    def log_message(self, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        self._keep(self.server.asked, None)
        self._say(self.server.models)

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if body["messages"] == [{"role": "user", "content": "Hello"}]:
            self._keep(self.server.warm_ups, body)
            self._say(self.server.warm_up)
        else:
            self._keep(self.server.asked, body)
            self._say(self.server.next())

    def _keep(self, requests: list[Asked], body: Any) -> None:
        requests.append(Asked(self.command, self.path, dict(self.headers), body))

    def _say(self, said: Said) -> None:
        if said.silent:
            self.server.closing.wait(30)
            return
        body = said.body if isinstance(said.body, bytes) else json.dumps(said.body).encode()
        self.send_response(said.status)
        self.send_header("Content-Type", "application/json")
        for name, value in said.headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: len(body) // 2] if said.breaks else body)
