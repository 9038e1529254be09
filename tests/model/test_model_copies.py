"""Pickled and copied models compute the same, and are models of their own."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten
from oracle import tiny

from mlx_diffusiongemma.checkpoint.loading import load, load_model
from mlx_diffusiongemma.generation import generate
from mlx_diffusiongemma.model import DiffusionGemma

COPIES = {
    "pickle": lambda model: pickle.loads(pickle.dumps(model)),
    "deepcopy": copy.deepcopy,
    "copy": copy.copy,
}


@pytest.mark.parametrize("way", COPIES)
@pytest.mark.parametrize("compiled", [False, True])
def test_a_copy_generates_the_same(way: str, compiled: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a generation, too, which leaves compiled steps for the model."""
    model, tokenizer = load("demo")
    monkeypatch.setattr("mlx_diffusiongemma.engine.denoise._compiles", lambda: compiled)

    def answer(model: DiffusionGemma) -> str:
        return str(generate(model, tokenizer, "What is 12 + 30?", seed=1, max_new_tokens=64))

    expected = answer(model)
    other = COPIES[way](model)
    shared = way == "copy"
    other.decoder.norm.weight = other.decoder.norm.weight * 1.0
    assert (other.decoder is model.decoder) == shared
    del model
    assert answer(other) == expected


@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16, mx.float16])
def test_every_bit_is_pickled(tmp_path: Path, dtype: mx.Dtype) -> None:
    model = load_model(tiny.build(tiny.ROUGH, tmp_path), dtype=dtype)
    other: DiffusionGemma = pickle.loads(pickle.dumps(model))
    assert (other.config, other.training) == (model.config, False)
    pairs = zip(tree_flatten(model.parameters()), tree_flatten(other.parameters()), strict=True)  # type: ignore[arg-type]
    for (name, mine), (same, theirs) in pairs:
        assert (name, mine.dtype) == (same, theirs.dtype)
        np.testing.assert_array_equal(np.array(mine.view(mx.uint8)), np.array(theirs.view(mx.uint8)))
