"""Inputs on which a kernel and its reference must agree, and how far.

Chosen so that rounding decides nothing. Where a tie or a bound decides, all sums are exact whatever their
order: of multiples of a power of two, or of tokens as likely as the likeliest. A soft embedding is made of a
few tokens.
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
from ..ops.soft_embedding import soft_embedding_kernel, soft_embedding_reference, support_limit

FEWEST_ROWS = 12  # the special ones and a few others
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
    """Allowed is each one's error, twice: absolute, and relative to the largest finite value."""
    largest = float(np.abs(expected[np.isfinite(expected)]).max())
    gaps = np.zeros_like(got)
    np.subtract(got, expected, out=gaps, where=got != expected)  # equal infinities are no gap
    return Difference(what, float(np.abs(gaps).max()), 2 * (atol + rtol * largest))


def _on_host(result: Any) -> Any:
    """The same named tuple with NumPy arrays."""
    return type(result)(*map(np.array, result))


# --- row_statistics -----------------------------------------------------------------------------------------


_EDGES = slice(6, 8)  # rows with a uniform at the very edge of a token


def _row_statistics(shape: Shape, dtype: mx.Dtype) -> Trial:
    """Random rows. Before them a flat one, two that are no distribution, one whose every third token is
    impossible and whose others are deep in the softcap, one sure of a token, and one as sure of several.
    Then twice four even tokens, with a uniform where the third begins, and with one that no sum exceeds, as
    if rounding had ended the row early."""
    logits = 4 * mx.random.normal((shape.rows, shape.vocab), key=mx.random.key(0))
    logits[0] = 0
    logits[1, shape.vocab // 2] = mx.nan
    logits[2, 5] = mx.inf
    logits[3] -= 100
    logits[3, ::3] = -mx.inf
    logits[4, -1] = 60
    logits[5, 300::400] = 60
    logits[_EDGES] = -mx.inf
    logits[_EDGES, mx.array([3, shape.vocab // 2, shape.vocab // 2 + 1, shape.vocab - 5])] = 0
    logits = logits.astype(dtype)
    uniforms = mx.random.uniform(shape=(shape.rows,), key=mx.random.key(1))
    uniforms[3] = 0
    uniforms[_EDGES] = mx.array([0.5, 1.0])
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
    other_sample = got.sample != expected.sample
    at_edges = float(other_sample[_EDGES].sum())
    other_sample[_EDGES] = False
    mass_between = [
        _mass_between(np.array(logits[row].astype(mx.float32)), got.sample[row], expected.sample[row])
        for row in np.flatnonzero(valid & other_sample).tolist()
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
        Difference("sample at an edge, rows", at_edges, 0),
    ]


def _processed(logits: np.ndarray) -> np.ndarray:
    """Softcapped and divided by the temperature in float64; impossible tokens stay impossible."""
    x = logits.astype(np.float64)
    return np.where(np.isneginf(x), x, _SOFTCAP * np.tanh(x / _SOFTCAP)) / _TEMPERATURE


def _mass_between(logits: np.ndarray, one: int, other: int) -> float:
    """Probability of the ids between two: of two draws with one uniform, only rounding. Infinite if one of
    the two cannot be drawn."""
    low, high = sorted((one, other))
    if low < 0 or high >= logits.size:
        return math.inf
    x = _processed(logits)
    p = np.exp(x - x.max())
    if not (p[low] > 0 and p[high] > 0):
        return math.inf
    return float(p[low + 1 : high].sum() / p.sum())


# --- accept_and_renoise -------------------------------------------------------------------------------------

_BOUNDS = Bounds(entropy_bound=2**-3, stability_threshold=1, confidence_threshold=2**-8)


def _accept_and_renoise(shape: Shape, dtype: mx.Dtype) -> Trial:
    """Rows that are sure, hopeless and between, with pins, a row that was done, and one that is invalid. Then
    equal entropies, of which two are just the bound; the same, but the last one the lowest; and one free
    position, of just the threshold's entropy, among pinned ones for which another token is proposed."""
    rng = np.random.default_rng(2)
    length, rows = shape.rows, 9
    canvas = (rows, length)
    equal, last_lowest, one_free = 6, 7, 8
    scale = 2.0 ** np.array([-8, -8, -5, -3, 0, 2, 0, 0, 0])
    entropies = np.stack([rng.permutation(length) for _ in range(rows)]) / 1024 * scale[:, None]
    entropies[[equal, last_lowest]] = 2**-4
    entropies[last_lowest, -1] = 2**-5
    entropies[one_free] = _BOUNDS.confidence_threshold
    argmaxes, invalid = rng.integers(0, shape.vocab, canvas), np.zeros(canvas, dtype=bool)
    invalid[5, -1] = True
    pins = np.where(rng.random(canvas) < 0.2, rng.integers(0, shape.vocab, canvas), FREE)
    pins[[0, equal, last_lowest]] = FREE
    pins[one_free] = np.where(np.arange(length) == length // 2, FREE, shape.vocab - 1)
    repeated = np.array([True, True, False, True, False, True, True, True, True])[:, None]
    before = np.where(repeated, argmaxes, rng.integers(0, shape.vocab, canvas))
    before[one_free] = np.where(pins[one_free] == FREE, argmaxes[one_free], pins[one_free])

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
    arguments = (proposal, noise, tokens(pins), previous, _BOUNDS)
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
_TAIL, _FLAT = -2, -1


def _soft_embedding(shape: Shape, dtype: mx.Dtype) -> Trial:
    """Rows of 1 to 12 likely tokens, in turns with the last and the first of the vocabulary among them; one
    of a token and a tail that must just be looked at; a flat one. The table has 8 bits, as in the default
    recipe."""
    rng = np.random.default_rng(3)
    table: Any = nn.QuantizedEmbedding(shape.vocab, shape.width, _GROUP, _BITS)  # what it begins with is lazy
    words = mx.random.randint(-(2**31), 2**31 - 1, table.weight.shape, key=mx.random.key(4))
    table.weight = words.view(mx.uint32)
    steps = _STEP * mx.random.uniform(0.5, 1, table.scales.shape, key=mx.random.key(5))
    table.scales, table.biases = steps.astype(dtype), (-_LARGEST / _STEP * steps).astype(dtype)
    inner = shape.vocab - 2
    chosen = 1 + np.stack([rng.choice(inner, 12, replace=False) for _ in range(shape.rows)])
    chosen[:, 0] = np.where(np.arange(shape.rows) % 2, 0, shape.vocab - 1)
    # Tokens beyond the row's number are as unlikely as all others.
    likely = np.where(np.arange(12) <= np.arange(shape.rows)[:, None] % 12, 11.0, -25.0)
    values = likely + 0.4 * rng.normal(size=chosen.shape)
    logits = mx.full((shape.rows, shape.vocab), -25.0)
    ids = mx.array(chosen)
    logits = mx.put_along_axis(logits, ids, mx.array(values.astype(np.float32)), axis=1)
    limit = support_limit(shape.vocab)
    logits[_TAIL] = -25
    logits[_TAIL, : limit * 3 // 4] = _tail_logit(limit)
    logits[_TAIL, shape.vocab // 2] = 0
    logits[_FLAT] = 0
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


def _tail_logit(limit: int) -> float:
    """Of a token that is 0.05 to 0.14 nats above the least likely that are looked at, beside one of logit 0.

    bfloat16 holds it: from 8 to 16 its step is 1/16, which is less than 0.1 nats here.
    """
    lowest = math.log(TOLERANCE / limit) + 0.05
    return math.ceil(16 * _SOFTCAP * math.atanh(lowest * _TEMPERATURE / _SOFTCAP)) / 16


def _compare_embeddings(dtype: mx.Dtype, got: SoftEmbedding, expected: SoftEmbedding) -> list[Difference]:
    """The reference rounds weights, products of chunks and their sum to `dtype`, the kernel only the sum."""
    rounding = 2**-6 if dtype == mx.bfloat16 else 2e-3  # of the table's largest value; fp32 may mean TF32
    ours, theirs = (np.array(result.embedding.astype(mx.float32)) for result in (got, expected))
    left_out = np.array(got.left_out)
    largest = float(np.abs(ours[:_FLAT] - theirs[:_FLAT]).max())
    return [
        Difference("left out, probability", float(left_out[:_TAIL].max()), TOLERANCE),
        Difference("left out of a tail, probability", float(left_out[_TAIL]), TOLERANCE / 5),
        Difference("flat rows taken as covered", float(not left_out[_FLAT] > TOLERANCE), 0),
        Difference("flat rows that are summed", float(ours[_FLAT].any()), 0),
        Difference("embedding", largest, (rounding + 2 * TOLERANCE) * _LARGEST),
    ]


# Kernel -> how its trial is made, and of which dtypes
TRIALS: dict[str, tuple[Callable[[Shape, mx.Dtype], Trial], tuple[mx.Dtype, ...]]] = {
    "row_statistics": (_row_statistics, (mx.bfloat16, mx.float32)),
    "accept_and_renoise": (_accept_and_renoise, (mx.float32,)),
    "soft_embedding": (_soft_embedding, (mx.bfloat16, mx.float32)),
}
