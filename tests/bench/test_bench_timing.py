"""Measurements of `mlx_dg bench`: synthetic weights, and which steps and parts are timed."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten
from oracle import tiny
from support.spies import spied

from mlx_diffusiongemma.bench import measure, synthetic
from mlx_diffusiongemma.checkpoint.loading import load_model
from mlx_diffusiongemma.config import released
from mlx_diffusiongemma.config.model import FULL, ModelConfig
from mlx_diffusiongemma.engine.denoise import denoise
from mlx_diffusiongemma.engine.noise import NoiseKey, SeededDraws
from mlx_diffusiongemma.engine.settings import Settings
from mlx_diffusiongemma.engine.state import Step

ROUGH = ModelConfig.from_dict(tiny.config(tiny.ROUGH, "original"))


# --- synthetic weights --------------------------------------------------------------------------------------


def test_real_config() -> None:
    config = released.real_config()
    text = config.text
    assert (text.num_hidden_layers, text.num_experts, config.canvas_length) == (30, 128, 256)
    assert [i for i, kind in enumerate(text.layer_types) if kind == FULL] == [5, 11, 17, 23, 29]
    assert (text.kv_heads[4:6], text.head_dims[4:6]) == ((8, 2), (256, 512))
    assert released.real_config(7).text.layer_types == text.layer_types[:7]


def test_synthetic_weights() -> None:
    """Every matrix is finite, of mean 0 and deviation 0.018, and stored as the default recipe says."""
    model = synthetic.build(ROUGH, 3, mx.bfloat16)
    weights: dict[str, mx.array] = dict(tree_flatten(model.parameters()))  # type: ignore[arg-type]
    bits = {path: module.bits for path, module in model.named_modules() if hasattr(module, "bits")}
    assert {path.rpartition(".")[2]: width for path, width in bits.items()} == {
        "embed_tokens": 8,
        **dict.fromkeys(("q_proj", "k_proj", "v_proj", "o_proj"), 8),
        "gate_up_proj": 4,
        **dict.fromkeys(("gate_proj", "up_proj"), 8),
        "down_proj": 8,
    }
    assert all(width == 4 for path, width in bits.items() if ".experts." in path)
    for path, width in bits.items():
        restored = mx.dequantize(
            weights[f"{path}.weight"],
            weights[f"{path}.scales"],
            weights[f"{path}.biases"],
            group_size=64,
            bits=width,
        )
        values = np.array(restored.astype(mx.float32))
        assert abs(values.mean()) < 0.001, path
        assert values.std() == pytest.approx(0.018, rel=0.05), path
        assert abs(values).max() <= 1 / 32
    router = np.array(weights["model.decoder.layers.0.router.proj.weight"].astype(mx.float32))
    assert router.std() == pytest.approx(0.018, rel=0.15)
    assert weights["model.decoder.layers.0.layer_scalar"].item() == 1
    assert weights["model.decoder.layers.0.post_attention_layernorm.weight"].max().item() == 0.125
    assert weights["model.decoder.norm.weight"].min().item() == 1


def test_scales_are_exact_in_bfloat16() -> None:
    half, single = (synthetic.build(ROUGH, 0, dtype) for dtype in (mx.bfloat16, mx.float32))
    for (name, one), (_, other) in zip(
        tree_flatten(half.parameters()), tree_flatten(single.parameters()), strict=True
    ):
        if "scales" in name or "biases" in name:
            assert one.dtype == mx.bfloat16
            assert mx.array_equal(one.astype(mx.float32), other)


def test_seed_decides() -> None:
    first, again, other = (
        synthetic.build(ROUGH, seed, mx.bfloat16).decoder.embed_tokens.weight for seed in (1, 1, 2)
    )
    assert mx.array_equal(first, again)
    assert not mx.array_equal(first, other)


# --- what is timed ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sharp(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A model that converges in a few steps."""
    return load_model(tiny.build(tiny.SHARP, tmp_path_factory.mktemp("sharp")))


def test_times_are_of_all_steps(sharp: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """No canvas stops early, the timed ones come after one that warms up, and times are divided by steps."""
    calls = spied(monkeypatch, measure, "denoise")
    ticks = iter(range(1000))
    monkeypatch.setattr(measure, "time", SimpleNamespace(perf_counter=lambda: float(next(ticks))))
    times = measure.measure(sharp, prompt_tokens=20, canvas_length=8, steps=10, seed=0)
    steps = [(*call.result.steps, call.result.ids.shape) for call in calls]
    assert steps == [(2, (1, 8)), *[(10, (1, 8))] * 3, (12, (1, 8))]
    assert times.step == 0.1  # the clock moves one second from reading to reading
    assert times.parts == dict.fromkeys(measure.PARTS, 1.0)
    assert (times.prefill, times.encode_canvas) == (1.0, 1.0)
    assert times.dense_rows == 8  # so small a vocabulary has no sparse soft embedding
    assert times.peak_memory > 0


def test_first_lap_warms_up() -> None:
    clock = measure.PartClock()
    clock.times = {name: [99.0, 1.0, 2.0, 4.0] for name in measure.PARTS}
    assert clock.medians() == dict.fromkeys(measure.PARTS, 2.0)


def test_laps_cover_a_step_and_change_nothing(sharp: Any) -> None:
    """Each part is called once a step, in order, with arrays; the canvases are those without laps."""
    prompt = mx.arange(1, 21)[None]
    draws = SeededDraws([NoiseKey(7, 0, 0, 0)], 8, sharp.config.text.vocab_size)
    settings = Settings.of(sharp.generation_config, max_denoising_steps=5, confidence_threshold=0.0)
    laps: list[str] = []

    def lap(name: str, *results: Any) -> None:
        mx.eval(*results)
        laps.append(name)

    drafts = []
    for options in ({}, {"lap": lap}):
        cache, watched = sharp.make_cache(), list[Step]()
        sharp.encode(prompt, cache)
        denoise(sharp, cache, settings, draws, watched.append, **options)
        drafts.append([(step.draft_ids.tolist(), step.canvas_ids.tolist()) for step in watched])
    assert drafts[0] == drafts[1]
    assert laps == [*measure.PARTS * 4, *measure.PARTS[:3]]  # no step follows the last soft embedding
