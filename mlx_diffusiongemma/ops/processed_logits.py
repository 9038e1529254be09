"""Logits as the sampler sees them."""

from __future__ import annotations

import mlx.core as mx


def processed_logits(logits: mx.array, temperature: float | mx.array, softcap: float | None) -> mx.array:
    """`softcap * tanh(logits / softcap) / temperature` in fp32, any shape; softcap None: no cap.

    -inf means "never" and stays -inf, although the cap alone would lift it to -softcap. The kernels have
    the same in `processed_logit.h`.
    """
    x = logits.astype(mx.float32)
    if softcap is not None:
        x = mx.where(x > -mx.inf, mx.tanh(x / softcap) * softcap, x)
    return x / temperature
