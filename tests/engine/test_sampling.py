"""A denoising step as a whole: pins, done rows, and the way from sparse to dense self-conditioning."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from support.spies import spied

from mlx_diffusiongemma.checkpoint.loading import load_model, resolve
from mlx_diffusiongemma.engine.denoise import denoise
from mlx_diffusiongemma.engine.noise import NoiseKey, SeededDraws
from mlx_diffusiongemma.engine.settings import Settings
from mlx_diffusiongemma.engine.state import CanvasInit, CanvasState, SparseRemainder, initial_state
from mlx_diffusiongemma.engine.step import Prefix, denoise_step, settle
from mlx_diffusiongemma.errors import GenerationError
from mlx_diffusiongemma.model import DiffusionGemma
from mlx_diffusiongemma.ops import FREE, TOLERANCE, processed_logits

SETTINGS = Settings()
RULES = SETTINGS.rules
LENGTH = 8


@pytest.fixture(scope="module")
def model() -> DiffusionGemma:
    return load_model(resolve("demo"))


def step(
    model: DiffusionGemma, state: CanvasState, temperature: float = 0.8
) -> tuple[CanvasState, SparseRemainder]:
    rows, length = state.pins.shape
    cache = model.make_cache()
    model.encode(mx.tile(mx.arange(20, 40), (rows, 1)), cache)
    draws = mx.full((rows, length), 0.5), mx.full((rows, length), 77, dtype=mx.int32)
    cache.reserve(rows, 0, length)
    prefix = Prefix(cache.layout(length), mx.array(cache.offset), cache.buffers, None)
    after, remainder, _ = denoise_step(model, RULES, prefix, state, temperature, (1, 1), draws)
    return after, remainder


def noise(rows: int) -> mx.array:
    return mx.random.randint(0, 700, (rows, LENGTH), key=mx.random.key(0))


def start(model: DiffusionGemma, rows: int, pins: mx.array | None = None) -> CanvasState:
    return initial_state(noise(rows), model.zero_self_conditioning((rows, LENGTH)), pins)


def test_a_pinned_position_holds_its_token_from_the_noise_on(model: DiffusionGemma) -> None:
    pins = np.full((1, LENGTH), FREE)
    pins[0, [2, 7]] = [0, 123]
    state = start(model, 1, mx.array(pins.astype(np.int32)))
    for _ in range(3):
        assert np.array(state.canvas)[0, [2, 7]].tolist() == [0, 123]
        state, remainder = step(model, state)
        state = settle(model, state, remainder, 0.8)
        assert np.array(state.argmax)[0, [2, 7]].tolist() == [0, 123]
        believed = np.array(state.soft_embedding)[0, [2, 7]]  # one-hot
        np.testing.assert_array_equal(believed, np.array(model.embed(mx.array([0, 123]))))
        assert not np.array(state.entropies)[0, [2, 7]].any()
        assert np.array(state.accepted)[0, [2, 7]].all()


@pytest.mark.usefixtures("path")
def test_a_done_row_keeps_its_soft_embedding_and_has_no_say_in_the_others(model: DiffusionGemma) -> None:
    """Hot, every row needs the dense product; a done one does not ask for it, nor does it get it."""
    first, _ = step(model, start(model, 2))
    hot = 20.0
    for done in ([True, False], [False, True], [True, True]):
        before = first._replace(done=mx.array(done))
        after, remainder = step(model, before, hot)
        settled = settle(model, after, remainder, hot)
        for row, is_done in enumerate(done):
            kept = mx.array_equal(settled.soft_embedding[row], before.soft_embedding[row])
            assert kept.item() == is_done
            assert not is_done or not remainder.dropped_mass.reshape(2, LENGTH)[row].any().item()


def test_the_dense_product_comes_in_exactly_where_too_much_is_left_out(model: DiffusionGemma) -> None:
    rng = np.random.default_rng(0)
    rows, vocab, width = 2 * 70, model.config.text.vocab_size, model.config.text.hidden_size
    logits = mx.array(rng.normal(size=(rows, vocab)).astype(np.float32) * 9)
    sparse = rng.normal(size=(rows, width)).astype(np.float32)
    softcap = model.config.text.final_logit_softcapping
    dense = np.array(model.dense_soft_embedding(processed_logits(logits, 0.8, softcap)))
    state = start(model, 2)._replace(soft_embedding=mx.array(sparse.reshape(2, 70, width)))
    for lacking in ([], [3], [0, 69, 70, 139], list(range(5, 75)), list(range(rows))):
        dropped_mass = np.full(rows, TOLERANCE / 2, dtype=np.float32)
        dropped_mass[lacking] = TOLERANCE * 2
        settled = settle(
            model, state, SparseRemainder(mx.array(dropped_mass), logits, mx.zeros((rows,))), 0.8
        )
        expected = sparse.copy()
        expected[lacking] = dense[lacking]
        np.testing.assert_allclose(np.array(settled.soft_embedding.flatten(0, 1)), expected, atol=1e-5)


def test_a_watcher_does_not_see_a_step_whose_logits_are_broken(
    model: DiffusionGemma, monkeypatch: pytest.MonkeyPatch
) -> None:
    logits = type(model).logits
    monkeypatch.setattr(type(model), "logits", lambda self, hidden: logits(self, hidden) * mx.nan)

    class Draws:
        def initial(self) -> mx.array:
            return noise(1)

        def step(self, index: int) -> tuple[mx.array, mx.array]:
            return mx.full((1, LENGTH), 0.5), noise(1)

    cache = model.make_cache()
    model.encode(mx.arange(20, 40)[None], cache)
    seen: list[Any] = []
    with pytest.raises(GenerationError, match="NaN or infinite at denoising step 1"):
        denoise(model, cache, SETTINGS, Draws(), on_step=seen.append)
    assert seen == []


def test_a_canvas_is_denoised_around_its_pins(model: DiffusionGemma, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the first step on: what is pinned is believed, what is free is not."""
    pins = np.full((1, LENGTH), FREE, dtype=np.int32)
    pins[0, 3] = 42
    calls = spied(monkeypatch, DiffusionGemma, "decode_hidden")
    draws = SeededDraws([NoiseKey(0, 0, 0, 0)], LENGTH, model.config.text.vocab_size)
    cache = model.make_cache()
    model.encode(mx.arange(20, 40)[None], cache)
    canvas = denoise(model, cache, SETTINGS, draws, init=CanvasInit(pins=mx.array(pins), steps=3))
    assert np.array(canvas.ids)[0, 3] == 42
    assert canvas.steps == [len(calls)]
    for _, ids, _, belief in (call.args for call in calls):
        assert np.array(ids)[0, 3] == 42
        np.testing.assert_array_equal(np.array(belief)[0, 3], np.array(model.embed(mx.array(42))))
    assert not np.array(calls[0].args[3])[0, [0, 1, 2, 4, 5, 6, 7]].any()
