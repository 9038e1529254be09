"""The soft embedding against the dense product in float64; reference and kernel alike."""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from support import exact
from support.exact import TABLES, make_table

from mlx_diffusiongemma.ops import (
    TOLERANCE,
    SoftEmbedding,
    dense_soft_embedding,
    row_statistics,
    soft_embedding,
)

SOFTCAP, TEMPERATURE = 30.0, 0.6
WIDE = 32 * 1024  # of these 32 chunks, the reference reads two


def rows(vocab: int, rng: np.random.Generator) -> np.ndarray:
    """A flat row; rows whose probability lies on one, two, a few and many tokens; and the last id alone."""
    logits = rng.normal(size=(9, vocab)) * 2 - 6
    logits[0] = 0
    for row, tokens in enumerate([1, 2, 3, 8, 20, 40, 60], start=1):
        logits[row, rng.choice(vocab, size=tokens, replace=False)] = 11 + rng.normal(size=tokens) * 0.4
    logits[2, logits[2] < 0] = -np.inf
    logits[8] = -np.inf
    logits[8, vocab - 1] = 0
    return logits.astype(np.float32)


def compute(
    logits: mx.array, table: nn.Module, dtype: mx.Dtype, softcap: float | None = SOFTCAP
) -> SoftEmbedding:
    statistics = row_statistics(logits, mx.full(logits.shape[:1], 0.5), TEMPERATURE, softcap)
    return soft_embedding(logits, statistics, TEMPERATURE, softcap, table, dtype)


@pytest.mark.parametrize("kind", TABLES)
@pytest.mark.parametrize(("vocab", "width"), [(1100, 64), (4097, 192)])
def test_agrees_with_the_dense_product_up_to_what_it_reports(
    path: str, kind: str, vocab: int, width: int
) -> None:
    rng = np.random.default_rng(vocab)
    table, values = make_table(kind, vocab, width)
    logits = rows(vocab, rng)
    softcap = SOFTCAP if width == 64 else None
    embedding, dropped_mass = (np.array(x) for x in compute(mx.array(logits), table, mx.float32, softcap))
    expected = exact.row_statistics(logits, TEMPERATURE, softcap).probabilities @ values

    covered = dropped_mass <= TOLERANCE
    readable = kind not in ("affine 6", "affine 3", "mxfp4", "mxfp8", "nvfp4")
    assert covered[1:].all()
    assert covered[0] == (path == "reference" or not readable)  # no few tokens stand for a flat row
    bound = 1e-3 * np.abs(expected).max(axis=-1) + dropped_mass * np.abs(values).max()
    assert (np.abs(embedding - expected).max(axis=-1) <= bound)[covered].all()
    assert not embedding[~covered].any()


@pytest.mark.usefixtures("path", "bf16_experts")
@pytest.mark.parametrize("vocab", [1100, WIDE])
@pytest.mark.parametrize("kind", ["bfloat16", "affine 8"])
def test_logits_are_rounded_to_the_models_dtype_before_the_softmax(kind: str, vocab: int) -> None:
    """As the reference does. At 60 a bf16 step is a quarter: unrounded, the two shares would differ."""
    table, values = make_table(kind, vocab, 64)
    logits = np.full((8, vocab), -40.0, dtype=np.float32)
    logits[:, 3], logits[:, 900] = 36.078, 36.144  # processed: 60.13 and 60.24, which both become 60.25
    embedding = np.array(compute(mx.array(logits), table, mx.bfloat16, None).embedding.astype(mx.float32))
    np.testing.assert_allclose(embedding, np.tile((values[3] + values[900]) / 2, (8, 1)), atol=1.5e-3)


def test_the_support_is_all_that_weighs_something_and_what_is_left_out_is_reported(path: str) -> None:
    """A tail of even tokens just below and just above the smallest probability that is looked at."""
    vocab, width = 64 * 16, 32
    limit = vocab // 16
    smallest = TOLERANCE / limit
    table, values = make_table("float32", vocab, width)
    for share, kept in [(0.9, False), (1.1, True)]:
        tail = share * smallest
        p = np.zeros(vocab)
        p[100:140] = tail
        p[7] = 1 - 40 * tail
        with np.errstate(divide="ignore"):
            logits = (np.log(p) * TEMPERATURE).astype(np.float32)
        embedding, dropped_mass = compute(mx.array(np.tile(logits, (8, 1))), table, mx.float32, None)
        expected_left = 0 if kept or path == "reference" else 40 * tail
        np.testing.assert_allclose(np.array(dropped_mass), expected_left, atol=5e-7)
        np.testing.assert_allclose(np.array(embedding), np.tile(p @ values, (8, 1)), atol=40 * tail + 1e-6)


@pytest.mark.parametrize("tokens", [64, 65])
def test_a_row_of_more_tokens_than_the_limit_is_not_covered(path: str, tokens: int) -> None:
    vocab = 64 * 16
    table, values = make_table("float32", vocab, 32)
    logits = np.full((8, vocab), -np.inf, dtype=np.float32)
    logits[:, np.arange(tokens) * 15] = 1.0
    embedding, dropped_mass = compute(mx.array(logits), table, mx.float32)
    if path == "kernel" and tokens > 64:
        np.testing.assert_allclose(np.array(dropped_mass), 1 / 65, atol=1e-6)
    else:
        np.testing.assert_allclose(np.array(dropped_mass), 0, atol=1e-6)
        expected = values[np.arange(tokens) * 15].mean(axis=0)
        np.testing.assert_allclose(np.array(embedding), np.tile(expected, (8, 1)), atol=1e-5)


def test_a_late_chunk_of_a_long_row_and_the_last_columns_of_a_wide_table(path: str) -> None:
    """As wide as the real one: more packs than threads; more chunks than a lane looks ahead for at once."""
    vocab, width, period = 40_000, 2816, 997  # a prime: rows that stand in for others do not lie far off
    table, values = make_table("affine 8", period, width)
    for name in ("weight", "scales", "biases"):
        table[name] = mx.tile(table[name], (vocab // period + 1, 1))[:vocab]
    tokens = np.array([5, 33_000, 39_999])
    logits = np.full((3, vocab), -20.0, dtype=np.float32)
    logits[:, tokens] = [[12.0, 14.0, 13.0], [-20.0, 14.0, -20.0], [-20.0, -20.0, 14.0]]
    for dtype in (mx.bfloat16, mx.float16):
        embedding, dropped_mass = (
            np.array(x) for x in compute(mx.array(logits).astype(dtype), table, mx.float32)
        )
        assert (dropped_mass <= TOLERANCE).all()
        probabilities = exact.row_statistics(logits, TEMPERATURE, SOFTCAP).probabilities[:, tokens]
        assert (probabilities.sum(axis=1) > 1 - 1e-9).all()
        expected = probabilities @ values[tokens % period]
        np.testing.assert_allclose(embedding, expected, atol=1e-3 * np.abs(expected).max())


@pytest.mark.parametrize("path", ["kernel"], indirect=True)
def test_rows_that_are_no_distribution_are_left_out_entirely(path: str) -> None:
    """The reference's come out NaN; the invalid flag ends the generation before either is read."""
    table, _ = make_table("float32", 1100, 64)
    logits = np.zeros((8, 1100), dtype=np.float32)
    logits[3, 5] = np.nan
    embedding, dropped_mass = compute(mx.array(logits), table, mx.float32)
    assert dropped_mass[3].item() == 1
    assert not np.array(embedding[3]).any()


@pytest.mark.parametrize("kind", ["float32", "affine 8", "mxfp4"])
def test_the_dense_product_is_the_expected_embedding(kind: str) -> None:
    table, values = make_table(kind, 96, 64)
    logits = np.random.default_rng(0).normal(size=(2, 5, 96)).astype(np.float32) * 4
    p = exact.row_statistics(logits.reshape(10, 96), 1.0, None).probabilities.reshape(2, 5, 96)
    got = np.array(dense_soft_embedding(mx.array(logits), table, mx.float32))
    np.testing.assert_allclose(got, p @ values, atol=2e-5)


# --- the reference's sparse way: whole chunks ---------------------------------------------------------------


@pytest.fixture
def no_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLX_DG_KERNELS", "off")


@pytest.mark.usefixtures("no_kernels")
@pytest.mark.parametrize("kind", ["float32", "affine 4", "affine 8", "affine 6", "mxfp4", "nvfp4"])
def test_chunks_that_carry_a_row_stand_for_it(kind: str) -> None:
    """One or two chunks hold all but what is reported; three hold too much, and that is reported."""
    rng = np.random.default_rng(5)
    table, values = make_table(kind, WIDE, 64)
    logits = np.full((4, WIDE), -30.0, dtype=np.float32)
    logits[:, ::7] = -22 + rng.normal(size=(4, -(-WIDE // 7)))
    for row, chunks in enumerate([[3], [0, 31], [30, 4], [1, 8, 20]]):
        for chunk in chunks:
            logits[row, chunk * 1024 + rng.choice(1024, 5, replace=False)] = 9 + rng.normal(size=5)
    embedding, dropped_mass = (np.array(x) for x in compute(mx.array(logits), table, mx.float32, None))
    p = exact.row_statistics(logits, TEMPERATURE, None).probabilities
    chunk_mass = np.sort(p.reshape(4, 32, 1024).sum(axis=2), axis=1)
    np.testing.assert_allclose(dropped_mass, chunk_mass[:, :-2].sum(axis=1), atol=2e-6)
    assert (dropped_mass <= TOLERANCE).tolist() == [True, True, True, False]
    np.testing.assert_allclose(embedding[:3], (p @ values)[:3], atol=1e-4 * np.abs(values).max())


@pytest.mark.usefixtures("no_kernels")
def test_what_is_left_out_is_not_given_to_what_is_kept() -> None:
    table, values = make_table("float32", WIDE, 64)
    p = np.zeros(WIDE)
    p[5], p[2000], p[9000] = 0.6, 0.4 - 9e-5, 9e-5
    with np.errstate(divide="ignore"):
        logits = mx.array(np.tile(np.log(p) * TEMPERATURE, (8, 1)).astype(np.float32))
    embedding, dropped_mass = (np.array(x) for x in compute(logits, table, mx.float32, None))
    np.testing.assert_allclose(dropped_mass, 9e-5, rtol=0.02)
    kept = np.where(np.arange(WIDE) == 9000, 0, p) @ values
    np.testing.assert_allclose(embedding, np.tile(kept, (8, 1)), atol=1e-5)
