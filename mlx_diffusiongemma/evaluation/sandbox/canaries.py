"""Tries what the sandbox promises on this machine, with small programs that go the same way as any other."""

from __future__ import annotations

import json
import tempfile
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from functools import cache
from pathlib import Path

from mlx_diffusiongemma.errors import InputError
from mlx_diffusiongemma.evaluation.sandbox import Limits, Outcome, call

# Small enough to be reached at once.
WALL_SECONDS = 60  # nothing but the one that sleeps should need them, also on a busy machine
LIMITS = Limits(cpu_seconds=1, memory_mb=128, disk_mb=4)
# With what the programs below need, and a suite.
READY = "import socket, sqlite3\ndef f():\n    return 'ready'\n"
# Goes on for longer than the limit, and then gives up.
CPU = """
import time
def f():
    while time.process_time() < LONGER:
        pass
    return "went on"
""".replace("LONGER", str(LIMITS.cpu_seconds + 2))
SLEEP = "import time\ndef f():\n    time.sleep(60)\n"
# Touches the memory and keeps it for a while, for where somebody has to look.
MEMORY = """
import time
def f():
    kept = b"x" * (400 << 20)
    time.sleep(3)
    return len(kept)
"""
ONE_FILE = """
def f():
    with open("large", "wb", buffering=0) as file:
        for _ in range(3):
            file.write(bytes(1 << 20))
    return "written"
"""
MANY_FILES = """
import time
def f():
    for number in range(8):
        with open(str(number), "wb") as file:
            file.write(bytes(1 << 20))
    time.sleep(3)
    return "written"
"""
# These print "held" unless they got what they must not get: an attempt is a failure in any case.
FORK = """
import os, subprocess, sys
def f():
    try:
        if os.fork() == 0:
            os._exit(0)
        print("forked")
    except OSError:
        pass
    try:
        subprocess.run([sys.executable, "-c", "pass"])
        print("started")
    except OSError:
        print("held")
"""
# Nothing has to listen: "connection refused" is an answer, too. With UDP nothing is sent.
NETWORK = """
import socket
def f():
    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
        try:
            with socket.socket(socket.AF_INET, kind) as outward:
                outward.connect(("127.0.0.1", 9))
        except PermissionError:
            continue
        except OSError:
            pass
        print("connected")
    print("held")
"""
# SQLite opens files itself, where the audit hook does not look.
READ = """
import sqlite3
def f(path):
    try:
        print(len(open(path, "rb").read()))
    except OSError:
        pass
    try:
        connection = sqlite3.connect(":memory:")
        connection.execute("ATTACH ? AS outside", (path,))
        print(connection.execute("SELECT * FROM outside.secret").fetchall())
    except sqlite3.Error:
        print("held")
"""
WRITE = """
import sqlite3
def f(path):
    try:
        open(path, "a").write("x")
    except OSError:
        pass
    try:
        connection = sqlite3.connect(":memory:")
        connection.execute("ATTACH ? AS outside", (path,))
        connection.execute("CREATE TABLE outside.written(x)")
        connection.commit()
    except sqlite3.Error:
        pass
    print("held")
"""


@cache
def broken_promises() -> tuple[str, ...]:
    """The promises that do not hold here. Takes about a second: the processor time limit is in whole ones."""
    require_start()
    with tempfile.TemporaryDirectory(prefix="mlx-dg-canary-") as outside, ThreadPoolExecutor(4) as pool:
        secret, untouched = Path(outside, "secret"), Path(outside, "new")
        plant(secret)

        def run(source: str, *arguments: str, wall_seconds: float = WALL_SECONDS) -> Future[Outcome]:
            limits = replace(LIMITS, wall_seconds=wall_seconds)
            return pool.submit(call, source, "f", [arguments], limits=limits)

        # Beginning with those that take longest.
        stopped = {
            "a processor time limit": (run(CPU), "processor time limit"),
            "a wall time limit": (run(SLEEP, wall_seconds=1), "time limit of 1 s"),
            "a memory limit": (run(MEMORY), "memory limit"),
            "a limit on the size of all files": (run(MANY_FILES), "disk limit"),
            "a limit on the size of a file": (run(ONE_FILE), "file size limit"),
        }
        refused = {
            "a process limit": run(FORK),
            "protection of the network": run(NETWORK),
            "protection of other files from being read": run(READ, str(secret)),
            "protection of other files from being written": run(WRITE, str(untouched)),
        }
        broken = [
            name
            for name, (outcome, words) in stopped.items()
            if words not in (outcome.result().failure or json.dumps(outcome.result().results))
        ]
        broken += [name for name, outcome in refused.items() if outcome.result().printed != "held\n"]
        if untouched.exists():
            broken.append("protection of other files from being written")
    return tuple(dict.fromkeys(broken))


def require_start() -> None:
    """InputError where not even a harmless program runs: every answer would be graded as wrong."""
    try:
        outcome = call(READY, "f", [[]])
        if outcome.results == ["ready"]:
            return
        why = outcome.failure
    except OSError as error:
        why = f"{type(error).__name__}: {error}"
    raise InputError(
        f"generated code cannot run here: {why}; use a Python that starts with -I and has sqlite3, "
        "or a suite that runs no code"
    )


def plant(path: Path) -> None:
    """A database that a program outside could read."""
    import sqlite3  # a Python without it is told about by then

    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE secret(word)")
    connection.execute("INSERT INTO secret VALUES ('word')")
    connection.commit()
    connection.close()
