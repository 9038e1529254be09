"""What `mlx_dg bench` runs: synthetic weights, and which steps and parts are timed."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten
from oracle import tiny

from mlx_diffusiongemma.bench import measure, synthetic
from mlx_diffusiongemma.checkpoint.loading import load_model
from mlx_diffusiongemma.config import released
from mlx_diffusiongemma.config.model import FULL, ModelConfig
from mlx_diffusiongemma.engine import rules
from mlx_diffusiongemma.engine.denoise import Step, denoise
from mlx_diffusiongemma.engine.noise import NoiseKey, SeededDraws
from mlx_diffusiongemma.model import DiffusionGemma
from mlx_diffusiongemma.ops import SoftEmbedding

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
    steps = []

    def spy(*arguments: Any) -> Any:
        canvas = denoise(*arguments)
        steps.append((*canvas.steps, tuple(canvas.ids.shape)))
        return canvas

    monkeypatch.setattr(measure, "denoise", spy)
    ticks = iter(range(1000))
    monkeypatch.setattr(measure, "time", SimpleNamespace(perf_counter=lambda: float(next(ticks))))
    times = measure.measure(sharp, prompt_tokens=20, canvas_length=8, steps=10, seed=0)
    assert steps == [(2, (1, 8)), *[(10, (1, 8))] * 3]
    assert times.step == 0.1  # the clock moves one second from reading to reading
    assert times.parts == dict.fromkeys(measure.PARTS, 1.0)
    assert (times.prefill, times.encode_canvas) == (1.0, 1.0)
    assert times.peak_memory > 0


def test_first_lap_warms_up() -> None:
    clock = measure.PartClock()
    clock.times = {name: [99.0, 1.0, 2.0, 4.0] for name in measure.PARTS}
    assert clock.medians() == dict.fromkeys(measure.PARTS, 2.0)


@pytest.mark.parametrize("lacking", [False, True])
def test_parts_are_the_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lacking: bool) -> None:
    """Done one by one, a step's parts lead from canvas to canvas as `denoise` does.

    lacking: no soft embedding can be sparse.
    """
    if lacking:

        def nothing(model: DiffusionGemma, logits: mx.array, *others: Any) -> SoftEmbedding:
            rows = logits.shape[0]
            return SoftEmbedding(mx.zeros((rows, model.config.text.hidden_size)), mx.ones((rows,)))

        monkeypatch.setattr(DiffusionGemma, "soft_embedding", nothing)
    model = load_model(tiny.build(tiny.ROUGH, tmp_path))
    prompt, canvas, steps, seed = 20, 8, 5, 7
    vocab = model.config.text.vocab_size
    cache = model.make_cache()
    ids = np.random.default_rng(seed).integers(vocab, size=(1, prompt))
    model.encode(mx.array(ids, dtype=mx.int32), cache)
    draws = SeededDraws([NoiseKey(seed, 0, 0, 0)], canvas, vocab)
    settings = model.generation_config.override(max_denoising_steps=steps, confidence_threshold=0.0)
    expected: list[Step] = []
    denoise(model, cache, settings, draws, expected.append)

    found, accept = [], rules.accept_and_renoise

    def spy(proposal: Any, *others: Any) -> Any:
        result = accept(proposal, *others)
        found.append((np.array(result.canvas), np.array(result.argmax), np.array(proposal.entropies)))
        return result

    monkeypatch.setattr(rules, "accept_and_renoise", spy)
    times = measure.measure(model, prompt, canvas, steps, seed)
    assert times.dense_rows == canvas  # so small a vocabulary leaves nothing out in any other way
    parts = found[-(steps + 1) :]
    assert len(expected) == steps
    for step, (canvas_ids, argmax, entropies) in zip(expected, parts, strict=False):
        assert np.array_equal(step.canvas_ids, canvas_ids)
        assert np.array_equal(step.draft_ids, argmax)
        np.testing.assert_allclose(step.entropies, entropies, atol=1e-4)
