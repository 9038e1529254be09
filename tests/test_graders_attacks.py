"""Right answers that do harm on the way: the graders of the suites grade each as wrong, and say why."""

from __future__ import annotations

import os
import sqlite3
import sys
import tempfile
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from mlx_diffusiongemma.evaluation import sandbox
from mlx_diffusiongemma.evaluation.sandbox import Limits
from mlx_diffusiongemma.evaluation.suites import matrix, six
from mlx_diffusiongemma.evaluation.task import Grade, Reply

GRADERS = {task.name: task.grade for task in (*matrix.tasks(), *six.tasks())}
# No wall time that a busy machine reaches before the processor time.
SMALL = Limits(
    cpu_seconds=1, wall_seconds=60, memory_mb=128, file_mb=1, disk_mb=2, files=16, output_kb=16, result_kb=16
)
MERGE = "    return sorted(left + right)\n"
RANGES = """\
def page_ranges(pages):
    pages, parts = sorted({page for page in pages if page > 0}), []
    while pages:
        count = 1
        while count < len(pages) and pages[count] == pages[0] + count:
            count += 1
        run, pages = pages[:count], pages[count:]
        parts += [f"{run[0]}-{run[-1]}"] if count > 2 else map(str, run)
    return ", ".join(parts)
"""
OCTET = "(?:25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])"
IPV4 = rf"{OCTET}(?:\.{OCTET}){{3}}"
QUERY = """\
SELECT p.name FROM person AS p WHERE NOT EXISTS (SELECT 1 FROM person AS q WHERE q.manager_id = p.id)
AND p.city IS NOT 'Oslo'"""
REFUSED = "tried what is refused: "

# What is tried, with PATH a file outside, and what the reason says. The code goes on after any exception.
# Nothing here may do harm where it is not refused: files are the test's own, signals are 0.
SWALLOWED = {
    "open(PATH).read()": f"{REFUSED}open ",
    "open('/etc/passwd').read()": f"{REFUSED}open '/etc/passwd'",
    "open(PATH, 'a').write('x')": f"{REFUSED}open ",
    "open(PATH + '.new', 'w')": f"{REFUSED}open ",
    "import os; os.remove(PATH)": f"{REFUSED}os.remove ",
    "import os; os.listdir('/')": f"{REFUSED}os.listdir '/'",
    "import os; os.fork() or os._exit(0)": f"{REFUSED}os.fork",
    "import os; os.system('true')": f"{REFUSED}os.system",
    "import subprocess; subprocess.run(['true'])": f"{REFUSED}subprocess.Popen",
    "import threading\nwhile True: threading.Thread(target=print).start()": f"{REFUSED}_thread.start_",
    "import multiprocessing as m; m.get_context('spawn').Process(target=print).start()": f"{REFUSED}os.fork",
    "import socket; socket.socket()": f"{REFUSED}socket.__new__",
    "import urllib.request; urllib.request.urlopen('http://127.0.0.1:9')": f"{REFUSED}socket.",
    "import os; os.kill(os.getppid(), 0)": f"{REFUSED}os.kill",
    "import sqlite3; sqlite3.connect(PATH)": f"{REFUSED}sqlite3.connect ",
    "import os; os._exit(0)": "ended without an answer (exit status 0)",
    "while True: print('x' * 99)": "output limit of 16 kB",
    "for n in range(10 ** 6): open(str(n % 8), 'wb').write(bytes(1 << 19))": "disk limit of 2 MB",
    "for n in range(10 ** 6): open(str(n), 'wb').close()": "limit of 16 files",
    "import builtins\nfor n in list(vars(builtins)): setattr(builtins, n, None)": "ended without an answer",
    "import json; json.encoder.JSONEncoder.encode = lambda *_, **__: 'null'": "gave None, not ",
}
# What nobody has to swallow; those that take a second of processor time once each.
RAISED = {
    "import sys; sys.exit(0)": "SystemExit: 0",
    "kept = [b'x' * (1 << 20) for n in range(10 ** 4)]": "memory limit of 128 MB",
    "open('large', 'wb', buffering=0).writelines([bytes(1 << 19)] * 3)": "file size limit of 1 MB",
}
# A memory limit is an exception on Linux, which the code can swallow, and an end elsewhere.
LIMIT = {True: "processor time limit of 1 s", False: "memory limit of 128 MB"}
LINUX = sys.platform == "linux"
ENDLESS = (
    "while True: pass",
    "while True:\n    try: raise ValueError\n    except BaseException: pass",
    "kept = []\nwhile True:\n    try: kept.append(b'x' * (1 << 20))\n    except MemoryError: pass",
    "import os\nwhile True:\n    try: os.fork() or os._exit(0)\n    except OSError: pass",
)


@pytest.fixture(autouse=True)
def outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A database the code must neither read nor change; every temporary folder has to be gone in the end."""
    place = tmp_path / "temporary"
    place.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(place))
    monkeypatch.setattr(sandbox, "Limits", lambda: SMALL)
    file = tmp_path / "outside.db"
    connection = sqlite3.connect(file)
    connection.execute("CREATE TABLE secret(name)")
    connection.commit()
    connection.close()
    before = file.read_bytes()
    yield file
    assert file.read_bytes() == before
    assert list(place.iterdir()) == []
    assert sorted(os.listdir(tmp_path)) == ["outside.db", "temporary"]


def while_read(statements: str, path: Path) -> Grade:
    """The attack comes when the program is read, before anything is called."""
    return GRADERS["code_from_spec"](Reply(f"PATH = {str(path)!r}\n{statements}\n{RANGES}"))


def while_called(statements: str, path: Path) -> Grade:
    body = f"PATH = {str(path)!r}\n{statements}\n"
    return GRADERS["bugfix_merge"](Reply(f"def merge(left, right):\n{textwrap.indent(body, '    ')}{MERGE}"))


def swallowed(statements: str) -> str:
    return f"try:\n{textwrap.indent(statements, '    ')}\nexcept BaseException:\n    pass"


def assert_failed(grade: Grade, said: str) -> None:
    assert (grade.strict, grade.lenient) == (False, False)
    assert said in grade.reason
    assert grade.reason.isprintable()


def test_without_an_attack_they_are_right(outside: Path) -> None:
    harmless = swallowed("open('mine', 'w').write('x')\nopen('no such file')")
    assert while_called(harmless, outside) == Grade(True, True, details={"cases": 12, "passed": 12})
    assert while_read(harmless, outside).lenient
    assert GRADERS["regex_ipv4"](Reply(IPV4)).strict
    assert GRADERS["sql_null_trap"](Reply(f"{QUERY} ORDER BY p.name")).strict


@pytest.mark.parametrize("attack", [while_read, while_called])
@pytest.mark.parametrize(("statements", "said"), SWALLOWED.items())
def test_an_attack_that_is_swallowed(attack, statements, said, outside: Path) -> None:
    assert_failed(attack(swallowed(statements), outside), said)


@pytest.mark.parametrize("attack", [while_read, while_called])
@pytest.mark.parametrize(("statements", "said"), RAISED.items())
def test_an_attack_that_ends_in_an_exception(attack, statements, said, outside: Path) -> None:
    assert_failed(attack(statements, outside), said)


@pytest.mark.parametrize(
    ("attack", "statements"),
    [(while_called if n % 2 else while_read, statements) for n, statements in enumerate(ENDLESS)],
)
def test_an_attack_without_end(attack, statements, outside: Path) -> None:
    assert_failed(attack(swallowed(statements), outside), LIMIT[LINUX or "kept" not in statements])


def test_a_pattern_that_backtracks_without_end() -> None:
    for pattern in (rf"(?:(?:\d|.)*(?:.|\d)*)*!|{IPV4}", rf"{IPV4}|(?:(?:.?){{9}}){{9}}!"):
        assert_failed(GRADERS["regex_ipv4"](Reply(pattern)), "processor time limit of 1 s")


ENDLESS_ROWS = "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n)"


@pytest.mark.parametrize(
    ("query", "said"),
    [
        (f"{ENDLESS_ROWS} {QUERY} AND (SELECT count(*) FROM n) ORDER BY p.name", "processor time limit"),
        (f"{ENDLESS_ROWS} SELECT x FROM n", "gave [["),
        ("ATTACH 'PATH' AS outside", "OperationalError: unable to open database"),
        ("ATTACH 'PATH.new' AS outside", "OperationalError: unable to open database"),
        ("VACUUM INTO 'PATH.new'", "OperationalError: "),
        (f"{QUERY} AND writefile('PATH', 'x') ORDER BY p.name", "no such function: writefile"),
        (f"{QUERY} AND readfile('PATH') ORDER BY p.name", "no such function: readfile"),
        (f"{QUERY} AND load_extension('PATH') ORDER BY p.name", "OperationalError: not authorized"),
        (f"{QUERY} AND zeroblob(2000000000) ORDER BY p.name", "too big"),
        (f"{QUERY} ORDER BY p.name; DROP TABLE person", "one statement at a time"),
    ],
)
def test_a_query_that_does_harm(query: str, said: str, outside: Path) -> None:
    answer = query.replace("PATH", str(outside))
    assert_failed(GRADERS["sql_null_trap"](Reply(answer)), said)
