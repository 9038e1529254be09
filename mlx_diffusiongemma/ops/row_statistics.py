"""All that a denoising step wants to know about each row of logits."""

from __future__ import annotations

from typing import NamedTuple

import mlx.core as mx

from .metal import Kernel, enabled, scalar
from .processed_logits import processed_logits

# Probability mass is summed per chunk of this many tokens, so that a sample needs one chunk's running
# sum instead of the vocabulary's, and fp32 sums stay short and exact.
CHUNK = 1024


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
    choose = row_statistics_kernel if enabled() else row_statistics_reference
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


def row_statistics_reference(
    logits: mx.array, uniforms: mx.array, temperature: float | mx.array, softcap: float | None
) -> RowStatistics:
    """`row_statistics` in plain MLX."""
    rows, vocab = logits.shape
    no_number = ~(logits < mx.inf)  # NaN or +inf
    x = processed_logits(logits, temperature, softcap)
    chunked = mx.pad(x, [(0, 0), (0, -vocab % CHUNK)], constant_values=-mx.inf).reshape(rows, -1, CHUNK)
    chunk_peaks = chunked.max(axis=-1)
    argmax = mx.argmax(x, axis=-1)
    peak = mx.take_along_axis(x, argmax[:, None], axis=-1)
    invalid = no_number.any(axis=-1) | ~mx.isfinite(peak[:, 0])
    mass = mx.exp(chunked - peak[..., None])  # [R, chunks, CHUNK], 1 at the argmax
    total = mass.sum(axis=(1, 2))
    moment = mx.where(mass > 0, mass * (chunked - peak[..., None]), 0).sum(axis=(1, 2))  # 0 * -inf is NaN
    return RowStatistics(
        argmax=mx.where(invalid, 0, argmax).astype(mx.int32),
        sample=mx.where(invalid, 0, _inverse_cdf(mass, uniforms)).astype(mx.int32),
        entropy=mx.where(invalid, mx.nan, mx.log(total) - moment / total),
        log_normalizer=mx.where(invalid, mx.nan, mx.log(total) + peak[:, 0]),
        invalid=invalid,
        chunk_peaks=chunk_peaks,
    )


def _inverse_cdf(mass: mx.array, uniforms: mx.array) -> mx.array:
    """Lowest id whose cumulative share of `mass [R, chunks, CHUNK]` exceeds `uniforms [R]`."""
    chunk_ends = mx.cumsum(mass.sum(axis=-1), axis=-1)  # [R, chunks]
    total = chunk_ends[:, -1]
    # Rounding could lift u * total to total itself, which no cumulative sum exceeds.
    target = mx.minimum(uniforms * total, total * (1 - 2**-23))
    chunk = mx.argmax(chunk_ends > target[:, None], axis=-1)[:, None]  # the first chunk that exceeds it
    before = mx.where(chunk > 0, mx.take_along_axis(chunk_ends, mx.maximum(chunk, 1) - 1, axis=-1), 0)
    inside = mx.take_along_axis(mass, chunk[..., None], axis=1)[:, 0]  # [R, CHUNK]
    exceeds = before + mx.cumsum(inside, axis=-1) > target[:, None]
    # The running sum may round below the chunk's own sum: then the last token with any mass is meant.
    last = CHUNK - 1 - mx.argmax(inside[:, ::-1] > 0, axis=-1)
    within = mx.where(exceeds.any(axis=-1), mx.argmax(exceeds, axis=-1), last)
    return chunk[:, 0] * CHUNK + within
