"""Carries out a conversion: read, quantize and write tensor by tensor."""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import click
import mlx.core as mx

from mlx_diffusiongemma.config import ModelConfig
from mlx_diffusiongemma.errors import InputError
from mlx_diffusiongemma.json_file import read_json
from mlx_diffusiongemma.loading import checked_model, resolve
from mlx_diffusiongemma.tokenizer import Tokenizer
from mlx_diffusiongemma.weights import TensorInfo, read_tensors, tensor_infos

from .planning import DEFAULT, Quantization, module_path, plan

_SHARD_BYTES = 5 * 10**9
# What a converted directory takes over beside config and weights.
_COPIED = ("generation_config.json", "*token*", "*processor*", "chat_template*", "LICENSE*")


def convert(hf_path: str | Path, mlx_path: str | Path = "mlx_model") -> Path:
    """Converts a Hugging Face checkpoint ("demo", directory or hub id) to 4-bit MLX in `mlx_path`.

    Experts at 4 bits, embedding, attention and dense MLPs at 8, router and norms untouched. The result is
    written beside its target and moved there when it is complete. Returns the directory.
    Raises `InputError` when the source cannot be used or the target exists.
    """
    target = Path(mlx_path).expanduser()
    if os.path.lexists(target):
        raise InputError(f"{target} exists already; remove it or give another --mlx-path")
    source = resolve(hf_path)
    if ModelConfig.load(source).quantization is not None:
        raise InputError(f"{source} is quantized already; convert the original checkpoint")
    checked_model(source)
    Tokenizer.load(source)  # without one the result could not be loaded
    infos = tensor_infos(source)
    quantizations = plan({name: info.shape for name, info in infos.items()})

    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        workspace = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    except (OSError, ValueError) as error:
        raise InputError(
            f"{str(target)[:80]!r} cannot be created ({error}); give another --mlx-path"
        ) from None
    try:
        _write_weights(infos, quantizations, workspace)
        for pattern in _COPIED:
            for file in filter(Path.is_file, source.glob(pattern)):
                shutil.copy(file, workspace / file.name)
        config = read_json(source / "config.json") | _quantization_block(quantizations)
        _write_json(workspace / "config.json", config)
        workspace.chmod(0o755)  # mkdtemp's 0700 would keep others out
        workspace.rename(target)
    except BaseException:
        shutil.rmtree(workspace, ignore_errors=True)
        raise
    return target


def _write_weights(
    infos: dict[str, TensorInfo], quantizations: dict[str, Quantization | None], out: Path
) -> None:
    """Writes shards of at most about 5 GB and their index; holds one output shard in memory."""
    shard: dict[str, mx.array] = {}
    shards: list[list[str]] = []
    total, done = 0, 0.0

    def flush() -> None:
        file = out / f"shard-{len(shards)}.safetensors"
        mx.save_safetensors(str(file), shard, metadata={"format": "mlx"})
        shards.append(list(shard))
        shard.clear()
        mx.clear_cache()

    by_file: dict[Path, list[str]] = {}
    for name, info in infos.items():
        by_file.setdefault(info.file, []).append(name)
    megabytes = {name: info.nbytes / 1e6 for name, info in infos.items()}
    length = round(sum(megabytes.values()))
    with click.progressbar(
        length=length, label="Converting", file=sys.stderr, hidden=not (sys.stderr and sys.stderr.isatty())
    ) as progress:
        for file, names in by_file.items():
            tensors = read_tensors([file])
            for name in names:
                converted = _convert_tensor(name, tensors.pop(name), quantizations[name])
                mx.eval(converted)
                size = sum(array.nbytes for array in converted.values())
                if shard and sum(array.nbytes for array in shard.values()) + size > _SHARD_BYTES:
                    flush()
                shard |= converted
                total += size
                done += megabytes[name]
                progress.update(round(done) - progress.pos)
    flush()
    _name_shards(out, shards, total)


def _convert_tensor(name: str, tensor: mx.array, quantization: Quantization | None) -> dict[str, mx.array]:
    """The tensors that `tensor` becomes, under the names MLX conversions use."""
    path = module_path(name)
    if quantization is None:
        return {name: tensor}
    weight, scales, biases = mx.quantize(tensor, group_size=quantization.group_size, bits=quantization.bits)
    return {f"{path}.weight": weight, f"{path}.scales": scales, f"{path}.biases": biases}


def _name_shards(out: Path, shards: list[list[str]], total: int) -> None:
    """Gives the shards their final names, which hold the count, and writes the index."""
    weight_map: dict[str, str] = {}
    for i, names in enumerate(shards):
        final = (
            f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors" if len(shards) > 1 else "model.safetensors"
        )
        (out / f"shard-{i}.safetensors").rename(out / final)
        weight_map |= dict.fromkeys(names, final)
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    _write_json(out / "model.safetensors.index.json", index)


def _quantization_block(quantizations: dict[str, Quantization | None]) -> dict[str, Any]:
    """config.json's `quantization` under both names in use: the default, and what differs by path."""
    block: dict[str, Any] = DEFAULT.to_dict() | {"mode": "affine"}
    for name, quantization in quantizations.items():
        if quantization is not None and quantization != DEFAULT:
            block[module_path(name)] = quantization.to_dict()
    return {"quantization": block, "quantization_config": block}


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
