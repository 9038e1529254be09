"""A conversion knows its source by the protocol alone: no files, and a few rows at a time."""

from __future__ import annotations

import builtins
import io
import json
import os
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from support.converting import tensors_of, tiny_source
from support.hub_calls import content

from mlx_diffusiongemma.checkpoint.weights import tensor_infos
from mlx_diffusiongemma.converter import conversion, convert, quantizing, report
from mlx_diffusiongemma.converter.planning import plan
from mlx_diffusiongemma.converter.recipes import choose
from mlx_diffusiongemma.converter.safetensors_source import SafetensorsSource
from mlx_diffusiongemma.converter.source import DTYPES, Source, SourceTensor
from mlx_diffusiongemma.errors import CheckpointError

CHUNK_BYTES = 3000


class MemorySource:
    """The tensors of a checkpoint as arrays."""

    name = "memory"

    def __init__(self, directory: Path):
        stored = tensors_of(directory)
        self.arrays = {name: stored[name] for name in tensor_infos(directory)}
        self.values = json.loads((directory / "config.json").read_text())
        self.directory = directory
        self.most_bytes = 0

    def config(self) -> dict[str, Any]:
        return self.values

    def tensors(self) -> dict[str, SourceTensor]:
        names = {dtype: name for name, dtype in DTYPES.items()}
        return {
            name: SourceTensor(name, names[array.dtype], tuple(array.shape), self.name)
            for name, array in self.arrays.items()
        }

    def read(self, name: str, rows: slice) -> mx.array:
        array = self.arrays[name]
        portion = array.reshape(-1, array.shape[-1])[rows]
        if portion.shape[0] > 1:
            self.most_bytes = max(self.most_bytes, portion.nbytes)
        return portion

    def check_copies(self) -> None:
        pass

    def tokenizer_files(self) -> Path:
        return self.directory

    def paths(self) -> list[Path]:
        return []


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tiny_source(tmp_path / "source")


@pytest.fixture
def source(directory: Path, monkeypatch: pytest.MonkeyPatch) -> MemorySource:
    monkeypatch.setattr(quantizing, "CHUNK_BYTES", CHUNK_BYTES)
    return MemorySource(directory)


def test_planning_and_quantizing_open_no_file(source: MemorySource, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: Any, **_: Any) -> None:
        raise AssertionError(f"opened {arguments}")

    with monkeypatch.context() as patch:
        for owner, name in ((builtins, "open"), (io, "open"), (os, "open"), (np, "fromfile"), (mx, "load")):
            patch.setattr(owner, name, refuse)
        planned = plan(source.tensors(), "mixed-4bit", choose())
        for tensor in planned.tensors:
            portions: list[list[bytes]] = [[] for _ in tensor.outputs]
            for rows in quantizing.chunks(tensor):
                for portion, data in zip(portions, quantizing.convert_rows(source, rows).data, strict=True):
                    portion.append(bytes(data))
            how, whole = tensor.quantization, source.arrays[tensor.name]
            expected = [whole] if how is None else mx.quantize(whole, how.group_size, how.bits, mode=how.mode)
            for portion, array in zip(portions, expected, strict=True):
                assert b"".join(portion) == bytes(memoryview(np.asarray(array)))
        assert "experts" in report.of_plan(source, planned)
    assert 0 < source.most_bytes <= CHUNK_BYTES


def test_any_source_gives_the_bytes_of_safetensors(
    directory: Path, source: MemorySource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole conversion, with its verification."""
    expected = convert(directory, tmp_path / "files" / "out", verify=True)
    as_protocol: Source = source
    monkeypatch.setattr(conversion, "open_source", lambda *_: as_protocol)
    target = convert(directory, tmp_path / "memory" / "out", verify=True)
    assert content(target) == content(expected)


def test_a_tensor_that_is_not_a_weight_is_named_with_its_place(source: MemorySource) -> None:
    tensors = source.tensors() | {"model.decoder.norm.weight": SourceTensor("norm", "U8", (64,), "x.gguf")}
    with pytest.raises(CheckpointError, match=r"^x\.gguf: model\.decoder\.norm\.weight is U8, not a float"):
        plan(tensors, "mixed-4bit", choose())


def test_a_file_that_becomes_shorter_is_an_error(directory: Path) -> None:
    source = SafetensorsSource(directory)
    last = max(source.tensors().values(), key=lambda tensor: tensor.position)
    file = Path(last.where)
    os.truncate(file, file.stat().st_size - 1)
    with pytest.raises(CheckpointError, match="became shorter while it was read"):
        source.read(last.name, slice(0, last.rows))
