"""Finds and checks the safetensors files of a model directory before a byte of weights is read."""

from __future__ import annotations

import json
import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx

from .errors import CheckpointError
from .json_file import JsonObject, read_json

# Bits per element of the dtypes that checkpoints of this model use.
_BITS = {
    "F64": 64,
    "F32": 32,
    "F16": 16,
    "BF16": 16,
    "I64": 64,
    "I32": 32,
    "U32": 32,
    "I8": 8,
    "U8": 8,
    "BOOL": 8,
}
_MAX_HEADER_BYTES = 100_000_000  # the format's own limit


@dataclass(frozen=True)
class TensorInfo:
    """Where one tensor lies: file, dtype as safetensors spells it, shape, size in bytes."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    nbytes: int


def tensor_infos(directory: Path) -> dict[str, TensorInfo]:
    """Every tensor of the directory's safetensors files, by name; `CheckpointError` if one is damaged."""
    infos: dict[str, TensorInfo] = {}
    for file in weight_files(directory):
        for name, info in _read_header(file).items():
            if name in infos:
                raise CheckpointError(
                    f"{name} is in both {infos[name].file.name} and {file.name}; remove one"
                )
            infos[name] = info
    return infos


def weight_files(directory: Path) -> list[Path]:
    """The safetensors files: those that the index names, or all `model*.safetensors`."""
    index = directory / "model.safetensors.index.json"
    if index.exists():
        weight_map = JsonObject(read_json(index), "", index.name).values.get("weight_map")
        if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
            raise CheckpointError(f"{index}: no weight_map in it; download it again")
        files = [directory / name for name in sorted(set(weight_map.values()))]
        for file in files:
            if file.parent != directory or file.suffix != ".safetensors" or not _is_file(file):
                raise CheckpointError(
                    f"{index.name} names {file.name[:80]}, which is no safetensors file in {directory}; "
                    "download it again"
                )
        return files
    files = sorted(directory.glob("model*.safetensors"))
    if not files:
        raise CheckpointError(f"{directory}: no model*.safetensors in it; is this a model directory?")
    return files


def read_tensors(files: list[Path]) -> dict[str, mx.array]:
    """All tensors of `files`, lazily: each is read when it is first evaluated."""
    tensors: dict[str, mx.array] = {}
    for file in files:
        try:
            loaded: Any = mx.load(str(file))
        except (RuntimeError, ValueError) as error:
            raise CheckpointError(f"{file}: MLX cannot read it ({str(error).splitlines()[0]})") from None
        tensors.update(loaded)
    return tensors


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name too long for the file system
        return False


def _read_header(file: Path) -> dict[str, TensorInfo]:
    def damaged(what: str) -> CheckpointError:
        return CheckpointError(
            f"{file}: {what}; the file is damaged or truncated, download or convert it again"
        )

    try:
        size = file.stat().st_size
        with file.open("rb") as stream:
            prefix = stream.read(8)
            if len(prefix) < 8:
                raise damaged(f"only {len(prefix)} bytes")
            (length,) = struct.unpack("<Q", prefix)
            if length > min(size - 8, _MAX_HEADER_BYTES):
                raise damaged(f"its header claims {length} bytes of {size}")
            header = json.loads(stream.read(length))
    except OSError as error:
        raise CheckpointError(f"{file}: cannot be read ({error.strerror})") from None
    except (ValueError, RecursionError):
        raise damaged("its header is not JSON") from None

    infos: dict[str, TensorInfo] = {}
    data_bytes = size - 8 - length
    spans: list[tuple[int, int]] = []
    for name, entry in header.items() if isinstance(header, dict) else ():
        if name == "__metadata__":
            continue
        if not name.isprintable():
            raise damaged("the header names a tensor in unprintable characters")
        try:
            dtype, shape, (begin, stop) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
            expected = math.prod(shape) * _BITS[dtype] // 8
            fits = 0 <= begin <= stop <= data_bytes and stop - begin == expected
        except (KeyError, TypeError, ValueError):
            raise damaged(f"the header's entry for {name} is not understood") from None
        if not fits:
            raise damaged(f"{name} lies at bytes {begin}..{stop} of {data_bytes}, expected {expected} bytes")
        infos[name] = TensorInfo(file, dtype, shape, expected)
        spans.append((begin, stop))
    if not infos:
        raise damaged("it holds no tensors")
    covered = 0
    for begin, stop in sorted(spans):
        if begin != covered:
            raise damaged(f"its tensors overlap or leave a gap at byte {min(begin, covered)}")
        covered = stop
    if covered != data_bytes:
        raise damaged(f"its tensors cover {covered} of {data_bytes} bytes")
    return infos
