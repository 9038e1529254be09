"""Products with the embedding table against float64, by slabs and whole."""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from mlx_diffusiongemma.config.released import QUANTIZATIONS
from mlx_diffusiongemma.ops.table_products import mix, project

FORMS = [
    ("affine", 64, 4),
    ("affine", 32, 8),
    ("affine", 64, 3),
    ("mxfp4", 32, 4),
    ("mxfp8", 32, 8),
    ("nvfp4", 16, 4),
]
WIDTH = 64


def table_of(form: tuple[str, int, int] | None, vocab: int) -> tuple[nn.Module, np.ndarray]:
    table: nn.Module = nn.Embedding(vocab, WIDTH)
    table.weight = mx.random.normal((vocab, WIDTH), key=mx.random.key(vocab))
    if form is None:
        return table, np.array(table.weight).astype(np.float64)
    table = nn.QuantizedEmbedding.from_embedding(table, form[1], form[2], mode=form[0])
    values = mx.dequantize(
        table.weight, table.scales, table.get("biases"), group_size=form[1], bits=form[2], mode=form[0]
    )
    return table, np.array(values.astype(mx.float32)).astype(np.float64)


@pytest.mark.parametrize("rows", [1, 63, 64, 70])  # a CPU takes slabs from 64 rows on
@pytest.mark.parametrize("vocab", [1000, 4096, 4097, 9000])
@pytest.mark.parametrize("form", [None, *FORMS])
def test_products_are_exact(form: tuple[str, int, int] | None, vocab: int, rows: int) -> None:
    table, values = table_of(form, vocab)
    rng = np.random.default_rng(rows)
    hidden = rng.normal(size=(1, rows, WIDTH)).astype(np.float32)
    logits = np.array(project(mx.array(hidden), table))
    assert logits.shape == (1, rows, vocab)
    np.testing.assert_allclose(logits, hidden @ values.T, atol=1e-3)
    weights = rng.dirichlet(np.full(vocab, 0.01), size=rows).astype(np.float32)
    np.testing.assert_allclose(np.array(mix(mx.array(weights), table)), weights @ values, atol=1e-4)


def test_every_mode_is_among_them() -> None:
    assert {form[0] for form in FORMS} == set(QUANTIZATIONS)
