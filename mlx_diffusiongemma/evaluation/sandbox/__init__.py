"""Runs generated code in a separate process, so that a crash or an endless loop is just another result.

    sandbox.call("def double(x):\\n    return 2 * x", "double", [[1], ["ab"]]).results    # [2, "abab"]

The process is an isolated interpreter with resource limits, an empty directory and an empty environment. It
runs inside bubblewrap (`bwrap`) on Linux and `sandbox-exec` on macOS, without network or other processes. It
can read only files of the system and of the interpreter. This guards against careless code. Malicious code
could forge results. If the tool does not work, `call` raises `InputError`, unless `allow_uncontained` is set.
Then only the resource limits remain. The macOS part has not been run on a Mac yet.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from shutil import which
from typing import Any

from ...console.messages import one_line
from ...errors import InputError

_PYTHON = [os.path.realpath(sys.executable), "-I", "-S", "-B", "-X", "utf8", "-c"]
_CHILD = Path(__file__).with_name("child.py").read_text("utf-8")
_ON_MACOS = sys.platform == "darwin"
_TICK = 0.02  # seconds between two looks at the process
# Hidden on macOS: files of users, and temporary files of other programs. The rest of the disk is the system.
_PRIVATE = ("/Users", "/Volumes", "/private/etc", "/private/tmp", "/private/var/folders", "/private/var/root")
REMEDY = "run it on a machine of no value, such as a container, with --unsafe-exec (unsafe_exec=True)"
allow_uncontained = False


@dataclass(frozen=True)
class Limits:
    """Limits of one `call`. file_mb: size of each file and of the results. disk_mb: size of all files."""

    cpu_seconds: int = 5
    wall_seconds: float = 10
    memory_mb: int = 512
    file_mb: int = 1
    disk_mb: int = 16


@dataclass(frozen=True)
class Outcome:
    """Result of a `call`. results: a JSON value for each call of the function, {"raised": "ValueError: ..."}
    if it raised, or None if the whole program failed. failure: the reason for that, in one line."""

    results: list[Any] | None
    failure: str = ""


@cache
def problem() -> str:
    """Return the reason why generated code cannot be contained on this machine, or an empty text."""
    tool = "sandbox-exec" if _ON_MACOS else "bwrap"
    if not which(tool):
        return f"there is no {tool}" + ("" if _ON_MACOS else " (apt install bubblewrap)")
    with tempfile.TemporaryDirectory() as folder:
        command = [*_container(folder, Limits()), *_PYTHON, "pass"]
        done = subprocess.run(command, env={}, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    return f"{tool} does not work here ({one_line(done.stderr, 200)})" if done.returncode else ""


def call(
    source: str, function: str, arguments: Sequence[Sequence[Any]], limits: Limits = Limits()
) -> Outcome:
    """Execute `source`, then call `function(*args)` for each list of JSON values in `arguments`.

    Results are converted to JSON. Tuples become lists, and values that JSON lacks become {"raised": ...}.
    Each call gets new copies of its arguments, and its result is converted before the next call.
    """
    if problem() and not allow_uncontained:
        raise InputError(f"generated code cannot be contained: {problem()}; {REMEDY}")
    texts = [json.dumps(list(each)) for each in arguments]
    nobody = not problem() and os.geteuid() == 0  # the process limit has no effect on root
    request = {"source": source, "function": function, "arguments": texts, "limits": asdict(limits)}
    with (
        tempfile.TemporaryDirectory(prefix="mlx-dg-sandbox-", ignore_cleanup_errors=True) as folder,
        tempfile.TemporaryFile() as stdin,
        tempfile.TemporaryFile() as stdout,
    ):
        stdin.write(json.dumps(request | {"nobody": nobody}).encode())
        stdin.seek(0)
        command = [*([] if problem() else _container(folder, limits)), *_PYTHON, _CHILD]
        files: dict[str, Any] = {"stdin": stdin, "stdout": stdout, "stderr": subprocess.DEVNULL}
        process = subprocess.Popen(command, cwd=folder, env={}, start_new_session=True, **files)
        try:
            failure = _watch(process, folder, limits)
        finally:
            # Before `wait`, because until then no other process can get its id.
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
            status = process.wait()
        stdout.seek(0)
        answer = stdout.read()
    return Outcome(None, failure) if failure else _outcome(answer, len(texts), status, limits)


def _container(folder: str, limits: Limits) -> list[str]:
    """Return a command prefix that confines what follows it to the interpreter and an empty directory."""
    library = list(dict.fromkeys([sys.base_prefix, sys.base_exec_prefix]))
    if _ON_MACOS:
        return [which("sandbox-exec") or "", "-p", _profile(folder, library)]
    command = [which("bwrap") or "", "--die-with-parent", "--unshare-ipc", "--unshare-pid", "--unshare-net"]
    if os.geteuid() == 0:  # the child changes to user nobody
        command += ["--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID"]
    for parent in [parent for path in library for parent in [*Path(path).parents][-2::-1]]:
        command += ["--perms", "0755", "--dir", str(parent)]
    for path in dict.fromkeys(["/usr", "/bin", "/lib", "/lib64", *library]):
        command += ["--ro-bind-try", path, path]
    size = str(limits.disk_mb << 20)
    command += ["--dev-bind", "/dev/null", "/dev/null", "--perms", "0777", "--size", size, "--tmpfs", "/tmp"]
    return [*command, "--chdir", "/tmp", "--"]


def _profile(folder: str, library: list[str]) -> str:
    """Return the profile of sandbox-exec. Each rule holds its exceptions, so the order of rules is free."""

    def paths(*names: str) -> str:
        names = (*names, *map(os.path.realpath, names))
        return " ".join(f"(subpath {json.dumps(name)})" for name in names)

    private, own = paths(os.path.expanduser("~"), *_PRIVATE), paths(folder, *library)
    return f"""(version 1) (allow default)
        (deny network*) (deny process-fork) (deny signal) (allow signal (target self))
        (deny file-write* (require-not (require-any {paths(folder)} (literal "/dev/null"))))
        (deny file-read-data (require-all (require-any {private}) (require-not (require-any {own}))))"""


def _watch(process: subprocess.Popen[bytes], folder: str, limits: Limits) -> str:
    """Wait until the process ends or reaches a limit. Return that limit in words, or an empty text."""
    end = time.monotonic() + limits.wall_seconds
    while True:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_TICK)
            return ""
        if time.monotonic() > end:
            return f"time limit of {limits.wall_seconds:g} s"
        size = 0  # each file counts at least 4096 bytes; with bwrap, `folder` stays empty
        for path, _, names in os.walk(folder):
            with contextlib.suppress(OSError):  # it was removed just now
                size += sum(max(4096, os.lstat(os.path.join(path, name)).st_size) for name in names)
        if size > limits.disk_mb << 20:
            return f"disk limit of {limits.disk_mb} MB"
        if _ON_MACOS:  # macOS ignores RLIMIT_AS
            ps = subprocess.run(["ps", "-o", "rss=", "-p", str(process.pid)], capture_output=True, text=True)
            if int(ps.stdout.strip() or 0) >> 10 > limits.memory_mb:
                return f"memory limit of {limits.memory_mb} MB"


def _outcome(answer: bytes, calls: int, status: int, limits: Limits) -> Outcome:
    """Return the outcome of a child, which may have written any bytes (`answer`) and ended in any way."""
    if not answer:
        number = -status if status < 0 else status - 128  # like a shell, bwrap adds 128 to a signal
        if number in (signal.SIGXCPU, signal.SIGKILL):
            return Outcome(None, f"processor time limit of {limits.cpu_seconds} s, or another one")
        ending = f"by signal {number}" if number > 0 else f"without a result (exit status {status})"
        return Outcome(None, f"ended {ending}")
    try:
        value = json.loads(answer)
        if isinstance(value.get("failure"), str):
            return Outcome(None, one_line(value["failure"], 200))
        if isinstance(value["results"], list) and len(value["results"]) == calls:
            return Outcome(value["results"])
    except (ValueError, KeyError, AttributeError, RecursionError):
        pass
    return Outcome(None, "ended without a proper result")
