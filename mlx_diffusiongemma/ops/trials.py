"""Inputs on which a kernel and its reference must agree, and how closely.

The inputs are chosen so that rounding decides nothing. Where a tie or a bound decides, all sums are exact in
any order: sums of multiples of a power of two, or of tokens that are as likely as the likeliest one. A soft
embedding is a mixture of a few tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten, tree_map

from .accept_and_renoise import (
    FREE,
    Acceptance,
    Bounds,
    Proposal,
    accept_and_renoise_kernel,
    accept_and_renoise_reference,
)
from .row_statistics import RowStatistics, row_statistics_kernel, row_statistics_reference
from .soft_embedding import (
    TOLERANCE,
    SoftEmbedding,
    chosen_chunks,
    soft_embedding_kernel,
    soft_embedding_reference,
    support_limit,
)
from .table_products import Table

FEWEST_ROWS = 12  # the special rows and a few random ones
_SOFTCAP, _TEMPERATURE = 30.0, 0.6


class Difference(NamedTuple):
    """One comparison: the difference that was found, and the largest one that rounding explains."""

    what: str
    found: float
    allowed: float

    @property
    def is_too_large(self) -> bool:
        return not self.found <= self.allowed  # true for NaN, too


class Trial(NamedTuple):
    """kernel, reference: two ways to compute the same results. compare: takes both results in that order.

    size: of the input, to be shown.

    Functions that make trials take `launch`, the rows in one launch of the kernel, or None for all at once:
    MLX passes arrays of fewer than 8 elements as constants, which is other code for Metal to compile.
    """

    size: str
    kernel: Callable[[], Any]
    reference: Callable[[], Any]
    compare: Callable[[Any, Any], list[Difference]]


def _difference(what: str, got: np.ndarray, expected: np.ndarray, atol: float, rtol: float) -> Difference:
    """Largest absolute difference. Twice `atol + rtol * (largest finite value)` is allowed: both round."""
    largest = float(np.abs(expected[np.isfinite(expected)]).max())
    gaps = np.zeros_like(got)
    np.subtract(got, expected, out=gaps, where=got != expected)  # equal infinities do not differ
    return Difference(what, float(np.abs(gaps).max()), 2 * (atol + rtol * largest))


def _on_host(result: Any) -> Any:
    """The same named tuple with NumPy arrays."""
    return type(result)(*map(np.array, result))


def _in_launches(
    kernel: Callable[..., Any], launch: int | None, by_row: tuple[Any, ...], *others: Any
) -> Callable[[], Any]:
    """Return what runs `kernel(*by_row, *others)` on `launch` rows at a time, or on all rows for None.

    Arrays in `by_row` and in the results have their rows first.
    """
    if launch is None:
        return partial(kernel, *by_row, *others)

    def run() -> Any:
        arrays: Any = tree_flatten(by_row)  # (name, array) pairs
        count = arrays[0][1].shape[0]
        parts = []
        for start in range(0, count, launch):
            rows = slice(start, start + launch)
            cut = tree_map(lambda x, rows=rows: x[rows] if isinstance(x, mx.array) else x, by_row)
            parts.append(kernel(*cut, *others))
        return tree_map(lambda *x: mx.concatenate(list(x)), *parts)

    return run


# --- row_statistics -----------------------------------------------------------------------------------------


_EDGES = slice(6, 8)  # rows with a uniform at the very edge of a token


def row_statistics_trial(rows: int, vocab: int, dtype: mx.Dtype, launch: int | None = None) -> Trial:
    """Special rows, then random ones.

    The special rows: a flat one; two that are not a distribution; one whose every third token is impossible
    and whose others are deep in the softcap; one sure of a token; one as sure of several; and two with four
    equal tokens. The uniform of the first of these two is where the third token begins. That of the second
    is 1, which no sum exceeds, as if rounding had ended the row early.
    """
    logits = 4 * mx.random.normal((rows, vocab), key=mx.random.key(0))
    logits[0] = 0
    logits[1, vocab // 2] = mx.nan
    logits[2, 5] = mx.inf
    logits[3] -= 100
    logits[3, ::3] = -mx.inf
    logits[4, -1] = 60
    logits[5, 300::400] = 60
    logits[_EDGES] = -mx.inf
    logits[_EDGES, mx.array([3, vocab // 2, vocab // 2 + 1, vocab - 5])] = 0
    logits = logits.astype(dtype)
    uniforms = mx.random.uniform(shape=(rows,), key=mx.random.key(1))
    uniforms[3] = 0
    uniforms[_EDGES] = mx.array([0.5, 1.0])
    mx.eval(logits, uniforms)
    arguments = ((logits, uniforms), _TEMPERATURE, _SOFTCAP)
    return Trial(
        size=f"{rows} x {vocab}",
        kernel=_in_launches(row_statistics_kernel, launch, *arguments),
        reference=_in_launches(row_statistics_reference, None, *arguments),
        compare=partial(_compare_statistics, logits),
    )


def _compare_statistics(logits: mx.array, *results: RowStatistics) -> list[Difference]:
    got, expected = map(_on_host, results)
    valid = ~expected.invalid
    best, other = (_logits_of(ids, logits)[valid] for ids in (got.argmax, expected.argmax))
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


def _logits_of(ids: np.ndarray, logits: mx.array) -> np.ndarray:
    """Each row's logit of its id, NaN for an id that does not exist: MLX would read memory of others."""
    vocab = logits.shape[1]
    within = mx.array(ids.clip(0, vocab - 1))[:, None]
    found = np.array(mx.take_along_axis(logits, within, axis=1).astype(mx.float32))[:, 0]
    return np.where((ids >= 0) & (ids < vocab), found, np.nan)


def _processed(logits: np.ndarray) -> np.ndarray:
    """Processed logits in float64. A formula of its own: it judges both the kernel and the reference."""
    x = logits.astype(np.float64)
    return np.where(np.isneginf(x), x, _SOFTCAP * np.tanh(x / _SOFTCAP)) / _TEMPERATURE


def _mass_between(logits: np.ndarray, one: int, other: int) -> float:
    """Probability of the ids between two that were drawn with one uniform, where only rounding may differ.

    Infinite if one of the two cannot be drawn.
    """
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


def accept_and_renoise_trial(length: int, vocab: int, launch: int | None = None) -> Trial:
    """Nine canvases of `length` positions.

    Six go from sure to hopeless. They hold pins, a row that was done and one that is invalid. Then: equal
    entropies, of which two reach just the bound; the same with the last one the lowest; and one free position
    with just the threshold's entropy among pinned ones for which another token is proposed.
    """
    rng = np.random.default_rng(2)
    rows = 9
    canvas = (rows, length)
    equal, last_lowest, one_free = 6, 7, 8
    scale = 2.0 ** np.array([-8, -8, -5, -3, 0, 2, 0, 0, 0])
    entropies = np.stack([rng.permutation(length) for _ in range(rows)]) / 1024 * scale[:, None]
    entropies[[equal, last_lowest]] = 2**-4
    entropies[last_lowest, -1] = 2**-5
    entropies[one_free] = _BOUNDS.confidence_threshold
    argmaxes, invalid = rng.integers(0, vocab, canvas), np.zeros(canvas, dtype=bool)
    invalid[5, -1] = True
    pins = np.where(rng.random(canvas) < 0.2, rng.integers(0, vocab, canvas), FREE)
    pins[[0, equal, last_lowest]] = FREE
    pins[one_free] = np.where(np.arange(length) == length // 2, FREE, vocab - 1)
    repeated = np.array([True, True, False, True, False, True, True, True, True])[:, None]
    before = np.where(repeated, argmaxes, rng.integers(0, vocab, canvas))
    before[one_free] = np.where(pins[one_free] == FREE, argmaxes[one_free], pins[one_free])

    def tokens(ids: np.ndarray) -> mx.array:
        return mx.array(ids.astype(np.int32))

    proposal = Proposal(
        entropies=mx.array(entropies.astype(np.float32)),
        samples=tokens(rng.integers(0, vocab, canvas)),
        argmaxes=tokens(argmaxes),
        invalid=mx.array(invalid),
        confidences=mx.zeros(canvas),
    )
    previous = Acceptance(
        canvas=tokens(rng.integers(0, vocab, canvas)),
        argmax=tokens(before),
        accepted=mx.zeros(canvas, dtype=mx.bool_),
        stable_steps=mx.arange(rows, dtype=mx.int32),
        mean_entropy=mx.full((rows,), 0.25),
        done=mx.arange(rows) == 3,
        invalid=mx.zeros((rows,), dtype=mx.bool_),
    )
    noise = tokens(rng.integers(0, vocab, canvas))
    arguments = ((proposal, noise, tokens(pins), previous), _BOUNDS)
    return Trial(
        size=f"{rows} x {length}",
        kernel=_in_launches(accept_and_renoise_kernel, launch, *arguments),
        reference=_in_launches(accept_and_renoise_reference, None, *arguments),
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

_TAIL, _FLAT = -2, -1
_MOST_LIKELY = 12  # tokens that a row is sure of


def soft_embedding_trial(
    rows: int, table: Table, dtype: mx.Dtype, logits_dtype: mx.Dtype, launch: int | None = None
) -> Trial:
    """Rows of 1 to 12 likely tokens, in turns with the last and the first of the vocabulary among them.

    Fewer where the kernel's limit is lower, or the reference reads fewer chunks, in which each may be alone.
    The last two rows: a token and a tail that is just likely enough to be summed; and a flat one, which is
    too broad for the kernel. dtype: of the model, which is that of the result.
    """
    rng = np.random.default_rng(3)
    vocab = table.weight.shape[0]
    limit = support_limit(vocab)
    most = min(_MOST_LIKELY, limit, chosen_chunks(vocab) or _MOST_LIKELY)
    chosen = 1 + np.stack([rng.choice(vocab - 2, _MOST_LIKELY, replace=False) for _ in range(rows)])
    chosen[:, 0] = np.where(np.arange(rows) % 2, 0, vocab - 1)
    # The row's other chosen tokens are as unlikely as all the rest.
    likely = np.where(np.arange(_MOST_LIKELY) <= np.arange(rows)[:, None] % most, 11.0, -25.0)
    values = likely + 0.4 * rng.normal(size=chosen.shape)
    logits = mx.full((rows, vocab), -25.0)
    logits = mx.put_along_axis(logits, mx.array(chosen), mx.array(values.astype(np.float32)), axis=1)
    tail = [*range(limit * 3 // 4), vocab // 2]
    logits[_TAIL] = -25
    logits[_TAIL, mx.array(tail)] = mx.array([_tail_logit(limit)] * (len(tail) - 1) + [0.0])
    logits[_FLAT] = 0
    logits = logits.astype(logits_dtype)
    seen = row_statistics_reference(logits, mx.full((rows,), 0.5), _TEMPERATURE, _SOFTCAP)
    mx.eval(logits, seen)
    arguments = ((logits, seen), _TEMPERATURE, _SOFTCAP, table, dtype)
    return Trial(
        size=f"{rows} x {vocab}",
        kernel=_in_launches(soft_embedding_kernel, launch, *arguments),
        reference=_in_launches(soft_embedding_reference, None, *arguments),
        compare=partial(_compare_embeddings, dtype, _largest_values(table, chosen, tail)),
    )


def _tail_logit(limit: int) -> float:
    """Logit of a token 0.05 to 0.14 nats above the least likely that is summed, beside one of logit 0.

    bfloat16 holds it: from 8 to 16 its step is 1/16, which is less than 0.1 nats here.
    """
    lowest = math.log(TOLERANCE / limit) + 0.05
    return math.ceil(16 * _SOFTCAP * math.atanh(lowest * _TEMPERATURE / _SOFTCAP)) / 16


def _largest_values(table: Table, chosen: np.ndarray, tail: list[int]) -> np.ndarray:
    """Largest finite absolute embedding value of the tokens of each row but the flat one: `[R - 1, 1]`."""

    def largest(ids: Any) -> np.ndarray:
        values = mx.abs(table(mx.array(ids)).astype(mx.float32))
        values = mx.where(mx.isfinite(values), values, 0)
        return np.array(values.reshape(-1, values.shape[-2] * values.shape[-1]).max(axis=-1))

    return np.concatenate([largest(chosen[:_TAIL]), largest([tail])])[:, None]


def _compare_embeddings(
    dtype: mx.Dtype, largest: np.ndarray, got: SoftEmbedding, expected: SoftEmbedding
) -> list[Difference]:
    """The reference rounds weights, products of chunks and their sum to `dtype`, the kernel only the sum.

    Where the reference is not finite, damaged weights leave nothing to compare.
    """
    rounding = 2**-6 if dtype == mx.bfloat16 else 2e-3  # of the row's largest value; fp32 may mean TF32
    ours, theirs = (np.array(result.embedding.astype(mx.float32)) for result in (got, expected))
    gaps = np.zeros_like(ours[:_FLAT])
    np.subtract(ours[:_FLAT], theirs[:_FLAT], out=gaps, where=np.isfinite(theirs[:_FLAT]))
    dropped_mass = np.array(got.dropped_mass)
    return [
        Difference("left out, probability", float(dropped_mass[:_TAIL].max()), TOLERANCE),
        Difference("left out of a tail, probability", float(dropped_mass[_TAIL]), TOLERANCE / 5),
        Difference("flat rows taken as covered", float(not dropped_mass[_FLAT] > TOLERANCE), 0),
        Difference("flat rows that are summed", float(ours[_FLAT].any()), 0),
        Difference(
            "embedding, relative",
            float((np.abs(gaps) / np.maximum(largest, np.finfo(np.float32).tiny)).max()),
            rounding + 2 * TOLERANCE,
        ),
    ]
