"""`mlx_dg doctor`: what it finds on machines that are well and on machines that are not."""

from __future__ import annotations

import importlib
import os
import re
import socket
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlx.core as mx
import pytest
from click.testing import CliRunner
from examining import doctor, facts, findings

from mlx_diffusiongemma.cli import main
from mlx_diffusiongemma.doctor import engine, examination, kernels, system, versions
from mlx_diffusiongemma.doctor.sheet import Sheet, first_line, foreign
from mlx_diffusiongemma.doctor.trials import Shape
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
        f"- problem: check {title} failed: OSError: no such  [2J thing; please report it with this text"
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
    monkeypatch.setenv("MLX_METAL_DEBUG", "/Users/Jane Roe/my secret/trace and /opt/secret/x.log of jroe")
    monkeypatch.setattr(socket, "gethostname", lambda: "janes-mac.local")
    monkeypatch.setattr(
        engine,
        "load",
        lambda _: open("/Users/Jane Roe/secret/missing"),  # noqa: SIM115
    )
    monkeypatch.setattr(system, "system_version", lambda: "macOS of jroe on janes-mac in ~/secret")
    result = doctor(monkeypatch)
    assert result.exit_code == 1
    assert "No such file or directory: '.../missing'" in result.stdout
    assert "macOS of <user> on <host> in .../secret" in result.stdout
    assert ".../x.log of <user>" in result.stdout
    for name in ("Jane", "jroe", "janes-mac", "/Users", "/opt", str(Path.cwd()), os.sep + "tmp"):
        assert name not in result.stdout
    assert not re.search(r"(?<![\w.])/\w", result.stdout)


def test_what_is_no_path_stays_and_a_compilers_complaint_is_told() -> None:
    assert (
        foreign("1 / 2 tokens/s, https://a.b/c, and/or </p>") == "1 / 2 tokens/s, https://a.b/c, and/or </p>"
    )
    assert len(foreign("x" * 5000)) == 300
    error = RuntimeError("[metal] Unable to build\nprogram_source:3: note: here\nx:4:1: error: no 'y'\n")
    assert first_line(error) == "RuntimeError: [metal] Unable to build: x:4:1: error: no 'y'"
    assert first_line(ValueError()) == "ValueError: "


def test_help_promises_and_progress_is_told() -> None:
    text = " ".join(CliRunner().invoke(main, ["doctor", "--help"]).stdout.split())
    assert "nothing is sent anywhere" in text
    told: list[str] = []
    examination.examine(lambda _: None, told.append)
    assert told == [f"checking {title.lower()} ..." for title in TITLES]


# --- versions -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "problems"),
    [
        ({}, []),
        ({"mlx": ["0.31.9"], "mlx-metal": ["0.31.9"]}, ["mlx 0.31.9 is older than 0.32.1"]),
        ({"mlx-metal": ["0.32.1"]}, ["mlx-metal 0.32.1 does not belong to mlx 0.40.0"]),
        ({"mlx-lm": []}, ["mlx-lm is not installed"]),
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
    assert every["mlx"] == "0.32.1"
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


def test_installations_over_each_other_are_seen(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for place, version in [("a", "1.0"), ("b", "2.0"), ("c", "2.0")]:
        info = tmp_path / place / f"two_fold-{version}.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: two-fold\nVersion: {version}\n")
        monkeypatch.syspath_prepend(str(tmp_path / place))
    assert versions._installed("two-fold") == ["1.0", "2.0"]
    assert versions._installed("no-such-package-here") == []


# --- the engine ---------------------------------------------------------------------------------------------


def test_a_wrong_answer_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    known = (engine._Known("What is 345 + 78?", True, "424"), *engine._KNOWN[1:])
    monkeypatch.setattr(engine, "_KNOWN", known)
    result = doctor(monkeypatch, "Engine")
    assert result.exit_code == 1
    (line,) = findings(result, "problem")
    assert "answers '423' to 'What is 345 + 78?', not '424'" in line
    assert result.stdout.count("WRONG") == 1
    assert result.stdout.count("as expected") == 2


@pytest.mark.parametrize("differs", [False, True])
@pytest.mark.parametrize("switch", [None, "off"])
def test_every_way_to_run_is_held_against_the_default(
    differs: bool, switch: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a Mac: with kernels and compilation to switch off. Nothing stays switched."""
    way = {"compiled": True}
    monkeypatch.setattr(mx, "disable_compile", lambda: way.update(compiled=False))
    monkeypatch.setattr(mx, "enable_compile", lambda: way.update(compiled=True))
    monkeypatch.delenv("MLX_DISABLE_COMPILE", raising=False)
    monkeypatch.setattr(metal, "available", lambda: (True, ""))
    monkeypatch.setattr(engine, "_on_gpu", lambda: True)
    if switch is None:
        monkeypatch.delenv("MLX_DG_KERNELS", raising=False)
    else:
        monkeypatch.setenv("MLX_DG_KERNELS", switch)
    run, seen = engine._run, []

    def fake(model: Any, known: Any) -> Any:
        seen.append((os.environ.get("MLX_DG_KERNELS", "on"), way["compiled"]))
        with monkeypatch.context() as here:
            here.setattr(metal, "available", lambda: (False, "not here"))
            here.setenv("MLX_DG_KERNELS", "off")
            generation, steps = run(model, known)
        tokens = [1] if differs and seen[-1] != seen[0] else [2]
        return SimpleNamespace(token_ids=tokens, answer=generation.answer, stats=generation.stats), steps

    monkeypatch.setattr(engine, "_run", fake)
    result = doctor(monkeypatch, "Engine")
    default, other = ("on", "off") if switch is None else ("off", "on")
    assert seen == [(default, True)] * 3 + [(other, True)] * 3 + [(default, False)] * 3
    assert way["compiled"]
    assert os.environ.get("MLX_DG_KERNELS") == switch
    told, expected = facts(result), "other tokens for 3 of 3 prompts" if differs else "same tokens"
    assert told["without the kernels" if switch is None else "with the kernels"] == expected
    assert told["without mx.compile"] == expected
    assert len(findings(result, "problem")) == 2 * differs
    assert result.exit_code == differs
