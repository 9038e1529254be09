"""The program that runs inside: gives up what it may, then runs the code it is handed.

`python -I -S -B child.py LIMITS RESULT_FD` with the request, one JSON object, on stdin. The order matters:
limits, kernel, request, audit hook, code. The answer goes to RESULT_FD: the request's token, then JSON,
either {"results": [...]} or {"failure": "..."}; then the process ends at once, whatever waits for its exit.
Whoever tried what the hook refuses has failed, also when the code went on without it.
"""

from __future__ import annotations

import _posixsubprocess
import _thread
import errno
import importlib
import json
import os
import resource
import signal
import sys
import types
from collections.abc import Callable
from functools import partial
from json.encoder import encode_basestring_ascii
from typing import Any, NoReturn

MB = 1 << 20
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
# What the hook refuses, and what of it is harmless.
REFUSED = (
    "os.",
    "socket.",
    "subprocess.",
    "ctypes.",
    "resource.",
    "pty.",
    "syslog.",
    "_thread.",
    "cpython._PySys",
)
REFUSED_TOO = {"sqlite3.enable_load_extension", "sqlite3.load_extension", "signal.pthread_kill"}
HARMLESS = {"os.putenv", "os.unsetenv", "os.walk", "os.fwalk"}


def main() -> NoReturn:
    limits, result_fd = json.loads(sys.argv[1]), int(sys.argv[2])
    folder = os.path.realpath(os.getcwd())
    null = os.open(os.devnull, os.O_RDONLY)
    limit(limits)
    if sys.platform == "linux":
        confine(folder)
    with open(0, "rb", closefd=False) as stdin:
        request = json.load(stdin)
    os.dup2(null, 0)
    os.close(null)
    os.environ.clear()
    os.environ["TMPDIR"] = folder  # without it, tempfile tries /tmp and others first
    sys.argv[:] = ["solution"]
    sys.orig_argv[:] = []
    # What is needed afterwards, while nobody has touched it; the token where one has to look for it.
    write, leave, token, quoted = os.write, os._exit, request.pop("token"), encode_basestring_ascii
    attempts = guard(folder)
    try:
        answer = run(request["source"], request["function"], request["arguments"], limits)
        if attempts:
            answer = '{"failure": ' + quoted("tried what is refused: " + attempts[0]) + "}"
        data = memoryview(f"{token}\n{answer}".encode())
        while data:
            data = data[write(result_fd, data) :]
    finally:
        leave(0)


def limit(limits: dict[str, Any]) -> None:
    """Sets what the portable interface can limit; what a system does not let one set, the canaries find."""
    for name, soft, hard in (
        ("CPU", limits["cpu_seconds"], limits["cpu_seconds"] + 1),  # SIGXCPU, and SIGKILL if it is ignored
        ("AS", limits["memory_mb"] * MB, limits["memory_mb"] * MB),
        ("FSIZE", limits["file_mb"] * MB, limits["file_mb"] * MB),
        ("NPROC", 0, 0),
        ("NOFILE", 64, 64),
        ("CORE", 0, 0),
    ):
        try:
            resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (soft, hard))
        except (ValueError, OSError):
            continue
    for number in (signal.SIGXCPU, signal.SIGALRM):
        signal.signal(number, signal.SIG_DFL)  # whoever started the parent may have had it ignore them
    signal.alarm(int(limits["wall_seconds"]) + 2)  # where nothing ends it with its parent


def confine(folder: str) -> None:
    here = os.path.dirname(os.path.abspath(__file__))
    sys.path.insert(0, here)
    linux, syscalls = importlib.import_module("linux"), importlib.import_module("syscalls")
    del sys.path[0]
    linux.confine(folder, sys.path, syscalls.numbers(os.uname().machine))
    for name in [n for n in sys.modules if n in ("linux", "syscalls", "_ctypes") or n.startswith("ctypes")]:
        del sys.modules[name]


def guard(folder: str) -> list[str]:
    """Installs the audit hook: what ordinary Python may not do, anywhere, with an error that says so.

    The list that comes back takes the first of what it refused.
    """
    # With this file, which inspect and linecache look at as the caller of the code.
    library = (*map(os.path.realpath, sys.path), os.path.realpath(__file__))
    realpath, fsdecode = os.path.realpath, os.fsdecode

    def inside(path: Any, roots: tuple[str, ...]) -> bool:
        if path is None:
            return True  # the folder itself
        if isinstance(path, int):
            return True  # opened before, so judged before
        path = realpath(fsdecode(path))
        return any(path == root or path.startswith(root + "/") for root in roots)

    def permitted(event: str, arguments: tuple[Any, ...]) -> bool:
        if event == "open":
            path, mode, flags = arguments
            writes = flags & WRITES or any(letter in "wax+" for letter in mode or "")
            return inside(path, (folder,) if writes else (folder, *library))
        if event in ("os.listdir", "os.scandir"):
            return inside(arguments[0], (folder, *library))
        if event in ("os.remove", "os.truncate", "os.utime"):  # os.utime: Path.touch tries it first
            return inside(arguments[0], (folder,))
        if event == "os.rename":
            return inside(arguments[0], (folder,)) and inside(arguments[1], (folder,))
        if event == "sqlite3.connect":
            name = fsdecode(arguments[0])
            return name in ("", ":memory:", "file::memory:") or (
                not name.startswith("file:") and inside(name, (folder,))
            )
        return event in HARMLESS or not (event.startswith(REFUSED) or event in REFUSED_TOO)

    attempts: list[str] = []

    def hook(event: str, arguments: tuple[Any, ...], *_: Any, **__: Any) -> None:
        if not permitted(event, arguments):
            if not attempts:
                # Only of types that run none of the code's own methods to be written down.
                plain = arguments and type(arguments[0]) in (str, bytes, int)
                attempts.append(f"{event} {arguments[0]!r}"[:120] if plain else event)
            raise PermissionError(f"{event} is not available in the sandbox")

    sys.addaudithook(hook)
    # Python tells the hook of threads only since 3.12, and never of what multiprocessing starts.
    for module, name, event in (
        (_thread, "start_new_thread", "_thread.start_new_thread"),
        (_thread, "start_new", "_thread.start_new_thread"),
        (_posixsubprocess, "fork_exec", "os.fork"),
    ):
        setattr(module, name, partial(hook, event, ()))
    return attempts


def run(source: str, name: str, calls: list[str], limits: dict[str, Any]) -> str:
    """The answer, as JSON. Nothing escapes: what the code did to builtins or to json ends in a failure."""
    loads, dumps = json.loads, json.dumps

    def describe(error: BaseException) -> str:
        try:
            message = str(error)
            if isinstance(error, MemoryError):
                message = f"memory limit of {limits['memory_mb']} MB"
            elif isinstance(error, OSError) and error.errno == errno.EFBIG:
                message = f"file size limit of {limits['file_mb']} MB"
        except BaseException:
            message = "(its message fails, too)"
        return f"{type(error).__name__}: {message}"[:200]

    try:
        module = types.ModuleType("solution")
        sys.modules["solution"] = module
        try:
            exec(compile(source, "solution.py", "exec", dont_inherit=True), module.__dict__)
        except BaseException as error:
            return dumps({"failure": describe(error)})
        function: Callable[..., Any] | None = module.__dict__.get(name)
        if not callable(function):
            return dumps({"failure": f"no function named {name}"})
        results = []
        for arguments in calls:
            try:
                # Written down at once: a later call may change what this one returned.
                results.append(dumps(function(*loads(arguments)), allow_nan=False))
            except BaseException as error:
                results.append(dumps({"raised": describe(error)}))
        return '{"results": [' + ", ".join(results) + "]}"
    except BaseException as error:
        return dumps({"failure": describe(error)})


if __name__ == "__main__":
    main()
