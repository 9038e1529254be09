"""Tiny checkpoints for tests of conversion, their bytes, and the shards that a run writes."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from oracle import demo, tiny

from mlx_diffusiongemma.checkpoint.weights import read_tensors, weight_files
from mlx_diffusiongemma.converter import conversion, convert


def tiny_source(directory: Path, dialect: str = "original") -> Path:
    """A checkpoint that can be converted."""
    tiny.build(tiny.ROUGH, directory, dialect)
    shutil.copy(demo.DIRECTORY / "tokenizer.json", directory)
    return directory


def bytes_of(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir() if path.suffix == ".safetensors"}


def change_weights(source: Path, name: str, value: float | mx.array, count: int) -> None:
    tensors = read_tensors(weight_files(source))
    flat = tensors[name].flatten()
    flat[:count] = value
    tensors[name] = flat.reshape(tensors[name].shape)
    mx.eval(tensors)
    mx.save_safetensors(str(source / "model.safetensors"), tensors)


def rewritten(source: Path, target: Path, monkeypatch: pytest.MonkeyPatch, **settings: Any) -> list[str]:
    """Names of the shards that a run writes, without those of an earlier run."""
    names: list[str] = []
    write = conversion._write_shard

    def spy(path: Path, *arguments: Any) -> dict[str, Any]:
        names.append(path.name)
        return write(path, *arguments)

    monkeypatch.setattr(conversion, "_write_shard", spy)
    convert(source, target, **settings)
    return names
