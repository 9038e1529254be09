"""The safetensors source: a Hugging Face checkpoint, or an MLX conversion to compare with."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from mlx_diffusiongemma.checkpoint.loading import resolve
from mlx_diffusiongemma.checkpoint.tied_weights import compare_copies, model_tensors
from mlx_diffusiongemma.checkpoint.weights import TensorInfo
from mlx_diffusiongemma.config.json_file import read_json
from mlx_diffusiongemma.errors import CheckpointError

from .source import DTYPES, Source, SourceTensor

_BITS = {"F32": np.uint32, "F16": np.uint16, "BF16": np.uint16, "U32": np.uint32, "U8": np.uint8}


class SafetensorsSource:
    """A directory of safetensors files."""

    def __init__(self, directory: Path):
        self.directory, self.name = directory, str(directory)

    def config(self) -> dict[str, Any]:
        values: dict[str, Any] = read_json(self.directory / "config.json")
        return values

    @cached_property
    def _infos(self) -> dict[str, TensorInfo]:
        return model_tensors(self.directory)

    @cached_property
    def _by_stored_name(self) -> dict[str, TensorInfo]:
        return {info.name: info for info in self._infos.values()}

    def tensors(self) -> dict[str, SourceTensor]:
        stored = sorted(self._infos.values(), key=lambda info: (info.file, info.offset))
        positions = {info.name: position for position, info in enumerate(stored)}
        return {
            name: SourceTensor(info.name, info.dtype, info.shape, str(info.file), positions[info.name])
            for name, info in self._infos.items()
        }

    def read(self, name: str, rows: slice) -> mx.array:
        info = self._by_stored_name[name]
        width = info.shape[-1] if info.shape else 1
        count = (rows.stop - rows.start) * width
        offset = info.offset + rows.start * width * info.item_bytes
        bits = np.fromfile(info.file, _BITS[info.dtype], count, offset=offset)
        if bits.size != count:
            raise CheckpointError(f"{info.file}: it became shorter while it was read; download it again")
        return mx.array(bits.reshape(-1, width)).view(DTYPES[info.dtype])

    def check_copies(self) -> None:
        compare_copies(self.directory)

    def tokenizer_files(self) -> Path:
        return self.directory

    def paths(self) -> list[Path]:
        return sorted({info.file for info in self._infos.values()})


def open_source(hf_path: str | Path, revision: str | None = None) -> Source:
    """Return the source at "demo", a directory or a hub id. Downloads files that are missing."""
    return SafetensorsSource(resolve(hf_path, revision))
