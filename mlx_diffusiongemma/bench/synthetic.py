"""Builds models of the real shapes from random weights, created in quantized form without a checkpoint.

Such a model outputs its input, which is noise, so its steps per canvas and accepted tokens say nothing about
the real model. But a step costs as much as a real step, because every expert is chosen and canvases stay as
varied as noise.
"""

from __future__ import annotations

import math
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten

from ..config.model import ModelConfig
from ..config.released import REAL_LAYERS
from ..console.progress import bar
from ..converter.recipes import DEFAULT_RECIPE, RECIPES, tensor_class
from ..errors import InputError
from ..model import DiffusionGemma
from ..ops import on_gpu

PREFIX = "synthetic:"

_STD = 0.018  # deviation of unquantized weights; quantized ones have the same, by scales of 2**-(bits + 4)
# Norm weights at the end of a layer's branches. They are so small that after 30 layers each token is still
# the likeliest at its position. At 1, logits would be flat, and every step would need the dense soft
# embedding, which a real canvas does not need once it settles.
_BRANCH_GAIN = 0.125
_BRANCHES = (".post_attention_layernorm.weight", ".post_feedforward_layernorm.weight")


def layers_of(name: str, layers: int | None) -> int | None:
    """Return the number of layers of the synthetic model `name`, or None if `name` is not synthetic.

    Raises:
        InputError: the synthetic name is unknown, `layers` is out of range, or `layers` is set for a model
            that is not synthetic.
    """
    if not name.startswith(PREFIX):
        if layers is not None:
            raise InputError(f"--layers {layers}: only for synthetic models, and {name} is not one; drop it")
        return None
    if name != PREFIX + "26b":
        raise InputError(f"{name!r} is unknown; random weights exist as {PREFIX}26b")
    if layers is not None and not 1 <= layers <= REAL_LAYERS:
        raise InputError(f"--layers must be from 1 to {REAL_LAYERS}, found {layers}")
    return layers or REAL_LAYERS


def default_dtype() -> mx.Dtype:
    """Return the dtype that loading uses: bfloat16, or float32 on MLX's CPU backend."""
    return mx.bfloat16 if on_gpu() else mx.float32


def quantized_skeleton(config: ModelConfig, dtype: mx.Dtype = mx.bfloat16) -> DiffusionGemma:
    """Return a model quantized by the default recipe. Its parameters are lazy and must not be evaluated."""
    model = DiffusionGemma(config)
    model.set_dtype(dtype)
    recipe = RECIPES[DEFAULT_RECIPE]

    def stored(path: str, module: nn.Module) -> bool | dict[str, Any]:
        chosen = recipe.get(tensor_class(f"{path}.weight")) if hasattr(module, "to_quantized") else None
        return chosen.to_dict() if chosen is not None else False

    nn.quantize(model, class_predicate=stored)
    return model


def build(config: ModelConfig, seed: int, dtype: mx.Dtype) -> DiffusionGemma:
    """Return a model with evaluated weights: mean 0, deviation 0.018; norms and scalars are 1 or 0.125.

    Memory peaks at the size of all weights plus the largest weight.

    dtype: dtype of activations, scales, biases and unquantized tensors. In float32, scales and biases of the
        26B model need 1.6 GB more than in bfloat16.
    """
    model = quantized_skeleton(config, dtype)
    rng = np.random.Generator(np.random.SFC64(seed))
    parameters: Any = tree_flatten(model.parameters())
    packed_bits = {path: module.bits for path, module in model.named_modules() if hasattr(module, "bits")}
    made = []
    for name, array in bar("random weights", iterable=parameters, unit="tensor"):
        path = name.rpartition(".")[0]
        value = _values(name, array.shape, packed_bits.get(path), rng).astype(array.dtype)
        mx.eval(value)
        made.append((name, value))
    model.load_weights(made)
    model.eval()
    return model


def _values(name: str, shape: tuple[int, ...], bits: int | None, rng: np.random.Generator) -> mx.array:
    """Return the values of one tensor. Scales and biases are exact in bfloat16, so that the mean is 0."""
    kind = name.rpartition(".")[2]
    if bits is not None:
        if kind == "weight":
            return mx.array(rng.integers(0, 2**32, size=shape, dtype=np.uint32))
        step = 2.0 ** -(bits + 4)  # for uniform weights in a range of width 1/16
        return mx.full(shape, step if kind == "scales" else -step * (2**bits - 1) / 2)
    if len(shape) > 1:
        return mx.array(rng.uniform(-1, 1, size=shape).astype(np.float32) * (_STD * math.sqrt(3)))
    return mx.full(shape, _BRANCH_GAIN if name.endswith(_BRANCHES) else 1.0)
