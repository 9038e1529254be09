"""Products with the embedding table: the tied projection to logits, and mixtures of its rows.

A GPU takes the table whole. MLX's CPU backend dequantizes it anew for every row, from memory; there a
canvas in fp32 takes the vocabulary in slabs that its caches hold, which is two and four times faster.
"""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import mlx.nn as nn

from .metal import on_gpu

Table = nn.Embedding | nn.QuantizedEmbedding

_SLAB = 4096  # tokens
_FEWEST_ROWS = 64  # for fewer, to dequantize the table ahead costs more than it saves


def project(hidden: mx.array, table: Table) -> mx.array:
    """`hidden @ table.T`: `[..., D]` and a table of V rows -> `[..., V]`."""
    if not _by_slabs(hidden, table):
        return table.as_linear(hidden)
    # A transposed copy suits the matrix product better than a transposed view.
    slabs = [
        mx.contiguous(mx.dequantize(table.weight[slab], **_packed(table, slab)).T)
        for slab in _slabs(table, _SLAB)
    ]
    return mx.concatenate([hidden @ slab for slab in slabs], axis=-1)


def mix(weights: mx.array, table: Table) -> mx.array:
    """`weights @ table`: `[..., V]` and a table of V rows -> `[..., D]`.

    A quantized table is multiplied packed, which dequantizes on the way.
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
    """Arguments that MLX's functions take of a quantized table beside its weight."""
    parts = {name: table[name][slab] for name in ("scales", "biases") if name in table}
    return {**parts, "group_size": table.group_size, "bits": table.bits, "mode": table.mode}
