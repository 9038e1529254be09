"""One input for each kernel, on which it must agree with its reference, and the allowed differences.

Rounding cannot change a decision on these inputs. A uniform is in the middle of the interval of the token
that it draws. At ties and bounds, sums are exact in any order, because they add multiples of a power of two
or equally likely tokens.
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
from .row_statistics import RowStatistics, processed_logits, row_statistics_kernel, row_statistics_reference
from .soft_embedding import (
    TOLERANCE,
    SoftEmbedding,
    chosen_chunks,
    soft_embedding_kernel,
    soft_embedding_reference,
    support_limit,
)
from .table_products import Table

_ROWS = 12  # rows of logits in a trial
_SOFTCAP, _TEMPERATURE = 30.0, 0.6


class Difference(NamedTuple):
    """One comparison: the measured difference, and the largest one that rounding explains."""

    what: str
    measured: float
    allowed: float

    @property
    def is_too_large(self) -> bool:
        """True if the difference is larger than allowed, or NaN."""
        return not self.measured <= self.allowed


class Trial(NamedTuple):
    """A function that launches a kernel, the expected result, and a function that compares the two.

    Functions that make trials have an argument `launch`, the number of rows in one launch, or None for all.
    It matters because MLX passes arrays of fewer than 8 elements as constants, so Metal compiles other code.
    """

    kernel: Callable[[], Any]
    expected: Any
    compare: Callable[[Any, Any], list[Difference]]


def _in_launches(op: Callable[..., Any], launch: int | None, by_row: tuple[Any, ...], *others: Any) -> Any:
    """Return `op(*by_row, *others)`, computed `launch` rows at a time. Rows are the first axis of arrays."""
    leaves: Any = tree_flatten(by_row)  # (name, array) pairs
    count = leaves[0][1].shape[0]
    parts = []
    for start in range(0, count, launch or count):
        rows = slice(start, start + (launch or count))
        cut = tree_map(lambda x, rows=rows: x[rows] if isinstance(x, mx.array) else x, by_row)
        parts.append(op(*cut, *others))
    return tree_map(lambda *x: mx.concatenate(list(x)), *parts)


def _exactly(what: str, got: Any, expected: Any) -> Difference:
    return Difference(f"{what} (count of values)", float((np.array(got) != np.array(expected)).sum()), 0)


def _closely(what: str, got: np.ndarray, expected: np.ndarray, atol: float, rtol: float) -> Difference:
    """Return the largest absolute difference of two arrays, and the largest one that is allowed.

    That is 2 * (atol + rtol * largest finite value), because both sides round.
    """
    largest = float(np.abs(expected[np.isfinite(expected)]).max())
    gaps = np.zeros_like(got)
    np.subtract(got, expected, out=gaps, where=got != expected)  # equal infinities do not differ
    return Difference(what, float(np.abs(gaps).max()), 2 * (atol + rtol * largest))


def row_statistics_trial(vocab: int, dtype: mx.Dtype, launch: int | None = None) -> Trial:
    """Return a trial on random rows. The first eight are edited:

    0: all logits are equal.
    1, 2: NaN or +inf, so the row is not a distribution.
    3: every third token is impossible, the others are deep in the softcap, and the uniform is 0.
    4: one token is nearly certain.
    5: several tokens are equally likely.
    6, 7: only four tokens are possible, equally likely. The uniform of row 6 is where the third begins. That
        of row 7 is 1, which no running sum exceeds. Rounding can have the same effect.
    """
    logits = 4 * mx.random.normal((_ROWS, vocab), key=mx.random.key(0))
    logits = logits.astype(mx.bfloat16).astype(mx.float32)  # values that differ stay different in any dtype
    logits[0] = 0
    logits[1, vocab // 2] = mx.nan
    logits[2, 5] = mx.inf
    logits[3] -= 100
    logits[3, ::3] = -mx.inf
    logits[4, -1] = 60
    logits[5, 300::400] = 60
    logits[6:8] = -mx.inf
    logits[6:8, mx.array([3, vocab // 2, vocab // 2 + 1, vocab - 5])] = 0
    logits = logits.astype(dtype)
    x = np.array(processed_logits(logits, _TEMPERATURE, _SOFTCAP)).astype(np.float64)
    x[1:3] = 0
    p = np.exp(x - x.max(axis=1, keepdims=True))
    third = np.argpartition(-x, 2, axis=1)[:, 2:3]  # the third likeliest token, drawn if likely enough
    token = np.where(np.take_along_axis(p, third, axis=1) > 1e-2, third, x.argmax(axis=1)[:, None])
    middles = np.take_along_axis(np.cumsum(p, axis=1) - p / 2, token, axis=1)[:, 0] / p.sum(axis=1)
    middles[3], middles[6:8] = 0, (0.5, 1)
    uniforms = mx.array(middles.astype(np.float32))
    by_row = logits, uniforms
    return Trial(
        kernel=partial(_in_launches, row_statistics_kernel, launch, by_row, _TEMPERATURE, _SOFTCAP),
        expected=row_statistics_reference(*by_row, _TEMPERATURE, _SOFTCAP),
        compare=_compare_statistics,
    )


def _compare_statistics(*results: RowStatistics) -> list[Difference]:
    got, expected = ({n: np.array(x) for n, x in result._asdict().items()} for result in results)
    valid = ~expected["invalid"]

    def values(name: str) -> tuple[np.ndarray, np.ndarray]:
        return got[name][valid], expected[name][valid]

    return [
        _exactly("invalid", got["invalid"], expected["invalid"]),
        _closely("entropy", *values("entropy"), 1e-4, 0),
        _closely("log_normalizer", *values("log_normalizer"), 1e-5, 1e-6),
        _closely("chunk_peaks", *values("chunk_peaks"), 1e-6, 1e-6),
        _exactly("argmax", *values("argmax")),
        _exactly("sample", *values("sample")),
    ]


_BOUNDS = Bounds(entropy_bound=2**-3, stability_threshold=1, confidence_threshold=2**-8)


def accept_and_renoise_trial(length: int, vocab: int, launch: int | None = None) -> Trial:
    """Return a trial on nine random canvases of `length` positions, from certain to uncertain.

    Row 3 is done and row 5 invalid.
    Row 6 has equal entropies. Two of them sum to exactly the bound.
    Row 7 is like row 6, but the last position has the lowest entropy.
    Row 8 has one free position, whose entropy is exactly the confidence threshold. The others are pinned, and
        random tokens are proposed for them.
    """
    rng = np.random.default_rng(2)
    canvas = (9, length)
    scale = 2.0 ** np.array([-8, -8, -5, -3, 0, 2, 0, 0, 0])
    entropies = np.stack([rng.permutation(length) for _ in scale]) / 1024 * scale[:, None]
    entropies[6:8], entropies[7, -1], entropies[8] = 2**-4, 2**-5, _BOUNDS.confidence_threshold
    argmaxes, invalid = rng.integers(0, vocab, canvas), np.zeros(canvas, dtype=bool)
    invalid[5, -1] = True
    pins = np.where(rng.random(canvas) < 0.2, rng.integers(0, vocab, canvas), FREE)
    pins[[0, 6, 7]] = FREE
    pins[8] = np.where(np.arange(length) == length // 2, FREE, vocab - 1)
    before = argmaxes.copy()
    before[[2, 4]] = rng.integers(0, vocab, (2, length))
    before[8] = np.where(pins[8] == FREE, argmaxes[8], pins[8])

    # More random tokens: samples, previous canvas, noise.
    samples, old_canvas, noise = (mx.array(rng.integers(0, vocab, canvas), dtype=mx.int32) for _ in range(3))
    proposal = Proposal(
        entropies=mx.array(entropies.astype(np.float32)),
        samples=samples,
        argmaxes=mx.array(argmaxes, dtype=mx.int32),
        invalid=mx.array(invalid),
        confidences=mx.zeros(canvas),
    )
    previous = Acceptance(
        canvas=old_canvas,
        argmax=mx.array(before, dtype=mx.int32),
        accepted=mx.zeros(canvas, dtype=mx.bool_),
        stable_steps=mx.arange(9, dtype=mx.int32),
        mean_entropy=mx.full((9,), 0.25),
        done=mx.arange(9) == 3,
        invalid=mx.zeros((9,), dtype=mx.bool_),
    )
    by_row = (proposal, noise, mx.array(pins, dtype=mx.int32), previous)
    return Trial(
        kernel=partial(_in_launches, accept_and_renoise_kernel, launch, by_row, _BOUNDS),
        expected=accept_and_renoise_reference(*by_row, _BOUNDS),
        compare=_compare_acceptance,
    )


def _compare_acceptance(got: Acceptance, expected: Acceptance) -> list[Difference]:
    ours, theirs = np.array(got.mean_entropy), np.array(expected.mean_entropy)
    exact = [name for name in Acceptance._fields if name != "mean_entropy"]
    return [
        *(_exactly(name, getattr(got, name), getattr(expected, name)) for name in exact),
        _closely("mean_entropy", ours, theirs, 0, 1e-5),
    ]


_TAIL, _FLAT = -2, -1  # indices of the last two rows
_MOST_LIKELY = 12  # maximum number of likely tokens in a row


def soft_embedding_trial(
    table: Table, dtype: mx.Dtype, logits_dtype: mx.Dtype, launch: int | None = None
) -> Trial:
    """Return a trial on rows with 1 to 12 likely tokens, including the first or last of the vocabulary.

    The maximum is lower if the kernel's limit is lower, or if the reference reads fewer chunks, because each
    token may be alone in its chunk. In the row before the last, one token has a tail of tokens that are just
    likely enough to be summed. The last row is flat: it has too many likely tokens for the kernel.

    dtype: dtype of the model and of the result.
    """
    rng = np.random.default_rng(3)
    vocab = table.weight.shape[0]
    limit = support_limit(vocab)
    most = min(_MOST_LIKELY, limit, chosen_chunks(vocab) or _MOST_LIKELY)
    ids = 1 + np.stack([rng.choice(vocab - 2, _MOST_LIKELY, replace=False) for _ in range(_ROWS)])
    ids[:, 0] = np.where(np.arange(_ROWS) % 2, 0, vocab - 1)
    # A row uses the first of its ids as likely tokens. The rest are as unlikely as all other tokens.
    likely = np.where(np.arange(_MOST_LIKELY) <= np.arange(_ROWS)[:, None] % most, 11.0, -25.0)
    tail = [*range(limit * 3 // 4), vocab // 2]
    logits = np.full((_ROWS, vocab), -25.0, np.float32)
    np.put_along_axis(logits, ids, likely + 0.4 * rng.normal(size=ids.shape), axis=1)
    # Tokens of the tail are 0.05 to 0.14 nats above the threshold of the sum, next to a logit of 0. Their
    # logit is exact in bfloat16, whose step from 8 to 16 is 1/16, less than 0.1 nats here.
    lowest = math.log(TOLERANCE / limit) + 0.05
    tail_logit = math.ceil(16 * _SOFTCAP * math.atanh(lowest * _TEMPERATURE / _SOFTCAP)) / 16
    logits[_TAIL] = -25
    logits[_TAIL, tail] = [tail_logit] * (len(tail) - 1) + [0.0]
    logits[_FLAT] = 0
    x = mx.array(logits).astype(logits_dtype)
    statistics = row_statistics_reference(x, mx.full((_ROWS,), 0.5), _TEMPERATURE, _SOFTCAP)
    values = np.array(table(mx.array([*ids.ravel().tolist(), *tail])).astype(mx.float32))
    largest = float(np.abs(values[np.isfinite(values)]).max(initial=0))
    others = (_TEMPERATURE, _SOFTCAP, table, dtype)
    return Trial(
        kernel=partial(_in_launches, soft_embedding_kernel, launch, (x, statistics), *others),
        expected=soft_embedding_reference(x, statistics, *others),
        compare=partial(_compare_embeddings, dtype, largest),
    )


def _compare_embeddings(
    dtype: mx.Dtype, largest: float, got: SoftEmbedding, expected: SoftEmbedding
) -> list[Difference]:
    """Compare embeddings. The reference rounds weights, chunk products and sums, the kernel only sums.

    Positions where the reference is not finite are skipped, because the weights are damaged there.

    dtype: dtype of the embeddings, which decides the rounding.
    largest: largest absolute value in the rows of the table that are used.
    """
    rounding = 2**-6 if dtype == mx.bfloat16 else 2e-3  # of the largest value; fp32 may mean TF32
    ours, theirs = (np.array(result.embedding.astype(mx.float32)) for result in (got, expected))
    gaps = np.zeros_like(ours[:_FLAT])
    np.subtract(ours[:_FLAT], theirs[:_FLAT], out=gaps, where=np.isfinite(theirs[:_FLAT]))
    dropped_mass = np.array(got.dropped_mass)
    return [
        Difference("dropped mass", float(dropped_mass[:_TAIL].max()), TOLERANCE),
        Difference("dropped mass of a tail", float(dropped_mass[_TAIL]), TOLERANCE / 5),
        Difference("flat rows taken as covered", float(not dropped_mass[_FLAT] > TOLERANCE), 0),
        Difference("flat rows that are summed", float(ours[_FLAT].any()), 0),
        Difference("embedding", float(np.abs(gaps).max()), (rounding + 2 * TOLERANCE) * largest),
    ]
