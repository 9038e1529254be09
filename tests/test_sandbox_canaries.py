"""What the sandbox says of this machine, and of one where a layer of it is missing or nothing runs at all."""

import subprocess
import sys
import tempfile

import pytest

from mlx_diffusiongemma.errors import InputError
from mlx_diffusiongemma.evaluation import sandbox
from mlx_diffusiongemma.evaluation.sandbox import canaries, macos

LINUX = sys.platform == "linux"
NETWORK = "protection of the network"


@pytest.fixture(autouse=True)
def leftovers(tmp_path, monkeypatch):
    """Temporary folders are made in a place of the test's own, which has to be empty in the end."""
    place = tmp_path / "temporary"
    place.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(place))
    yield
    assert list(place.iterdir()) == []


def test_this_machine_holds_every_promise():
    assert sandbox.missing() == []


LIMITS = {"a processor time limit", "a limit on the size of a file"} | (
    {"a memory limit"} if LINUX else set()
)
FILES = {f"protection of other files from being {done}" for done in ("read", "written")}


@pytest.mark.parametrize(
    ("steps", "broken"),
    [
        (
            ["limit(limits)", "confine(folder)", "guard(folder)"],
            LIMITS | FILES | {"a process limit", NETWORK},
        ),
        (["confine(folder)"], FILES),
        (["guard(folder)"], set() if LINUX else FILES | {"a process limit", NETWORK}),
    ],
)
def test_what_is_not_held_is_named(steps, broken, tmp_path, monkeypatch):
    """A child that leaves out a step: missed is what it should have seen to and no other layer does."""
    source = sandbox.CHILD.read_text()
    for step in steps:
        assert source.count(f" {step}\n") == 1
        source = source.replace(f" {step}\n", " []\n")
    careless = tmp_path / "child.py"
    careless.write_text(source)
    for module in ("linux", "syscalls"):
        (tmp_path / f"{module}.py").write_text(sandbox.CHILD.with_name(f"{module}.py").read_text())
    monkeypatch.setattr(sandbox, "CHILD", careless)
    monkeypatch.setattr(macos, "works", lambda: False)
    assert set(canaries.broken_promises.__wrapped__()) == broken


@pytest.mark.parametrize(
    ("child", "why"),
    [
        ("raise SystemExit(7)", "ended without an answer (exit status 7)"),
        ("import sys\nsys.modules['sqlite3'] = None\n", "ModuleNotFoundError: import of sqlite3 halted"),
    ],
)
def test_where_no_program_runs_there_is_nothing_to_grade(child, why, tmp_path, monkeypatch):
    careless = tmp_path / "child.py"
    future, rest = "from __future__ import annotations\n", sandbox.CHILD.read_text()
    assert future in rest
    careless.write_text(
        rest.replace(future, future + child, 1).replace("        confine(folder)\n", "        pass\n")
    )
    monkeypatch.setattr(sandbox, "CHILD", careless)
    with pytest.raises(InputError) as caught:
        canaries.broken_promises.__wrapped__()
    assert str(caught.value).startswith(f"generated code cannot run here: {why}")
    assert "\n" not in str(caught.value)


def test_where_no_process_starts_there_is_nothing_to_grade(tmp_path, monkeypatch):
    monkeypatch.setattr(macos, "works", lambda: False)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    with pytest.raises(InputError, match="generated code cannot run here: FileNotFoundError: "):
        canaries.broken_promises.__wrapped__()


def test_the_sandbox_loads_neither_mlx_nor_numpy_nor_what_a_python_may_lack():
    code = (
        "import mlx_diffusiongemma.evaluation.sandbox.canaries, sys; "
        "print({'mlx', 'numpy', 'sqlite3'} & {*sys.modules})"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout == "set()\n"
