"""The command `mlx_dg bench`: what is printed where, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import MagicMock, Mock

import pytest
from click.testing import CliRunner, Result
from oracle import tiny

from mlx_diffusiongemma.bench import cost, hardware, measure, report, sweep, synthetic
from mlx_diffusiongemma.cli import main
from mlx_diffusiongemma.config import released
from mlx_diffusiongemma.config.model import ModelConfig
from mlx_diffusiongemma.engine import memory
from mlx_diffusiongemma.model import DiffusionGemma

ROUGH = ModelConfig.from_dict(tiny.config(tiny.ROUGH, "original"))
HIGH = hardware.Ceilings("a chip", 1e4, 500.0, "measured")
KEYS = [
    *("model", "layers", "weights_gb", "dtype", "device", "metal_kernels", "versions", "ceilings"),
    *("steps", "seed", "points", "generation"),
]
POINT_KEYS = """
    prompt_tokens canvas_length prefill_seconds prefill_tokens_per_second step_seconds
    in_step_tokens_per_second body_seconds logits_seconds sampler_seconds
    soft_embedding_seconds parts_sum_seconds encode_canvas_seconds dense_soft_embedding_rows peak_memory_gb
    step_gb step_tflop bandwidth_fraction arithmetic_fraction needed
    """.split()  # noqa: SIM905


def invoke(*arguments: str) -> Result:
    result = CliRunner().invoke(main, ["bench", *arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


@pytest.fixture
def quick_ceilings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Higher ones than any machine's, on this model."""
    monkeypatch.setattr(sweep, "ceilings", lambda dtype: HIGH)
    monkeypatch.setattr(sweep, "probe", lambda dtype: (1.0, 0.1))


# --- the command --------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("quick_ceilings")
def test_demo() -> None:
    result = invoke("--prompt-tokens", "9,30", "--canvas-lengths", "5,8", "--steps", "1", "--seed", "4")
    assert result.exit_code == 0
    (line,) = result.stdout.splitlines()
    found = json.loads(line)
    assert list(found) == KEYS
    assert (found["model"], found["layers"], found["steps"], found["seed"]) == ("demo", 4, 1, 4)
    assert found["ceilings"] == vars(HIGH)
    points = found["points"]
    assert [(p["prompt_tokens"], p["canvas_length"]) for p in points] == [(9, 5), (9, 8), (30, 5), (30, 8)]
    for point in points:
        assert list(point) == POINT_KEYS
        step_seconds = point["step_seconds"]
        expected = {
            "in_step_tokens_per_second": point["canvas_length"] / step_seconds,
            "prefill_tokens_per_second": point["prompt_tokens"] / point["prefill_seconds"],
            "parts_sum_seconds": sum(point[f"{part}_seconds"] for part in measure.PARTS),
            "step_gb": sum(part["gb"] for part in point["needed"].values()),
            "bandwidth_fraction": point["step_gb"] / step_seconds / 1e4,
            "arithmetic_fraction": point["step_tflop"] / step_seconds / 500,
        }
        assert {name: point[name] for name in expected} == pytest.approx(expected)
        assert point["peak_memory_gb"] > found["weights_gb"]
    generation = found["generation"]
    assert list(generation) == ["prompt", *sweep.GENERATION]
    assert generation["tokens_per_forward"] > 0
    assert generation["gross_tokens_per_second"] >= generation["net_tokens_per_second"] > 0
    assert f"{generation['steps_per_block']:.1f} steps per block" in result.stderr
    assert "a chip (at most, measured here): 1e+04 GB/s, 500 TFLOP/s" in result.stderr


@pytest.mark.usefixtures("quick_ceilings")
def test_synthetic(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    monkeypatch.setattr(released, "real_config", lambda layers: (asked.append(layers), ROUGH)[1])
    result = invoke("--model", "synthetic:26b", "--layers", "6", "--prompt-tokens", "3", "--steps", "1")
    assert result.exit_code == 0, result.stderr
    assert asked == [6]
    found = json.loads(result.stdout)
    assert list(found) == KEYS
    assert found["generation"] == dict.fromkeys(["prompt", *sweep.GENERATION])
    (point,) = found["points"]
    assert (point["prompt_tokens"], point["canvas_length"]) == (3, ROUGH.canvas_length)
    assert 0 <= point["dense_soft_embedding_rows"] <= ROUGH.canvas_length
    assert "One generation: - steps per block, - tokens per forward\n" in result.stderr
    assert "in-step -, gross -, net -" in result.stderr


@pytest.mark.usefixtures("quick_ceilings")
def test_points_are_timed_as_generations_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """With MLX's memory wired."""
    limits: list[str] = []

    @contextmanager
    def limit() -> Iterator[None]:
        limits.append("open")
        yield
        limits.append("closed")

    point = timed(1.0, 1.0)
    monkeypatch.setattr(sweep, "wired_limit", limit)
    monkeypatch.setattr(sweep, "measure", lambda *arguments: (limits.append("timed"), point())[1])
    sweep.measured(DiffusionGemma(ROUGH), "a model", [(3, 4), (5, 6)], steps=1, seed=0)
    assert limits == ["open", "timed", "timed", "closed"]


def step_needs(model: DiffusionGemma) -> cost.Cost:
    """Return the needs of a step of 4 positions behind 3."""
    stored = cost.stored_bytes(model)
    return cost.total(cost.step_cost(ROUGH, stored, prefix=3, canvas=4, itemsize=4, dense_rows=0))


def timed(*seconds: float) -> Any:
    """Instead of `measure`: points whose steps take so long."""
    remaining = iter(seconds)
    parts = dict.fromkeys(measure.PARTS, 1.0)
    return lambda *_: measure.Times(1.0, next(remaining), parts, 1.0, 0.0, 1)


@pytest.mark.parametrize(
    "probes", [[(2.0, 0.1), (9.0, 0.2), (3.0, 0.6)], [(0.1, 0.1), (0.1, 0.1), (0.1, 0.1)]]
)
def test_a_measured_ceiling_is_the_best_of_the_probes_and_of_the_steps(
    probes: list[tuple[float, float]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other work may slow a probe: the first one, before the points, or one that follows a point."""
    model, remaining = DiffusionGemma(ROUGH), iter(probes)
    for module in (hardware, sweep):
        monkeypatch.setattr(module, "probe", lambda dtype: next(remaining))
    needed = step_needs(model)
    monkeypatch.setattr(sweep, "measure", timed(needed.nbytes / 0.5e9, needed.nbytes / 1e9))
    found = sweep.measured(model, "a model", [(3, 4), (3, 4)], steps=1, seed=0)
    limits, points = found["ceilings"], found["points"]
    assert limits["source"] == "measured"
    assert limits["bandwidth_gb_per_second"] == pytest.approx(max(1.0, *(gb for gb, _ in probes)))
    assert limits["arithmetic_tflop_per_second"] == max(tflop for _, tflop in probes)
    fractions = [point["bandwidth_fraction"] * limits["bandwidth_gb_per_second"] for point in points]
    assert fractions == pytest.approx([0.5, 1])


@pytest.mark.parametrize(("bandwidth", "ceiling", "source", "said"), [
    (34, 68, "table", "Apple M1 (at most, from a table): 68 GB/s, 2.62 TFLOP/s"),
    (136, 136, "exceeded", "Apple M1 (at most, steps here exceed the table): 136 GB/s, 2.62 TFLOP/s"),
])  # fmt: skip
def test_a_step_beyond_the_table_is_the_ceiling(
    bandwidth: float, ceiling: float, source: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = DiffusionGemma(ROUGH)
    monkeypatch.setattr(sweep, "ceilings", lambda dtype: hardware.from_table("Apple M1"))
    needed = step_needs(model)
    monkeypatch.setattr(sweep, "measure", timed(needed.nbytes / (bandwidth * 1e9)))
    found = sweep.measured(model, "a model", [(3, 4)], steps=1, seed=0)
    assert found["ceilings"]["source"] == source
    assert found["ceilings"]["bandwidth_gb_per_second"] == pytest.approx(ceiling)
    assert found["points"][0]["bandwidth_fraction"] == pytest.approx(bandwidth / ceiling)
    assert said in report.table(found | {"generation": dict.fromkeys(["prompt", *sweep.GENERATION])})


def test_default_sweep(monkeypatch: pytest.MonkeyPatch) -> None:
    """The prompt lengths that fit: the demo's context of 4096 has no room for 4096 and a canvas."""
    stop = Mock(side_effect=KeyboardInterrupt)
    monkeypatch.setattr(sweep, "measured", stop)
    monkeypatch.setattr(sweep, "generate", lambda *_, **__: MagicMock())
    assert invoke().exit_code == 130
    assert stop.call_args.args[1:] == ("demo", [(128, 64), (1024, 64)], 8, 0)
    assert invoke("--prompt-tokens", "4032").exit_code == 130
    assert stop.call_args.args[2] == [(4032, 64)]


def test_table_fits_a_terminal() -> None:
    """With the largest figures that are likely."""
    config = released.real_config()
    stored = cost.stored_bytes(synthetic.quantized_skeleton(config))
    parts = cost.step_cost(config, stored, prefix=200_000, canvas=256, itemsize=4, dense_rows=256)
    keys = [key for key in POINT_KEYS if key.endswith("_seconds")]
    point = dict.fromkeys(POINT_KEYS, 1.5) | dict.fromkeys(keys, 99.99)
    point |= {"prompt_tokens": 200_000, "canvas_length": 256, "prefill_tokens_per_second": 99999.9}
    point["needed"] = {
        name: {"gb": part.nbytes / 1e9, "tflop": part.flop / 1e12} for name, part in parts.items()
    }
    text = report.table(
        {
            "model": "mlx-community/diffusiongemma-26B-A4B-it-4bit",
            "layers": 30,
            "weights_gb": 15.4,
            "dtype": "bfloat16",
            "device": "gpu",
            "versions": {"mlx": "0.32.4"},
            "ceilings": vars(hardware.from_table("Apple M3 Ultra")),
            "points": [point, point],
            "generation": dict.fromkeys(sweep.GENERATION, 12345.6),
        }
    )
    assert max(map(len, text.splitlines())) <= 100
    assert "Apple M3 Ultra (at most, from a table): 819 GB/s, 28.6 TFLOP/s" in text


def test_small_steps_are_shown_in_small_units() -> None:
    small = dict.fromkeys(POINT_KEYS, 0) | {"step_gb": 0.0123, "step_tflop": 0.000456, "needed": {}}
    shown = report._needed(small)
    assert shown.splitlines()[0].split()[-2:] == ["MB", "GFLOP"]
    assert shown.splitlines()[-1].split() == ["all", "12.300", "0.456"]


# --- bad input ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("arguments", "complaint"), [
    (["--model", "synthetic:foo"], "'synthetic:foo' is unknown; random weights exist as synthetic:26b"),
    (["--layers", "4"], "--layers 4: only for synthetic models, and demo is not one"),
    (["--model", "synthetic:26b", "--layers", "0"], "--layers must be from 1 to 30, found 0"),
    (["--model", "synthetic:26b", "--layers", "31"], "--layers must be from 1 to 30, found 31"),
    (["--model", "synthetic:26b", "--layers", "x"], "'x' is not a valid integer"),
    (["--model", "synthetic:26b", "--prompt-tokens", "262000"], "need more than the 262144 positions"),
    (["--prompt-tokens", "0"], "--prompt-tokens must be whole numbers above 0"),
    (["--prompt-tokens", "8,"], "--prompt-tokens must be whole numbers above 0"),
    (["--prompt-tokens", "1_0"], "--prompt-tokens must be whole numbers above 0"),
    (["--prompt-tokens", "9" * 5000], "--prompt-tokens must be whole numbers above 0"),
    (["--prompt-tokens", "-3"], "--prompt-tokens must be whole numbers above 0"),
    (["--prompt-tokens", "8,4033"], "prompts may have 4032 tokens"),
    (["--canvas-lengths", "8,x"], "--canvas-lengths must be whole numbers above 0"),
    (["--canvas-lengths", "65"], "this model's canvas is 64; use at most that"),
    (["--steps", "0"], "--steps must be from 1 to 1000, found 0"),
    (["--seed", "-1"], "seed must be an integer from 0"),
    (["--model", "/no/such/model"], "no such directory"),
])  # fmt: skip
def test_refused_before_weights_are_made(
    monkeypatch: pytest.MonkeyPatch, arguments: list[str], complaint: str
) -> None:
    monkeypatch.setattr(sweep, "load", None)
    monkeypatch.setattr(synthetic, "build", None)
    result = invoke(*arguments)
    assert result.exit_code == 2
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith("mlx_dg: error: ")
    assert complaint in line


@pytest.mark.parametrize("name", ["demo", "synthetic:26b"])
def test_refused_when_memory_is_short(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Check the memory of a synthetic model before its weights are made."""
    monkeypatch.setattr(memory, "usable_memory", lambda: 10**6)
    monkeypatch.setattr(synthetic, "build", None)
    monkeypatch.setattr(sweep, "generate", None)
    result = invoke("--model", name, "--prompt-tokens", "64,100")
    assert (result.exit_code, result.stdout) == (2, "")
    (line,) = result.stderr.splitlines()
    assert line.startswith("mlx_dg: error: 64 prompt and ")
