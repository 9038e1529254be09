"""Tensors of a checkpoint under DiffusionGemma's own names, one tensor per weight.

The encoder shares its weights with the decoder, and the logits share the embedding. Programs store a shared
weight under any of its names (`lm_head.weight`, `model.encoder.language_model.*`, the same without `model.`)
or under several, and some store buffers that are computed from config.json. Transformers loads all of these.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from ..errors import CheckpointError
from .weights import TensorInfo, tensor_infos

_EMBEDDING, _DECODER = "model.decoder.embed_tokens.", "model.decoder."
_PREFIX = re.compile(r"^(?:model\.){0,2}(?=(?:decoder|encoder|lm_head)\.)")
# Not `layer_scalar`: each encoder layer has its own.
_SHARED = re.compile(
    r"^model\.encoder\.language_model\.(?=(?:embed_tokens|norm)\.|layers\.\d+\.(?!layer_scalar$))"
)
_BUFFER = re.compile(r"(?:^|\.)(?:rotary_emb\..+|embed_scale)$")
_EXPERT_STACKS = (".experts.gate_up_proj", ".experts.down_proj")
_FLOATS = {"F32", "F16", "BF16"}
_CHUNK_VALUES = 2**22


def model_tensors(directory: Path) -> dict[str, TensorInfo]:
    """Return one tensor per weight, by DiffusionGemma's own names.

    Buffers and further copies of a weight are left out. Only headers are read. `compare_copies` checks that
    copies have equal values.

    Raises:
        CheckpointError: as in `tensor_infos`, or copies differ in shape, or in dtype unless both are floats.
    """
    return {canonical_name(copies[0].name): copies[0] for copies in _copies(directory).values()}


def compare_copies(directory: Path) -> None:
    """Raise `CheckpointError` if a weight is stored more than once with different values.

    Reads a few megabytes at a time, and nothing of a weight that is stored once.
    """
    for first, *others in _copies(directory).values():
        for other in others:
            if not _equal(first, other):
                raise _not_tied(directory, first, other, "their values differ")


def canonical_name(name: str) -> str:
    """Return DiffusionGemma's own name for a tensor. A name that is not recognized stays unchanged."""
    bare, known = _PREFIX.subn("", name, count=1)
    if not known:
        return name
    if bare.startswith("lm_head."):
        return _EMBEDDING + bare.removeprefix("lm_head.")
    return _SHARED.sub(_DECODER, f"model.{bare}")


def parameter_name(name: str) -> str:
    """Return the parameter's name for a tensor's name. Hugging Face's expert stacks lack its `.weight`."""
    return f"{name}.weight" if name.endswith(_EXPERT_STACKS) else name


def _copies(directory: Path) -> dict[str, list[TensorInfo]]:
    """Return all copies of each parameter. One under DiffusionGemma's own name comes first."""
    tensors: dict[str, list[TensorInfo]] = {}
    for info in tensor_infos(directory).values():
        if not _BUFFER.search(info.name):
            tensors.setdefault(parameter_name(canonical_name(info.name)), []).append(info)
    for copies in tensors.values():
        copies.sort(key=lambda info: (canonical_name(info.name) != info.name, info.name))
        first = copies[0]
        for other in copies[1:]:
            if other.shape != first.shape or not (
                other.dtype == first.dtype or {other.dtype, first.dtype} <= _FLOATS
            ):
                shapes = " and ".join(f"{info.dtype} {list(info.shape)}" for info in (first, other))
                raise _not_tied(directory, first, other, shapes)
    return tensors


def _not_tied(directory: Path, first: TensorInfo, other: TensorInfo, how: str) -> CheckpointError:
    return CheckpointError(
        f"{directory}: {first.name} and {other.name} are one weight of DiffusionGemma and must be equal "
        f"({how}); save the model again with tied weights, or without the wrong one"
    )


def _equal(first: TensorInfo, other: TensorInfo) -> bool:
    """Return True if two tensors of one shape have equal values. Their floating-point dtypes may differ."""
    with first.file.open("rb") as one, other.file.open("rb") as two:
        one.seek(first.offset)
        two.seek(other.offset)
        for start in range(0, first.size, _CHUNK_VALUES):
            count = min(_CHUNK_VALUES, first.size - start)
            data = one.read(count * first.item_bytes)
            copy = two.read(count * other.item_bytes)
            if first.dtype == other.dtype:
                equal = data == copy
            else:
                widened = _float32(data, first.dtype), _float32(copy, other.dtype)
                equal = np.array_equal(*widened, equal_nan=True)
            if not equal:
                return False
    return True


def _float32(data: bytes, dtype: str) -> np.ndarray:
    """Widen values to float32, which is exact."""
    if dtype == "BF16":
        return (np.frombuffer(data, np.uint16).astype(np.uint32) << 16).view(np.float32)
    return np.frombuffer(data, {"F16": np.float16, "F32": np.float32}[dtype]).astype(np.float32)
