"""Reads `mx.export_function`'s text of a custom Metal kernel: source, grid, and how arguments are passed.

MLX traces the call without a GPU and generates the complete kernel. The file then holds, after the name
of the primitive and little-endian: name, source, grid, threadgroup, shape infos, whether inputs are made
row-contiguous, and the outputs' initial value; strings and lists carry their length before them.
"""

from __future__ import annotations

import struct
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx

PRIMITIVE = b"CustomKernel"
MARK = struct.pack("<Q", len(PRIMITIVE)) + PRIMITIVE

Extent = tuple[int, int, int]


@dataclass(frozen=True)
class ExportedKernel:
    """One call of a kernel, as MLX recorded it. `grid` counts threads."""

    name: str
    source: str
    grid: Extent
    threadgroup: Extent
    shape_infos: list[tuple[bool, bool, bool]]  # of each input: passes its shape, strides, number of axes
    init_value: float | None
    outputs: list[tuple[tuple[int, ...], mx.Dtype]]


class Reader:
    """Reads values one after another."""

    def __init__(self, data: bytes, start: int) -> None:
        self.data = data
        self.at = start

    def take(self, layout: str) -> tuple[Any, ...]:
        values = struct.unpack_from("<" + layout, self.data, self.at)
        self.at += struct.calcsize("<" + layout)
        return values

    def text(self) -> str:
        (length,) = self.take("Q")
        (raw,) = self.take(f"{length}s")
        return str(raw, "utf-8")


def export(call: Callable[..., Sequence[mx.array]], inputs: Sequence[mx.array]) -> ExportedKernel:
    """Traces `call(*inputs)`, which makes exactly one call of a custom kernel and returns its outputs."""
    outputs: list[tuple[tuple[int, ...], mx.Dtype]] = []

    def traced(*arrays: mx.array) -> list[mx.array]:
        results = list(call(*arrays))
        outputs[:] = [(tuple(result.shape), result.dtype) for result in results]
        return results

    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "kernel.mlxfn"
        mx.export_function(str(path), traced, *inputs)
        data = path.read_bytes()

    assert data.count(MARK) == 1, f"the call makes {data.count(MARK)} custom kernel calls, not 1"
    reader = Reader(data, data.index(MARK) + len(MARK))
    name, source = reader.text(), reader.text()
    grid, threadgroup = reader.take("3i"), reader.take("3i")
    (count,) = reader.take("Q")
    shape_infos = [reader.take("3?") for _ in range(count)]
    assert count == len(inputs), f"the kernel has {count} inputs, but the call got {len(inputs)}"
    _, initialised = reader.take("??")
    init_value = reader.take("f")[0] if initialised else None
    return ExportedKernel(name, source, grid, threadgroup, shape_infos, init_value, outputs)
