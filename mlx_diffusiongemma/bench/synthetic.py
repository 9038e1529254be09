"""Random quantized weights of the real shapes, made as they are stored: no checkpoint, no float version.

The weights mean nothing: such a model repeats the noise that it is shown, so the steps that it would need or
the tokens that it would keep say nothing about the real one. A step costs what the real model's costs: every
expert is chosen, and canvases stay as varied as noise.
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

_STD = 0.018  # what scales of 2**-(bits + 4) give, of weights that are not quantized
# Norm weights that close a layer's branches. So small, 30 layers leave enough of a token for it to be the
# likeliest one at its place. At 1, logits would be flat, and every step would take the dense way through the
# soft embedding, which a real canvas leaves when it settles.
_BRANCH_GAIN = 0.125
_BRANCHES = (".post_attention_layernorm.weight", ".post_feedforward_layernorm.weight")


def layers_of(name: str, layers: int | None) -> int | None:
    """How many layers the synthetic model `name` gets; None when `name` is no synthetic model.

    Raises `InputError` for an unknown name, a bad number, or layers for a model that has its own.
    """
    if not name.startswith(PREFIX):
        if layers is not None:
            raise InputError(f"--layers {layers}: only synthetic models take it, and {name} is none; drop it")
        return None
    if name != PREFIX + "26b":
        raise InputError(f"{name!r} is unknown; random weights exist as {PREFIX}26b")
    if layers is not None and not 1 <= layers <= REAL_LAYERS:
        raise InputError(f"--layers must be from 1 to {REAL_LAYERS}, found {layers}")
    return layers or REAL_LAYERS


def default_dtype() -> mx.Dtype:
    """As loading has it: bfloat16, and float32 on MLX's CPU backend."""
    return mx.bfloat16 if on_gpu() else mx.float32


def quantized_skeleton(config: ModelConfig, dtype: mx.Dtype = mx.bfloat16) -> DiffusionGemma:
    """A model stored as the default recipe says, of lazy parameters that are not meant to be evaluated."""
    model = DiffusionGemma(config)
    model.set_dtype(dtype)
    recipe = RECIPES[DEFAULT_RECIPE]

    def stored(path: str, module: nn.Module) -> bool | dict[str, Any]:
        chosen = recipe.get(tensor_class(f"{path}.weight")) if hasattr(module, "to_quantized") else None
        return chosen.to_dict() if chosen is not None else False

    nn.quantize(model, class_predicate=stored)
    return model


def build(config: ModelConfig, seed: int, dtype: mx.Dtype) -> DiffusionGemma:
    """A model of these shapes with evaluated weights: deviation 0.018, mean 0; norms and scalars 1 or 0.125.

    dtype: of activations, scales, biases and what is not quantized; scales and biases of the 26B take 1.6 GB
    more in float32. Memory peaks at the weights and the largest of them once more.
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
    """A tensor of the model. Bfloat16 holds these scales and biases exactly, so that the mean is 0."""
    kind = name.rpartition(".")[2]
    if bits is not None:
        if kind == "weight":
            return mx.array(rng.integers(0, 2**32, size=shape, dtype=np.uint32))
        step = 2.0 ** -(bits + 4)  # of evenly distributed weights in a range 1/16 wide
        return mx.full(shape, step if kind == "scales" else -step * (2**bits - 1) / 2)
    if len(shape) > 1:
        return mx.array(rng.uniform(-1, 1, size=shape).astype(np.float32) * (_STD * math.sqrt(3)))
    return mx.full(shape, _BRANCH_GAIN if name.endswith(_BRANCHES) else 1.0)
