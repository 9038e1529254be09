"""Products with the embedding table against float64, by slabs and whole."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest
from support.exact import make_table

from mlx_diffusiongemma.config.released import QUANTIZATIONS
from mlx_diffusiongemma.ops.table_products import mix, project

KINDS = ["float32", "affine 4", "affine 8", "affine 3", "mxfp4", "mxfp8", "nvfp4"]
WIDTH = 64


@pytest.mark.parametrize("rows", [1, 63, 64, 70])  # a CPU takes slabs from 64 rows on
@pytest.mark.parametrize("vocab", [1000, 4096, 4097, 9000])
@pytest.mark.parametrize("kind", KINDS)
def test_products_are_exact(kind: str, vocab: int, rows: int) -> None:
    table, values = make_table(kind, vocab, WIDTH)
    rng = np.random.default_rng(rows)
    hidden = rng.normal(size=(1, rows, WIDTH)).astype(np.float32)
    logits = np.array(project(mx.array(hidden), table))
    assert logits.shape == (1, rows, vocab)
    np.testing.assert_allclose(logits, hidden @ values.T, atol=1e-4)
    weights = rng.dirichlet(np.full(vocab, 0.01), size=rows).astype(np.float32)
    np.testing.assert_allclose(np.array(mix(mx.array(weights), table)), weights @ values, atol=2e-5)


def test_every_mode_is_among_them() -> None:
    assert {kind.partition(" ")[0] for kind in KINDS[1:]} == set(QUANTIZATIONS)
