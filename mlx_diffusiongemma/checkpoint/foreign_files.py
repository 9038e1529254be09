"""Recognizes files that are given in place of a model: adapters, and weights for other programs."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path

from ..config.files import read_text

_ADAPTER = re.compile(
    r"adapter_config\.json|adapter_model\.(safetensors|bin)|(\d+_)?adapters\.(safetensors|npz)"
)
ADAPTER_CONFIG = "adapter_config.json"
_GGUF_MAGIC = b"GGUF"
_MAX_CONFIG_BYTES = 1_000_000
_GET_SAFETENSORS = (
    "this package reads safetensors: give the original checkpoint, google/diffusiongemma-26B-A4B-it, "
    "or an MLX conversion of it"
)
_LOAD = "; in Python, mlx_dg.load(base_model, adapter_path=DIRECTORY) reads it as it is"
_MERGE = (
    "which changes a model and holds none; merge it into its base model{base} with the program that trained "
    "it (PEFT: merge_and_unload, then save_pretrained) and give the result"
)


def describe(names: Iterable[str], adapter_config: Path | None = None) -> str | None:
    """Say what a directory without model weights holds, by its file names, and the way out.

    Args:
        names: of its files.
        adapter_config: an adapter's configuration, which names the base model.

    Returns:
        The end of a sentence, or None if nothing is recognized.
    """
    names = sorted(names)
    if any(_ADAPTER.fullmatch(name) for name in names):
        load = _LOAD if "adapters.safetensors" in names else ""
        return f"a LoRA adapter, {_MERGE.format(base=_base_model(adapter_config))}{load}"
    if any(name.lower().endswith(".gguf") for name in names):
        return f"weights in GGUF, the format of llama.cpp; {_GET_SAFETENSORS}"
    return None


def describe_file(file: Path) -> str | None:
    """Say what a file is that was given instead of a model's directory. None if it is not recognized."""
    described = describe([file.name], file.parent / ADAPTER_CONFIG)
    if described is None and _is_gguf(file):
        described = describe([".gguf"])
    return described


def describe_directory(directory: Path) -> str | None:
    """Say what a directory without model weights holds. None if nothing is recognized."""
    try:
        names = [path.name for path in directory.iterdir()]
    except OSError:  # the next reader of the files says why
        return None
    return describe(names, directory / ADAPTER_CONFIG)


def _is_gguf(file: Path) -> bool:
    """Ollama stores GGUF under names without a suffix."""
    if not file.is_file():  # reading a pipe would wait
        return False
    try:
        with file.open("rb") as stream:
            return stream.read(len(_GGUF_MAGIC)) == _GGUF_MAGIC
    except OSError:
        return False


def _base_model(config: Path | None) -> str:
    """Return " NAME" of the base model that PEFT or mlx-lm has noted, or ""."""
    if config is None:
        return ""
    try:
        values = json.loads(read_text(config, _MAX_CONFIG_BYTES))
    except (OSError, ValueError, RecursionError):
        return ""
    for key in ("base_model_name_or_path", "model"):
        name = values.get(key) if isinstance(values, dict) else None
        if isinstance(name, str) and name.isprintable() and 0 < len(name) <= 120:
            return f" {name}"
    return ""
