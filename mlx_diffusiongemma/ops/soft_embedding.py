"""The expected embedding of each canvas position: what self-conditioning reads."""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn


def soft_embedding(
    processed_logits: mx.array, table: nn.Embedding | nn.QuantizedEmbedding, dtype: mx.Dtype
) -> mx.array:
    """`softmax(processed_logits) @ table`: `[B, C, V]` and a table of V rows -> `[B, C, D]`, unscaled.

    Softmax in fp32; logits and probabilities are rounded to `dtype`, the model's, as the reference does.
    A quantized table is multiplied packed, which dequantizes on the way.
    """
    probabilities = mx.softmax(processed_logits.astype(dtype).astype(mx.float32), axis=-1).astype(dtype)
    if "scales" not in table:
        return probabilities @ table.weight
    return mx.quantized_matmul(
        probabilities,
        table.weight,
        table.scales,
        table.get("biases"),
        transpose=False,
        group_size=table.group_size,
        bits=table.bits,
        mode=table.mode,
    )
