"""Image blocks in a prompt: what their rows see, and that neither chunks nor bands cut them."""

from __future__ import annotations

import random
from collections.abc import Sequence

import mlx.core as mx
import numpy as np
import pytest
from oracle import tiny
from support.spies import spied

from mlx_diffusiongemma.errors import InputError
from mlx_diffusiongemma.model import DiffusionGemma, attention
from mlx_diffusiongemma.prompt import ImageSpan, Prompt

WINDOW = tiny.ROUGH.window  # 16, as is the canvas
LENGTH = 100
# Two blocks side by side, one longer than the window, one at the end.
SPANS = [(3, 9), (9, 14), (30, 60), (95, 100)]
CANVAS = mx.array(np.random.default_rng(1).integers(0, tiny.ROUGH.vocab, (1, 16)))
CLOSE = 2e-5  # of logits up to 9, float32
Spans = Sequence[tuple[int, int]]


def ids(length: int = LENGTH, seed: int = 0) -> mx.array:
    return mx.array(np.random.default_rng(seed).integers(0, tiny.ROUGH.vocab, (1, length)))


def logits(model: DiffusionGemma, spans: Spans = SPANS, chunk_size: int = 1000) -> np.ndarray:
    cache = model.make_cache()
    model.encode(ids(), cache, chunk_size, spans=[spans])
    return np.array(model.decode(CANVAS, cache))


def test_masks_against_brute_force(model: DiffusionGemma) -> None:
    """Every pair of row and key by the rule: causal or in one block, in the window, no padding."""
    generator = random.Random(0)
    for _ in range(100):
        batch, rows, offset = generator.randint(1, 3), generator.randint(1, 30), generator.randint(0, 40)
        cache = model.make_cache()
        padding = [generator.choice([0, offset, offset + rows // 2]) for _ in range(batch)]
        cache.left_padding, cache.offset = padding, offset
        spans: list[Spans] = []
        for _ in range(batch):
            borders = sorted(generator.sample(range(rows + 1), min(rows + 1, 2 * generator.randint(0, 2))))
            spans.append(list(zip(borders[::2], borders[1::2], strict=True)) if len(borders) % 2 == 0 else [])
        chunk = attention.Chunk(cache, spans)
        # Full layers are causal, whatever the blocks. Every row sees itself: attention over nothing is NaN.
        for start, end, window in [*((*band, WINDOW) for band in chunk.bands(rows)), (0, rows, None)]:
            keys = offset + end if window is None else end - start + min(offset + start, WINDOW - 1)
            mask = chunk.mask(start, end, keys, window)
            if isinstance(mask, str):
                mask = mx.tril(mx.ones((end - start, keys), dtype=mx.bool_), keys - (end - start))
            expected = np.zeros((batch, 1, end - start, keys), dtype=bool)
            for (b, _, i, j), _ in np.ndenumerate(expected):
                q, k = start + i, end - keys + j
                block = any(first <= q < last and first <= k < last for first, last in spans[b])
                held = offset + k >= padding[b]
                seen = k <= q if window is None else (k <= q or block) and k > q - window
                expected[b, 0, i, j] = seen and (held or k == q)
            np.testing.assert_array_equal(np.broadcast_to(np.array(mask), expected.shape), expected)
            assert chunk.mask(start, end, keys, window) is chunk.mask(start, end, keys, window)


@pytest.mark.parametrize("band", [7, 10, 512])
@pytest.mark.parametrize("chunk_size", [1, 5, 16, 31, 64])
def test_chunks_and_bands_do_not_matter(
    model: DiffusionGemma, chunk_size: int, band: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = logits(model)
    monkeypatch.setattr(attention, "BAND_ROWS", band)
    np.testing.assert_allclose(logits(model, chunk_size=chunk_size), expected, atol=CLOSE)


def test_a_block_in_two_is_another_prompt(model: DiffusionGemma) -> None:
    """Logits that the tests here compare depend on the blocks and on their borders."""
    expected = logits(model)
    # Behind the last window only full layers see what came of the first blocks: the difference is small.
    for spans in (
        [],
        SPANS[1:],
        [(3, 14), *SPANS[2:]],
        [*SPANS[:2], (30, 45), (45, 60), SPANS[3]],
        SPANS[:3],
    ):
        assert np.abs(logits(model, spans) - expected).max() > 10 * CLOSE


def test_chunk_borders(model: DiffusionGemma, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = spied(monkeypatch, DiffusionGemma, "_encode_chunk")
    logits(model, chunk_size=10)
    assert [call.args[1].shape[1] for call in calls] == [9, 10, 10, 1, 30, 10, 10, 10, 10]


def test_prompts_parts_and_embeddings(model: DiffusionGemma) -> None:
    """A prompt, its parts one after the other, and its embeddings are the same as ids and spans."""
    expected = logits(model)
    tokens: list[int] = ids()[0].tolist()  # type: ignore[assignment]
    prompt = Prompt(tokens, [ImageSpan(first, last - first, f"{first}") for first, last in SPANS])
    cache = model.make_cache()
    model.encode(prompt, cache)
    np.testing.assert_array_equal(np.array(model.decode(CANVAS, cache)), expected)
    cache = model.make_cache()
    for start, end in ((0, 9), (9, 95), (95, 100)):
        model.encode(prompt.part(start, end), cache, chunk_size=20)
    np.testing.assert_allclose(np.array(model.decode(CANVAS, cache)), expected, atol=CLOSE)
    cache = model.make_cache()
    model.encode(model.embed(ids()), cache, spans=[SPANS])
    np.testing.assert_array_equal(np.array(model.decode(CANVAS, cache)), expected)


@pytest.mark.parametrize("chunk_size", [7, 1000])
def test_rows_of_a_batch_have_blocks_of_their_own(model: DiffusionGemma, chunk_size: int) -> None:
    """Padding before one of them, and blocks that overlap those of other rows, do not change a row."""
    rows: list[tuple[int, Spans]] = [(LENGTH, SPANS), (LENGTH, [(0, 5), (56, 98)]), (60, [(2, 25), (40, 41)])]
    alone = []
    for seed, (length, spans) in enumerate(rows):
        cache = model.make_cache()
        model.encode(ids(length, seed), cache, spans=[spans])
        alone.append(np.array(model.decode(CANVAS, cache))[0])
    cache = model.make_cache()
    cache.left_padding = [LENGTH - length for length, _ in rows]
    padded = [mx.pad(ids(n, seed), [(0, 0), (LENGTH - n, 0)]) for seed, (n, _) in enumerate(rows)]
    moved = [[(a + LENGTH - n, b + LENGTH - n) for a, b in spans] for n, spans in rows]
    model.encode(mx.concatenate(padded), cache, chunk_size, spans=moved)
    together = np.array(model.decode(mx.repeat(CANVAS, 3, axis=0), cache))
    np.testing.assert_allclose(together, alone, atol=CLOSE)


def test_pixels_need_a_vision_tower(model: DiffusionGemma, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model, "vision", None)
    prompt = Prompt([1, 2, 3], [ImageSpan(1, 2, "a", pixels=np.zeros(3))])
    with pytest.raises(InputError, match="this checkpoint has no vision tower; take one that has it"):
        model.encode(prompt, model.make_cache())
