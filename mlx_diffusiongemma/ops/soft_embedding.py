"""The expected embedding of each canvas position, which is the input of self-conditioning."""

from __future__ import annotations

import math
from typing import NamedTuple

import mlx.core as mx

from .metal import Kernel, scalar
from .row_statistics import CHUNK, RowStatistics, processed_logits
from .table_products import Table, mix

# Probability that a row's soft embedding may lack. The released model changes more, because it rounds every
# probability to bf16 (2**-9 of each).
TOLERANCE = 1e-4


class SoftEmbedding(NamedTuple):
    """A soft embedding that may lack unlikely tokens.

    Where `dropped_mass` exceeds `TOLERANCE`, the embedding is meaningless. Use `dense_soft_embedding` there.

    embedding: `[R, D]` in the model's dtype, without the model's embedding scale.
    dropped_mass: fp32 `[R]`, the probability that the embedding lacks.
    """

    embedding: mx.array
    dropped_mass: mx.array


def soft_embedding(
    logits: mx.array,
    statistics: RowStatistics,
    temperature: float | mx.array,
    softcap: float | None,
    table: Table,
    dtype: mx.Dtype,
) -> SoftEmbedding:
    """Return `softmax(cap(logits) / temperature) @ table` for logits `[R, V]`.

    `cap` is that of `row_statistics`.

    statistics: `row_statistics` of the same logits, temperature and softcap.
    """
    takes_kernel = _KERNEL.in_use and suits_table(table)
    choose = soft_embedding_kernel if takes_kernel else soft_embedding_reference
    return choose(logits, statistics, temperature, softcap, table, dtype)


def is_sparse(table: Table) -> bool:
    """Return True if `soft_embedding` may drop probability. For a small vocabulary it does not."""
    return (_KERNEL.in_use and suits_table(table)) or chosen_chunks(table.weight.shape[0]) > 0


def dense_soft_embedding(x: mx.array, table: Table, dtype: mx.Dtype) -> mx.array:
    """Return `softmax(x) @ table`, `[..., D]`. x: processed logits `[..., V]`. dtype: the model's.

    Softmax is in fp32. Logits and probabilities are rounded to `dtype`, as in the released code.
    """
    probabilities = mx.softmax(x.astype(dtype).astype(mx.float32), axis=-1)
    # Such probabilities do not matter, but products with subnormal fp32 numbers are slow on a CPU.
    probabilities = mx.where(probabilities < 1e-30, 0, probabilities).astype(dtype)
    return mix(probabilities, table)


# The reference multiplies whole chunks. Of each row's chunks it uses one in this many.
_CHUNKS_PER_CHOSEN = 16


def soft_embedding_reference(
    logits: mx.array,
    statistics: RowStatistics,
    temperature: float | mx.array,
    softcap: float | None,
    table: Table,
    dtype: mx.Dtype,
) -> SoftEmbedding:
    """`soft_embedding` in plain MLX. It uses a sixteenth of each row's chunks, those with the largest peaks.

    If the vocabulary is small or does not consist of whole chunks, it uses all tokens.
    """
    rows, count = logits.shape[0], chosen_chunks(logits.shape[1])
    if not count:
        x = processed_logits(logits, temperature, softcap)
        return SoftEmbedding(dense_soft_embedding(x, table, dtype), dropped_mass=mx.zeros((rows,)))
    chosen = mx.argpartition(-statistics.chunk_peaks, kth=count - 1, axis=-1)[:, :count]
    x = mx.take_along_axis(logits.reshape(rows, -1, CHUNK), chosen[..., None], axis=1)
    x = processed_logits(x, temperature, softcap)  # [R, count, CHUNK]
    normalizer = statistics.log_normalizer[:, None, None]
    dropped_mass = mx.maximum(1 - mx.exp(x - normalizer).sum(axis=(1, 2)), 0)
    # Rounding the logits changes the sum of the weights. The dropped mass is not rounded.
    weights = mx.exp(x.astype(dtype).astype(mx.float32) - normalizer)
    weights = weights / (weights.sum(axis=(1, 2)) + dropped_mass)[:, None, None]
    parts = _chunk_products(weights.astype(dtype).reshape(-1, 1, CHUNK), chosen.flatten(), table)
    return SoftEmbedding(parts.reshape(rows, count, -1).sum(axis=1), dropped_mass)


def chosen_chunks(vocab: int) -> int:
    """Return the number of chunks per row that the reference reads, or 0 for the dense product."""
    return 0 if vocab % CHUNK else vocab // CHUNK // _CHUNKS_PER_CHOSEN


def _chunk_products(weights: mx.array, chosen: mx.array, table: Table) -> mx.array:
    """Return the product of weights `[N, 1, CHUNK]` and chunks `chosen [N]` of the table: `[N, 1, D]`."""

    def by_chunk(array: mx.array) -> mx.array:
        return array.reshape(-1, CHUNK, array.shape[-1])

    if "scales" not in table:
        return mx.gather_mm(weights, by_chunk(table.weight), rhs_indices=chosen)
    return mx.gather_qmm(
        weights,
        by_chunk(table.weight),
        by_chunk(table.scales),
        by_chunk(table["biases"]) if "biases" in table else None,
        rhs_indices=chosen,
        transpose=False,
        group_size=table.group_size,
        bits=table.bits,
        mode=table.mode,
    )


_SIMDGROUPS = 16
_SUPPORT_LIMIT = 2048  # tokens per row; their ids and weights take 16 of the 32 KB of threadgroup memory
_KERNEL = Kernel(
    "soft_embedding",
    inputs=(
        "logits", "log_normalizer", "chunk_peaks", "table", "scales", "biases",
        "temperature", "softcap", "log_threshold", "tolerance",
    ),
    outputs=("embedding", "dropped_mass"),
    headers=("processed_logit.h",),
)  # fmt: skip


def soft_embedding_kernel(
    logits: mx.array,
    statistics: RowStatistics,
    temperature: float | mx.array,
    softcap: float | None,
    table: Table,
    dtype: mx.Dtype,
) -> SoftEmbedding:
    """`soft_embedding` from those tokens of each row whose probability is at least `TOLERANCE / limit`.

    This drops at most TOLERANCE of a row if some k tokens have all of its probability except d, with
    k / limit + d / TOLERANCE <= 1. Then at most k + limit * d / TOLERANCE <= limit tokens are that likely,
    and the others sum to at most d + k * TOLERANCE / limit <= TOLERANCE. If more than `limit` tokens are that
    likely, those with the lowest ids are used, and the rest counts as dropped.
    """
    rows, vocab = logits.shape
    limit = support_limit(vocab)
    quantized = "scales" in table
    none = mx.zeros((1,))
    embedding, dropped_mass = _KERNEL(
        [
            logits,
            statistics.log_normalizer,
            statistics.chunk_peaks,
            table.weight,
            table["scales"] if quantized else none,
            table["biases"] if quantized else none,
            scalar(temperature),
            scalar(softcap or 0),
            scalar(math.log(TOLERANCE / limit)),
            scalar(TOLERANCE),
        ],
        template={
            "T": dtype,
            "SOFTCAP": softcap is not None,
            "CHUNK": CHUNK,
            "CHUNKS": statistics.chunk_peaks.shape[1],
            "SIMDGROUPS": _SIMDGROUPS,
            "LIMIT": limit,
            "D": width(table),
            "BITS": table.bits if quantized else 0,
            "GROUP": table.group_size if quantized else 1,
        },
        threadgroups=(rows, 1),
        threads=32 * _SIMDGROUPS,
        outputs=[((rows, width(table)), dtype), ((rows,), mx.float32)],
    )
    return SoftEmbedding(embedding, dropped_mass)


def support_limit(vocab: int) -> int:
    """Return how many tokens per row the kernel may use. For more, a dense product is faster."""
    return min(_SUPPORT_LIMIT, vocab // 16)


def suits_table(table: Table) -> bool:
    """Return True if the kernel supports this table: not tiny, and affine 4 or 8 bit or unquantized."""
    vocab = table.weight.shape[0]
    readable = "scales" not in table or (table.mode == "affine" and table.bits in (4, 8))
    return readable and width(table) % 4 == 0 and support_limit(vocab) > 0


def width(table: Table) -> int:
    """Return the number of columns of the unpacked table."""
    columns: int = table.weight.shape[1]
    return columns * 32 // table.bits if "scales" in table else columns
