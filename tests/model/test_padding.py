"""Batches with left padding: every row computes what its prompt computes alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from oracle import tiny

from mlx_diffusiongemma.cache import CanvasView, Layout, PrefixCache
from mlx_diffusiongemma.errors import InputError
from mlx_diffusiongemma.model import DiffusionGemma, attention

CANVAS = tiny.ROUGH.canvas  # 16, as is the window
LENGTHS = (1, 5, 15, 16, 17, 40, 100)
PADS = [100 - length for length in LENGTHS]
CLOSE = 2e-5  # of logits up to 9, float32


def ids(rows: int, length: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng([seed, length]).integers(0, tiny.ROUGH.vocab, (rows, length))


PROMPTS = [ids(1, length)[0] for length in LENGTHS]
CANVASES = ids(len(LENGTHS), CANVAS, seed=1)
COMMITTED = ids(len(LENGTHS), CANVAS, seed=2)
BELIEF = np.random.default_rng(3).normal(0, 1, (len(LENGTHS), CANVAS, tiny.ROUGH.hidden)).astype(np.float32)


def padded(prompts: Sequence[np.ndarray], seed: int = 4) -> tuple[mx.array, list[int]]:
    """Ids `[B, L]` with anything in the padding, and the left_padding."""
    longest = max(map(len, prompts))
    out = ids(len(prompts), longest, seed)
    for row, prompt in zip(out, prompts, strict=True):
        row[longest - len(prompt) :] = prompt
    return mx.array(out), [longest - len(prompt) for prompt in prompts]


def encoded(model: DiffusionGemma, prompts: Sequence[np.ndarray], chunk_size: int = 1000) -> PrefixCache:
    cache = model.make_cache()
    tokens, cache.left_padding = padded(prompts)
    model.encode(tokens, cache, chunk_size)
    return cache


def looks(model: DiffusionGemma, cache: PrefixCache, rows: Sequence[int]) -> np.ndarray:
    """Logits of a first step and of one with a belief, behind 0, 1, 2 committed canvases: `[6, B, C, V]`."""
    canvas, belief = mx.array(CANVASES[rows]), mx.array(BELIEF[rows])
    out = []
    for block in range(3):
        if block:
            model.encode(mx.array(COMMITTED[rows]), cache, chunk_size=5)
        out += [model.decode(canvas, cache), model.decode(canvas, cache, belief)]
    return np.stack([np.array(logits) for logits in out])


@pytest.fixture(scope="module")
def alone(model: DiffusionGemma) -> np.ndarray:
    """Logits of each prompt's canvases when it is encoded alone: `[6, B, C, V]`."""
    caches = [model.make_cache() for _ in PROMPTS]
    for prompt, cache in zip(PROMPTS, caches, strict=True):
        model.encode(mx.array(prompt[None]), cache)
    return np.concatenate([looks(model, cache, [row]) for row, cache in enumerate(caches)], axis=1)


ALL = list(range(len(PROMPTS)))


@pytest.mark.parametrize(("rows", "chunk_size", "band"), [
    # Padding longer than the window and than chunks; prompts shorter than the window and than a chunk.
    *((ALL, chunk_size, 512) for chunk_size in (3, 7, 16, 1000)),
    (ALL, 1000, 10),  # sliding layers take a chunk's rows block by block
    # Prompts whose buffers are not full yet: masks hide padding and room together.
    *((rows, 4, 512) for rows in ([0, 1], [1, 2, 0], [3, 4], [5, 3, 2])),
])  # fmt: skip
def test_a_padded_row_is_what_it_is_alone(
    model: DiffusionGemma, alone: np.ndarray, rows: list[int], chunk_size: int, band: int, monkeypatch: Any
) -> None:
    monkeypatch.setattr(attention, "BAND_ROWS", band)
    cache = encoded(model, [PROMPTS[row] for row in rows], chunk_size)
    np.testing.assert_allclose(looks(model, cache, rows), alone[:, rows], atol=CLOSE)
    assert all(np.isfinite(np.array(array)).all() for pair in cache.buffers for array in pair)


def test_nothing_of_the_padding_is_seen(model: DiffusionGemma) -> None:
    """Not one bit depends on the ids there, nor (in the cache) on the keys and values of what they became."""
    expected = looks(model, encoded(model, PROMPTS, 7), ALL)
    cache = model.make_cache()
    tokens, cache.left_padding = padded(PROMPTS, seed=5)
    model.encode(tokens, cache, 7)
    soiled: list[tuple[mx.array, mx.array]] = []
    for layer, (keys, values) in zip(cache.layers, cache.buffers, strict=True):
        first = cache.offset - cache.keep if layer.capacity == cache.keep + CANVAS else 0
        padding = mx.arange(first, first + layer.capacity) < mx.array(PADS)[:, None]  # [B, positions]
        hidden = padding[:, None, :, None]
        soiled.append((mx.where(hidden, 1e4, keys), mx.where(hidden, 1e4, values)))
    cache.buffers = soiled
    np.testing.assert_array_equal(looks(model, cache, ALL), expected)


def test_the_first_token_behind_the_padding_is_seen(model: DiffusionGemma) -> None:
    """By all layers: in the cache its keys and values count, though it stands at the mask's edge."""
    for prompts in (PROMPTS[1:3], [PROMPTS[2], PROMPTS[5]]):
        cache = encoded(model, prompts)
        first = max(map(len, prompts)) - len(prompts[0])
        clean = np.array(model.decode(mx.array(CANVASES[:2]), cache))
        for layer in range(len(cache.layers)):
            other = encoded(model, prompts)
            start = other.offset - other.keep if other.layers[layer].capacity == other.keep + CANVAS else 0
            keys, values = other.buffers[layer]
            here = (mx.arange(start, start + keys.shape[2]) == first)[:, None]
            buffers = other.buffers
            buffers[layer] = keys, mx.where(here, 10.0, values)
            other.buffers = buffers
            changed = np.array(model.decode(mx.array(CANVASES[:2]), other))
            assert np.abs(changed[0] - clean[0]).max() > 1e-3


def test_left_padding_of_zero_are_no_left_padding(model: DiffusionGemma, alone: np.ndarray) -> None:
    """And without left_padding no mask is as large as a batch, nor made where nothing is hidden."""
    cache = encoded(model, [PROMPTS[3], PROMPTS[3]])
    assert cache.left_padding is None
    unpadded = model.make_cache()
    model.encode(mx.array(np.stack([PROMPTS[3]] * 2)), unpadded)
    canvas = mx.array(CANVASES[[3, 3]])
    logits = np.array(model.decode(canvas, unpadded))
    np.testing.assert_array_equal(np.array(model.decode(canvas, cache)), logits)
    np.testing.assert_allclose(logits, alone[0][[3, 3]], atol=CLOSE)

    def through(left_padding: mx.array | None, layout: Layout) -> tuple[np.ndarray, set[Any]]:
        view = CanvasView(model.config, layout, mx.array(unpadded.offset), unpadded.buffers, left_padding)
        write = view.write
        shapes: set[Any] = set()

        def watched(*arguments: Any) -> Any:
            out = write(*arguments)
            shapes.add(None if out[2] is None else out[2].shape)
            return out

        view.write = watched  # type: ignore[method-assign]
        raw = model.logits(model.decode_hidden(canvas, view, model.zero_self_conditioning(canvas.shape)))
        return np.array(mx.tanh(raw / 30) * 30), shapes

    layout = unpadded.layout(CANVAS)
    plain, shapes = through(None, layout)
    np.testing.assert_array_equal(plain, logits)
    assert shapes == {None}
    hiding = layout._replace(hides_full=True, hides_window=True)
    plain, shapes = through(None, hiding)
    assert shapes == {(1, 1, 1, 32), (1, 1, 1, 31)}
    np.testing.assert_allclose(plain, logits, atol=CLOSE)
    zeros, shapes = through(mx.array([0, 0]), hiding)
    assert shapes == {(2, 1, 1, 32), (2, 1, 1, 31)}
    np.testing.assert_allclose(zeros, logits, atol=CLOSE)


def test_chunks_without_padding_take_the_masks_they_always_took(model: DiffusionGemma) -> None:
    cache = model.make_cache()
    cache.offset = 20
    chunk = attention.Chunk(cache)
    assert chunk.mask(0, 8, 28) == "causal"
    assert chunk.mask(0, 8, 16, window=16) == "causal"
    mask = chunk.mask(0, 8, 23, window=16)
    distance = np.arange(15, 23)[:, None] - np.arange(23)
    np.testing.assert_array_equal(np.array(mask), (distance >= 0) & (distance < 16))
    # Nor do sliding layers of a padded batch, once their windows have left the padding behind.
    cache = model.make_cache()
    cache.left_padding = [0, 5]
    cache.offset = 20
    chunk = attention.Chunk(cache)
    masks = chunk.mask(0, 8, 23, window=16), chunk.mask(0, 8, 24, window=16), chunk.mask(0, 8, 28)
    assert [np.shape(mask) for mask in masks] == [(8, 23), (2, 1, 8, 24), (2, 1, 8, 28)]


def test_a_layout_hides_padding_and_no_longer_than_it_must(model: DiffusionGemma) -> None:
    """Layouts are part of what a compiled step is traced for: with left_padding, they ask for masks."""
    cache = model.make_cache()
    cache.left_padding = [3, 0]
    for offset, hides_full, hides_window in [(16, True, True), (17, True, True), (18, True, False)]:
        cache.offset = offset
        layout = cache.layout(CANVAS)
        assert (layout.hides_full, layout.hides_window) == (hides_full, hides_window)
    cache = model.make_cache()
    cache.left_padding = [0, 1]
    cache.offset = 48  # all 64 positions hold something, but one
    assert cache.layout(CANVAS) == Layout(64, True, 15, False)


def test_a_compiled_pass_takes_the_left_padding_of_every_call(model: DiffusionGemma) -> None:
    """One trace for all left_padding; None is another."""
    traced = []

    def position_and_masks(layout: Layout, buffers: Any, *others: Any) -> Any:
        traced.append(layout)
        view = CanvasView(model.config, layout, others[0], buffers, others[1])
        rows = [mx.zeros((*buffers[i][0].shape[:2], CANVAS, buffers[i][0].shape[3])) for i in (0, 2)]
        masks = [view.write(i, row, row)[2] for i, row in zip((0, 2), rows, strict=True)]
        return view.position, masks

    compiled = mx.compile(position_and_masks)
    for left_padding in ([0, 4], [2, 1], [0, 0]):
        cache = model.make_cache()
        cache.left_padding, cache.offset = left_padding, 5
        cache.reserve(2, 0, CANVAS)
        position, masks = compiled(cache.layout(CANVAS), cache.buffers, mx.array(5), cache.left_padding)
        tokens = [5 - pad for pad in left_padding] if any(left_padding) else [5]
        assert position.reshape(-1).tolist() == tokens
        for mask in masks:  # of a sliding layer and of a full one
            assert mask.sum(axis=-1).reshape(-1).tolist() == [CANVAS + count for count in tokens]
    assert len(traced) == 2


@pytest.mark.parametrize("rows", [ALL, [6, 2, 0], [4, 4, 4, 4], [6], [2]])
def test_taken_rows_are_what_they_were(model: DiffusionGemma, alone: np.ndarray, rows: list[int]) -> None:
    cache = encoded(model, PROMPTS)
    cache.reserved = 300
    model.decode(mx.array(COMMITTED), cache)  # writes a canvas, which nobody may see
    taken = cache.take(rows)
    assert (taken.offset, taken.reserved, taken.batch) == (100, 300, len(rows))
    left_padding = [PADS[row] for row in rows]
    if any(left_padding):
        assert (taken.left_padding.tolist(), taken.left_padding.dtype) == (left_padding, mx.int32)
    else:
        assert taken.left_padding is None
    np.testing.assert_allclose(looks(model, taken, rows), alone[:, rows], atol=CLOSE)
    # The original has not noticed.
    assert (cache.offset, cache.batch) == (100, len(PROMPTS))
    np.testing.assert_allclose(np.array(model.decode(mx.array(CANVASES), cache)), alone[0], atol=CLOSE)


def test_copies_do_not_write_to_each_other(model: DiffusionGemma) -> None:
    """Commits and steps of all of them in turns."""
    cache = encoded(model, [PROMPTS[5]])
    copies = [cache, *(cache.take([0]) for _ in range(3))]
    logits = []
    for row, copy in enumerate(copies):
        model.encode(mx.array(COMMITTED[row : row + 1]), copy)
    for row, copy in enumerate(copies):
        logits.append(model.decode(mx.array(CANVASES[row : row + 1]), copy))
    together = np.concatenate([np.array(x) for x in logits])
    batch = encoded(model, [PROMPTS[5]]).take([0, 0, 0, 0])
    model.encode(mx.array(COMMITTED[:4]), batch)
    np.testing.assert_allclose(np.array(model.decode(mx.array(CANVASES[:4]), batch)), together, atol=CLOSE)
    assert np.abs(together[0] - together[1]).max() > 1e-2


def test_taking_leaves_the_original_written_in_place(model: DiffusionGemma) -> None:
    def pointers(cache: PrefixCache) -> list[int]:
        mx.eval(cache.buffers)
        arrays = (array for pair in cache.buffers for array in pair)
        return [np.array(array, copy=False).__array_interface__["data"][0] for array in arrays]

    cache = encoded(model, PROMPTS[:3])
    before = pointers(cache)
    taken = cache.take([0, 1, 2])
    mx.eval(model.decode(mx.array(CANVASES[:3]), cache))
    assert pointers(cache) == before
    assert not set(before) & set(pointers(taken))


def test_a_batch_forgets_its_canvas(model: DiffusionGemma, alone: np.ndarray) -> None:
    """NaN that a pass left in the room of some row is gone, and the prefix is still there."""
    rows = [1, 0, 2]
    cache = encoded(model, [PROMPTS[row] for row in rows])
    with cache.canvas(3, CANVAS) as view:
        for layer, (keys, _) in enumerate(view.buffers):
            rubbish = mx.full((3, keys.shape[1], CANVAS, keys.shape[3]), mx.nan)
            view.write(layer, rubbish, rubbish)
    cache.forget_canvas(3, CANVAS)
    assert all(np.isfinite(np.array(array)).all() for pair in cache.buffers for array in pair)
    np.testing.assert_allclose(looks(model, cache, rows), alone[:, rows], atol=CLOSE)


def test_what_cannot_be_is_refused(model: DiffusionGemma) -> None:
    cache = encoded(model, PROMPTS[:2])
    with pytest.raises(InputError, match=r"the cache holds 5 positions already"):
        cache.left_padding = [0, 1]
    for rows in ([2], [0, -1], []):
        with pytest.raises(InputError, match=r"the cache holds 2, numbered from 0"):
            cache.take(rows)
    with pytest.raises(InputError, match=r"the cache holds 0"):
        model.make_cache().take([0])
