"""The prefix cache: written in place, in shapes that repeat, and taken back to earlier tokens."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from oracle import replay, tiny, traces

from mlx_diffusiongemma.cache import PrefixCache, bucket
from mlx_diffusiongemma.checkpoint.loading import load_model
from mlx_diffusiongemma.engine import denoise as denoising
from mlx_diffusiongemma.engine.denoise import denoise
from mlx_diffusiongemma.engine.noise import NoiseKey, SeededDraws
from mlx_diffusiongemma.engine.settings import Settings
from mlx_diffusiongemma.errors import GenerationError, InputError
from mlx_diffusiongemma.model import DiffusionGemma

CANVAS = tiny.ROUGH.canvas  # 16, as is the window
# Never converges, so that every canvas takes two steps.
SETTINGS = Settings().override(max_denoising_steps=2, confidence_threshold=0.0)


def ids(length: int, seed: int = 0) -> mx.array:
    return mx.array(np.random.default_rng(seed).integers(0, tiny.ROUGH.vocab, (1, length)))


def one_canvas(model: DiffusionGemma, cache: PrefixCache, block: int = 0) -> mx.array:
    draws = SeededDraws([NoiseKey(0, 0, block, 0)], CANVAS, tiny.ROUGH.vocab)
    return denoise(model, cache, SETTINGS, draws).ids


def pointers(cache: PrefixCache) -> list[int]:
    """Where the buffers lie in memory."""
    mx.eval(cache.buffers)
    return [
        np.array(array, copy=False).__array_interface__["data"][0] for pair in cache.buffers for array in pair
    ]


def test_steps_and_encodes_write_into_the_same_memory(model: DiffusionGemma) -> None:
    cache = model.make_cache()
    cache.reserved = 100 + 4 * CANVAS
    model.encode(ids(100), cache)
    full = [i for i, kind in enumerate(tiny.ROUGH.layer_types) if kind == "full_attention"]
    before = pointers(cache)
    canvas = one_canvas(model, cache)
    assert pointers(cache) == before
    model.encode(canvas, cache)
    one_canvas(model, cache)
    after = pointers(cache)
    assert [after[2 * i] for i in full] == [before[2 * i] for i in full]


def test_full_layers_grow_by_steps(model: DiffusionGemma) -> None:
    cache, shapes = model.make_cache(), set()
    model.encode(ids(5), cache)
    for block in range(20):
        shapes.add(cache.buffers[2][0].shape[2])
        model.encode(one_canvas(model, cache, block), cache)
    assert len(shapes) <= 2 + 20 / 4 + 1
    assert max(shapes) <= cache.offset + CANVAS + 4 * CANVAS


def test_what_was_reserved_is_never_copied_again(model: DiffusionGemma) -> None:
    cache = model.make_cache()
    cache.reserved = 5 + 20 * CANVAS
    model.encode(ids(5), cache)
    capacity = cache.buffers[2][0].shape[2]
    assert 5 + 20 * CANVAS <= capacity < 5 + 24 * CANVAS
    model.encode(ids(19 * CANVAS), cache)
    one_canvas(model, cache)
    assert cache.buffers[2][0].shape[2] == capacity


def test_a_chunk_of_nothing_is_refused(model: DiffusionGemma) -> None:
    for size in (0, -1):
        with pytest.raises(InputError, match="chunk_size must be at least 1"):
            model.encode(ids(5), model.make_cache(), chunk_size=size)


def test_buckets_hold_what_they_must_and_waste_little() -> None:
    for unit in (16, 64, 256):
        sizes = [bucket(n, unit) for n in range(1, 40 * unit)]
        assert all(n <= size < n + 4 * unit for n, size in enumerate(sizes, start=1))
        assert len(set(sizes)) == 2 + 40 / 4


@pytest.mark.slow
def test_a_compiled_step_computes_the_same_and_is_traced_for_few_shapes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twelve blocks behind prompts of 1 to 40 tokens need a few traces, further generations none."""
    model = load_model(tiny.build(tiny.SHARP, tmp_path / "sharp"), dtype=mx.float32)
    traced: list[int] = []
    step = denoising.denoise_step
    monkeypatch.setattr(denoising, "denoise_step", lambda *a, **k: traced.append(1) or step(*a, **k))

    def canvases(compiled: bool, prompt: int) -> list[Any]:
        monkeypatch.setattr(denoising, "_compiles", lambda: compiled)
        cache = model.make_cache()
        cache.reserved = prompt + 12 * CANVAS
        model.encode(ids(prompt, seed=prompt), cache)
        out = []
        for block in range(12):
            out.append(np.array(one_canvas(model, cache, block)))
            model.encode(mx.array(out[-1]), cache)
        return out

    for prompt in (1, 40):
        plain = canvases(False, prompt)
        traced.clear()
        np.testing.assert_array_equal(canvases(True, prompt), plain)
        assert len(traced) == {1: 5, 40: 0}[prompt]
    for prompt in (2, 17, 39):
        canvases(True, prompt)
    assert not traced
    # The kernels in use belong to the trace's key: it is not taken for others.
    with monkeypatch.context() as patch:
        patch.setattr(DiffusionGemma, "checked_kernels", lambda *_: ("row_statistics",))
        canvases(True, 1)
    assert traced
    # Weights are inputs of the compiled step.
    before = np.stack(canvases(True, 40))
    traced.clear()
    model.decoder.norm.weight = model.decoder.norm.weight * -1
    changed = np.stack(canvases(True, 40))
    assert not traced
    assert (before != changed).any()
    np.testing.assert_array_equal(changed, canvases(False, 40))


@pytest.mark.parametrize("length", [1, 15, 16, 17, 40, 63, 64, 65])
def test_masks_hide_exactly_what_holds_nothing(model: DiffusionGemma, length: int) -> None:
    """Whatever lies in the part of the buffers that no prefix has reached yet, no canvas sees it."""
    cache = model.make_cache()
    model.encode(ids(length), cache)
    clean = np.array(model.decode(ids(CANVAS, 1), cache))
    kept = min(length, cache.keep)
    soiled = []
    for layer, pair in zip(cache.layers, cache.buffers, strict=True):
        positions = mx.arange(layer.capacity)
        if layer.capacity == cache.keep + CANVAS:
            empty = positions < cache.keep - kept
        else:
            empty = positions >= length
        soiled.append(tuple(mx.where(empty[:, None], 1e4, array) for array in pair))
    cache.buffers = soiled
    np.testing.assert_array_equal(np.array(model.decode(ids(CANVAS, 1), cache)), clean)


def test_a_layout_covers_what_is_held(model: DiffusionGemma) -> None:
    """Windows longer than a canvas, as the released model's; lengths around every bucket's edge."""
    text = dataclasses.replace(model.config.text, sliding_window=1024)
    config = dataclasses.replace(model.config, text=text, canvas_length=256)
    cache = PrefixCache(config, mx.float32)
    for cache.offset in range(1, 1800):
        layout = cache.layout(256)
        kept = min(cache.offset, 1023)
        assert kept <= layout.window <= 1023
        assert layout.hides_window == (kept < layout.window)
        assert cache.offset + 256 <= layout.full
        assert layout.hides_full == (cache.offset + 256 < layout.full)
        assert cache.offset < 1023 or not layout.hides_window


def test_room_that_holds_nan_is_not_seen_through_a_mask(model: DiffusionGemma) -> None:
    """A canvas that ended the generation leaves NaN behind, which no mask hides (0 * NaN is NaN)."""
    cache = model.make_cache()
    model.encode(ids(40), cache)
    norm = model.decoder.layers[0].input_layernorm
    weight, norm.weight = norm.weight, norm.weight * mx.nan
    with pytest.raises(GenerationError, match="NaN or infinite"):
        one_canvas(model, cache)
    norm.weight = weight
    cache.offset = 30  # what lies behind is hidden, the canvas included; only full layers tell
    assert np.isfinite(np.array(model.decode(ids(CANVAS, 1), cache))).all()


def test_replayed_traces_compiled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The compiled step against the reference's own canvases, stop steps and entropies."""
    monkeypatch.setattr(denoising, "_compiles", lambda: True)
    trace = traces.load("generate-sharp-stop-id")
    model = replay.load_traced("sharp", tmp_path)
    for index, block in enumerate(replay.denoise_all(model, trace)):
        steps = trace.blocks()[index]
        np.testing.assert_allclose(block.stacked("entropies"), trace["entropies"][steps], atol=1e-4)
        np.testing.assert_array_equal(block.stacked("canvas_ids"), trace["canvas"][steps])
