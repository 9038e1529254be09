"""A server with OpenAI's chat completions on the loopback interface. Tests set its replies."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace
from typing import Any


@dataclass(frozen=True)
class Said:
    """One reply. body: a JSON value, or raw bytes. manner: "whole", "broken" (the connection ends inside it),
    "silent", "dripping" (a space every 0.02 s, without end) or "endless" (spaces without pause or end)."""

    body: Any
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    manner: str = "whole"


class OpenAI(ThreadingHTTPServer):
    """The server. It replies with the entries of `says` in order, then repeats the last one.

    A request that says only "Hello" is a warm-up, which gets the reply `warm_up`.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.says: list[Said] = [Said(completion("fine"))]
        self.warm_up: Said = Said(completion("Hello!"))
        self.asked, self.warm_ups = list[Any](), list[Any]()  # requests: path, headers and body
        self.closing = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore errors, because tests expect clients that hang up."""


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
    """Return the JSON value of a chat completion. message: more fields of its message."""
    said = {"role": "assistant", "content": content, **message}
    choice = {"index": 0, "message": said, "finish_reason": finish_reason}
    whole: dict[str, Any] = {"id": "1", "object": "chat.completion", "choices": [choice]}
    return whole | ({"usage": usage} if usage is not None else {})


class _Handler(BaseHTTPRequestHandler):
    server: OpenAI

    def log_message(self, *args: Any) -> None:
        pass

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        server, warm = self.server, body["messages"] == [{"role": "user", "content": "Hello"}]
        request = SimpleNamespace(path=self.path, headers=dict(self.headers), body=body)
        (server.warm_ups if warm else server.asked).append(request)
        said = server.says.pop(0) if len(server.says) > 1 and not warm else server.says[0]
        self._say(server.warm_up if warm else said)

    def _say(self, said: Said) -> None:
        if said.manner == "silent":
            self.server.closing.wait(30)
            return
        body = said.body if isinstance(said.body, bytes) else json.dumps(said.body).encode()
        self.send_response(said.status)
        self.send_header("Content-Type", "application/json")
        for name, value in said.headers.items():
            self.send_header(name, value)
        if said.manner in ("dripping", "endless"):
            self.end_headers()
            while not self.server.closing.is_set():
                self.wfile.write(b" " * (1 if said.manner == "dripping" else 10_000))
                time.sleep(0.02 if said.manner == "dripping" else 0)
            return
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: len(body) // 2] if said.manner == "broken" else body)
