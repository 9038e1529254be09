"""The part of `mlx_dg doctor` that lets the bundled demo model answer."""

from __future__ import annotations

import os
from types import SimpleNamespace
from typing import Any

import mlx.core as mx
import pytest
from examining import doctor, facts, findings
from kernel_paths import ON_METAL, plug_in_emulator

from mlx_diffusiongemma.doctor import engine
from mlx_diffusiongemma.ops import metal


def canned(answer: str, token_ids: list[int]) -> SimpleNamespace:
    """A finished generation."""
    return SimpleNamespace(token_ids=token_ids, answer=answer, stats=SimpleNamespace(peak_memory_gb=0.25))


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
    monkeypatch.setattr(engine, "on_gpu", lambda: True)
    if switch is None:
        monkeypatch.delenv("MLX_DG_KERNELS", raising=False)
    else:
        monkeypatch.setenv("MLX_DG_KERNELS", switch)
    seen: list[tuple[str, bool]] = []

    def fake(_: Any, known: Any) -> Any:
        seen.append((os.environ.get("MLX_DG_KERNELS", "on"), way["compiled"]))
        tokens = [1] if differs and seen[-1] != seen[0] else [2]
        return canned(known.answer, tokens), [1.0]

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


@pytest.mark.skipif(ON_METAL, reason="broken kernels are for the emulator; runs wherever there is no Metal")
@pytest.mark.parametrize("switch", ["auto", "on", "off"])
def test_a_kernel_that_fails_its_check_is_a_problem(switch: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Switched off, it is met when the other way is tried; switched on, nothing can be generated."""
    plug_in_emulator(monkeypatch, edits={"accept_and_renoise": lambda source: f"undeclared; {source}"})
    monkeypatch.setenv("MLX_DG_KERNELS", switch)
    monkeypatch.setattr(engine, "_KNOWN", engine._KNOWN[1:2])
    result = doctor(monkeypatch, "Engine")
    assert result.exit_code == 1
    (line,) = findings(result, "problem")
    assert "Metal kernel accept_and_renoise" in line
    assert "fails its check" in line
    assert "undeclared" in line
    assert line.startswith("- problem: MLX_DG_KERNELS=on, but ") == (switch != "auto")
    assert ("as expected" in result.stdout) == (switch != "on")
    if switch == "auto":
        assert facts(result)["without the kernels"] == "same tokens"
    if switch == "off":
        assert facts(result)["with the kernels"] == "failed, see below"


# --- what is not compared, and times ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("gpu", "switch", "why_not"),
    [
        (False, None, "nothing is compiled on the CPU"),
        (True, "1", "MLX_DISABLE_COMPILE is set"),
        (True, None, ""),
    ],
)
def test_compilation_is_compared_where_there_is_some(
    gpu: bool, switch: str | None, why_not: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = mx.Device(mx.gpu if gpu else mx.cpu)
    monkeypatch.setattr(mx, "default_device", lambda: device)
    monkeypatch.delenv("MLX_DISABLE_COMPILE", raising=False)
    monkeypatch.delenv("MLX_DG_KERNELS", raising=False)
    if switch is not None:
        monkeypatch.setenv("MLX_DISABLE_COMPILE", switch)
    assert engine._variants()["without mx.compile"][1] == why_not


def test_steps_are_timed_from_one_to_the_next_and_each_canvas_starts_at_0(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def generate(*_: Any, on_step: Any, **__: Any) -> str:
        for index, seconds in [(0, 3.0), (1, 3.5), (2, 4.5), (0, 0.25), (1, 0.75)]:
            on_step(SimpleNamespace(index=index, seconds=seconds))
        return "generation"

    monkeypatch.setattr(engine, "generate", generate)
    model: Any = (None, None)
    assert engine._run(model, engine._KNOWN[0]) == ("generation", [3.0, 0.5, 1.0, 0.25, 0.5])


def test_the_first_step_of_all_is_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLX_DISABLE_COMPILE", raising=False)
    seconds = iter([[9.0, 0.1], [0.2, 0.3], [0.3]])
    monkeypatch.setattr(engine, "_run", lambda _, known: (canned(known.answer, []), next(seconds)))
    monkeypatch.setattr(engine, "_variants", dict)
    told = facts(doctor(monkeypatch, "Engine"))
    assert told["first step"] == "9000.0 ms, which on a GPU includes compilation"
    assert told["later steps"] == "250.0 ms (median)"
