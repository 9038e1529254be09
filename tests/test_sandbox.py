"""What the sandbox gives back: results as JSON, exceptions, failures, limits, and nothing left behind."""

import sys
import tempfile
import textwrap

import pytest

from mlx_diffusiongemma.evaluation import sandbox
from mlx_diffusiongemma.evaluation.sandbox import Limits, call

QUICK = Limits(cpu_seconds=1, wall_seconds=60, memory_mb=200, disk_mb=4)
LINUX = sys.platform == "linux"


@pytest.fixture(autouse=True)
def leftovers(tmp_path, monkeypatch):
    """Temporary folders are made in a place of the test's own, which has to be empty in the end."""
    place = tmp_path / "temporary"
    place.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(place))
    yield place
    assert list(place.iterdir()) == []


def program(text):
    return textwrap.dedent(text)


def only(source, *arguments, limits=QUICK):
    """The result of one call of `f`; the program as a whole must not have failed."""
    outcome = call(program(source), "f", [arguments], limits=limits)
    assert outcome.failure is None, outcome
    (result,) = outcome.results
    return result


def failure(source, *arguments, limits=QUICK):
    outcome = call(program(source), "f", [arguments], limits=limits)
    assert outcome.results is None, outcome
    return outcome.failure


def test_calls_share_the_program_and_nothing_else_with_one_another():
    source = """
        def f(items, more=0):
            items.append(more)
            return items
    """
    same = [3, 1]
    outcome = call(program(source), "f", [[same], [same, 7], [[]]])
    assert outcome == sandbox.Outcome([[3, 1, 0], [3, 1, 7], [0]])
    assert same == [3, 1]


def test_a_result_is_what_it_was_when_the_call_returned():
    source = """
        kept = []
        def f(x):
            kept.append(x)
            return kept
    """
    assert call(program(source), "f", [[1], [2]]).results == [[1], [1, 2]]


def test_no_call_runs_the_program():
    assert call("print('ran')\ndef f(): pass", "f", []) == sandbox.Outcome([], None, "ran\n")


@pytest.mark.parametrize(
    ("expression", "result"),
    [
        ("(1, [2.5, None], {'a': True})", [1, [2.5, None], {"a": True}]),
        ("{1: 'x'}", {"1": "x"}),
        ("'\\ud800 ż\\x00'", "\ud800 ż\x00"),
        ("10 ** 30", 10**30),
        ("{'raised': 'no'}", {"raised": "no"}),
        ("{1}", {"raised": "TypeError: Object of type set is not JSON serializable"}),
        ("f", {"raised": "TypeError: Object of type function is not JSON serializable"}),
        ("(x for x in [1])", {"raised": "TypeError: Object of type generator is not JSON serializable"}),
        ("1 / 0", {"raised": "ZeroDivisionError: division by zero"}),
        ("__import__('sys').exit(3)", {"raised": "SystemExit: 3"}),
        ("[][0]", {"raised": "IndexError: list index out of range"}),
        ("bytes(10 ** 10)", {"raised": "MemoryError: memory limit of 200 MB"}),
        ("input()", {"raised": "EOFError: EOF when reading a line"}),
    ],
)
def test_what_a_call_returns(expression, result):
    if expression.startswith("bytes") and not LINUX:
        expression = "(_ for _ in ()).throw(MemoryError)"  # elsewhere there is as much as is not used
    assert only(f"def f():\n    return {expression}") == result


def test_how_deep_a_result_may_be():
    source = """
        def f(depth):
            value = 1
            for _ in range(depth):
                value = {"in": value} if depth % 2 else [value]
            return value
    """
    said = {"raised": "RecursionError: a result nested deeper than 100 levels"}
    results = call(program(source), "f", [[100], [101], [102], [0]]).results
    assert results[0] != said
    assert results[1:] == [said, said, 1]


@pytest.mark.parametrize("expression", ["float('nan')", "[float('-inf')]", "{'a': 1e999}"])
def test_numbers_that_json_lacks_are_no_result(expression):
    assert only(f"def f():\n    return {expression}")["raised"].startswith("ValueError: Out of range")


def test_messages_are_cut_and_may_fail_themselves():
    long = only("def f():\n    raise ValueError('x' * 10_000)")["raised"]
    assert long.startswith("ValueError: xxx")
    assert len(long) == 200
    source = """
        class Odd(Exception):
            def __str__(self):
                raise self
        def f():
            raise Odd
    """
    assert only(source) == {"raised": "Odd: (its message fails, too)"}


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("def f(:", "SyntaxError: invalid syntax"),
        ("x = '\0'", "null bytes"),
        ("x = '\ud800'", "surrogates not allowed"),
        ("(" * 10_000, "SyntaxError: too many nested parentheses"),
        ("print(y)", "NameError: name 'y' is not defined"),
        ("import numpy", "ModuleNotFoundError: No module named 'numpy'"),
        ("raise SystemExit(4)", "SystemExit: 4"),
        ("raise ValueError('two\\nlines \\x1b[31m \\ud800 red')", "ValueError: two lines [31m red"),
        ("def g(): pass", "no function named f"),
        ("f = 3", "no function named f"),
    ],
)
def test_what_fails_before_a_call(source, words):
    said = failure(source)
    assert words in said
    assert said.isprintable()


@pytest.mark.parametrize(
    ("statement", "said"),
    [
        ("while True: pass", "processor time limit of 1 s"),
        ("import time; time.sleep(60)", "time limit of 1 s"),
        ("while True: print('x' * 100)", "output limit of 64 kB"),
        ("import sys\n    while True: sys.stderr.write('x' * 100)", "output limit of 64 kB"),
        ("import os\n    while True: os.write(1, b'x' * 100)", "output limit of 64 kB"),
        ("return 'x' * 300_000", "result limit of 256 kB"),
        ("import os; os._exit(3)", "ended without an answer (exit status 3)"),
        ("import signal; signal.raise_signal(9)", "ended by signal 9 (Killed"),
    ],
)
def test_what_ends_a_program(statement, said):
    limits = Limits(cpu_seconds=1, wall_seconds=1) if "sleep" in statement else QUICK
    outcome = call(f"def f():\n    {statement}", "f", [[]], limits=limits)
    assert outcome.results is None
    assert outcome.failure.startswith(said)
    assert len(outcome.printed) == (64 * 1024 if "output" in said else 0)


def test_what_was_printed_is_kept_in_order_up_to_the_end():
    source = """
        import os, sys
        print("first ż")
        def f():
            print("second", file=sys.stderr)
            print("third")
            os._exit(0)
    """
    outcome = call(program(source), "f", [[]])
    assert outcome.printed == "first ż\nsecond\nthird\n"
    assert call("import sys; sys.stdout.buffer.write(b'\\xff')\ndef f(): pass", "f", []).printed == "\ufffd"


def test_the_standard_library_works():
    """C extensions loaded late, a database in memory and in a file, a class whose module is looked up."""
    source = """
        from __future__ import annotations
        import bisect, collections, csv, datetime, decimal, fractions, functools, hashlib, heapq, itertools
        import json, math, os, random, re, statistics, string, typing, unicodedata, uuid, zlib
        from dataclasses import asdict, dataclass

        @dataclass
        class Point:
            x: int

        def f(row):
            import sqlite3, tempfile
            for name in (":memory:", "file.db"):
                with sqlite3.connect(name) as database:
                    database.execute("CREATE TABLE t(a, b)")
                    database.execute("INSERT INTO t VALUES (?, ?)", row)
                (found,) = database.execute("SELECT * FROM t")
                database.close()
            os.rename("file.db", "other.db")
            os.remove("other.db")
            with tempfile.TemporaryFile("w+") as file:
                file.write("kept")
                file.seek(0)
                with open(file.fileno(), closefd=False) as same:
                    return [found, same.read(), asdict(Point(3)), hashlib.sha256(b"").hexdigest()[:8]]
    """
    assert only(source, [1, None]) == [[1, None], "kept", {"x": 3}, "e3b0c442"]


def test_the_surroundings_are_bare():
    source = """
        import os, resource, sys
        def f():
            flags = sys.flags
            os.lseek(0, 0, 0)
            stdin = os.read(0, 99).decode()
            bare = [dict(os.environ) == {"TMPDIR": os.getcwd()}, os.listdir(), sys.argv, sys.orig_argv]
            none = [resource.getrlimit(limit) for limit in (resource.RLIMIT_CORE, resource.RLIMIT_NPROC)]
            return bare + [flags.isolated, flags.no_site, stdin, none]
    """
    assert only(source) == [True, [], ["solution"], [], 1, 1, "", [[0, 0], [0, 0]]]


def test_nothing_that_waits_for_the_exit_holds_it_up():
    source = """
        import atexit, time
        class Endless:
            def __del__(self):
                while True:
                    pass
        kept = Endless()
        atexit.register(time.sleep, 60)
        def f():
            return "done"
    """
    assert only(source) == "done"


def test_the_process_starts_without_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("SECRET_TOKEN", "secret")
    bare = tmp_path / "child.py"
    bare.write_text("import os\nprint(sorted(os.environ))\n")
    monkeypatch.setattr(sandbox, "CHILD", bare)
    # LC_CTYPE is Python's own doing; macOS and its launcher add names with two underscores.
    printed = call("", "f", []).printed
    assert [name for name in eval(printed) if name != "LC_CTYPE" and not name.startswith("__")] == []
