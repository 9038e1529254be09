"""Decides what becomes of each tensor, from names, shapes and a recipe alone."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from mlx_diffusiongemma.checkpoint.weights import TensorInfo
from mlx_diffusiongemma.errors import CheckpointError, InputError

from .recipes import CLASSES, Quantization, tensor_class

_ITEM_BYTES = {"F32": 4, "F16": 2, "BF16": 2, "U32": 4, "U8": 1}
FLOATS = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
# One tensor per expert, as some tools save them; Hugging Face stacks them, gate rows before up rows.
_EXPERT = re.compile(
    r"^(model\.decoder\.layers\.\d+\.experts)\.(\d{1,5})\.(gate_up_proj|gate_proj|up_proj|down_proj)(?:\.weight)?$"
)
_PARTS = ({"down_proj"}, {"gate_up_proj"}, {"gate_proj", "up_proj"})  # of one expert, in a stack's order


@dataclass(frozen=True)
class Output:
    """A tensor to be written; dtype as safetensors spells it."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * _ITEM_BYTES[self.dtype]


@dataclass(frozen=True)
class Planned:
    """A weight: where its rows come from, in order, and how it is stored.

    name: its tensor's when not quantized. shape: `[..., width]`. dtype: of what stays floating point.
    """

    name: str
    kind: str
    pieces: tuple[TensorInfo, ...]
    shape: tuple[int, ...]
    dtype: str
    quantization: Quantization | None

    @property
    def path(self) -> str:
        """The module it belongs to; Hugging Face's expert stacks have no `.weight` suffix."""
        return self.name.removesuffix(".weight")

    @property
    def outputs(self) -> tuple[Output, ...]:
        if self.quantization is None:
            return (Output(self.name, self.dtype, self.shape),)
        *rows, width = self.shape
        groups = (*rows, width // self.quantization.group_size)
        packed = Output(f"{self.path}.weight", "U32", (*rows, width * self.quantization.bits // 32))
        if self.quantization.mode != "affine":
            return packed, Output(f"{self.path}.scales", "U8", groups)
        floats = (Output(f"{self.path}.{part}", self.dtype, groups) for part in ("scales", "biases"))
        return packed, *floats

    @property
    def parameters(self) -> int:
        return math.prod(self.shape)

    @property
    def bytes_in(self) -> int:
        return sum(piece.nbytes for piece in self.pieces)

    @property
    def bytes_out(self) -> int:
        return sum(output.nbytes for output in self.outputs)


@dataclass(frozen=True)
class ClassSummary:
    quantization: Quantization | None
    tensors: int
    parameters: int
    bytes_in: int
    bytes_out: int

    @property
    def bits_per_weight(self) -> float:
        return 8 * self.bytes_out / self.parameters


@dataclass(frozen=True)
class Plan:
    """dtype: what floating point is stored as; None keeps each tensor's."""

    recipe: str
    choices: Mapping[str, Quantization]
    dtype: str | None
    tensors: tuple[Planned, ...]

    @property
    def bytes_in(self) -> int:
        return sum(tensor.bytes_in for tensor in self.tensors)

    @property
    def bytes_out(self) -> int:
        return sum(tensor.bytes_out for tensor in self.tensors)

    def summary(self) -> dict[str, ClassSummary]:
        """By class, in the order of `CLASSES`, those that have tensors."""
        out = {}
        for kind in CLASSES:
            members = [tensor for tensor in self.tensors if tensor.kind == kind]
            if members:
                out[kind] = ClassSummary(
                    self.choices.get(kind),
                    len(members),
                    sum(tensor.parameters for tensor in members),
                    sum(tensor.bytes_in for tensor in members),
                    sum(tensor.bytes_out for tensor in members),
                )
        return out


def plan(
    infos: dict[str, TensorInfo],
    recipe: str,
    choices: Mapping[str, Quantization],
    dtype: str | None = None,
) -> Plan:
    """Decide how each of the checkpoint's tensors is stored. dtype: of floating point; None keeps it.

    Raises `InputError` naming the tensor for a quantization that its width rules out, and
    `CheckpointError` for experts that do not stack.
    """
    stacks: dict[str, list[tuple[int, str, TensorInfo]]] = {}
    tensors = []
    for name, info in infos.items():
        if info.dtype not in FLOATS.values():
            raise CheckpointError(f"{info.file}: {name} is {info.dtype}, not a floating-point weight")
        if not info.nbytes:
            raise CheckpointError(f"{info.file}: {name} is {list(info.shape)}, which holds nothing")
        expert = _EXPERT.match(name)
        if expert:
            stack, number, part = expert[1], int(expert[2]), expert[3]
            kind = "down_proj" if part == "down_proj" else "gate_up_proj"
            stacks.setdefault(f"{stack}.{kind}", []).append((number, part, info))
        else:
            tensors.append(_planned(name, (info,), info.shape, choices, dtype))
    for name, members in stacks.items():
        tensors.append(_planned(name, *_stack(name, members), choices, dtype))
    paths = Counter(tensor.path for tensor in tensors)
    twice = next((path for path, count in paths.items() if count > 1), None)
    if twice is not None:
        raise CheckpointError(f"{twice} is stored both as a stack and expert by expert; remove one")
    return Plan(recipe, dict(choices), dtype, tuple(tensors))


def _planned(
    name: str,
    pieces: tuple[TensorInfo, ...],
    shape: tuple[int, ...],
    choices: Mapping[str, Quantization],
    dtype: str | None,
) -> Planned:
    kind = tensor_class(name)
    quantization = choices.get(kind)
    if quantization is not None and (len(shape) < 2 or shape[-1] % quantization.group_size):
        raise InputError(
            f"{name} is {list(shape)}: groups of {quantization.group_size} do not divide its rows, so it "
            f"cannot be {quantization}; choose another group size for {kind} with --set {kind}=BITS:GROUP"
        )
    return Planned(name, kind, pieces, shape, FLOATS[dtype] if dtype else pieces[0].dtype, quantization)


def _stack(
    name: str, members: list[tuple[int, str, TensorInfo]]
) -> tuple[tuple[TensorInfo, ...], tuple[int, ...]]:
    """Pieces in the order of a stack's rows, and its shape `[experts, rows, width]`."""
    members = sorted(members, key=lambda member: member[:2])  # gate_proj before up_proj
    parts: dict[int, list[str]] = {}
    for number, part, _ in members:
        parts.setdefault(number, []).append(part)
    if list(parts) != list(range(len(parts))):
        raise CheckpointError(f"{name}: its experts are not numbered 0 to {max(parts)} without a gap")
    for number, found in parts.items():
        if found != parts[0] or set(found) not in _PARTS or len(found) != len(set(found)):
            raise CheckpointError(
                f"{name}: expert {number} has {', '.join(found)}, which do not make a stack"
            )
    infos = tuple(info for *_, info in members)
    first = infos[0]
    for number, part, info in members:
        if len(info.shape) != 2 or info.shape != first.shape or info.dtype != first.dtype:
            raise CheckpointError(
                f"{name}: {part} of expert {number} is {info.dtype} {list(info.shape)}, others are "
                f"{first.dtype} {list(first.shape)}, so they do not stack"
            )
    rows, width = first.shape
    return infos, (len(parts), len(parts[0]) * rows, width)
