"""Makes and changes tiny checkpoints for tests of conversion, and records the shards that a run writes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import pytest
from mlx.utils import tree_flatten
from oracle import demo, tiny

from mlx_diffusiongemma.checkpoint.loading import load_model
from mlx_diffusiongemma.checkpoint.weights import read_tensors, weight_files
from mlx_diffusiongemma.converter import conversion, convert
from support.spies import spied


def tiny_source(directory: Path, dialect: str = "original") -> Path:
    """Write a tiny checkpoint, with a tokenizer, that can be converted. Return `directory`."""
    tiny.build(tiny.ROUGH, directory, dialect)
    shutil.copy(demo.DIRECTORY / "tokenizer.json", directory)
    return directory


def bytes_of(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir() if path.suffix == ".safetensors"}


def tensors_of(directory: Path) -> dict[str, mx.array]:
    tensors = read_tensors(weight_files(directory))
    mx.eval(tensors)
    return tensors


def save(directory: Path, tensors: Mapping[str, mx.array]) -> None:
    contiguous = {name: mx.contiguous(tensor) for name, tensor in tensors.items()}
    mx.eval(contiguous)
    mx.save_safetensors(str(directory / "model.safetensors"), contiguous)


def copied(source: Path, target: Path, tensors: Mapping[str, mx.array]) -> Path:
    """Copy the directory `source` to `target`, with these tensors as its weights. Return `target`."""
    shutil.copytree(source, target)
    save(target, tensors)
    return target


def change_weights(source: Path, name: str, value: float | mx.array, count: int) -> None:
    tensors = tensors_of(source)
    flat = tensors[name].flatten()
    flat[:count] = value
    save(source, tensors | {name: flat.reshape(tensors[name].shape)})


def one_tensor_per_expert(tensors: Mapping[str, mx.array], split_gates: bool) -> dict[str, mx.array]:
    """Divide stacked experts into a tensor per expert. split_gates: also divide gate and up projection."""
    divided: dict[str, mx.array] = {}
    for name, tensor in tensors.items():
        stack, _, part = name.rpartition(".")
        if not stack.endswith(".experts"):
            divided[name] = tensor
            continue
        for i, expert in enumerate(tensor):
            parts = {part: expert}
            if part == "gate_up_proj" and split_gates:
                parts = dict(zip(("gate_proj", "up_proj"), mx.split(expert, 2), strict=True))
            divided |= {f"{stack}.{i}.{kind}.weight": rows for kind, rows in parts.items()}
    return divided


def quantized(
    source: Path, target: Path, how: dict[str, Any], override: dict[str, Any] | None = None, ending: str = ""
) -> Path:
    """Convert with `nn.quantize`, as other programs do. override: quantization for paths with this ending."""
    model, block = load_model(source), dict(how)

    def chosen(path: str, module: nn.Module) -> bool | dict[str, Any]:
        if "router" in path or not hasattr(module, "to_quantized"):
            return False
        if override is None or not path.endswith(ending):
            return how
        block[path] = override
        return override

    nn.quantize(model, class_predicate=chosen)
    parameters: Any = tree_flatten(model.parameters())
    copied(source, target, dict(parameters))
    config = json.loads((target / "config.json").read_text())
    (target / "config.json").write_text(json.dumps(config | {"quantization": block}))
    return target


def rewritten(source: Path, target: Path, monkeypatch: pytest.MonkeyPatch, **settings: Any) -> list[str]:
    """Convert, and return the names of the shards that this run writes, without those of an earlier run."""
    calls = spied(monkeypatch, conversion, "_write_shard")
    convert(source, target, **settings)
    return [call.args[0].name for call in calls]
