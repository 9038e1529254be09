"""Writes safetensors files piece by piece. Their layout is known before the first weight is read."""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .planning import Output, Planned

INDEX = "model.safetensors.index.json"
SHARD_BYTES = 5 * 10**9
_READ_BYTES = 1 << 24
# The order of safetensors' own writer: each tensor begins at a multiple of its dtype's width.
_ORDER = ("F32", "U32", "BF16", "F16", "U8")
Piece = tuple[int, int, int]  # byte offset in the file, bytes, CRC-32


def shards(tensors: Sequence[Planned]) -> list[list[Planned]]:
    """Divide tensors, in order, among files of at most `SHARD_BYTES`. A larger tensor has its own file."""
    files: list[list[Planned]] = []
    size = 0
    for tensor in tensors:
        if not files or size + tensor.bytes_out > SHARD_BYTES:
            files.append([])
            size = 0
        files[-1].append(tensor)
        size += tensor.bytes_out
    return files


def shard_name(index: int, count: int) -> str:
    return "model.safetensors" if count == 1 else f"model-{index + 1:05d}-of-{count:05d}.safetensors"


class ShardWriter:
    """One safetensors file whose tensors are filled in any order, from any thread."""

    def __init__(self, path: Path, tensors: Sequence[Planned]):
        outputs = sorted(
            (output for tensor in tensors for output in tensor.outputs),
            key=lambda output: (_ORDER.index(output.dtype), output.name),
        )
        header, self._begin = _header(outputs)
        self._file = path.open("xb")
        self._pieces: list[Piece] = [(0, len(header), zlib.crc32(header))]
        self._file.write(header)
        self._file.flush()
        self._file.truncate(len(header) + sum(output.nbytes for output in outputs))

    def write(self, name: str, offset: int, data: memoryview) -> None:
        """Write `data` at byte `offset` of tensor `name`."""
        begin = self._begin[name] + offset
        self._pieces.append((begin, data.nbytes, zlib.crc32(data)))
        while data.nbytes:  # a write may be short
            written = os.pwrite(self._file.fileno(), data, begin)
            data, begin = data[written:], begin + written

    def finish(self) -> list[Piece]:
        """Sync the file to disk. Return its pieces for `is_intact`."""
        os.fsync(self._file.fileno())
        self._file.close()
        return sorted(self._pieces)

    def close(self) -> None:
        self._file.close()


def is_intact(path: Path, pieces: Sequence[Piece]) -> bool:
    """Return True if the file consists of exactly these pieces."""
    try:
        with path.open("rb") as file:
            position = 0
            for begin, size, checksum in pieces:
                if begin != position or _crc32(file, size) != checksum:
                    return False
                position += size
            return file.read(1) == b""
    except OSError:
        return False


def _crc32(file: Any, size: int) -> int:
    checksum = 0
    while size and (data := file.read(min(size, _READ_BYTES))):
        size -= len(data)
        checksum = zlib.crc32(data, checksum)
    return checksum


def _header(outputs: Sequence[Output]) -> tuple[bytes, dict[str, int]]:
    """Return the file's first bytes, and the byte at which each tensor begins."""
    entries: dict[str, Any] = {"__metadata__": {"format": "mlx"}}
    position = 0
    for output in outputs:
        span = [position, position + output.nbytes]
        entries[output.name] = {"dtype": output.dtype, "shape": list(output.shape), "data_offsets": span}
        position = span[1]
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the data begins at a multiple of 8
    header = len(text).to_bytes(8, "little") + text
    return header, {each.name: len(header) + entries[each.name]["data_offsets"][0] for each in outputs}


def index(tensors: Sequence[Sequence[Planned]]) -> dict[str, Any]:
    """Return the content of model.safetensors.index.json."""
    weight_map = {
        output.name: shard_name(i, len(tensors))
        for i, shard in enumerate(tensors)
        for tensor in shard
        for output in tensor.outputs
    }
    total = sum(tensor.bytes_out for shard in tensors for tensor in shard)
    return {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
