"""`mlx_dg doctor`: what it finds on machines that are well and on machines that are not."""

from __future__ import annotations

import importlib
import os
import re
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from examining import doctor, facts, findings

from mlx_diffusiongemma.cli import main
from mlx_diffusiongemma.doctor import engine, examination, kernels, system, versions
from mlx_diffusiongemma.doctor.kernels import Shape
from mlx_diffusiongemma.doctor.sheet import Sheet, first_line, foreign
from mlx_diffusiongemma.ops import metal

TITLES = ["Versions", "Device", "Kernels", "Engine", "Memory"]


@pytest.fixture(autouse=True)
def small_shapes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "_SMALL", Shape(8, 1100, 64))
    monkeypatch.setattr(kernels, "_REAL", Shape(40, 1100, 64))
    monkeypatch.setattr(kernels, "_TIMED_RUNS", 1)


# --- the report ---------------------------------------------------------------------------------------------


def test_nothing_is_wrong_here_and_nothing_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    def connect(*_: Any) -> None:
        raise AssertionError("somebody connects")

    monkeypatch.setattr(socket.socket, "connect", connect)
    result = doctor(monkeypatch)
    assert result.exit_code == 0, result.stdout
    assert re.findall(r"^### (.*)$", result.stdout, re.MULTILINE) == [*TITLES, "Verdict"]
    assert result.stdout.endswith("\nno problem found\n")
    assert not findings(result, "problem")
    assert ("- note: this is not a Mac" in result.stdout) != system.is_mac()
    assert result.stderr == ""  # no terminal
    assert all(len(line) <= 120 for line in result.stdout.splitlines() if not line.startswith("- "))


@pytest.mark.parametrize("title", TITLES)
def test_a_check_that_fails_is_a_finding_and_the_others_are_made(
    title: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in examination.CHECKS.values():
        others = importlib.import_module(f"mlx_diffusiongemma.doctor.{module}")
        monkeypatch.setattr(others, "check", lambda sheet, module=module: sheet.facts([(module, "made")]))
    broken = importlib.import_module(f"mlx_diffusiongemma.doctor.{examination.CHECKS[title]}")

    def check(sheet: Sheet) -> None:
        sheet.facts([("half", "done")])
        raise OSError("no such \x1b[2J thing\nand more")

    monkeypatch.setattr(broken, "check", check)
    result = doctor(monkeypatch)
    assert result.exit_code == 1
    assert findings(result, "problem") == [
        f"- problem: check {title} failed: OSError: no such \\x1b[2J thing; please report it with this text"
    ]
    made = dict.fromkeys(
        (name for name in examination.CHECKS.values() if name != examination.CHECKS[title]), "made"
    )
    assert facts(result) == made | {"half": "done"}
    assert result.stdout.endswith("\n1 problem found\n")


def test_a_module_that_cannot_be_imported_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(examination, "CHECKS", {"Ghost": "ghost", "Memory": "memory"})
    result = doctor(monkeypatch)
    assert result.exit_code == 1
    assert "check Ghost failed: ModuleNotFoundError" in result.stdout
    assert "mixed-4bit" in result.stdout


def test_no_name_of_a_user_machine_or_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/Users/Jane Roe")
    monkeypatch.setenv("LOGNAME", "jroe")
    monkeypatch.setenv("MLX_API_KEY", "hf12345")
    monkeypatch.setenv("MLX_HOSTFILE", "jroe")
    monkeypatch.setenv("MLX_JROE_X", "1")
    monkeypatch.setenv("MLX_METAL_DEBUG", "/Users/Jane Roe/my secret/trace and /opt/secret/x.log of jroe")
    monkeypatch.setenv("MLX_METAL_GPU_ARCH", "JRoe")
    monkeypatch.setenv("MLX_MAX_MB_PER_BUFFER", "50")
    monkeypatch.setattr(socket, "gethostname", lambda: "janes-mac.local")
    monkeypatch.setattr(
        engine,
        "load",
        lambda _: open("/Users/Jane Roe/secret/missing"),  # noqa: SIM115
    )
    monkeypatch.setattr(system, "system_version", lambda: "macOS of Jroe on JANES-MAC in ~/secret")
    result = doctor(monkeypatch, "Versions", "Engine")
    assert result.exit_code == 1
    assert "No such file or directory: <path>; please report" in result.stdout
    told = facts(result)
    assert told["system"] == "macOS of <user> on <host> in <path>"
    assert (
        told.items()
        >= {
            "MLX_API_KEY": "(set)",
            "MLX_HOSTFILE": "(set)",
            "MLX_<user>_X": "(set)",
            "MLX_METAL_DEBUG": "(set)",
            "MLX_METAL_GPU_ARCH": "<user>",
            "MLX_MAX_MB_PER_BUFFER": "50",
            "MLX_ENABLE_TF32": "0",
        }.items()
    )
    for name in ("jane", "roe", "hf12345", "/users", "/opt", str(Path.cwd()), os.sep + "tmp"):
        assert name not in result.stdout.lower()


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("cannot read /Users/Jane Roe/my things, Jane's/x: no", "cannot read <path>"),
        ("cannot read '/Users/Jane Roe/x': no", "cannot read <path>: no"),
        ('cannot read "Jane O\'Neil/x y": no', "cannot read <path>: no"),
        ("cannot read '/Users/Jane' Roe/x': no", "cannot read <path> <path>"),
        ("in ~jane/x or so", "in <path>"),
        ("in '~jane' or so", "in <path> or so"),
        ("in a/b/../../Users/jane/x", "in <path>"),
        ("on //server/share/jane x", "on <path>"),
        ("at https://jane:secret@a.b/c d", "at <path>"),
        ("at C:\\Users\\Jane Roe", "at <path>"),
        ("(/Users/jane) of jane", "<path>"),
        ("JROE@Janes-Mac, janes-mac.LOCAL, jroe_x, jroes", "<user>@<host>, <host>, <user>_x, jroes"),
        ("/Users/jane\nis there", "<path> is there"),
        (
            "dlopen(/a b/core.so, 0x0002): tried: '/a b/c.so' (have 'arm64', need 'x86_64'), '/c' (no)",
            "<path>, 0x0002): tried: <path> (have 'arm64', need 'x86_64'), <path> (no)",
        ),
        ("the library of RICHARD ROE", "the library of <user>"),
        ("x" * 5000, "x" * 297 + "..."),
    ],
)
def test_what_others_wrote_names_nobody(text: str, told: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/Users/Richard Roe")
    monkeypatch.setenv("LOGNAME", "jroe")
    monkeypatch.setattr(socket, "gethostname", lambda: "Janes-Mac.local")
    assert foreign(text) == told


def test_a_compilers_complaint_is_told() -> None:
    error = RuntimeError("[metal] Unable to build /a/b\nprogram_source:3: note: here\nx:4:1: error: no 'y'\n")
    assert first_line(error) == "RuntimeError: [metal] Unable to build <path>: x:4:1: error: no 'y'"
    assert first_line(ValueError()) == "ValueError: "


# --- what a user can mend -----------------------------------------------------------------------------------


def test_mlx_that_cannot_be_imported_is_one_problem() -> None:
    """In a process of its own, where nothing has imported it."""
    script = (
        "import sys; sys.modules['mlx.core'] = None; sys.argv = ['mlx_dg', 'doctor'];"
        "from mlx_diffusiongemma.cli import main; main()"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (1, "")
    (problem,) = [line for line in done.stdout.splitlines() if line.startswith("- ")]
    assert problem.startswith(
        "- problem: mlx cannot be imported: ModuleNotFoundError: import of mlx.core halted"
    )
    assert problem.endswith("; make a new environment and install again")
    assert done.stdout.count("    not checked: mlx cannot be imported\n") == len(TITLES) - 1
    assert re.search(r"^    transformers +\d", done.stdout, re.MULTILINE)


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ("garbage", "MLX_DG_KERNELS is 'garbage'; it may be auto, on or off"),
        ("on", "MLX_DG_KERNELS=on, but Metal kernels cannot run: because; unset it to run without"),
    ],
)
def test_a_switch_that_cannot_be_had_is_told_once(
    value: str, problem: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metal, "available", lambda: (False, "because"))
    monkeypatch.setenv("MLX_DG_KERNELS", value)
    result = doctor(monkeypatch, "Kernels", "Engine")
    assert findings(result, "problem") == [f"- problem: {problem}"]
    assert result.stdout.endswith("\n1 problem found\n")


def test_help_promises_and_progress_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    text = " ".join(CliRunner().invoke(main, ["doctor", "--help"]).stdout.split())
    assert "nothing is sent anywhere" in text
    for module in examination.CHECKS.values():
        made = importlib.import_module(f"mlx_diffusiongemma.doctor.{module}")
        monkeypatch.setattr(made, "check", lambda _: None)
    told: list[str] = []
    examination.examine(lambda _: None, told.append)
    assert told == [f"checking {title.lower()} ..." for title in TITLES]


# --- versions -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "problems"),
    [
        ({}, []),
        (
            {"mlx": ["0.31.9"], "mlx-metal": ["0.31.9"]},
            ["mlx 0.31.9 is older than 0.32.4; pip install --upgrade 'mlx>=0.32.4'"],
        ),
        ({"mlx-metal": ["0.32.4"]}, ["mlx-metal 0.32.4 does not belong to mlx 0.40.0"]),
        ({"mlx-metal": [], "mlx-cpu": ["0.32.4"]}, ["mlx-cpu 0.32.4 does not belong to mlx 0.40.0"]),
        ({"mlx-lm": []}, ["mlx-lm is not installed; pip install --upgrade 'mlx-lm>=0.31.3'"]),
        ({"transformers": ["5.23.0", "5.9.1"]}, ["transformers is installed more than once (5.23.0, 5.9.1)"]),
    ],
)
def test_versions_that_do_not_fit(
    changes: dict[str, list[str]], problems: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    well = {
        "mlx": "0.40.0",
        "mlx-metal": "0.40.0",
        "mlx-lm": "0.32.10",
        "transformers": "5.23.0",
        "tokenizers": "0.23.3",
        "huggingface_hub": "2.0",
        "llguidance": "1.10.0",
        "numpy": "10.0",
    }
    found = {name: [version] for name, version in well.items()} | changes
    every = versions._minimums()
    assert every["mlx"] == "0.32.4"
    assert "torch" not in every  # of an extra
    monkeypatch.setattr(versions, "_minimums", lambda: {name: every[name] for name in well if name in every})
    monkeypatch.setattr(versions, "_installed", lambda name: found.get(name, []))
    result = doctor(monkeypatch, "Versions")
    told = findings(result, "problem")
    assert len(told) == len(problems)
    assert all(
        line.startswith(f"- problem: {text}") and "pip" in line
        for line, text in zip(told, problems, strict=True)
    )
    assert result.exit_code == bool(problems)


def test_kernels_that_are_switched_off_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    for switch, notes in [("off", 1), ("auto", 0)]:
        monkeypatch.setenv("MLX_DG_KERNELS", switch)
        told = findings(doctor(monkeypatch, "Versions"), "note")
        assert len(told) == notes
        assert all(line.startswith("- note: MLX_DG_KERNELS=off: ") for line in told)


def test_installations_over_each_other_are_seen(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for place, version in [("a", "1.0"), ("b", "2.0"), ("c", "2.0")]:
        info = tmp_path / place / f"two_fold-{version}.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: two-fold\nVersion: {version}\n")
        monkeypatch.syspath_prepend(str(tmp_path / place))
    assert versions._installed("two-fold") == ["1.0", "2.0"]
    assert versions._installed("no-such-package-here") == []
