"""Expected results of the operations in float64 NumPy, and rows of logits that are easy to get wrong."""

from __future__ import annotations

from dataclasses import dataclass

import mlx.core as mx
import mlx.nn as nn
import numpy as np

CHUNK = 1024  # tokens per chunk in the kernels; some rows below have their peaks at its edges


@dataclass
class ExactRows:
    """Statistics of R rows, each `[R]`. Probabilities and processed logits are `[R, V]`."""

    probabilities: np.ndarray
    processed: np.ndarray
    argmax: np.ndarray
    entropy: np.ndarray
    log_normalizer: np.ndarray


def row_statistics(logits: np.ndarray, temperature: float, softcap: float | None) -> ExactRows:
    x = logits.astype(np.float64)
    if softcap is not None:
        x = np.where(np.isneginf(x), x, softcap * np.tanh(x / softcap))
    x = x / temperature
    peak = x.max(axis=-1, keepdims=True)
    mass = np.exp(x - peak)
    p = mass / mass.sum(axis=-1, keepdims=True)
    with np.errstate(divide="ignore", invalid="ignore"):
        entropy = -np.where(p > 0, p * np.log(p), 0.0).sum(axis=-1)
    return ExactRows(p, x, x.argmax(axis=-1), entropy, np.log(mass.sum(axis=-1)) + peak[:, 0])


def accepted(entropies: np.ndarray, pinned: np.ndarray, bound: float) -> np.ndarray:
    """Return which positions of one row `[C]` are accepted: all pinned ones, and others within the bound."""
    keep, spent = pinned.copy(), 0.0
    for position in np.argsort(entropies, kind="stable"):
        if not pinned[position]:
            keep[position] = spent <= np.float32(bound)
            spent += float(entropies[position])
    return keep


def difficult_rows(vocab: int, rng: np.random.Generator) -> np.ndarray:
    """Return logits `[R, vocab]`. Rows are difficult: flat, peaked, tied, huge, masked, rising, falling."""
    peaked = rng.normal(size=vocab)
    peaked[rng.integers(vocab)] = 40.0
    last = rng.normal(size=vocab)
    last[-1] = 12.0
    tied = rng.integers(0, 2, vocab) * 3.0
    tied[-1] = 3.0
    edges = np.full(vocab, -2.0)  # equal peaks on both sides of chunk edges, and beside lanes
    edges[[i for k in range(1, 5) for i in (CHUNK * k - 1, CHUNK * k, CHUNK * k + 3) if i < vocab]] = 9.0
    masked = np.full(vocab, -np.inf)
    masked[rng.choice(vocab, size=max(1, vocab // 3), replace=False)] = rng.normal(size=max(1, vocab // 3))
    alone = np.full(vocab, -np.inf)
    alone[rng.integers(vocab)] = -7.0
    rows = [
        np.zeros(vocab),
        peaked,
        last,
        tied,
        edges,
        masked,
        alone,
        rng.normal(size=vocab) * 1e4,
        np.linspace(-20, 20, vocab),  # a new peak at every token
        np.linspace(20, -20, vocab),
        *rng.normal(size=(3, vocab)) * 5,
    ]
    return np.stack(rows).astype(np.float32)


def cannot_be_a_distribution() -> dict[str, list[float]]:
    nan, inf = np.nan, np.inf
    return {
        "nan": [1.0, nan, 0.0],
        "only nan": [nan, nan, nan],
        "+inf": [inf, 0.0, 1.0],
        "+inf and nan": [inf, nan, 1.0],
        "+inf and -inf": [-inf, inf, -inf],
        "only -inf": [-inf, -inf, -inf],
        "nan and -inf": [-inf, nan, -inf],
    }


TABLES = {
    "float32": mx.float32,
    "bfloat16": mx.bfloat16,
    "float16": mx.float16,
    "affine 4": ("affine", 64, 4),
    "affine 4 by 32": ("affine", 32, 4),
    "affine 8": ("affine", 64, 8),
    "affine 6": ("affine", 64, 6),
    "affine 3": ("affine", 64, 3),
    "mxfp4": ("mxfp4", 32, 4),
    "mxfp8": ("mxfp8", 32, 8),
    "nvfp4": ("nvfp4", 16, 4),
}


def make_table(kind: str, vocab: int, width: int) -> tuple[nn.Module, np.ndarray]:
    """Return an embedding of a kind in `TABLES`, and its dequantized values in float64."""
    table, form = nn.Embedding(vocab, width), TABLES[kind]
    if isinstance(form, tuple):
        table = nn.QuantizedEmbedding.from_embedding(table, form[1], form[2], mode=form[0])
    else:
        table.weight = table.weight.astype(form)
    return table, np.array(table(mx.arange(vocab)).astype(mx.float32)).astype(np.float64)
