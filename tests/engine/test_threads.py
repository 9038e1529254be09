"""Work in threads that have ended leaves nothing to the interpreter's end."""

from __future__ import annotations

import subprocess
import sys
import threading

import mlx.core as mx
import pytest

from mlx_diffusiongemma.checkpoint.loading import load
from mlx_diffusiongemma.generation import generate
from mlx_diffusiongemma.threads import release_at_thread_end

pytestmark = pytest.mark.slow

# Sixteen threads, so that an abort at exit (status 134, a race) is likely where they leave something.
ENCODE = """
import threading
import mlx.core as mx, mlx_dg
model, _ = mlx_dg.load("demo")

def encode():
    model.encode(mx.array([[2, 5, 7]]), model.make_cache())

threads = [threading.Thread(target=encode) for _ in range(16)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
"""


def test_the_interpreter_ends_after_work_in_threads() -> None:
    done = subprocess.run([sys.executable, "-c", ENCODE], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_thread_has_its_streams_until_it_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    released: list[int] = []
    monkeypatch.setattr(mx, "clear_streams", lambda: released.append(threading.get_ident()))
    model, tokenizer = load("demo")
    idents: list[int] = []

    def work() -> None:
        idents.append(threading.get_ident())
        for _ in range(2):
            assert str(generate(model, tokenizer, "What is 12 + 30?", seed=1)) == "42"
            assert released == []

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert released == idents
    release_at_thread_end()  # of the main thread: nothing
    assert released == idents
