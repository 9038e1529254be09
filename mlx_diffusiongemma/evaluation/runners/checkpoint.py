"""What of a checkpoint and of this machine decides its answers, for results that are compared later."""

from __future__ import annotations

import hashlib
from importlib import metadata
from pathlib import Path
from typing import Any

import mlx.core as mx

from ...checkpoint.tied_weights import model_tensors
from ...checkpoint.weights import weight_files
from ...config.model import ModelConfig

_FILES = (
    *("config.json", "generation_config.json", "chat_template.jinja", "chat_template.json"),
    *("tokenizer.json", "tokenizer.model", "tokenizer_config.json"),
)
_EDGE = 2**20  # bytes of each end of a weight file; headers are at the front
_DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}


def fingerprint(directory: Path) -> str:
    """SHA-256 over names and contents of the small files, and over name, size and both ends of each weight
    file. It tells checkpoints apart in a moment; a change in the middle of a file alone escapes it."""
    digest = hashlib.sha256()
    for name in _FILES:
        file = directory / name
        if file.is_file():
            _add(digest, name, file.read_bytes())
    for path in sorted(weight_files(directory)):
        size = path.stat().st_size
        with path.open("rb") as stream:
            first = stream.read(_EDGE)
            stream.seek(max(0, size - _EDGE))
            _add(digest, path.name, size.to_bytes(8, "big") + first + stream.read())
    return digest.hexdigest()


def _add(digest: Any, name: str, content: bytes) -> None:
    """With their lengths, so that nothing can move from one to the next unseen."""
    for part in (name.encode(), content):
        digest.update(len(part).to_bytes(8, "big") + part)


def stored_dtypes(directory: Path) -> list[str]:
    """Floating-point dtypes of the tensors, by name."""
    return sorted(
        {_DTYPES[info.dtype] for info in model_tensors(directory).values() if info.dtype in _DTYPES}
    )


def room(config: ModelConfig, prompt_tokens: int, max_new_tokens: int) -> int:
    """Of `max_new_tokens`, those whose canvases fit into the context behind a prompt.

    Tasks ask for what the large model may need. 0 where not even one canvas fits.
    """
    canvases = (config.text.max_position_embeddings - prompt_tokens) // config.canvas_length
    return min(max_new_tokens, max(0, canvases) * config.canvas_length)


def on_cpu() -> bool:
    return bool(mx.default_device() == mx.Device(mx.cpu))


def device() -> str:
    """MLX's default device and its chip."""
    kind = mx.default_device().type.name
    chip = mx.device_info().get("device_name")
    return f"{kind}, {chip}" if chip else kind


def versions(*packages: str) -> dict[str, str]:
    """Of these, MLX and the tokenizer's library."""
    return {name: metadata.version(name) for name in (*packages, "mlx", "tokenizers")}
