"""What was refused is told, though the code goes on; what an ordinary program does is refused nowhere."""

import textwrap

import pytest

from mlx_diffusiongemma.evaluation import sandbox
from mlx_diffusiongemma.evaluation.sandbox import call

MODULES = """
abc argparse array ast asyncio base64 bisect calendar cmath collections collections.abc colorsys
concurrent.futures contextlib contextvars copy csv dataclasses datetime decimal difflib dis doctest
email.message enum errno fnmatch fractions functools gc getopt gettext glob graphlib hashlib heapq hmac
html.parser http.client importlib.metadata inspect io ipaddress itertools json keyword linecache locale
logging marshal math mimetypes multiprocessing numbers operator os.path pathlib pickle pkgutil platform
pprint queue random re reprlib secrets select shlex shutil signal socket sqlite3 ssl stat statistics string
struct subprocess symtable sys tempfile textwrap threading time timeit tokenize traceback types typing
unicodedata unittest unittest.mock urllib.parse urllib.request uuid warnings weakref xml.etree.ElementTree
zipfile zlib zoneinfo
"""
# What ordinary programs do, examples of use and clumsy tests of their own included.
ORDINARY = """
import argparse, asyncio, calendar, contextlib, copy, csv, datetime, decimal, doctest, fractions, gettext
import glob, hashlib, inspect, io, json, linecache, locale, logging, os, pathlib, pickle, platform, queue
import random, re, shutil, sqlite3, statistics, string, sys, tempfile, threading, time, timeit, traceback
import unittest, uuid, warnings, zlib

class Doubled(unittest.TestCase):
    def test_double(self):
        self.assertEqual(double(2), 4)

def double(x):
    '''
    >>> double(3)
    6
    '''
    return 2 * x

def f():
    doctest.testmod()
    doctest.run_docstring_examples(double, globals())
    suite = unittest.defaultTestLoader.loadTestsFromTestCase(Doubled)
    passed = unittest.TextTestRunner().run(suite).wasSuccessful()
    with contextlib.suppress(OSError):
        inspect.getsource(double)
    traceback.print_stack()
    inspect.stack()
    warnings.warn("a warning", stacklevel=2)
    logging.basicConfig()
    logging.warning("a line", stack_info=True)
    with contextlib.suppress(SystemExit):
        argparse.ArgumentParser().parse_args(["--none"])
    with tempfile.TemporaryFile() as file, tempfile.NamedTemporaryFile("w+") as other:
        file.write(pickle.dumps(copy.deepcopy([tempfile.gettempdir()])))
        other.write("text")
        other.flush()
        kept = pathlib.Path(other.name).read_text()
    notes = pathlib.Path("notes.csv")
    notes.touch()
    notes.touch()
    with notes.open("w", newline="") as file:
        csv.writer(file).writerow([1, 2])
    shutil.copyfile(notes, "copy.csv")
    names = [sorted(os.listdir()), sorted(os.listdir(".")), sorted(glob.glob("*")), next(os.walk("."))[2]]
    os.replace("copy.csv", "notes.csv")
    notes.unlink()
    with contextlib.suppress(FileNotFoundError):
        open("input.txt")
    shutil.which("python3"), shutil.get_terminal_size(), os.path.expanduser("~"), os.path.exists("/etc")
    platform.system(), platform.python_version(), locale.getlocale(), os.cpu_count(), os.getpid(), os.getcwd()
    gettext.gettext("word"), calendar.month(2024, 2), uuid.uuid4(), random.SystemRandom().random()
    datetime.datetime.now().astimezone(), time.localtime(), timeit.timeit("1", number=10), threading.Lock()
    with sqlite3.connect(":memory:") as database:
        database.execute("CREATE TABLE t(a)")
    os.environ["MODE"] = "test"
    sys.setrecursionlimit(5000)
    sys.stdin.read()
    queue.Queue().put(1)
    return [passed, kept, all(sorted(names[0]) == sorted(n) for n in names)]
"""


def test_no_ordinary_module_is_refused_anything():
    source = "def f(name):\n    __import__(name)"
    names = MODULES.split()
    assert call(source, "f", [[name] for name in names]) == sandbox.Outcome([None] * len(names))


def test_what_ordinary_programs_do_is_refused_nothing():
    outcome = call(ORDINARY, "f", [[]])
    assert (outcome.failure, outcome.results) == (None, [[True, "text", True]]), outcome.printed


@pytest.mark.parametrize(
    ("attempt", "said"),
    [
        ("open('/etc/passwd')", "open '/etc/passwd'"),
        ("open(b'/etc/passwd', 'a')", "open b'/etc/passwd'"),
        ("open('/new\\nline', 'w')", r"open '/new\nline'"),
        ("open('/' + 'x' * 500)", "open '/" + "x" * 113),
        ("import os; os.listdir('/')", "os.listdir '/'"),
        ("import os; os.kill(0, 0)", "os.kill 0"),
        ("import os; os.fork()", "os.fork"),
        ("import subprocess; subprocess.run(['true'])", "subprocess.Popen 'true'"),
        ("import socket; socket.socket()", "socket.__new__"),
        ("import threading; threading.Thread(target=print).start()", "_thread.start_new_thread"),
        ("import _thread; _thread.start_new(print, ())", "_thread.start_new_thread"),
        ("import multiprocessing as m; m.get_context('spawn').Process(target=print).start()", "os.fork"),
        ("open('/a')\n    except OSError: pass\n    try: open('/b')", "open '/a'"),
    ],
)
def test_an_attempt_is_a_failure_though_the_code_goes_on(attempt, said):
    source = f"def f():\n    try: {attempt}\n    except Exception: pass\n    return 'went on'"
    outcome = call(source, "f", [[]])
    if "Thread" in attempt and outcome.failure != f"tried what is refused: {said}":
        said = "_thread.start_joinable_thread"  # its name in newer Pythons
    assert outcome == sandbox.Outcome(None, f"tried what is refused: {said}")


def test_an_attempt_while_the_program_is_read_or_fails():
    for end in ("", "raise ValueError", "raise SystemExit"):
        source = f"try: open('/a')\nexcept OSError: print('went on')\ndef f(): pass\n{end}"
        assert call(source, "f", [[]]) == sandbox.Outcome(
            None, "tried what is refused: open '/a'", "went on\n"
        )


def test_the_attempt_is_told_whatever_became_of_json_and_of_the_argument():
    source = textwrap.dedent("""
        import json, os
        class Name(str):
            def __repr__(self):
                raise ValueError
        def f(plain):
            for name in ["/a" if plain else Name("/b")]:
                try:
                    open(name)
                except OSError:
                    json.encoder.encode_basestring_ascii = json.dumps = lambda *a, **k: "null"
            return 1
    """)
    assert call(source, "f", [[True]]).failure == "tried what is refused: open '/a'"
    assert call(source, "f", [[False]]).failure == "tried what is refused: open"
