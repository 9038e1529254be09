"""Converts rows of a source's tensor to rows of stored tensors, a bounded number of bytes at a time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import mlx.core as mx
import numpy as np

from .planning import Planned
from .source import DTYPES, Source, SourceTensor

CHUNK_BYTES = 32 * 2**20
# The error of large tensors is measured on every 16th row. Dequantizing costs three times as much as
# quantizing, and the sample is large enough.
_SAMPLED_ROWS, _MEASURED_WHOLE = 16, 2**20

# dtype -> mask that removes the sign, and the smallest bits of numbers that are infinite or NaN.
_NOT_FINITE = {"F32": (0x7FFFFFFF, 0x7F800000), "F16": (0x7FFF, 0x7C00), "BF16": (0x7FFF, 0x7F80)}


@dataclass(frozen=True)
class Rows:
    """`count` rows of `piece`, from row `first` on. In the planned `tensor` they begin at row `target`."""

    tensor: Planned
    piece: SourceTensor
    first: int
    count: int
    target: int

    @property
    def nbytes(self) -> int:
        return self.piece.nbytes // self.piece.rows * self.count


@dataclass
class Converted:
    """Stored rows and measurements.

    data: bytes of the rows, for each output.
    nonfinite: number of NaN and infinite weights.
    squared_error, squared: sums of the squared error and of the squared weight, where the error was measured.
    """

    data: list[memoryview]
    nonfinite: int
    squared_error: float = 0.0
    squared: float = 0.0


def chunks(tensor: Planned) -> Iterator[Rows]:
    """Divide a tensor's rows into portions of at most about `CHUNK_BYTES`."""
    target = 0
    for piece in tensor.pieces:
        step = max(1, CHUNK_BYTES * piece.rows // piece.nbytes)
        for first in range(0, piece.rows, step):
            yield Rows(tensor, piece, first, min(step, piece.rows - first), target + first)
        target += piece.rows


def convert_rows(source: Source, rows: Rows) -> Converted:
    """Read, check, cast and quantize rows."""
    before, after, how = rows.piece.dtype, rows.tensor.dtype, rows.tensor.quantization
    weights = source.read(rows.piece.name, slice(rows.first, rows.first + rows.count))
    bits = _bits(weights)
    mask, limit = _NOT_FINITE[before]
    magnitude = bits & mask
    nonfinite = int((magnitude >= limit).sum()) if magnitude.max() >= limit else 0
    if after != before:
        weights = weights.astype(DTYPES[after])
        # Large weights become infinite in a dtype with a narrower range.
        nonfinite = int((~mx.isfinite(weights)).sum())
    if how is None:
        return Converted([_bits(weights).data.cast("B")], nonfinite)
    stored = mx.quantize(weights, how.group_size, how.bits, mode=how.mode)
    every = _SAMPLED_ROWS if rows.tensor.parameters > _MEASURED_WHOLE else 1
    sample = weights[::every].astype(mx.float32)
    packed, scales, *biases = (part[::every] for part in stored)
    decoded = mx.dequantize(packed, scales, biases[0] if biases else None, how.group_size, how.bits, how.mode)
    error = decoded.astype(mx.float32) - sample
    sums = mx.stack([error.square().sum(), sample.square().sum()])
    mx.eval(stored, sums)
    squared_error, squared = np.array(sums).tolist()
    return Converted([_bits(part).data.cast("B") for part in stored], nonfinite, squared_error, squared)


def _bits(array: mx.array) -> np.ndarray:
    """Return the array's bits as unsigned integers. NumPy has no bfloat16."""
    return np.asarray(array.view({1: mx.uint8, 2: mx.uint16, 4: mx.uint32}[array.itemsize]))
