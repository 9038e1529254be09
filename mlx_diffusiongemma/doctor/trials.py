"""Inputs on which a kernel and its reference must agree, and how far.

Chosen so that rounding decides nothing: sums of entropies are exact, no two of them are equal, and a soft
embedding is made of a few tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from ..ops import FREE, TOLERANCE, Acceptance, Bounds, Proposal, RowStatistics, SoftEmbedding
from ..ops.accept_and_renoise import accept_and_renoise_kernel, accept_and_renoise_reference
from ..ops.row_statistics import row_statistics_kernel, row_statistics_reference
from ..ops.soft_embedding import soft_embedding_kernel, soft_embedding_reference

_SOFTCAP, _TEMPERATURE = 30.0, 0.6


class Shape(NamedTuple):
    """rows: positions of a canvas. width: of an embedding."""

    rows: int
    vocab: int
    width: int

    def __str__(self) -> str:
        return f"{self.rows} x {self.vocab}"


class Difference(NamedTuple):
    what: str
    found: float
    allowed: float


class Trial(NamedTuple):
    """kernel, reference: compute the same, of a `size` to be shown. compare: what they returned."""

    size: str
    kernel: Callable[[], Any]
    reference: Callable[[], Any]
    compare: Callable[[Any, Any], list[Difference]]


def _difference(what: str, got: np.ndarray, expected: np.ndarray, atol: float, rtol: float) -> Difference:
    """Allowed is each one's error, twice: absolute, and relative to the largest value."""
    largest = float(np.abs(expected).max())
    return Difference(what, float(np.abs(got - expected).max()), 2 * (atol + rtol * largest))


def _on_host(result: Any) -> Any:
    """The same named tuple with NumPy arrays."""
    return type(result)(*map(np.array, result))


# --- row_statistics -----------------------------------------------------------------------------------------


def _row_statistics(shape: Shape, dtype: mx.Dtype) -> Trial:
    """Random rows. Before them a flat one, two that are no distribution, one whose every third token is
    impossible and whose others are deep in the softcap, one sure of a token, and one as sure of several."""
    logits = 4 * mx.random.normal((shape.rows, shape.vocab), key=mx.random.key(0))
    logits[0] = 0
    logits[1, shape.vocab // 2] = mx.nan
    logits[2, 5] = mx.inf
    logits[3] -= 100
    logits[3, ::3] = -mx.inf
    logits[4, -1] = 60
    logits[5, 300::400] = 60
    logits = logits.astype(dtype)
    uniforms = mx.random.uniform(shape=(shape.rows,), key=mx.random.key(1))
    uniforms[3] = 0
    mx.eval(logits, uniforms)
    arguments = (logits, uniforms, _TEMPERATURE, _SOFTCAP)
    return Trial(
        size=str(shape),
        kernel=partial(row_statistics_kernel, *arguments),
        reference=partial(row_statistics_reference, *arguments),
        compare=partial(_compare_statistics, logits),
    )


def _compare_statistics(logits: mx.array, *results: RowStatistics) -> list[Difference]:
    got, expected = map(_on_host, results)
    valid = ~expected.invalid
    best, other = (
        np.array(mx.take_along_axis(logits, mx.array(ids)[:, None], axis=1).astype(mx.float32))[valid, 0]
        for ids in (got.argmax, expected.argmax)
    )
    tie_broken = (best == other) & (got.argmax != expected.argmax)[valid]
    mass_between = [
        _mass_between(np.array(logits[row].astype(mx.float32)), got.sample[row], expected.sample[row])
        for row in np.flatnonzero(valid & (got.sample != expected.sample)).tolist()
    ]
    return [
        Difference("invalid, rows", float((got.invalid != expected.invalid).sum()), 0),
        _difference("entropy, nats", got.entropy[valid], expected.entropy[valid], 1e-4, 0),
        _difference(
            "log normalizer", got.log_normalizer[valid], expected.log_normalizer[valid], atol=1e-5, rtol=1e-6
        ),
        _difference("chunk peaks", got.chunk_peaks[valid], expected.chunk_peaks[valid], atol=1e-6, rtol=1e-6),
        _difference("logit of the argmax", _processed(best), _processed(other), 0, 1e-6),
        Difference("argmax of equal logits, rows", float(tie_broken.sum()), 0),
        Difference("sample, probability", max(mass_between, default=0.0), 2e-5),
    ]


def _processed(logits: np.ndarray) -> np.ndarray:
    """Softcapped and divided by the temperature in float64; impossible tokens stay impossible."""
    x = logits.astype(np.float64)
    return np.where(np.isneginf(x), x, _SOFTCAP * np.tanh(x / _SOFTCAP)) / _TEMPERATURE


def _mass_between(logits: np.ndarray, one: int, other: int) -> float:
    """Probability of the ids between two: of two draws with one uniform, only rounding. Infinite if one of
    the two cannot be drawn."""
    low, high = sorted((one, other))
    x = _processed(logits)
    p = np.exp(x - x.max())
    if not (p[low] > 0 and p[high] > 0):
        return math.inf
    return float(p[low + 1 : high].sum() / p.sum())


# --- accept_and_renoise -------------------------------------------------------------------------------------


def _accept_and_renoise(shape: Shape, dtype: mx.Dtype) -> Trial:
    """Rows that are sure, hopeless and between, with pins, a row that was done, and one that is invalid."""
    rng = np.random.default_rng(2)
    length, rows = shape.rows, 6
    canvas = (rows, length)
    scale = 2.0 ** np.array([[-8], [-8], [-5], [-3], [0], [2]])
    entropies = np.stack([rng.permutation(length) for _ in range(rows)]) / 1024 * scale
    argmaxes, invalid = rng.integers(0, shape.vocab, canvas), np.zeros(canvas, dtype=bool)
    invalid[-1, -1] = True
    pins = np.where(rng.random(canvas) < 0.2, rng.integers(0, shape.vocab, canvas), FREE)
    pins[0] = FREE
    repeated = np.array([[True], [True], [False], [True], [False], [True]])
    before = np.where(repeated, argmaxes, rng.integers(0, shape.vocab, canvas))

    def tokens(ids: np.ndarray) -> mx.array:
        return mx.array(ids.astype(np.int32))

    proposal = Proposal(
        entropies=mx.array(entropies.astype(np.float32)),
        samples=tokens(rng.integers(0, shape.vocab, canvas)),
        argmaxes=tokens(argmaxes),
        invalid=mx.array(invalid),
        confidences=mx.zeros(canvas),
    )
    previous = Acceptance(
        canvas=tokens(rng.integers(0, shape.vocab, canvas)),
        argmax=tokens(before),
        accepted=mx.zeros(canvas, dtype=mx.bool_),
        stable_steps=mx.arange(rows, dtype=mx.int32),
        mean_entropy=mx.full((rows,), 0.25),
        done=mx.arange(rows) == 3,
        invalid=mx.zeros((rows,), dtype=mx.bool_),
    )
    noise = tokens(rng.integers(0, shape.vocab, canvas))
    arguments = (proposal, noise, tokens(pins), previous, Bounds(0.1, 1, 0.005))
    return Trial(
        size=f"{rows} x {length}",
        kernel=partial(accept_and_renoise_kernel, *arguments),
        reference=partial(accept_and_renoise_reference, *arguments),
        compare=_compare_acceptance,
    )


def _compare_acceptance(*results: Acceptance) -> list[Difference]:
    got, expected = map(_on_host, results)
    differing = [
        float((ours != theirs).sum())
        for name, ours, theirs in zip(Acceptance._fields, got, expected, strict=True)
        if name != "mean_entropy"
    ]
    return [
        Difference("ids, masks and counts, values", sum(differing), 0),
        _difference("mean entropy, nats", got.mean_entropy, expected.mean_entropy, 0, 1e-5),
    ]


# --- soft_embedding -----------------------------------------------------------------------------------------

_BITS, _GROUP = 8, 64
_STEP = 2.0**-12  # between neighbouring values of the table, at most
_LARGEST = _STEP * (2**_BITS - 1) / 2


def _soft_embedding(shape: Shape, dtype: mx.Dtype) -> Trial:
    """Rows of 1 to 12 likely tokens, then a flat one; an 8-bit table, as the default recipe has it."""
    rng = np.random.default_rng(3)
    table: Any = nn.QuantizedEmbedding(shape.vocab, shape.width, _GROUP, _BITS)  # what it begins with is lazy
    words = mx.random.randint(-(2**31), 2**31 - 1, table.weight.shape, key=mx.random.key(4))
    table.weight = words.view(mx.uint32)
    steps = _STEP * mx.random.uniform(0.5, 1, table.scales.shape, key=mx.random.key(5))
    table.scales, table.biases = steps.astype(dtype), (-_LARGEST / _STEP * steps).astype(dtype)
    chosen = np.stack([rng.choice(shape.vocab, 12, replace=False) for _ in range(shape.rows)])
    # Tokens beyond the row's number are as unlikely as all others.
    likely = np.where(np.arange(12) <= np.arange(shape.rows)[:, None] % 12, 11.0, -25.0)
    values = likely + 0.4 * rng.normal(size=chosen.shape)
    logits = mx.full((shape.rows, shape.vocab), -25.0)
    ids = mx.array(chosen)
    logits = mx.put_along_axis(logits, ids, mx.array(values.astype(np.float32)), axis=1)
    logits[-1] = 0
    logits = logits.astype(dtype)
    seen = row_statistics_reference(logits, mx.full((shape.rows,), 0.5), _TEMPERATURE, _SOFTCAP)
    mx.eval(logits, seen, table.parameters())
    arguments = (logits, seen, _TEMPERATURE, _SOFTCAP, table, dtype)
    return Trial(
        size=str(shape),
        kernel=partial(soft_embedding_kernel, *arguments),
        reference=partial(soft_embedding_reference, *arguments),
        compare=partial(_compare_embeddings, dtype),
    )


def _compare_embeddings(dtype: mx.Dtype, got: SoftEmbedding, expected: SoftEmbedding) -> list[Difference]:
    """The reference rounds weights, products of chunks and their sum to `dtype`, the kernel only the sum."""
    rounding = 2**-6 if dtype == mx.bfloat16 else 2e-3  # of the table's largest value; fp32 may mean TF32
    ours, theirs = (np.array(result.embedding[:-1].astype(mx.float32)) for result in (got, expected))
    left_out = np.array(got.left_out)
    return [
        Difference("left out, probability", float(left_out[:-1].max()), TOLERANCE),
        Difference("flat rows taken as covered", float(not left_out[-1] > TOLERANCE), 0),
        Difference("embedding", float(np.abs(ours - theirs).max()), (rounding + 2 * TOLERANCE) * _LARGEST),
    ]


# Kernel -> how its trial is made, and of which dtypes
TRIALS: dict[str, tuple[Callable[[Shape, mx.Dtype], Trial], tuple[mx.Dtype, ...]]] = {
    "row_statistics": (_row_statistics, (mx.bfloat16, mx.float32)),
    "accept_and_renoise": (_accept_and_renoise, (mx.float32,)),
    "soft_embedding": (_soft_embedding, (mx.bfloat16, mx.float32)),
}
