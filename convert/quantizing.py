"""Turns rows of a checkpoint's tensor into rows of what is stored, a bounded number of bytes at a time."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import mlx.core as mx
import numpy as np

from mlx_diffusiongemma.checkpoint.weights import TensorInfo
from mlx_diffusiongemma.errors import CheckpointError

from .planning import Planned

CHUNK_BYTES = 32 * 2**20
# The quantization error is measured on every n-th row of large tensors: to dequantize costs three times what
# quantizing does, and a sixteenth of a billion weights says the same.
_SAMPLED_ROWS, _MEASURED_WHOLE = 16, 2**20

_NUMPY = {"F32": np.uint32, "F16": np.uint16, "BF16": np.uint16}  # bits; NumPy has no bfloat16
_MLX = {"F32": mx.float32, "F16": mx.float16, "BF16": mx.bfloat16}
# Without their sign, bits from here on are infinities and NaNs.
_NOT_FINITE = {"F32": (0x7FFFFFFF, 0x7F800000), "F16": (0x7FFF, 0x7C00), "BF16": (0x7FFF, 0x7F80)}


@dataclass(frozen=True)
class Rows:
    """Rows `first` to `first + count` of a piece; they become rows from `target` on of the planned tensor."""

    tensor: Planned
    piece: TensorInfo
    first: int
    count: int
    target: int

    @property
    def nbytes(self) -> int:
        return self.piece.nbytes // _rows(self.piece.shape) * self.count


@dataclass
class Converted:
    """Stored rows, one array of bytes per output, and what was seen on the way.

    squared_error, squared: sums over the weights that the error was measured on.
    """

    data: list[memoryview]
    nonfinite: int
    squared_error: float = 0.0
    squared: float = 0.0


def chunks(tensor: Planned) -> Iterator[Rows]:
    """A tensor's rows in portions of at most about `CHUNK_BYTES`."""
    target = 0
    for piece in tensor.pieces:
        rows = _rows(piece.shape)
        step = max(1, CHUNK_BYTES * rows // piece.nbytes)
        for first in range(0, rows, step):
            yield Rows(tensor, piece, first, min(step, rows - first), target + first)
        target += rows


def convert_rows(rows: Rows) -> Converted:
    """Reads, checks and quantizes. `CheckpointError` if the file no longer holds what its header says."""
    bits = _read(rows)
    mask, limit = _NOT_FINITE[rows.piece.dtype]
    magnitude = bits & mask
    nonfinite = int((magnitude >= limit).sum()) if magnitude.max() >= limit else 0
    if rows.tensor.quantization is None and rows.tensor.dtype == rows.piece.dtype:
        return Converted([_bytes(bits)], nonfinite)

    weights = mx.array(bits).view(_MLX[rows.piece.dtype]).astype(_MLX[rows.tensor.dtype])
    if rows.tensor.dtype != rows.piece.dtype:  # a narrower range may not hold them
        nonfinite = int((~mx.isfinite(weights)).sum())
    chosen = rows.tensor.quantization
    if chosen is None:
        return Converted([_bytes(_numpy(weights))], nonfinite)
    stored = mx.quantize(weights, chosen.group_size, chosen.bits, mode=chosen.mode)
    every = _SAMPLED_ROWS if rows.tensor.parameters > _MEASURED_WHOLE else 1
    sample = weights[::every].astype(mx.float32)
    packed, scales = stored[0][::every], stored[1][::every]
    biases = stored[2][::every] if len(stored) == 3 else None
    restored = mx.dequantize(packed, scales, biases, chosen.group_size, chosen.bits, chosen.mode)
    error = restored.astype(mx.float32) - sample
    sums = mx.stack([error.square().sum(), sample.square().sum()])
    mx.eval(stored, sums)
    squared_error, squared = np.array(sums).tolist()
    return Converted([_bytes(_numpy(part)) for part in stored], nonfinite, squared_error, squared)


def _read(rows: Rows) -> np.ndarray:
    """Bits `[count, width]` of the rows."""
    dtype = np.dtype(_NUMPY[rows.piece.dtype])
    width = rows.nbytes // dtype.itemsize // rows.count
    offset = rows.piece.offset + rows.first * width * dtype.itemsize
    bits = np.fromfile(rows.piece.file, dtype=dtype, count=rows.count * width, offset=offset)
    if bits.size != rows.count * width:
        raise CheckpointError(f"{rows.piece.file}: it became shorter while it was read; download it again")
    return bits.reshape(rows.count, width)


def _rows(shape: tuple[int, ...]) -> int:
    return math.prod(shape[:-1])


def _numpy(array: mx.array) -> np.ndarray:
    """The array's bits."""
    return np.array(array.view(mx.uint16) if array.dtype in (mx.bfloat16, mx.float16) else array)


def _bytes(array: np.ndarray) -> memoryview:
    return array.data.cast("B")
