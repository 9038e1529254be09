"""Decides how each tensor is stored, from names, shapes and a recipe alone."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mlx_diffusiongemma.errors import CheckpointError, InputError

from .recipes import CLASSES, Quantization, stored_as, tensor_class
from .source import DTYPES, SourceTensor

FLOATS = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
# Some tools save one tensor per expert. Hugging Face stacks them, gate rows before up rows.
_EXPERT = re.compile(
    r"^(model\.decoder\.layers\.\d+\.experts)\.(\d{1,5})\.(gate_up_proj|gate_proj|up_proj|down_proj)(?:\.weight)?$"
)
_PARTS = ({"down_proj"}, {"gate_up_proj"}, {"gate_proj", "up_proj"})  # parts of an expert that can be stacked


@dataclass(frozen=True)
class Output:
    """A tensor to be written. dtype: as safetensors spells it."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * DTYPES[self.dtype].size


@dataclass(frozen=True)
class Planned:
    """One weight: the tensors of its rows, in order, and how it is stored.

    name: name of the stored tensor if it is not quantized.
    shape: shape of the weight, `[..., width]`.
    dtype: dtype of the stored tensors that are floating point.
    """

    name: str
    kind: str
    pieces: tuple[SourceTensor, ...]
    shape: tuple[int, ...]
    dtype: str
    quantization: Quantization | None

    @property
    def path(self) -> str:
        """Path of its module. Hugging Face's expert stacks have no `.weight` suffix."""
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
    """Totals of one class of tensors.

    bytes_in: size in the source, None if unknown.
    rms_error: relative RMS error of the quantized weights, None if unquantized or not measured.
    """

    stored_as: str
    tensors: int
    parameters: int
    bytes_in: int | None
    bytes_out: int
    rms_error: float | None = None

    @classmethod
    def total(cls, stored_as: str, parts: Sequence[ClassSummary]) -> ClassSummary:
        """Return the sums over `parts`. Their `rms_error` is left out."""
        known = [part.bytes_in for part in parts if part.bytes_in is not None]
        return cls(
            stored_as,
            tensors=sum(part.tensors for part in parts),
            parameters=sum(part.parameters for part in parts),
            bytes_in=sum(known) if len(known) == len(parts) else None,
            bytes_out=sum(part.bytes_out for part in parts),
        )


@dataclass(frozen=True)
class Plan:
    """How all tensors of a source are stored.

    choices: quantization of each class that is quantized.
    dtype: dtype of tensors that are not quantized, None for the source's.
    """

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
        """Return totals of each class that has tensors, in the order of `CLASSES`."""
        members: dict[str, list[ClassSummary]] = {kind: [] for kind in CLASSES}
        for each in self.tensors:
            members[each.kind].append(ClassSummary("", 1, each.parameters, each.bytes_in, each.bytes_out))
        return {
            kind: ClassSummary.total(stored_as(self.choices.get(kind)), parts)
            for kind, parts in members.items()
            if parts
        }


def plan(
    tensors: Mapping[str, SourceTensor],
    recipe: str,
    choices: Mapping[str, Quantization],
    dtype: str | None = None,
) -> Plan:
    """Decide how each tensor is stored.

    Args:
        tensors: tensors of the source by DiffusionGemma's own names, see `Source.tensors`.
        recipe: name of the recipe, for reports.
        choices: quantization of each class that is quantized.
        dtype: dtype of tensors that are not quantized. None keeps the source's.

    Raises:
        InputError: a tensor's width does not allow its quantization.
        CheckpointError: a tensor is not a weight, or the tensors of experts do not make a stack.
    """
    stacks: dict[str, list[tuple[int, str, SourceTensor]]] = {}
    planned = []
    for name, tensor in tensors.items():
        if tensor.dtype not in FLOATS.values():
            raise CheckpointError(f"{tensor.where}: {name} is {tensor.dtype}, not a floating-point weight")
        if not tensor.nbytes:
            raise CheckpointError(f"{tensor.where}: {name} is {list(tensor.shape)}, which holds nothing")
        expert = _EXPERT.match(name)
        if expert:
            stack, number, part = expert[1], int(expert[2]), expert[3]
            kind = "down_proj" if part == "down_proj" else "gate_up_proj"
            stacks.setdefault(f"{stack}.{kind}", []).append((number, part, tensor))
        else:
            planned.append(_planned(name, (tensor,), tensor.shape, choices, dtype))
    for name, members in stacks.items():
        planned.append(_planned(name, *_stack(name, members), choices, dtype))
    paths = Counter(weight.path for weight in planned)
    twice = next((path for path, count in paths.items() if count > 1), None)
    if twice is not None:
        raise CheckpointError(f"{twice} is stored both as a stack and expert by expert; remove one")
    return Plan(recipe, dict(choices), dtype, tuple(planned))


def _planned(
    name: str,
    pieces: tuple[SourceTensor, ...],
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
    name: str, members: list[tuple[int, str, SourceTensor]]
) -> tuple[tuple[SourceTensor, ...], tuple[int, ...]]:
    """Return the experts' tensors in the order of a stack's rows, and its shape `[experts, rows, width]`."""
    members = sorted(members, key=lambda member: member[:2])  # gate_proj before up_proj
    parts: dict[int, list[str]] = {}
    for number, part, _ in members:
        parts.setdefault(number, []).append(part)
    if list(parts) != list(range(len(parts))):
        raise CheckpointError(f"{name}: its experts are not numbered 0 to {max(parts)} without a gap")
    for number, own_parts in parts.items():
        if own_parts != parts[0] or set(own_parts) not in _PARTS or len(own_parts) != len(set(own_parts)):
            raise CheckpointError(
                f"{name}: expert {number} has {', '.join(own_parts)}, which do not make a stack"
            )
    pieces = tuple(piece for *_, piece in members)
    first = pieces[0]
    for number, part, piece in members:
        if len(piece.shape) != 2 or piece.shape != first.shape or piece.dtype != first.dtype:
            raise CheckpointError(
                f"{name}: {part} of expert {number} is {piece.dtype} {list(piece.shape)}, others are "
                f"{first.dtype} {list(first.shape)}, so they do not stack"
            )
    rows, width = first.shape
    return pieces, (len(parts), len(parts[0]) * rows, width)
