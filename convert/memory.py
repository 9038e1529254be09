"""Finds the Macs that have enough memory for a model, and the longest prompt that fits.

In tables, a GB is 10**9 bytes, but a "16 GB" Mac has 16 * 2**30 bytes.
"""

from __future__ import annotations

import bisect
import math
from typing import Any

from mlx.utils import tree_flatten

from mlx_diffusiongemma.config.generation import PREFILL_STEP_SIZE
from mlx_diffusiongemma.config.model import ModelConfig
from mlx_diffusiongemma.console.tables import aligned, size
from mlx_diffusiongemma.engine.memory import memory_needed
from mlx_diffusiongemma.macs import gpu_limit
from mlx_diffusiongemma.model import DiffusionGemma

from .planning import plan
from .recipes import RECIPES
from .source import SourceTensor

_MACS = (16, 24, 32, 36, 48, 64)
_CONTEXTS = (8192, 32768)


def mac_table(config: ModelConfig, weight_bytes: int) -> str:
    """Return a table that says on which Macs the model fits with a prompt of 8k and of 32k tokens.

    If the model allows only shorter prompts, the longest is shown instead.
    """
    contexts = sorted({min(tokens, config.text.max_position_embeddings) for tokens in _CONTEXTS})
    needed = [
        memory_needed(config, weight_bytes, tokens, config.canvas_length, PREFILL_STEP_SIZE)
        for tokens in contexts
    ]
    lines = [
        ("Mac", "GPU may use", *(f"{_context(tokens)} context" for tokens in contexts)),
        ("needed", "", *map(size, needed)),
    ]
    for gigabytes in _MACS:
        limit = gpu_limit(gigabytes)
        lines.append((f"{gigabytes} GB", size(limit), *(_fits(amount, limit) for amount in needed)))
    return aligned(lines, left=1) + (
        "\n'GPU may use' is macOS 26's default. Earlier versions allow two thirds of memory up to 36 GB,"
        "\nthree quarters above. `sudo sysctl iogpu.wired_limit_mb=N` raises it until the next restart."
        "\nEstimated from shapes. tight: less than 5% to spare."
    )


def longest_prompt(
    config: ModelConfig, weight_bytes: int, usable_bytes: int, new_tokens: int, itemsize: int = 2
) -> int:
    """Return the length of the longest prompt that fits with `new_tokens` into memory and context, or 0.

    usable_bytes: bytes of memory that the GPU may use.
    itemsize: bytes of one activation value.
    """
    canvases = math.ceil(new_tokens / config.canvas_length)
    limit = config.text.max_position_embeddings - canvases * config.canvas_length

    def too_long(tokens: int) -> bool:
        needed = memory_needed(config, weight_bytes, tokens, new_tokens, PREFILL_STEP_SIZE, itemsize)
        return needed > usable_bytes

    return bisect.bisect_left(range(1, limit + 1), True, key=too_long)


def recipe_weight_bytes(config: ModelConfig, dtype: str = "bfloat16") -> dict[str, int]:
    """Return the bytes of the loaded weights by recipe, from shapes alone.

    dtype: dtype of tensors that are not quantized.
    """
    parameters: Any = tree_flatten(DiffusionGemma(config).parameters())  # lazy
    tensors = {name: SourceTensor(name, "BF16", tuple(array.shape)) for name, array in parameters}
    return {name: plan(tensors, name, choices, dtype).bytes_out for name, choices in RECIPES.items()}


def _fits(amount: int, limit: int) -> str:
    return "no" if amount > limit else "tight" if amount > 0.95 * limit else "yes"


def _context(tokens: int) -> str:
    return f"{tokens // 1024}k" if tokens % 1024 == 0 else str(tokens)
