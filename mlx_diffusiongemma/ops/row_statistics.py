"""All that a denoising step wants to know about each row of logits."""

from __future__ import annotations

from typing import NamedTuple

import mlx.core as mx

# Probability mass is summed per chunk of this many tokens, so that a sample needs one chunk's running
# sum instead of the vocabulary's, and fp32 sums stay short and exact.
_CHUNK = 512


class RowStatistics(NamedTuple):
    """One value per row `[R]`: `argmax`, `sample` int32; `entropy` (nats), `log_normalizer` fp32."""

    argmax: mx.array
    sample: mx.array
    entropy: mx.array
    log_normalizer: mx.array


def row_statistics(
    logits: mx.array, uniforms: mx.array, temperature: float, softcap: float | None
) -> RowStatistics:
    """Statistics of `softmax(cap(logits) / temperature)`, `cap(x) = softcap * tanh(x / softcap)`.

    logits: `[R, V]` in any float dtype; all arithmetic is fp32. softcap: None leaves logits as they are.
    uniforms: fp32 `[R]` in [0, 1). The sample is the lowest token id whose cumulative probability
    exceeds the uniform (inverse CDF), so it has non-zero probability. Equal logits: lowest id wins.
    Rows with NaN come out with a NaN entropy.
    """
    x = logits.astype(mx.float32)
    if softcap is not None:
        x = mx.tanh(x / softcap) * softcap
    x = x / temperature
    argmax = mx.argmax(x, axis=-1)
    top = mx.take_along_axis(x, argmax[:, None], axis=-1)
    x = x - top
    mass = mx.exp(x)  # [R, V], 1 at the argmax
    total = mass.sum(axis=-1)
    # -inf logits: mass 0 times -inf would be NaN
    entropy = mx.log(total) - mx.where(mass > 0, mass * x, 0).sum(axis=-1) / total
    return RowStatistics(
        argmax=argmax.astype(mx.int32),
        sample=_inverse_cdf(mass, uniforms),
        entropy=entropy,
        log_normalizer=mx.log(total) + top[:, 0],
    )


def _inverse_cdf(mass: mx.array, uniforms: mx.array) -> mx.array:
    """Lowest id whose cumulative share of `mass [R, V]` exceeds `uniforms [R]`, as int32 `[R]`."""
    rows, vocab = mass.shape
    mass = mx.pad(mass, [(0, 0), (0, -vocab % _CHUNK)]).reshape(rows, -1, _CHUNK)
    chunk_ends = mx.cumsum(mass.sum(axis=-1), axis=-1)  # [R, chunks]
    total = chunk_ends[:, -1]
    # Rounding could lift u * total to total itself, which no cumulative sum exceeds.
    target = mx.minimum(uniforms * total, total * (1 - 2**-23))
    chunk = mx.argmax(chunk_ends > target[:, None], axis=-1)[:, None]  # the first chunk that exceeds it
    before = mx.where(chunk > 0, mx.take_along_axis(chunk_ends, mx.maximum(chunk, 1) - 1, axis=-1), 0)
    inside = mx.take_along_axis(mass, chunk[..., None], axis=1)[:, 0]  # [R, CHUNK]
    exceeds = before + mx.cumsum(inside, axis=-1) > target[:, None]
    # The running sum may round below the chunk's own sum: then the last token with any mass is meant.
    last = _CHUNK - 1 - mx.argmax(inside[:, ::-1] > 0, axis=-1)
    within = mx.where(exceeds.any(axis=-1), mx.argmax(exceeds, axis=-1), last)
    return (chunk[:, 0] * _CHUNK + within).astype(mx.int32)
