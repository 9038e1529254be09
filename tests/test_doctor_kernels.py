"""The part of `mlx_dg doctor` that holds kernels against MLX's operations, on Metal or the emulator."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import mlx.core as mx
import pytest
from examining import doctor, findings
from kernel_paths import ON_METAL, plug_in_emulator

from mlx_diffusiongemma.doctor import kernels
from mlx_diffusiongemma.doctor.kernels import TRIALS, Shape
from mlx_diffusiongemma.ops import metal
from mlx_diffusiongemma.ops.trials import FEWEST_ROWS


@pytest.fixture(autouse=True)
def small_shapes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "_SMALL", Shape(FEWEST_ROWS, 1100, 64))
    monkeypatch.setattr(kernels, "_REAL", Shape(40, 1100, 64))
    monkeypatch.setattr(kernels, "_TIMED_RUNS", 1)


def disturb(
    monkeypatch: pytest.MonkeyPatch, name: str, change: Callable[[list[mx.array]], Sequence[mx.array]]
) -> None:
    """The kernels run, on Metal or the emulator, and what one of them returns is changed."""
    if not ON_METAL:
        plug_in_emulator(monkeypatch)
    call = metal.Kernel.__call__

    def changed(kernel: metal.Kernel, *arguments: Any, **how: Any) -> Sequence[mx.array]:
        outputs = list(call(kernel, *arguments, **how))
        return change(outputs) if kernel.name == name else outputs

    monkeypatch.setattr(metal.Kernel, "__call__", changed)


def in_row(row: int, id: Callable[[mx.array], Any]) -> Callable[[mx.array], mx.array]:
    return lambda ids: mx.where(mx.arange(ids.size) == row % ids.size, id(ids), ids)


def at(index: int, change: Callable[[mx.array], mx.array]) -> Callable[[list[mx.array]], list[mx.array]]:
    return lambda outputs: [change(x) if i == index else x for i, x in enumerate(outputs)]


def another(x: mx.array) -> mx.array:
    return ~x if x.dtype == mx.bool_ else x + 1


def test_kernels_that_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    disturb(monkeypatch, "none", lambda outputs: outputs)
    result = doctor(monkeypatch, "Kernels")
    assert result.exit_code == 0, result.stdout
    lines = [line.split() for line in result.stdout.splitlines() if line.startswith("    ")]
    assert {line[0] for line in lines[1:-2]} == set(TRIALS)
    assert {" ".join(line[1:5]) for line in lines if line[0] == "row_statistics"} == {
        *("12 x 1100 bfloat16", "12 x 1100 float32", "40 x 1100 bfloat16", "40 x 1100 float32")
    }
    timed = [line for line in lines if re.fullmatch(r"\d+\.\d\d", line[-1])]
    assert len(timed) == 2 * (2 + 1 + 2)


@pytest.mark.parametrize(
    ("kernel", "change", "what"),
    [
        ("row_statistics", at(0, in_row(6, lambda x: x + 1)), "logit of the argmax"),
        ("row_statistics", at(0, in_row(5, lambda _: 700)), "argmax of equal logits, rows"),
        ("row_statistics", at(1, in_row(0, lambda x: x + 2)), "sample, probability"),
        ("row_statistics", at(1, in_row(0, lambda _: 1 << 20)), "sample, probability"),
        ("row_statistics", at(1, in_row(6, lambda x: x - 1)), "sample at an edge, rows"),
        ("row_statistics", at(1, in_row(3, lambda x: x // 3 * 3)), "sample, probability"),
        ("row_statistics", at(2, lambda x: x + 3e-4), "entropy, nats"),
        ("row_statistics", at(2, lambda x: x * mx.nan), "entropy, nats"),
        ("row_statistics", at(3, lambda x: x + 2e-4), "log normalizer"),
        ("row_statistics", at(4, lambda x: ~x), "invalid, rows"),
        ("row_statistics", at(5, lambda x: x + 2e-4), "chunk peaks"),
        *(
            ("accept_and_renoise", at(i, another), "ids, masks and counts, values")
            for i in (0, 1, 2, 3, 5, 6)
        ),
        ("accept_and_renoise", at(4, lambda x: x + 1e-3), "mean entropy, nats"),
        ("soft_embedding", at(0, lambda x: mx.where(x == 0, 0, x + 7e-4)), "embedding, relative"),
        ("soft_embedding", at(0, lambda x: mx.concatenate([x[1:-1], x[:1], x[-1:]])), "embedding, relative"),
        ("soft_embedding", at(1, in_row(3, lambda x: x + 2e-4)), "left out, probability"),
        ("soft_embedding", at(1, in_row(-2, lambda x: x + 3e-5)), "left out of a tail, probability"),
        ("soft_embedding", at(0, lambda x: mx.where(x == 0, 1e-6, x)), "flat rows that are summed"),
        ("soft_embedding", at(1, mx.zeros_like), "flat rows taken as covered"),
    ],
)  # fmt: skip
def test_a_kernel_that_disagrees_is_found_by_that_comparison_alone(
    kernel: str, change: Any, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    disturb(monkeypatch, kernel, change)
    make, dtypes = TRIALS[kernel]
    monkeypatch.setattr(kernels, "TRIALS", {kernel: (make, dtypes[:1])})
    monkeypatch.setattr(kernels, "_REAL", kernels._SMALL)
    result = doctor(monkeypatch, "Kernels")
    assert result.exit_code == 1
    found = findings(result, "problem")
    assert all(line.startswith(f"- problem: kernel {kernel} at ") for line in found)
    assert {re.search(r"32: (.*) differs|16: (.*) differs", line)[0].split(": ")[1] for line in found} == {  # type: ignore[index]
        f"{what} differs"
    }
    assert "MLX_DG_KERNELS=off" in found[0]


@pytest.mark.parametrize("kernel", TRIALS)
def test_a_kernel_that_does_not_compile_is_found_and_the_others_are_compared(
    kernel: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: list[mx.array]) -> list[mx.array]:
        raise RuntimeError("[metal::Device] Unable to build metal library\nx:12:3: error: undeclared 'y'\n")

    disturb(monkeypatch, kernel, refuse)
    result = doctor(monkeypatch, "Kernels")
    assert result.exit_code == 1
    found = findings(result, "problem")
    assert len(found) == result.stdout.count("failed, see below") == 2 * len(TRIALS[kernel][1])
    assert all("Unable to build metal library: x:12:3: error: undeclared 'y'" in line for line in found)
    assert all(name in result.stdout for name in TRIALS)


def test_a_kernel_that_is_switched_off_is_compared_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    disturb(monkeypatch, "row_statistics", at(2, lambda x: x + 3e-4))
    monkeypatch.setitem(metal.failures, "row_statistics", "it failed")
    result = doctor(monkeypatch, "Kernels")
    assert all("entropy, nats differs" in line for line in findings(result, "problem"))
    assert len(findings(result, "problem")) == 4


def test_without_metal_the_reason_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metal, "available", lambda: (False, "because"))
    result = doctor(monkeypatch, "Kernels")
    assert result.exit_code == 0
    assert "    not checked: because\n    MLX operations are used instead\n" in result.stdout
    monkeypatch.setenv("MLX_DG_KERNELS", "on")
    assert "MLX_DG_KERNELS=on, but Metal kernels cannot run: because" in doctor(monkeypatch).stdout


def test_a_small_machine_takes_fewer_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    real = Shape(256, 262144, 2816)
    for usable, rows in [(None, 256), (2**33, 256), (2**30, 85), (2**20, 12)]:
        monkeypatch.setattr(kernels, "usable_memory", lambda usable=usable: usable)
        assert kernels._affordable(real) == real._replace(rows=rows)


def test_what_is_timed_is_computed_and_not_only_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    evaluate, seen = mx.eval, []
    monkeypatch.setattr(mx, "eval", lambda *what: [seen.append(what), evaluate(*what)])
    result = mx.zeros((1,))
    kernels._milliseconds(lambda: result)
    assert seen == [(result,)] * kernels._TIMED_RUNS
