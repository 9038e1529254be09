"""Products with the embedding table: the tied projection to logits, and mixtures of its rows.

On a GPU each is one product. On a CPU, MLX would read and dequantize the whole table again for every row. A
canvas in fp32 is therefore multiplied by slabs of the vocabulary that fit in the CPU's caches. This makes the
two products two and four times faster.
"""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import mlx.nn as nn

from .metal import on_gpu

Table = nn.Embedding | nn.QuantizedEmbedding

_SLAB = 4096  # tokens per slab
_FEWEST_ROWS = 64  # with fewer rows, dequantizing the table first costs more than it saves


def project(hidden: mx.array, table: Table) -> mx.array:
    """Return `hidden @ table.T`, `[..., V]`. hidden: `[..., D]`. table: V rows of D columns."""
    if not _by_slabs(hidden, table):
        return table.as_linear(hidden)
    # The matrix product is faster with a transposed copy than with a transposed view.
    slabs = [
        mx.contiguous(mx.dequantize(table.weight[slab], **_packed(table, slab)).T)
        for slab in _slabs(table, _SLAB)
    ]
    return mx.concatenate([hidden @ slab for slab in slabs], axis=-1)


def mix(weights: mx.array, table: Table) -> mx.array:
    """Return `weights @ table`, `[..., D]`. weights: `[..., V]`. table: V rows of D columns.

    A quantized table is read in packed form.
    """
    if "scales" not in table:
        return weights @ table.weight
    size = _SLAB if _by_slabs(weights, table) else weights.shape[-1]
    parts = [
        mx.quantized_matmul(weights[..., slab], table.weight[slab], transpose=False, **_packed(table, slab))
        for slab in _slabs(table, size)
    ]
    return sum(parts[1:], start=parts[0])


def _by_slabs(rows: mx.array, table: Table) -> bool:
    several = rows.size >= _FEWEST_ROWS * rows.shape[-1]
    return several and not on_gpu() and "scales" in table and rows.dtype == mx.float32


def _slabs(table: Table, size: int) -> list[slice]:
    return [slice(start, start + size) for start in range(0, table.weight.shape[0], size)]


def _packed(table: Table, slab: slice) -> dict[str, Any]:
    """Return the arguments of MLX's functions for a quantized table, except its weight."""
    parts = {name: table[name][slab] for name in ("scales", "biases") if name in table}
    return {**parts, "group_size": table.group_size, "bits": table.bits, "mode": table.mode}
