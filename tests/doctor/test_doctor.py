"""`mlx_dg doctor`: its report, its findings, and nothing in it that names a user, a machine or a place."""

from __future__ import annotations

import importlib
import os
import re
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlx.core as mx
import pytest
from click.testing import CliRunner
from support.examining import doctor, facts, findings
from support.kernel_defects import DEFECTS
from support.kernel_paths import ON_METAL, plug_in_emulator

from mlx_diffusiongemma.cli import main
from mlx_diffusiongemma.doctor import engine, examination, kernels, system, versions
from mlx_diffusiongemma.doctor.sheet import Sheet
from mlx_diffusiongemma.ops import metal

TITLES = ["Versions", "Device", "Kernels", "Engine", "Memory"]


@pytest.fixture(autouse=True)
def small_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "SIZES", ((96, 64, 12), (1100, 64, 40)))


# --- the report ---------------------------------------------------------------------------------------------


def test_nothing_is_wrong_here_and_nothing_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    def connect(*_: Any) -> None:
        raise AssertionError("a connection")

    monkeypatch.setattr(socket.socket, "connect", connect)
    result = doctor(monkeypatch)
    assert result.exit_code == 0, result.stdout
    assert re.findall(r"^### (.*)$", result.stdout, re.MULTILINE) == [*TITLES, "Verdict"]
    assert result.stdout.endswith("\nno problem found\n")
    assert ("- note: this is not a Mac" in result.stdout) != system.is_mac()
    assert result.stderr == ""  # not a terminal
    assert all(len(line) <= 120 for line in result.stdout.splitlines() if not line.startswith("- "))
    assert "Nothing is downloaded or sent." in " ".join(
        CliRunner().invoke(main, ["doctor", "-h"]).stdout.split()
    )


@pytest.mark.parametrize("title", TITLES)
def test_a_check_that_fails_is_a_finding_among_others(title: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The message may name anything, and goes to stderr."""

    def check(sheet: Sheet) -> None:
        sheet.facts([("half", "done")])
        raise OSError("no such \x1b[2J thing in /Users/jane")

    for name, module in examination.CHECKS.items():
        made = importlib.import_module(f"mlx_diffusiongemma.doctor.{module}")
        fine = lambda sheet, module=module: sheet.facts([(module, "made")])  # noqa: E731
        monkeypatch.setattr(made, "check", check if name == title else fine)
    result = doctor(monkeypatch)
    assert result.exit_code == 1
    assert findings(result, "problem") == [
        f"- problem: check {title} failed with OSError; standard error has its message, please report both"
    ]
    assert result.stderr == f"mlx_dg doctor: check {title}: OSError: no such \\x1b[2J thing in /Users/jane\n"
    others = dict.fromkeys((each for name, each in examination.CHECKS.items() if name != title), "made")
    assert facts(result) == others | {"half": "done"}


def test_no_text_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither values of variables nor names of unknown ones, nor messages of errors."""
    unsafe = ("MLX_METAL_DEBUG", "MLX_METAL_GPU_ARCH", "MLX_DG_KERNELS")
    for name in ("MLX_API_KEY", "MLX_JANE_X", *unsafe):
        monkeypatch.setenv(name, "/Users/jane")
    monkeypatch.setenv("MLX_MAX_MB_PER_BUFFER", "50")
    monkeypatch.setattr(engine, "load", lambda _: Path("/Users/jane/missing").read_text())
    result = doctor(monkeypatch)
    assert result.exit_code == 1
    assert "jane" not in result.stdout.lower()
    assert "jane" in result.stderr
    values = facts(result)
    assert values["MLX_MAX_MB_PER_BUFFER"] == "50"
    assert [values[name] for name in unsafe] == ["(set)"] * 3
    assert values["other MLX_* variables"] == "2"
    assert "MLX_DG_KERNELS may be auto, on or off" in result.stdout


def test_mlx_that_cannot_be_imported_is_one_problem() -> None:
    """In a process of its own, where nothing has imported it."""
    script = (
        "import sys; sys.modules['mlx.core'] = None; sys.argv = ['mlx_dg', 'doctor'];"
        "from mlx_diffusiongemma.cli import main; main()"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "import of mlx.core halted" in done.stderr
    problems = [line for line in done.stdout.splitlines() if line.startswith("- ")]
    assert problems == ["- problem: mlx cannot be imported; make a new environment and install again"]
    assert done.stdout.count("    not checked: mlx cannot be imported\n") == len(TITLES) - 1
    assert re.search(r"^    transformers +\d", done.stdout, re.MULTILINE)


# --- versions -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("changes", "problem"), [
    ({}, None),
    ({"mlx": ["0.31.9"], "mlx-metal": ["0.31.9"]}, "mlx 0.31.9 is older than 0.32.4; pip install --upg"),
    ({"mlx-metal": ["0.32.4"]}, "mlx-metal 0.32.4 does not belong to mlx 0.40.0; pip"),
    ({"mlx-metal": [], "mlx-cpu": ["0.32.4"]}, "mlx-cpu 0.32.4 does not belong to mlx 0.40.0; pip"),
    ({"mlx-lm": []}, "mlx-lm is not installed; pip install --upgrade 'mlx-lm>=0.31.3'"),
    ({"transformers": ["5.23.0", "5.9.1"]}, "transformers is installed more than once (5.23.0, 5.9.1)"),
])  # fmt: skip
def test_versions(
    changes: dict[str, list[str]], problem: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    newer = {name: ["10.0"] for name in versions._SHOWN} | {"mlx": ["0.40.0"], "mlx-metal": ["0.40.0"]}
    least = versions._minimums()
    assert least["mlx"] == "0.32.4"
    assert "torch" not in least  # of an extra
    monkeypatch.setattr(versions, "_installed", lambda name: (newer | changes).get(name, []))
    result = doctor(monkeypatch, "Versions")
    lines = findings(result, "problem")
    assert len(lines) == result.exit_code == (problem is not None)
    assert all(line.startswith(f"- problem: {problem}") for line in lines)


def test_kernels_that_are_switched_off_are_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    for switch, notes in [("off", 1), ("auto", 0)]:
        monkeypatch.setenv("MLX_DG_KERNELS", switch)
        assert len(findings(doctor(monkeypatch, "Versions"), "note")) == notes


def test_installations_over_each_other_are_seen(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for place, version in [("a", "1.0"), ("b", "2.0"), ("c", "2.0")]:
        info = tmp_path / place / f"two_fold-{version}.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: two-fold\nVersion: {version}\n")
        monkeypatch.syspath_prepend(str(tmp_path / place))
    assert versions._installed("two-fold") == ["1.0", "2.0"]
    assert versions._installed("no-such-package-here") == []


# --- kernels ------------------------------------------------------------------------------------------------

COMPLAINT = "program_source:12:3: error: undeclared 'y'"
emulated = pytest.mark.skipif(ON_METAL, reason="plants defects in the emulator; runs without Metal")


@emulated
def test_kernels_that_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    plug_in_emulator(monkeypatch)
    monkeypatch.setitem(metal.failures, "row_statistics", "it failed")  # compared as well
    result = doctor(monkeypatch, "Kernels")
    assert result.exit_code == 0, result.stdout
    assert result.stdout.count(" agrees\n") == len(re.findall("bfloat16|float32", result.stdout)) == 10
    assert "generations use the kernels" in result.stdout


@emulated
def test_a_kernel_that_is_wrong_and_one_that_does_not_compile(monkeypatch: pytest.MonkeyPatch) -> None:
    """The compiler's complaint about our own source is in the report, and nothing else of its message."""
    old, new = DEFECTS["row_statistics"]["temperature forgotten"]
    plug_in_emulator(monkeypatch, edits={"row_statistics": lambda source: source.replace(old, new)})
    call = metal.Kernel.__call__

    def refuse(kernel: metal.Kernel, *arguments: Any, **how: Any) -> Any:
        if kernel.name == "soft_embedding":
            raise RuntimeError(f"[metal] no library in /Users/jane\n{COMPLAINT}\n")
        return call(kernel, *arguments, **how)

    monkeypatch.setattr(metal.Kernel, "__call__", refuse)
    result = doctor(monkeypatch, "Kernels")
    assert result.exit_code == 1
    problems = "\n".join(findings(result, "problem"))
    assert "kernel row_statistics 1100 x 64 float32: entropy differs by " in problems
    assert f"kernel soft_embedding 96 x 64 bfloat16 ({COMPLAINT}) failed" in problems
    assert "accept_and_renoise" not in problems
    assert "jane" not in result.stdout
    assert "in /Users/jane" in result.stderr


def test_without_metal_the_reason_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metal, "available", lambda: (False, "because"))
    result = doctor(monkeypatch, "Kernels")
    assert result.exit_code == 0
    assert "    not checked: because\n    MLX operations are used instead\n" in result.stdout
    monkeypatch.setenv("MLX_DG_KERNELS", "on")
    assert "MLX_DG_KERNELS=on, but Metal kernels cannot run here; unset it" in doctor(monkeypatch).stdout


# --- the demo's answers -------------------------------------------------------------------------------------


def test_a_wrong_answer_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "KNOWN", (engine.KNOWN[0]._replace(answer="424"), *engine.KNOWN[1:]))
    result = doctor(monkeypatch, "Engine")
    assert result.exit_code == 1
    (line,) = findings(result, "problem")
    assert "answers '423' to 'What is 345 + 78?', not '424'" in line
    assert (result.stdout.count("WRONG"), result.stdout.count("as expected")) == (1, 2)


@pytest.mark.parametrize("differs", [False, True])
@pytest.mark.parametrize("switch", [None, "off"])
def test_ways_to_run_are_compared(differs: bool, switch: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a Mac: with kernels and compilation to switch off. Both are as before afterwards."""
    compiled = [True]
    monkeypatch.setattr(mx, "disable_compile", lambda: compiled.append(False))
    monkeypatch.setattr(mx, "enable_compile", lambda: compiled.append(True))
    monkeypatch.delenv("MLX_DISABLE_COMPILE", raising=False)
    monkeypatch.setattr(metal, "available", lambda: (True, ""))
    monkeypatch.setattr(engine, "on_gpu", lambda: True)
    monkeypatch.delenv("MLX_DG_KERNELS", raising=False)
    if switch is not None:
        monkeypatch.setenv("MLX_DG_KERNELS", switch)
    ways: list[tuple[str, bool]] = []

    def fake(_: Any, known: Any) -> Any:
        ways.append((os.environ.get("MLX_DG_KERNELS", "on"), compiled[-1]))
        ids = [1] if differs and ways[-1] != ways[0] else [2]
        stats = SimpleNamespace(peak_memory_gb=0.25)
        return SimpleNamespace(token_ids=ids, answer=known.answer, stats=stats), [1.0]

    monkeypatch.setattr(engine, "_run", fake)
    result = doctor(monkeypatch, "Engine")
    default, other = ("on", "off") if switch is None else ("off", "on")
    assert ways == [(default, True)] * 3 + [(other, True)] * 3 + [(default, False)] * 3
    assert compiled[-1]
    assert os.environ.get("MLX_DG_KERNELS") == switch
    values, expected = facts(result), "other tokens for 3 of 3 prompts" if differs else "same tokens"
    assert values["without the kernels" if switch is None else "with the kernels"] == expected
    assert values["without mx.compile"] == expected
    assert len(findings(result, "problem")) == 2 * differs


@emulated
@pytest.mark.parametrize("switch", ["auto", "on", "off"])
def test_a_kernel_that_fails_its_check_is_a_problem(switch: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With "off" the other way to run meets it. With "on" nothing can be generated."""
    old, new = DEFECTS["accept_and_renoise"]["bound not reached"]
    plug_in_emulator(monkeypatch, edits={"accept_and_renoise": lambda source: source.replace(old, new)})
    monkeypatch.setenv("MLX_DG_KERNELS", switch)
    monkeypatch.setattr(engine, "KNOWN", engine.KNOWN[1:2])
    result = doctor(monkeypatch, "Engine")
    (line,) = findings(result, "problem")
    assert ("generations run without Metal kernel accept_and_renoise" in line) == (switch == "auto")
    assert ("failed with InputError" in line) == (switch != "auto")
    assert ("Metal kernel accept_and_renoise fails its check" in result.stderr) == (switch != "auto")
    assert ("as expected" in result.stdout) == (switch != "on")


def test_steps_are_timed_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each canvas starts its clock at 0."""

    def generate(*_: Any, on_step: Any, **__: Any) -> str:
        for index, seconds in [(0, 3.0), (1, 3.5), (2, 4.5), (0, 0.25), (1, 0.75)]:
            on_step(SimpleNamespace(index=index, seconds=seconds))
        return "generation"

    monkeypatch.setattr(engine, "generate", generate)
    model: Any = (None, None)
    assert engine._run(model, engine.KNOWN[0]) == ("generation", [3.0, 0.5, 1.0, 0.25, 0.5])
