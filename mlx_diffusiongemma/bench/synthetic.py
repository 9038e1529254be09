"""Random quantized weights in the real shapes, created in their stored form without a checkpoint.

Such a model repeats its noise, so its steps per canvas and accepted tokens say nothing about the real model.
But a step costs the same as a real one: every expert is chosen, and canvases stay as varied as noise.
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

_STD = 0.018  # deviation of weights that are not quantized; scales of 2**-(bits + 4) give the same
# Norm weights at the end of a layer's branches. They are so small that after 30 layers each token is still
# the likeliest at its position. At 1, logits would be flat, and every step would need the dense soft
# embedding, which a real canvas does not need once it settles.
_BRANCH_GAIN = 0.125
_BRANCHES = (".post_attention_layernorm.weight", ".post_feedforward_layernorm.weight")


def layers_of(name: str, layers: int | None) -> int | None:
    """Return the number of layers of the synthetic model `name`, or None if `name` is not synthetic.

    Raises:
        InputError: the name is unknown, the number is out of range, or the model is not synthetic but
            `layers` is set.
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
    """Return a model in the default recipe's storage. Its parameters are lazy. Do not evaluate them."""
    model = DiffusionGemma(config)
    model.set_dtype(dtype)
    recipe = RECIPES[DEFAULT_RECIPE]

    def stored(path: str, module: nn.Module) -> bool | dict[str, Any]:
        chosen = recipe.get(tensor_class(f"{path}.weight")) if hasattr(module, "to_quantized") else None
        return chosen.to_dict() if chosen is not None else False

    nn.quantize(model, class_predicate=stored)
    return model


def build(config: ModelConfig, seed: int, dtype: mx.Dtype) -> DiffusionGemma:
    """Return a model with evaluated weights: mean 0 and deviation 0.018, norms and scalars 1 or 0.125.

    Memory peaks at the size of all weights plus the largest one.

    dtype: of activations, scales, biases and tensors that are not quantized. In float32, scales and biases of
        the 26B need 1.6 GB more.
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
    """Return a tensor of the model. Its scales and biases are exact in bfloat16, so the mean is 0."""
    kind = name.rpartition(".")[2]
    if bits is not None:
        if kind == "weight":
            return mx.array(rng.integers(0, 2**32, size=shape, dtype=np.uint32))
        step = 2.0 ** -(bits + 4)  # for uniform weights in a range of width 1/16
        return mx.full(shape, step if kind == "scales" else -step * (2**bits - 1) / 2)
    if len(shape) > 1:
        return mx.array(rng.uniform(-1, 1, size=shape).astype(np.float32) * (_STD * math.sqrt(3)))
    return mx.full(shape, _BRANCH_GAIN if name.endswith(_BRANCHES) else 1.0)
