"""Products with the embedding table: the tied projection to logits, and mixtures of its rows.

A GPU takes the table whole. MLX's CPU backend dequantizes it anew for every row, from memory; there the
vocabulary is taken in slabs that its caches hold (`_SLAB`), which is two and four times faster.
"""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn

Table = nn.Embedding | nn.QuantizedEmbedding

_SLAB = 4096  # tokens


def project(hidden: mx.array, table: Table) -> mx.array:
    """`hidden @ table.T`: `[..., D]` and a table of V rows -> `[..., V]`."""
    slabs = _slabs(hidden, table)
    if len(slabs) == 1:
        return table.as_linear(hidden)
    # A transposed copy suits the matrix product better than a transposed view.
    return mx.concatenate([hidden @ mx.contiguous(_dequantized(table, slab).T) for slab in slabs], axis=-1)


def mix(weights: mx.array, table: Table) -> mx.array:
    """`weights @ table`: `[..., V]` and a table of V rows -> `[..., D]`.

    A quantized table is multiplied packed, which dequantizes on the way.
    """
    if "scales" not in table:
        return weights @ table.weight
    parts = [
        mx.quantized_matmul(
            weights[..., slab],
            table.weight[slab],
            table.scales[slab],
            table.biases[slab] if "biases" in table else None,
            transpose=False,
            group_size=table.group_size,
            bits=table.bits,
            mode=table.mode,
        )
        for slab in _slabs(weights, table)
    ]
    return sum(parts[1:], start=parts[0])


def _slabs(rows: mx.array, table: Table) -> list[slice]:
    """The vocabulary in pieces; one, unless these fp32 rows meet a quantized table on a CPU."""
    vocab = table.weight.shape[0]
    on_cpu = mx.default_device().type == mx.DeviceType.cpu
    size = _SLAB if on_cpu and "scales" in table and rows.dtype == mx.float32 else vocab
    return [slice(start, start + size) for start in range(0, vocab, size)]


def _dequantized(table: nn.QuantizedEmbedding, slab: slice) -> mx.array:
    return mx.dequantize(
        table.weight[slab],
        table.scales[slab],
        table.biases[slab] if "biases" in table else None,
        group_size=table.group_size,
        bits=table.bits,
        mode=table.mode,
    )
