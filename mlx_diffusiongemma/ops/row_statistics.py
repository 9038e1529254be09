"""Processed logits, and the statistics of each row of them that a denoising step needs."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import mlx.core as mx

from .metal import Kernel, on_gpu, scalar

# Probability mass is summed per chunk of this many tokens, so that a sample needs one chunk's running
# sum instead of the vocabulary's, and fp32 sums stay short.
CHUNK = 1024


def processed_logits(logits: mx.array, temperature: float | mx.array, softcap: float | None) -> mx.array:
    """`softcap * tanh(logits / softcap) / temperature` in fp32, any shape. softcap None: no cap.

    -inf means "never" and stays -inf, although the cap alone would lift it to -softcap. The kernels have
    the same in `processed_logit.h`.
    """
    x = logits.astype(mx.float32)
    if softcap is not None:
        x = mx.where(x > -mx.inf, mx.tanh(x / softcap) * softcap, x)
    return x / temperature


class RowStatistics(NamedTuple):
    """One value per row `[R]`, and one per row and chunk of `CHUNK` tokens.

    argmax, sample: int32. entropy (nats), log_normalizer: fp32. invalid: bool, the row is no distribution.
    chunk_peaks: fp32 `[R, ceil(V / CHUNK)]`, each chunk's largest processed logit.
    """

    argmax: mx.array
    sample: mx.array
    entropy: mx.array
    log_normalizer: mx.array
    invalid: mx.array
    chunk_peaks: mx.array


def row_statistics(
    logits: mx.array, uniforms: mx.array, temperature: float | mx.array, softcap: float | None
) -> RowStatistics:
    """Statistics of `softmax(cap(logits) / temperature)`, `cap(x) = softcap * tanh(x / softcap)`.

    logits: `[R, V]` in any float dtype; all arithmetic is fp32. -inf means probability 0, capped or not.
    softcap: None leaves logits as they are. uniforms: fp32 `[R]` in [0, 1). The sample is the lowest token
    id whose cumulative probability exceeds the uniform (inverse CDF), so it has non-zero probability.
    Equal logits: the lowest id is the argmax. A row with NaN, +inf or nothing finite is invalid: its ids
    are 0, its entropy and normalizer NaN.
    """
    choose = row_statistics_kernel if _KERNEL.in_use else row_statistics_reference
    return choose(logits, uniforms, temperature, softcap)


_SIMDGROUPS = 16
_KERNEL = Kernel(
    "row_statistics",
    inputs=("logits", "uniforms", "temperature", "softcap"),
    outputs=("argmax", "sample", "entropy", "log_normalizer", "invalid", "chunk_peaks"),
    headers=("processed_logit.h", "online_softmax.h"),
)


def row_statistics_kernel(
    logits: mx.array, uniforms: mx.array, temperature: float | mx.array, softcap: float | None
) -> RowStatistics:
    """`row_statistics` in one launch that reads the logits once and one chunk of each row again."""
    rows, vocab = logits.shape
    chunks = -(-vocab // CHUNK)
    per_row = [mx.int32, mx.int32, mx.float32, mx.float32, mx.bool_]
    return RowStatistics(
        *_KERNEL(
            [logits, uniforms, scalar(temperature), scalar(softcap or 0)],
            template={
                "SOFTCAP": softcap is not None,
                "CHUNK": CHUNK,
                "CHUNKS": chunks,
                "SIMDGROUPS": _SIMDGROUPS,
            },
            threadgroups=(rows, 1),
            threads=32 * _SIMDGROUPS,
            outputs=[*(((rows,), dtype) for dtype in per_row), ((rows, chunks), mx.float32)],
        )
    )


# Logits a CPU takes at a time: their intermediates stay in its cache, and in memory that is used again.
_BLOCK_LOGITS, _MOST_BLOCKS = 1 << 21, 32
# Mass below e^-87 counts as 0: fp32 holds it as subnormals only, and to multiply those takes 20 times longer.
_LOWEST = -87.0


def row_statistics_reference(
    logits: mx.array, uniforms: mx.array, temperature: float | mx.array, softcap: float | None
) -> RowStatistics:
    """`row_statistics` in plain MLX."""
    rows = max(_BLOCK_LOGITS // logits.shape[1], -(-logits.shape[0] // _MOST_BLOCKS))
    if on_gpu():
        rows = logits.shape[0]
    blocks = [
        _block_statistics(logits[start : start + rows], uniforms[start : start + rows], temperature, softcap)
        for start in range(0, logits.shape[0], rows)
    ]
    return RowStatistics(*(mx.concatenate(list(parts)) for parts in zip(*blocks, strict=True)))


def _block_statistics(
    logits: mx.array, uniforms: mx.array, temperature: float | mx.array, softcap: float | None
) -> RowStatistics:
    rows, vocab = logits.shape
    x = logits.astype(mx.float32)
    if vocab % CHUNK:
        x = mx.pad(x, [(0, 0), (0, -vocab % CHUNK)], constant_values=-math.inf)
    x = x.reshape(rows, -1, CHUNK)  # [R, chunks, CHUNK]
    # The largest logit is the largest processed one: only peaks and one chunk need the cap to the last bit.
    largest = _per_chunk(mx.max, x)  # max passes a NaN on
    peaks = processed_logits(largest, temperature, softcap)
    best = mx.argmax(peaks, axis=-1, keepdims=True)
    inside = processed_logits(_chunk_of(x, best), temperature, softcap)
    argmax = best[:, 0] * CHUNK + mx.argmax(inside, axis=-1)
    top = mx.take_along_axis(peaks, best, axis=-1)
    invalid = ~((largest.max(axis=-1) < math.inf) & mx.isfinite(top[:, 0]))

    largest = mx.take_along_axis(largest, best, axis=-1)[..., None]
    if softcap is not None:
        x, largest = mx.where(x > -math.inf, _fast_cap(x, softcap), x), _fast_cap(largest, softcap)
    x = (x - largest) / temperature
    x = mx.maximum(x, _LOWEST)  # finite, so that mass * x is 0 where mass is
    mass = _exp(x) - _exp(mx.array(_LOWEST))  # 1 at the argmax, exactly 0 at the lowest
    sums = _per_chunk(mx.sum, mass)
    total = sums.sum(axis=-1)
    moment = _per_chunk(mx.sum, mass * x).sum(axis=-1)
    return RowStatistics(
        argmax=mx.where(invalid, 0, argmax).astype(mx.int32),
        sample=mx.where(invalid, 0, _inverse_cdf(mass, sums, uniforms)).astype(mx.int32),
        entropy=mx.where(invalid, mx.nan, mx.log(total) - moment / total),
        log_normalizer=mx.where(invalid, mx.nan, mx.log(total) + top[:, 0]),
        invalid=invalid,
        chunk_peaks=peaks,
    )


def _inverse_cdf(mass: mx.array, sums: mx.array, uniforms: mx.array) -> mx.array:
    """Lowest id whose cumulative share of `mass [R, chunks, CHUNK]` exceeds `uniforms [R]`."""
    ends = mx.cumsum(sums, axis=-1)  # [R, chunks]
    target = (uniforms * ends[:, -1])[:, None]
    chunk = _first_with_mass(sums, ends > target)
    before = mx.take_along_axis(mx.pad(ends, [(0, 0), (1, 0)]), chunk, axis=-1)
    inside = _chunk_of(mass, chunk)
    within = _first_with_mass(inside, before + mx.cumsum(inside, axis=-1) > target)
    return (chunk * CHUNK + within)[:, 0]


def _first_with_mass(mass: mx.array, exceeds: mx.array) -> mx.array:
    """Of `[R, N]` the first that has mass and exceeds, or the last that has mass; `[R, 1]`.

    A parallel sum is rounded in another order at every place: it may rise where there is no mass, and end
    below the target.
    """
    exceeds = exceeds & (mass > 0)
    last = mass.shape[-1] - 1 - mx.argmax(mass[:, ::-1] > 0, axis=-1, keepdims=True)
    return mx.where(exceeds.any(axis=-1, keepdims=True), mx.argmax(exceeds, axis=-1, keepdims=True), last)


def _exp(x: mx.array) -> mx.array:
    """e^x in a third of the time of `mx.exp`, which calls a function for each fma on x86."""
    return mx.power(math.e, x)


def _fast_cap(x: mx.array, softcap: float) -> mx.array:
    """`softcap * tanh(x / softcap)` in half of tanh's time. Off by at most 5e-6 at softcap 30, so only for
    sums of many tokens: `processed_logits` gives peaks and ids."""
    return softcap - (2 * softcap) / (_exp(x / (softcap / 2)) + 1)


def _per_chunk(reduce: Callable[..., mx.array], x: mx.array) -> mx.array:
    """`[R, chunks, CHUNK] -> [R, chunks]`, the second-last axis first: that one is vectorized on the CPU."""
    return reduce(reduce(x.reshape(*x.shape[:2], 16, -1), axis=-2), axis=-1)


def _chunk_of(x: mx.array, chunk: mx.array) -> mx.array:
    """Each row's chunk `[R, 1]` of `[R, chunks, CHUNK]`: `[R, CHUNK]`."""
    return mx.take_along_axis(x, chunk[..., None], axis=1)[:, 0]
