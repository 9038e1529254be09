"""Processed logits, and the statistics of their rows that a denoising step needs."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import mlx.core as mx

from .metal import Kernel, on_gpu, scalar

# Probability mass is summed in chunks of this many tokens. A sample then needs the running sum of one chunk
# instead of the whole vocabulary, and fp32 sums stay short.
CHUNK = 1024


def processed_logits(logits: mx.array, temperature: float | mx.array, softcap: float | None) -> mx.array:
    """Return `softcap * tanh(logits / softcap) / temperature` in fp32. Without a softcap, no cap is applied.

    A logit of -inf means "never" and stays -inf, although the cap alone would raise it to -softcap. The Metal
    kernels compute this in `processed_logit.h`.
    """
    x = logits.astype(mx.float32)
    if softcap is not None:
        x = mx.where(x > -mx.inf, mx.tanh(x / softcap) * softcap, x)
    return x / temperature


class RowStatistics(NamedTuple):
    """Statistics of each row of processed logits, `[R]` unless said otherwise.

    argmax, sample: int32.
    entropy: fp32, nats.
    log_normalizer: fp32, logsumexp of the row.
    invalid: bool, True if the row is not a distribution, see `row_statistics`.
    chunk_peaks: fp32 `[R, ceil(V / CHUNK)]`, largest processed logit of each chunk of `CHUNK` tokens.
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
    """Return statistics of `softmax(cap(logits) / temperature)`, with `cap(x) = softcap * tanh(x / softcap)`.

    All arithmetic is in fp32. The sample is the lowest token id whose cumulative probability exceeds the
    uniform (inverse CDF), so its probability is never 0. Of equal logits, the lowest id is the argmax. A row
    with NaN or +inf, or without a finite logit, is invalid. Its ids are 0, its entropy and normalizer NaN.

    Args:
        logits: `[R, V]` in any float dtype. -inf means probability 0, also with a softcap.
        uniforms: fp32 `[R]` in [0, 1).
        softcap: None for no cap.
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
    """`row_statistics` in one launch. It reads the logits once, and one chunk of each row twice."""
    rows, vocab = logits.shape
    chunks = -(-vocab // CHUNK)
    per_row = [mx.int32, mx.int32, mx.float32, mx.float32, mx.bool_]
    sizes = {"CHUNK": CHUNK, "CHUNKS": chunks, "SIMDGROUPS": _SIMDGROUPS}
    results = _KERNEL(
        [logits, uniforms, scalar(temperature), scalar(softcap or 0)],
        template={"SOFTCAP": softcap is not None, **sizes},
        threadgroups=(rows, 1),
        threads=32 * _SIMDGROUPS,
        outputs=[*(((rows,), dtype) for dtype in per_row), ((rows, chunks), mx.float32)],
    )
    return RowStatistics(*results)


# Logits that a CPU processes at a time. Their intermediates fit in its cache, and their memory is reused.
_BLOCK_LOGITS, _MOST_BLOCKS = 1 << 21, 32
# Mass below e^-87 counts as 0. In fp32 it is subnormal, and subnormal products take 20 times longer.
_LOWEST = -87.0


def row_statistics_reference(
    logits: mx.array, uniforms: mx.array, temperature: float | mx.array, softcap: float | None
) -> RowStatistics:
    """`row_statistics` in plain MLX."""
    count, vocab = logits.shape
    rows = count if on_gpu() else max(_BLOCK_LOGITS // vocab, -(-count // _MOST_BLOCKS))
    blocks = [
        _block_statistics(logits[start : start + rows], uniforms[start : start + rows], temperature, softcap)
        for start in range(0, count, rows)
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
    # Processing keeps the order of logits, so only the peaks and one chunk need the exact cap.
    largest = _per_chunk(mx.max, x)  # max propagates NaN
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
    x = mx.maximum(x, _LOWEST)  # finite, so mass * x is 0 where mass is 0
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
    """Return the lowest id whose cumulative share of `mass [R, chunks, CHUNK]` exceeds `uniforms [R]`."""
    ends = mx.cumsum(sums, axis=-1)  # [R, chunks]
    target = (uniforms * ends[:, -1])[:, None]
    chunk = _first_with_mass(sums, ends > target)
    before = mx.take_along_axis(mx.pad(ends, [(0, 0), (1, 0)]), chunk, axis=-1)
    inside = _chunk_of(mass, chunk)
    within = _first_with_mass(inside, before + mx.cumsum(inside, axis=-1) > target)
    return (chunk * CHUNK + within)[:, 0]


def _first_with_mass(mass: mx.array, exceeds: mx.array) -> mx.array:
    """Return the index of the first entry of each row that has mass and where `exceeds` is True: `[R, 1]`.

    Without such an entry, return the last that has mass. A parallel running sum rounds in a different order
    at each index. So it may rise where the mass is 0, and its end may be below the target.

    mass, exceeds: `[R, N]`.
    """
    exceeds = exceeds & (mass > 0)
    last = mass.shape[-1] - 1 - mx.argmax(mass[:, ::-1] > 0, axis=-1, keepdims=True)
    return mx.where(exceeds.any(axis=-1, keepdims=True), mx.argmax(exceeds, axis=-1, keepdims=True), last)


def _exp(x: mx.array) -> mx.array:
    """Return e^x in a third of the time of `mx.exp`, which on x86 calls a function for each multiply-add."""
    return mx.power(math.e, x)


def _fast_cap(x: mx.array, softcap: float) -> mx.array:
    """Return `softcap * tanh(x / softcap)` in half the time that `mx.tanh` takes.

    The error is at most 5e-6 at softcap 30. Use it only for sums over many tokens. Peaks and ids need
    `processed_logits`.
    """
    return softcap - (2 * softcap) / (_exp(x / (softcap / 2)) + 1)


def _per_chunk(reduce: Callable[..., mx.array], x: mx.array) -> mx.array:
    """Reduce `[R, chunks, CHUNK]` to `[R, chunks]` in two steps, of which a CPU vectorizes the first."""
    return reduce(reduce(x.reshape(*x.shape[:2], 16, -1), axis=-2), axis=-1)


def _chunk_of(x: mx.array, chunk: mx.array) -> mx.array:
    """Return one chunk of each row, `[R, CHUNK]`. x: `[R, chunks, CHUNK]`. chunk: its index, `[R, 1]`."""
    return mx.take_along_axis(x, chunk[..., None], axis=1)[:, 0]
