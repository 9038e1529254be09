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
    """Say what a directory without model weights holds, and what the user can do instead.

    Args:
        names: names of the directory's files.
        adapter_config: path of an adapter's configuration, which may name the base model.

    Returns:
        The end of the sentence "DIRECTORY holds ...", or None if nothing is recognized.
    """
    names = sorted(names)
    if any(_ADAPTER.fullmatch(name) for name in names):
        load = _LOAD if "adapters.safetensors" in names else ""
        return f"a LoRA adapter, {_MERGE.format(base=_base_model(adapter_config))}{load}"
    if any(name.lower().endswith(".gguf") for name in names):
        return f"weights in GGUF, the format of llama.cpp; {_GET_SAFETENSORS}"
    return None


def describe_file(file: Path) -> str | None:
    """Say what `file`, given instead of a directory, holds. Return None if it is not recognized."""
    described = describe([file.name], file.parent / ADAPTER_CONFIG)
    if described is None and _is_gguf(file):
        described = describe([".gguf"])
    return described


def describe_directory(directory: Path) -> str | None:
    """Say what a directory without model weights holds. Return None if nothing is recognized."""
    try:
        names = [path.name for path in directory.iterdir()]
    except OSError:  # the code that reads the files next says why
        return None
    return describe(names, directory / ADAPTER_CONFIG)


def _is_gguf(file: Path) -> bool:
    """Return True if the file begins like GGUF. Ollama stores GGUF under names without a suffix."""
    if not file.is_file():  # reading a pipe would wait
        return False
    try:
        with file.open("rb") as stream:
            return stream.read(len(_GGUF_MAGIC)) == _GGUF_MAGIC
    except OSError:
        return False


def _base_model(config: Path | None) -> str:
    """Return a space and the base model's name, as PEFT or mlx-lm wrote it, or "" without a name."""
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
