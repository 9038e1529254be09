"""Renders chat templates, which are untrusted programs, in a process with limits on time and memory."""

import atexit
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

_CHILD = Path(__file__).with_name("render_child.py")
# Limits of one rendering, and how they grow with its input. The released template takes 0.2 ms for a message.
_SECONDS, _SECONDS_PER_BYTE = 1.0, 1e-6  # of processor time
_BYTES, _BYTES_PER_BYTE = 200 * 10**6, 20
_CHARACTERS, _CHARACTERS_PER_BYTE = 2 * 10**5, 4
_NO_MEMORY = 86  # exit status of the process


class RenderError(Exception):
    """A template failed. `kind` is the type name of its exception, or "" if it exceeded a limit."""

    def __init__(self, kind: str, message: str):
        super().__init__(message or kind)
        self.kind = kind


def render(template: str, values: Mapping[str, Any]) -> str:
    """Return the text of a template with these values, as Transformers renders it.

    A value that JSON does not have becomes its type's name, such as "<ndarray>".

    Raises:
        RenderError: the template cannot be rendered, or it exceeds a limit of time, memory or length.
    """
    try:
        content = json.dumps(values, default=lambda value: f"<{type(value).__name__}>")
    except (TypeError, ValueError, RecursionError) as error:
        raise RenderError(type(error).__name__, str(error)) from None
    size = len(content)
    limits = {
        "seconds": _SECONDS + size * _SECONDS_PER_BYTE,
        "bytes": _BYTES + size * _BYTES_PER_BYTE,
        "characters": _CHARACTERS + size * _CHARACTERS_PER_BYTE,
    }
    request = f'{json.dumps({"template": template, **limits})[:-1]}, "values": {content}}}\n'
    try:
        reply = _WORKER.ask(request.encode())
    except OSError as error:
        raise RenderError("", f"its process cannot be started: {error.strerror}") from None
    if not reply.endswith(b"\n"):
        ended = _WORKER.end()
        if ended == -signal.SIGPROF:
            raise RenderError("", f"it ran for more than {limits['seconds']:.1f} s")
        if ended == _NO_MEMORY:
            raise RenderError("", f"it needed more than {limits['bytes'] / 1e6:.0f} MB")
        raise RenderError("", f"its process has ended with status {ended}")
    answer = json.loads(reply)
    if "text" not in answer:
        raise RenderError(answer["error"], answer["message"])
    return str(answer["text"])


class _Worker:
    """The process that renders. It is started when it is needed, and again after it has ended."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._owner = 0
        self._lock = threading.Lock()

    def ask(self, request: bytes) -> bytes:
        """Return the reply to a line. If the process ends, the reply lacks its newline."""
        with self._lock:
            process = self._running()
            assert process.stdin is not None
            assert process.stdout is not None
            try:
                process.stdin.write(request)
                process.stdin.flush()
                reply = process.stdout.readline()
            except BrokenPipeError:
                reply = b""
            except BaseException:  # an interrupt: the reply would be taken for that of the next request
                self.end()
                raise
            return reply

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None or self._owner != os.getpid() or self._process.poll() is not None:
            self.end()
            kept = ("TZ", "LANG", "LC_ALL", "LC_TIME", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH")
            self._process = subprocess.Popen(
                [sys.executable, "-I", str(_CHILD), *filter(None, sys.path)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                cwd="/",
                env={name: os.environ[name] for name in kept if name in os.environ},
            )
            self._owner = os.getpid()
        return self._process

    def end(self) -> int | None:
        """End the process. Return its exit status, or None if this process has not started one."""
        process, self._process = self._process, None
        if process is None or self._owner != os.getpid():  # it belongs to the parent of a fork
            return None
        process.kill()
        with suppress(OSError), process:  # closes its pipes, one of which may hold a request
            process.wait()
        return process.returncode


_WORKER = _Worker()
os.register_at_fork(after_in_child=_WORKER.__init__)  # type: ignore[misc]  # its lock may be held
atexit.register(_WORKER.end)
