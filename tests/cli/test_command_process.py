"""`mlx_dg` as a process: every way to start it, and that it ends whatever its threads do."""

from __future__ import annotations

import subprocess
import sys

import pytest

import mlx_diffusiongemma

pytestmark = pytest.mark.slow


def python(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("module", ["mlx_dg", "mlx_diffusiongemma"])
def test_the_module_is_the_command(module: str) -> None:
    done = python("-m", module, "--version")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"mlx_dg, version {mlx_diffusiongemma.__version__}\n"


# A thread that compiled something still runs when the command ends. The interpreter would wait for it, and
# abort (status 134) under a daemon thread, whose compile cache dies without an interpreter.
THREAD = """
import threading
import mlx.core as mx

compiled = threading.Event()

def work():
    mx.eval(mx.compile(lambda x: mx.exp(x) + 1)(mx.ones(3)))
    compiled.set()
    while True:
        sum(range(1000))  # wants the interpreter again and again

def load(name):
    threading.Thread(target=work, ).start()
    compiled.wait()
    {then}

import mlx_diffusiongemma
from mlx_diffusiongemma import cli
mlx_diffusiongemma.load = load
import sys
sys.argv = ["mlx_dg", "generate", "--model", "m", "hi"]
cli.run()
"""


@pytest.mark.parametrize(("then", "status", "line"), [
    ("raise mlx_diffusiongemma.InputError('no such model')", 2, "mlx_dg: error: no such model\n"),
    ("raise KeyboardInterrupt", 130, "mlx_dg: interrupted\n"),
    ("print('done'); sys.exit(0)", 0, ""),
])  # fmt: skip
def test_it_ends_while_threads_use_mlx(then: str, status: int, line: str) -> None:
    done = python("-c", THREAD.format(then=then))
    assert (done.returncode, done.stderr) == (status, line)
    assert done.stdout == ("done\n" if status == 0 else "")
