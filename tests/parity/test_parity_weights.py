"""Checkpoints that store tied weights under other names or twice, in Transformers and here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
import torch
from mlx.utils import tree_flatten
from oracle import tiny
from support.tied_checkpoints import different, silent
from transformers import DiffusionGemmaForBlockDiffusion

from mlx_diffusiongemma.checkpoint.loading import load_model
from mlx_diffusiongemma.checkpoint.tied_weights import model_tensors

PLAIN = {name: mx.array(tensor) for name, tensor in tiny.weights(tiny.ROUGH).items()}


def reference(tensors: dict[str, mx.array], directory: Path) -> tuple[dict[str, torch.Tensor], Any]:
    """The reference's weights, and what it reports as missing, unexpected or of another shape."""
    mx.save_safetensors(str(directory / "model.safetensors"), tensors, {"format": "pt"})
    model, info = DiffusionGemmaForBlockDiffusion.from_pretrained(
        directory, dtype=torch.float32, output_loading_info=True
    )
    return model.state_dict(), {kind: found for kind, found in info.items() if found}


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tiny.build(tiny.ROUGH, tmp_path / "tiny", "transformers")


@pytest.mark.parametrize("label", silent(PLAIN))
def test_what_transformers_loads_without_a_word_is_loaded_the_same(label: str, directory: Path) -> None:
    tensors = silent(PLAIN)[label]
    expected, reported = reference(tensors, directory)
    assert not reported
    flat: Any = tree_flatten(load_model(directory).parameters())
    names = {name.removesuffix(".weight") if ".experts." in name else name for name, _ in flat}
    assert names == {name for name in model_tensors(directory) if "vision" not in name}
    for name, tensor in flat:
        stored = name.removesuffix(".weight") if ".experts." in name else name
        np.testing.assert_array_equal(tensor, expected[stored].numpy(), err_msg=name)


@pytest.mark.parametrize(
    "case", [case for case in different(PLAIN) if case.startswith(("lm_head", "model.enc"))]
)
def test_of_two_values_transformers_keeps_both(case: str, directory: Path) -> None:
    """So one of them is not the model's, and nothing here can run it."""
    tensors, name, other = different(PLAIN)[case]
    loaded, reported = reference(tensors, directory)
    assert not reported
    assert not torch.equal(loaded[name], loaded[other])
