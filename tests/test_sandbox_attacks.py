"""Attacks on the sandbox: each has to end in a refusal or a limit, and to leave no file and no process."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import textwrap
from dataclasses import asdict

import pytest

from mlx_diffusiongemma.evaluation import sandbox
from mlx_diffusiongemma.evaluation.sandbox import Limits, call

QUICK = Limits(cpu_seconds=1, wall_seconds=60, memory_mb=200, disk_mb=4)


@pytest.fixture(autouse=True)
def outside(tmp_path, monkeypatch):
    """A file the code must neither read nor change; every temporary folder has to be gone in the end."""
    place = tmp_path / "temporary"
    place.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(place))
    file = tmp_path / "secret.txt"
    file.write_text("secret\n")
    before = os.stat(file)
    yield file
    after = os.stat(file)
    assert file.read_text() == "secret\n"
    assert (after.st_mode, after.st_mtime_ns, after.st_nlink) == (before.st_mode, before.st_mtime_ns, 1)
    assert list(place.iterdir()) == []
    assert sorted(os.listdir(tmp_path)) == ["secret.txt", "temporary"]


def attack(statements, *arguments, parameters="path"):
    body = textwrap.indent(textwrap.dedent(statements).strip(), "    ")
    return call(f"def f({parameters}):\n{body}", "f", [arguments], limits=QUICK)


# Nothing here may do harm where it is not refused: signals are 0.
BY_THE_HOOK = """
open(path).read()
open(path, "a")
open(path, "r+")
open("/etc/passwd").read()
open(f"/proc/{__import__('os').getppid()}/environ").read()
open("/dev/fd/0").read()
open("../../secret.txt").read()
open(__import__("os").__file__, "r+")
import os; os.open(path, os.O_RDONLY)
import os; os.open("new", os.O_CREAT | os.O_RDWR, dir_fd=os.open("/", os.O_RDONLY))
import os; os.listdir("/")
import os; os.scandir(os.path.dirname(path))
import os; os.remove(path)
import os; os.rename(path, "here")
import os; os.truncate(path, 0)
import os; os.chmod(path, 0)
import os; os.utime(path)
import os; os.link(path, "here")
import os; os.symlink(path, "here"); open("here").read()
import os; os.mkdir("folder")
import os; os.chdir("/")
import pathlib; pathlib.Path(path).read_text()
import shutil; shutil.copy(path, "here")
import shutil; shutil.move(path, "here")
import sqlite3; sqlite3.connect(path)
import sqlite3; sqlite3.connect("file:" + path + "?mode=ro", uri=True)
import os; os.fork()
import os; os.forkpty()
import os; os.system("true")
import os; os.popen("true")
import os; os.execv("/bin/sh", ["sh"])
import os; os.posix_spawn("/bin/sh", ["sh"], {})
import subprocess; subprocess.run(["true"])
import os; os.kill(os.getppid(), 0)
import os; os.killpg(os.getppid(), 0)
import os; os.kill(-1, 0)
import os; os.kill(0, 0)
import os, resource; resource.setrlimit(resource.RLIMIT_CPU, (99, 99))
import socket; socket.socket()
import socket; socket.create_connection(("127.0.0.1", 9))
import socket; socket.getaddrinfo("localhost", 80)
import urllib.request; urllib.request.urlopen("http://127.0.0.1:9")
import ctypes; ctypes.CDLL(None)
import _ctypes; _ctypes.dlopen(None, 0)
"""
BEYOND_THE_HOOK = """
import sqlite3; sqlite3.connect(":memory:").execute("ATTACH ? AS x", (path,)).execute("SELECT * FROM x.t")
import sqlite3; sqlite3.connect(":memory:").execute("VACUUM INTO ?", (path + ".db",))
import ssl; ssl.create_default_context(cafile=path)
import multiprocessing; multiprocessing.Process(target=print).start()
"""


def attempts(statements, path):
    """What became of each statement, all of them in one process, by what it printed: as a whole it failed."""
    statements = statements.strip().splitlines()
    source = """
        def f(path, statement):
            try:
                exec(statement, {"path": path})
                print("got through")
            except BaseException as error:
                print(type(error).__name__, *str(error).split())
    """
    arguments = [[str(path), statement] for statement in statements]
    outcome = call(textwrap.dedent(source), "f", arguments, limits=QUICK)
    assert outcome.results is None
    assert outcome.failure.startswith("tried what is refused: "), outcome
    return dict(zip(statements, outcome.printed.splitlines(), strict=True))


def test_the_audit_hook_refuses_in_words(outside):
    said = attempts(BY_THE_HOOK, outside)
    clear = "is not available in the sandbox"
    assert {s: result for s, result in said.items() if clear not in result} == {}


def test_what_the_hook_does_not_see_is_refused_as_well(outside):
    """By Landlock and seccomp, by sandbox-exec, or by the process limit (BlockingIOError)."""
    said = attempts(BEYOND_THE_HOOK, outside)
    errors = [result.split()[0] for result in said.values()]
    assert set(errors) <= {"PermissionError", "OperationalError", "BlockingIOError"}, said


def test_threads_without_end():
    source = """
        import threading, time
        while True:
            try:
                threading.Thread(target=time.sleep, args=(60,)).start()
            except Exception:
                pass
    """
    outcome = attack(source, "")
    assert outcome.results is None
    assert "limit" in outcome.failure or "signal" in outcome.failure


@pytest.mark.parametrize(
    ("statements", "said"),
    [
        ("for n in range(10 ** 6):\n    open(str(n), 'wb').write(bytes(1 << 20))", "disk limit of 4 MB"),
        ("for n in range(10 ** 6):\n    open(str(n), 'wb').close()", "limit of 64 files"),
        ("for n in range(5):\n    open(str(n), 'wb').write(bytes(1 << 20))", "disk limit of 4 MB"),
        (
            "while True:\n    try:\n        while True: pass\n    except BaseException: pass",
            "processor time limit",
        ),
        ("import os\nos.closerange(0, 64)\nwhile True: pass", "ended by signal 9"),
        ("import os\nos.closerange(0, 64)\nos._exit(0)", "ended"),
        ("import signal\nsignal.raise_signal(signal.SIGSEGV)", "ended by signal 11"),
        (
            "class E(Exception):\n    def __str__(self):\n        while True: pass\nraise E",
            "processor time limit",
        ),
        ("import builtins\nfor n in list(vars(builtins)): setattr(builtins, n, None)", "ended without"),
        (
            "import json\njson.encoder.JSONEncoder.iterencode = lambda *a, **k: ['null, null']\nreturn 1",
            "ended",
        ),
    ],
)
def test_what_ends_in_a_failure(statements, said):
    outcome = attack(statements, parameters="")
    assert outcome.results is None
    assert said in outcome.failure


def test_a_result_nested_beyond_all_reason():
    statements = """
        import sys
        sys.setrecursionlimit(10 ** 6)
        x = []
        for _ in range(50_000):
            x = [x]
        return x
    """
    outcome = attack(statements, parameters="")
    if sys.version_info < (3, 12):  # writes it down; reading it is what fails
        assert outcome == sandbox.Outcome(None, "ended without a proper answer")
    else:
        assert outcome.results[0]["raised"].startswith("RecursionError: ")


def test_a_file_beyond_its_limit():
    statements = """
        file = open("large", "wb", buffering=0)
        for _ in range(3):
            file.write(bytes(1 << 20))
    """
    assert attack(statements, "").results == [{"raised": "OSError: file size limit of 1 MB"}]


def test_deleted_files_do_not_escape_the_count():
    """What is deleted takes room while it is open, and only so many can be."""
    statements = """
        import os
        kept = []
        for _ in range(100):
            kept.append(open("same", "wb"))
            os.remove("same")
    """
    (result,) = attack(statements, "").results
    assert result["raised"].startswith("OSError: [Errno 24]")


@pytest.mark.parametrize(
    "forged", ['{"results": [7]}', '{"failure": "none"}', "[" * 100_000, "NaN", "null", "\udcff"]
)
def test_an_answer_that_is_not_the_childs_is_none(forged):
    statements = """
        import os
        for handle in range(3, 64):
            try:
                os.write(handle, b"\\n" + text.encode(errors="surrogateescape"))
            except OSError:
                continue
            os._exit(0)
    """
    outcome = attack(statements, forged, parameters="text")
    assert outcome == sandbox.Outcome(None, "ended without a proper answer")


@pytest.mark.parametrize(
    "body",
    [
        b'{"results": 7}',
        b'{"results": []}',
        b'{"results": [NaN]}',
        b"7",
        b"[]",
        b"{}",
        b"\xff",
        b"[" * 100_000,
    ],
)
def test_bytes_after_the_right_token_are_judged_too(body):
    assert sandbox.read_answer(b"token\n" + body, "token", 1) == (None, "ended without a proper answer")


def test_no_process_is_left():
    pid = call("import os\ndef f():\n    return os.getpid()", "f", [[]]).results[0]
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_a_stopped_process_is_not_left_either(monkeypatch):
    """It notices nothing but SIGKILL."""
    stopped = []

    def look(folder, limits):
        pid, status = os.waitpid(-1, os.WNOHANG | os.WUNTRACED)
        if pid == 0 or not os.WIFSTOPPED(status):
            return None
        stopped.append(pid)
        return "stopped"

    monkeypatch.setattr(sandbox, "too_much_on_disk", look)
    outcome = call("import signal\nsignal.raise_signal(signal.SIGSTOP)", "f", [[]], limits=QUICK)
    assert outcome.failure == "stopped"
    with pytest.raises(ProcessLookupError):
        os.kill(*stopped, 0)


def test_who_ignores_the_processor_limit_is_ended_all_the_same():
    """A second later on Linux; elsewhere, or where the machine is busy, by the wall time."""
    insists = "import signal\nsignal.signal(signal.SIGXCPU, signal.SIG_IGN)\nwhile True: pass"
    outcome = call(insists, "f", [], limits=Limits(cpu_seconds=1, wall_seconds=10))
    assert outcome.results is None
    assert outcome.failure.startswith(("ended by signal 9", "time limit of 10 s"))


@pytest.mark.parametrize(
    ("source", "ended_by"), [("import time\ntime.sleep(60)", "ALRM"), ("while True: pass", "XCPU")]
)
def test_the_child_keeps_time_itself_when_nobody_else_does(source, ended_by, tmp_path):
    """Its own alarm comes two seconds after the parent's limit, also where the parent ignored the signal."""
    request = {"source": source, "function": "f", "arguments": [], "token": "token"}
    limits = {**asdict(QUICK), "wall_seconds": -1 if ended_by == "ALRM" else 60}
    command = ["/bin/sh", "-c", f"trap '' {ended_by}; exec \"$@\"", "sh"]
    command += [sys.executable, "-I", "-S", "-B", str(sandbox.CHILD), json.dumps(limits), "1"]
    folder = tmp_path / "temporary"
    ran = subprocess.run(
        command, input=json.dumps(request), cwd=folder, env={}, text=True, capture_output=True
    )
    number = signal.Signals[f"SIG{ended_by}"]
    assert (ran.returncode, ran.stdout, ran.stderr) == (-number, "", "")
