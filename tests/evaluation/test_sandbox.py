"""The sandbox: results as JSON, escapes that end as failures, and nothing left behind."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from textwrap import dedent, indent
from typing import Any

import pytest

from mlx_diffusiongemma.errors import InputError
from mlx_diffusiongemma.evaluation import sandbox
from mlx_diffusiongemma.evaluation.sandbox import Limits, Outcome, call

pytestmark = pytest.mark.slow

QUICK = Limits(cpu_seconds=1, wall_seconds=30, memory_mb=200, disk_mb=4)
LINUX = sys.platform == "linux"


@pytest.fixture(autouse=True)
def secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A file that the code must neither read nor change. Every temporary directory is gone in the end."""
    place, file = tmp_path / "temporary", tmp_path / "secret.txt"
    place.mkdir()
    file.write_text("secret\n")
    file.chmod(0o666)
    tmp_path.chmod(0o777)
    monkeypatch.setattr(tempfile, "tempdir", str(place))
    yield file
    assert file.read_text() == "secret\n"
    assert sorted(os.listdir(tmp_path)) == ["secret.txt", "temporary"]
    assert list(place.iterdir()) == []


def attack(statements: str, *arguments: Any, limits: Limits = QUICK) -> Outcome:
    return call(f"def f(path=None):\n{indent(dedent(statements).strip(), '    ')}", "f", [arguments], limits)


def failed(outcome: Outcome) -> str:
    """The failure of an outcome: the program's, or that of its only call."""
    if outcome.results is None:
        return outcome.failure
    (result,) = outcome.results
    assert list(result) == ["raised"], outcome
    return str(result["raised"])


# --- the eight escapes ------------------------------------------------------------------------------------


@pytest.mark.parametrize("statement", [
    # reading
    "return open(path).read()", "return open('/etc/passwd').read()",
    "import os; return os.listdir(os.path.dirname(path))", "return open('/proc/self/environ').read()",
    "import sqlite3; return sqlite3.connect('file:' + path + '?mode=ro', uri=True).execute('VACUUM')",
    "import os; os.symlink(path, 'here'); return open('here').read()",
    # writing
    "open(path, 'a').write('x')", "open(__import__('os').__file__, 'r+')", "import os; os.remove(path)",
    "import os; os.chmod(path, 0)", "import os; os.truncate(path, 0)", "open('/usr/new', 'w')",
])  # fmt: skip
@pytest.mark.contained
def test_files_outside(secret: Path, statement: str) -> None:
    assert "Error" in failed(attack(statement, str(secret)))


@pytest.mark.parametrize("kind", ["SOCK_STREAM", "SOCK_DGRAM"])
@pytest.mark.contained
def test_network(kind: str) -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as server:  # on this machine, so it would answer
        statements = f"""
            import socket
            connection = socket.socket(socket.AF_INET, socket.{kind})
            connection.connect(("127.0.0.1" if "{kind}" == "SOCK_STREAM" else "8.8.8.8", path))
            connection.send(b"x")
        """
        assert "Error" in failed(attack(statements, server.getsockname()[1]))


@pytest.mark.parametrize("statement", [
    "import os\nwhile True: os.fork()",
    "import threading, time\nwhile True: threading.Thread(target=time.sleep, args=(60,)).start()",
    "import subprocess; subprocess.run(['true'])",
    "import multiprocessing; multiprocessing.Process(target=print).start()",
])  # fmt: skip
@pytest.mark.skipif(not LINUX, reason="macOS refuses processes, and lets threads run to the other limits")
@pytest.mark.contained
def test_fork_bomb(statement: str) -> None:
    assert "Error" in failed(attack(statement))


@pytest.mark.contained
def test_disk() -> None:
    one = "for n in range(9): open('large', 'ab', buffering=0).write(bytes(1 << 19))"
    assert "file size limit of 1 MB" in failed(attack(one))
    many = "for n in range(10 ** 6): open(str(n), 'wb').write(bytes(1 << 20))"
    assert any(said in failed(attack(many)) for said in ("No space left", "disk limit of 4 MB"))


@pytest.mark.parametrize(("statement", "said"), [
    ("x = []\nwhile True: x.append(bytearray(10 ** 7))", "memory limit of 200 MB"),
    ("bytes(10 ** 10)", "memory limit of 200 MB"),
    ("while True:\n    try:\n        while True: pass\n    except BaseException: pass", "processor time"),
    ("import time; time.sleep(60)", "time limit of 0.5 s"),
    ("import signal; signal.pause()", "time limit of 0.5 s"),
])  # fmt: skip
def test_memory_and_time(statement: str, said: str) -> None:
    limits = Limits(wall_seconds=0.5) if "0.5" in said else QUICK
    assert said in failed(attack(statement, limits=limits))


WRITE = "import os\nfor handle in range(3, 9):\n    try:\n        {}\n    except OSError: pass"


@pytest.mark.parametrize(("statement", "said"), [
    ("while True: print('x' * 1000, flush=True)", "processor time limit"), ("return 'x' * 10 ** 7", "limit"),
    (WRITE.format("while True: os.write(handle, b'x' * 9999)"), ""),  # into the results
])  # fmt: skip
def test_endless_output(statement: str, said: str) -> None:
    outcome = attack(statement)
    assert outcome.results is None or list(outcome.results[0]) == ["raised"]
    assert said in failed(outcome)


# --- other ends -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("source", "said"), [
    ("def f(: pass", "SyntaxError"), ("1 / 0", "ZeroDivisionError: division by zero"),
    ("g = 1", "no function named f"), ("f = 1", "no function named f"),
    ("import os\nos._exit(3)", "ended without a result (exit status 3)"),
    ("import ctypes\nctypes.string_at(0)", "ended by signal 11"),
    ("import builtins\nfor name in list(vars(builtins)): setattr(builtins, name, None)", "ended without"),
    (WRITE.format("os.write(handle, b'{}')") + "\nos._exit(0)", "ended without a proper result"),
    ("class E(Exception):\n    def __str__(self): raise self\nraise E", "an exception without a message"),
    ("raise SystemExit('a\\x1b[2J\\nb')", "SystemExit: a\\x1b[2J b"),
])  # fmt: skip
def test_programs_that_fail_as_a_whole(source: str, said: str) -> None:
    outcome = call(source, "f", [[]], QUICK)
    assert outcome.results is None
    assert said in outcome.failure
    assert outcome.failure.isprintable()
    assert len(outcome.failure) <= 200


@pytest.mark.parametrize(("expression", "result"), [
    ("(1, [2.5, None], {'a': True})", [1, [2.5, None], {"a": True}]),
    ("'\\ud800 ż\\x00'", "\ud800 ż\x00"), ("10 ** 30", 10**30),
    ("{1}", {"raised": "TypeError: Object of type set is not JSON serializable"}),
    ("float('nan')", None), ("__import__('sys').exit(3)", {"raised": "SystemExit: 3"}),
    ("__import__('os').environ.get('HOME')", None), ("__import__('os').listdir()", []),
    ("__import__('sys').argv", ["-c"]), ("input()", {"raised": "EOFError: EOF when reading a line"}),
])  # fmt: skip
def test_results(expression: str, result: Any) -> None:
    (found,) = call(f"def f():\n    return {expression}", "f", [[]], QUICK).results or [None]
    if "nan" in expression:
        assert found["raised"].startswith("ValueError: Out of range")
    else:
        assert found == result


def test_calls_share_the_program_and_nothing_else() -> None:
    append = "    items.append(more)\n    kept.append(items)\n    return [items, len(kept)]"
    source = f"kept = []\ndef f(items, more=0):\n{append}"
    same = [3, 1]
    assert call(source, "f", [[same], [same, 7]]) == Outcome([[[3, 1, 0], 1], [[3, 1, 7], 2]])
    assert same == [3, 1]
    assert call("def f(): pass", "f", []) == Outcome([])


def descendants(pid: int) -> list[int]:
    table = subprocess.run(["ps", "-eo", "pid=,ppid="], capture_output=True, text=True).stdout.split()
    parents = dict(zip(map(int, table[::2]), map(int, table[1::2]), strict=True))
    found = [pid]
    for one in found:
        found += [child for child, parent in parents.items() if parent == one]
    return found[1:]


def alive(pid: int) -> bool:
    state = subprocess.run(["ps", "-p", str(pid), "-o", "stat="], capture_output=True, text=True).stdout
    return state[:1] not in "Z"


def test_the_code_dies_with_the_evaluation() -> None:
    program = f"""
import tempfile
from mlx_diffusiongemma.evaluation.sandbox import Limits, call
tempfile.tempdir = {tempfile.gettempdir()!r}
call("import time\\ndef f(): time.sleep(60)", "f", [[]], Limits(wall_seconds=60))
"""
    with subprocess.Popen([sys.executable, "-c", program]) as process:
        while len(children := descendants(process.pid)) < (3 if LINUX else 1):
            time.sleep(0.05)
        process.kill()
    for _ in range(100):
        if any(survivors := [child for child in children if alive(child)]):
            time.sleep(0.05)
    assert survivors == []
    for path in Path(tempfile.gettempdir()).iterdir():
        path.rmdir()


# --- machines that contain nothing ------------------------------------------------------------------------


@pytest.mark.parametrize("tool", ["missing", "broken"])
def test_code_that_nothing_contains_is_refused(tool: str, tmp_path_factory: Any, monkeypatch: Any) -> None:
    folder = tmp_path_factory.mktemp("bin")
    for name in ("bwrap", "sandbox-exec") if tool == "broken" else ():
        (folder / name).write_text("#!/bin/sh\necho 'no\tpermission' >&2; exit 1\n")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}")
    monkeypatch.setattr(sandbox, "allow_uncontained", False)  # another evaluation may have left it
    sandbox.problem.cache_clear()
    try:
        said = "does not work here (no permission)" if tool == "broken" else "there is no "
        assert said in sandbox.problem()
        with pytest.raises(InputError, match=r"cannot be contained: .*--unsafe-exec"):
            call("def f(): return 1", "f", [[]])
        monkeypatch.setattr(sandbox, "allow_uncontained", True)
        assert call("def f(): return 1", "f", [[]]).results == [1]
        many = "for n in range(10 ** 6): open(str(n), 'wb').write(bytes(1 << 20))"
        assert failed(attack(many)) == "disk limit of 4 MB"
    finally:
        sandbox.problem.cache_clear()


def test_the_profile_of_macos_names_both_spellings_of_a_path(tmp_path_factory: Any) -> None:
    place = tmp_path_factory.mktemp("place")
    (place / "link").symlink_to(place)
    profile = sandbox._profile(str(place / "link"), ["/library"])
    assert f'(subpath "{place}/link") (subpath "/library") (subpath "{place}")' in profile
