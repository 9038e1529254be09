"""Sources of a conversion.

Planning, quantizing and verification ask a `Source` for names, shapes and rows. They never open a file.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import mlx.core as mx

# dtypes as safetensors spells them
DTYPES = {"F32": mx.float32, "F16": mx.float16, "BF16": mx.bfloat16, "U32": mx.uint32, "U8": mx.uint8}


@dataclass(frozen=True)
class SourceTensor:
    """One tensor of a source. Its rows are those of the matrix `[prod(shape[:-1]), shape[-1]]`.

    name: its name in the source.
    dtype: its dtype, as safetensors spells it.
    where: its file, for messages.
    position: its place in the order of conversion, in which files are read from front to back.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    where: str = ""
    position: int = 0

    @property
    def rows(self) -> int:
        return math.prod(self.shape[:-1])

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * DTYPES[self.dtype].size


class Source(Protocol):
    """Weights and configuration of one checkpoint."""

    @property
    def name(self) -> str:
        """Directory or file, for messages."""

    def config(self) -> dict[str, Any]:
        """Return config.json in Hugging Face's format, parsed."""

    def tensors(self) -> Mapping[str, SourceTensor]:
        """Return one tensor per weight, by DiffusionGemma's own names. Reads no weights."""

    def read(self, name: str, rows: slice) -> mx.array:
        """Return rows `[start, stop)` of the tensor that the source calls `name`, in its dtype.

        Called from several threads at once. Must not read more of the tensor than these rows.
        """

    def check_copies(self) -> None:
        """Raise `CheckpointError` if one weight is stored twice with different values."""

    def tokenizer_files(self) -> Path:
        """Return the directory of the tokenizer, generation_config.json, licence and README."""

    def paths(self) -> Sequence[Path]:
        """Return the files that hold the weights. If their size or time changes, it is another source."""
