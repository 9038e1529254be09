"""Facts about checkpoint and machine that are recorded with results, so that runs can be compared."""

from __future__ import annotations

import hashlib
from importlib import metadata
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten

from ...checkpoint.tied_weights import model_tensors
from ...checkpoint.weights import weight_files
from ...config.model import ModelConfig
from ...model import DiffusionGemma

_FILES = (
    "config.json", "generation_config.json", "chat_template.jinja", "chat_template.json",
    "tokenizer.json", "tokenizer.model", "tokenizer_config.json",
)  # fmt: skip
_EDGE = 2**20  # bytes read at each end of a weight file; its header is at the front
_DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}


def fingerprint(directory: Path) -> str:
    """Return the SHA-256 of the small files, and of name, size and both ends of each weight file.

    It stays the same if only the middle of a weight file changes.
    """
    parts = [(name, (directory / name).read_bytes()) for name in _FILES if (directory / name).is_file()]
    for path in sorted(weight_files(directory)):
        size = path.stat().st_size
        with path.open("rb") as stream:
            first = stream.read(_EDGE)
            stream.seek(max(0, size - _EDGE))
            parts.append((f"{path.name} {size}", first + stream.read()))
    return _digest(parts)


def fingerprint_of(model: DiffusionGemma) -> str:
    """Return the SHA-256 of a model's configuration, and of name, shape, dtype and ends of each weight."""
    parts = [("", f"{model.config} {model.generation_config}".encode())]
    weights: Any = tree_flatten(model.parameters())
    for name, array in sorted(weights, key=lambda each: each[0]):
        flat = array.reshape(-1)
        ends = np.array(mx.concatenate([flat[:64], flat[-64:]]).astype(mx.float32))
        parts.append((f"{name} {array.shape} {array.dtype}", ends.tobytes()))
    return _digest(parts)


def _digest(parts: list[tuple[str, bytes]]) -> str:
    digest = hashlib.sha256()
    for name, content in parts:
        digest.update(f"{len(name.encode())} {name} {len(content)} ".encode() + content)
    return digest.hexdigest()


def stored_dtype(directory: Path) -> str:
    """Return the floating-point dtypes of a checkpoint's tensors, joined by "and"."""
    stored = {info.dtype for info in model_tensors(directory).values()}
    return " and ".join(sorted(_DTYPES[dtype] for dtype in stored if dtype in _DTYPES))


def room(config: ModelConfig, prompt_tokens: int, max_new_tokens: int) -> int:
    """Return how many of `max_new_tokens` have a whole canvas that fits into the context after the prompt."""
    canvases = (config.text.max_position_embeddings - prompt_tokens) // config.canvas_length
    return min(max_new_tokens, max(0, canvases) * config.canvas_length)


def device() -> str:
    """Return the type of MLX's default device and, if known, its chip."""
    kind, chip = mx.default_device().type.name, mx.device_info().get("device_name")
    return f"{kind}, {chip}" if chip else kind


def versions(*packages: str) -> dict[str, str]:
    """Return the versions of these packages, of MLX and of tokenizers."""
    return {name: metadata.version(name) for name in (*packages, "mlx", "tokenizers")}
