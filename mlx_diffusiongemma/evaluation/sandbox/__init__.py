"""Runs generated code in a process of its own, so that whatever it does is a result and never an accident.

    from mlx_diffusiongemma.evaluation import sandbox

    sandbox.call("def double(x):\\n    return 2 * x", "double", [[1], ["ab"]]).results    # [2, "abab"]

The process is an isolated interpreter without environment variables but TMPDIR, in an empty temporary folder
that is removed afterwards. Limited are processor and wall time, memory, the size of a file and of all files,
output and answer (`Limits`). Refused are other processes, threads, folders, the network, every file outside
that folder but the interpreter's own library, and signals to anybody else; what the audit hook refuses makes
the whole outcome a failure, whether the code goes on or not. Three layers see to it:

- everywhere: resource limits, this module's watch over the process, and a Python audit hook (`child.py`);
- Linux: Landlock and seccomp (`linux.py`), which hold without the audit hook, for root and native code too;
- macOS: sandbox-exec where it works, and a watch over the memory, which no limit there holds (`macos.py`).

What this is: a guard against careless generated code - loops, bombs, deleted files, a stray request. What
it is not: a jail for an adversary. Names, sizes and dates of files outside can be seen (contents cannot); the
interpreter's folder, site-packages included, can be read; the code shares its process with the program that
reports its results, so malice could forge them; the kernel is shared, and its faults are not guarded against;
where only the audit hook holds, Python that means to get around it does. `missing()` tries the promises on
this machine and names those that do not hold. The macOS part has not been run on a Mac yet.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

from mlx_diffusiongemma.evaluation.sandbox import macos

ON_MACOS = sys.platform == "darwin"
CHILD = Path(__file__).with_name("child.py")
TICK = 0.02  # seconds between two looks at the folder
MEMORY_TICK = 0.1  # and at the memory, which starts a program
DEEPEST = (
    100  # levels of lists and objects in a result: nobody who compares them runs into the recursion limit
)


@dataclass(frozen=True)
class Limits:
    """What one `call` may use.

    memory_mb: address space on Linux, resident memory on macOS. disk_mb, files: all files together.
    output_kb: stdout and stderr. result_kb: the results as JSON.
    """

    cpu_seconds: int = 5
    wall_seconds: float = 10
    memory_mb: int = 512
    file_mb: int = 1
    disk_mb: int = 16
    files: int = 64
    output_kb: int = 64
    result_kb: int = 256


@dataclass(frozen=True)
class Outcome:
    """results: one JSON value per call, {"raised": "ValueError: ..."} for one that raised; None when the
    program failed as a whole. failure: why, in one line. printed: its stdout and stderr, cut at the limit."""

    results: list[Any] | None
    failure: str | None = None
    printed: str = ""


def missing() -> list[str]:
    """What this machine does not hold a program to, in plain words; [] when all holds. Tried once.

    InputError where generated code cannot run at all.
    """
    from mlx_diffusiongemma.evaluation.sandbox import canaries

    return list(canaries.broken_promises())


def call(
    source: str, function: str, arguments: Sequence[Sequence[Any]], *, limits: Limits | None = None
) -> Outcome:
    """Executes `source`, then calls `function(*args)` for each `args` of JSON values.

    Results are JSON, too: tuples come back as lists, keys as strings, what is not JSON as {"raised": ...}.
    Each call gets fresh copies of its arguments, and its result is written down before the next call.
    """
    limits = limits or Limits()
    token = secrets.token_hex(16)
    request = {
        "source": source,
        "function": function,
        "arguments": [json.dumps(list(a)) for a in arguments],
        "token": token,
    }
    with (
        tempfile.TemporaryDirectory(prefix="mlx-dg-sandbox-", ignore_cleanup_errors=True) as folder,
        tempfile.TemporaryFile() as stdin,
    ):
        stdin.write(json.dumps(request).encode())
        stdin.seek(0)
        answer, printed, failure = execute(folder, stdin, limits)
    results = None
    if failure is None:
        results, failure = read_answer(answer, token, len(arguments))
    return Outcome(results, failure and one_line(failure), printed.decode(errors="replace"))


def execute(folder: str, stdin: IO[bytes], limits: Limits) -> tuple[bytes, bytes, str | None]:
    """Runs the child to its end or to a limit: its answer, what it printed, and why there is no answer."""
    result_read, result_write = os.pipe()
    command = [sys.executable, "-I", "-S", "-B", "-u", "-X", "utf8", str(CHILD)]
    command += [json.dumps(asdict(limits)), str(result_write)]
    if ON_MACOS:
        command = [*macos.prefix(folder), *command]
    try:
        child = subprocess.Popen(
            command,
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            cwd=folder,
            env={},
            pass_fds=(result_write,),
            start_new_session=True,
        )
    except BaseException:
        os.close(result_read)
        raise
    finally:
        os.close(result_write)
    assert child.stdout is not None
    answer, printed = bytearray(), bytearray()
    with child.stdout as output, open(result_read, "rb", buffering=0) as result:
        try:
            failure = watch(child.pid, folder, (output, printed), (result, answer), limits)
        finally:
            # Before it is waited for: until then nobody else can have its number.
            with contextlib.suppress(ProcessLookupError, PermissionError):  # what macOS says of an ended one
                os.killpg(child.pid, signal.SIGKILL)
            status = child.wait()
    failure = failure or too_much_on_disk(folder, limits)
    if failure is None and not answer:
        failure = ending(status, limits)
    return bytes(answer), bytes(printed[: limits.output_kb * 1024]), failure


def watch(
    pid: int,
    folder: str,
    output: tuple[IO[bytes], bytearray],
    result: tuple[IO[bytes], bytearray],
    limits: Limits,
) -> str | None:
    """Reads both pipes until the answer's is closed; the limit that was reached before that, or None."""
    start = time.monotonic()
    next_look, next_memory = start, start
    with selectors.DefaultSelector() as selector:
        for (pipe, kept), limit, name in (
            (output, limits.output_kb, "output"),
            (result, limits.result_kb, "result"),
        ):
            os.set_blocking(pipe.fileno(), False)
            selector.register(pipe, selectors.EVENT_READ, (kept, limit, name))
        while True:
            ready = [key for key, _ in selector.select(TICK)]
            # Output first: what was printed before the answer was closed is read before the loop ends.
            for key in sorted(ready, key=lambda key: key.data[2]):
                kept, limit, name = key.data
                while chunk := read(key.fd):
                    kept += chunk
                    if len(kept) > limit * 1024:
                        return f"{name} limit of {limit} kB"
                if chunk == b"":
                    selector.unregister(key.fileobj)
                    if name == "result":
                        return None
            now = time.monotonic()
            if now - start > limits.wall_seconds:
                return f"time limit of {limits.wall_seconds:g} s"
            if now >= next_look:
                next_look = now + TICK
                if failure := too_much_on_disk(folder, limits):
                    return failure
            if ON_MACOS and now >= next_memory:
                next_memory = now + MEMORY_TICK
                if macos.resident_mb(pid) > limits.memory_mb:
                    return f"memory limit of {limits.memory_mb} MB"


def read(pipe: int) -> bytes | None:
    """What is there; b"" at the end of the pipe; None when nothing is there yet."""
    try:
        return os.read(pipe, 65536)
    except BlockingIOError:
        return None


def too_much_on_disk(folder: str, limits: Limits) -> str | None:
    """Looks at the folder, flat because the code can make no folders: a limit it is beyond, or None."""
    size = 0
    try:
        with os.scandir(folder) as entries:
            for count, entry in enumerate(entries, 1):
                if count > limits.files:
                    return f"limit of {limits.files} files"
                with contextlib.suppress(FileNotFoundError):  # removed just now
                    size += entry.stat(follow_symlinks=False).st_size
    except OSError as error:
        return f"its folder cannot be read any more ({error.strerror})"
    return f"disk limit of {limits.disk_mb} MB" if size > limits.disk_mb << 20 else None


def ending(status: int, limits: Limits) -> str:
    """What to say about a process that left no answer."""
    if status == -signal.SIGXCPU:
        return f"processor time limit of {limits.cpu_seconds} s"
    if status < 0:
        return f"ended by signal {-status} ({signal.strsignal(-status)})"
    return f"ended without an answer (exit status {status})"


def read_answer(answer: bytes, token: str, calls: int) -> tuple[list[Any] | None, str | None]:
    """Results or failure, from bytes that may be anything."""
    try:
        head, _, body = answer.partition(b"\n")
        if head.decode() != token:
            raise ValueError("not the child's answer")
        value = json.loads(body, parse_constant=refuse_constant)
        if isinstance(value.get("failure"), str):
            return None, value["failure"]
        results = value["results"]
        if not isinstance(results, list) or len(results) != calls:
            raise ValueError("not a result for each call")
    except (ValueError, KeyError, AttributeError, RecursionError):
        return None, "ended without a proper answer"
    too_deep = {"raised": f"RecursionError: a result nested deeper than {DEEPEST} levels"}
    return [too_deep if deeper_than(DEEPEST, result) else result for result in results], None


def deeper_than(depth: int, value: Any) -> bool:
    level = [value]
    for _ in range(depth + 1):
        inner = [v.values() if isinstance(v, dict) else v for v in level if isinstance(v, (dict, list))]
        level = [value for values in inner for value in values]
    return bool(level)


def refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def one_line(text: str) -> str:
    """Printable, on one line, and short, whatever the code put into its error message."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())[:200]
