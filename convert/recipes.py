"""Recipes: how each class of tensors is stored. Noise in the logits costs denoising steps, so classes differ.

Measured by others on the 26B model: embedding, attention, router and MLPs at 8 bits instead of 4 cut the RMS
logit error from 0.050 to 0.015, for 6% of the bytes; the experts are nearly all of them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from mlx_diffusiongemma.config.released import QUANTIZATIONS
from mlx_diffusiongemma.errors import InputError

CLASSES = ("experts", "attention", "mlp", "self_conditioning", "embedding", "router", "norms", "vision")
QUANTIZABLE = CLASSES[:6]
# The first pattern found in a tensor's name decides; a matrix of none of these does not exist.
_CLASS_PATTERNS = [
    (re.compile(r"^model\.encoder\.(vision_tower|embed_vision)\."), "vision"),
    (re.compile(r"\.experts\."), "experts"),
    (re.compile(r"\.router\.proj\."), "router"),
    (re.compile(r"\.self_attn\.[qkvo]_proj\."), "attention"),
    (re.compile(r"\.self_conditioning\.(gate|up|down)_proj\."), "self_conditioning"),
    (re.compile(r"\.mlp\.(gate|up|down)_proj\."), "mlp"),
    (re.compile(r"\.embed_tokens\."), "embedding"),
]
_UNQUANTIZED_BITS = 16  # how a CLASS=BITS override says "leave it as it is"


@dataclass(frozen=True)
class Quantization:
    """MLX's parameters: bits per weight; weights that share a scale; the number format (mode)."""

    bits: int
    group_size: int = 64
    mode: str = "affine"

    def __str__(self) -> str:
        return f"{self.bits}-bit {self.mode} g{self.group_size}"

    @property
    def bits_per_weight(self) -> float:
        """With its share of scale and, if affine, bias: 16 bits each; 8 for a scale of the other modes."""
        return self.bits + (32 if self.mode == "affine" else 8) / self.group_size

    def to_dict(self) -> dict[str, int | str]:
        return {"group_size": self.group_size, "bits": self.bits, "mode": self.mode}


def _recipe(experts: Quantization, rest: Quantization, *unquantized: str) -> dict[str, Quantization]:
    chosen = {kind: rest for kind in QUANTIZABLE if kind not in unquantized}
    return chosen | {"experts": experts}


_EIGHT = Quantization(8)
# Class -> quantization; a class that is not named stays as it is.
RECIPES: dict[str, dict[str, Quantization]] = {
    "mixed-4bit": _recipe(Quantization(4), _EIGHT, "router"),
    "mixed-4bit-bf16-embed": _recipe(Quantization(4), _EIGHT, "router", "embedding"),
    "4bit": _recipe(Quantization(4), Quantization(4)),
    "8bit": _recipe(_EIGHT, _EIGHT),
    "mxfp4": _recipe(Quantization(4, 32, "mxfp4"), _EIGHT, "router"),
    "nvfp4": _recipe(Quantization(4, 16, "nvfp4"), _EIGHT, "router"),
    "bf16": {},
}
DEFAULT_RECIPE = "mixed-4bit"


def tensor_class(name: str) -> str:
    """Return the one of `CLASSES` that a tensor belongs to. Vectors and scalars count as norms."""
    return next((kind for pattern, kind in _CLASS_PATTERNS if pattern.search(name)), "norms")


def choose(
    recipe: str = DEFAULT_RECIPE,
    q_bits: int | None = None,
    q_group_size: int | None = None,
    q_mode: str | None = None,
    overrides: Iterable[str] = (),
) -> dict[str, Quantization]:
    """A recipe with changes: `q_*` for every class it quantizes, then `CLASS=BITS[:GROUP[:MODE]]` each.

    BITS 16 leaves a class unquantized. Raises `InputError` for what MLX does not have.
    """
    if recipe not in RECIPES:
        raise InputError(f"recipe {recipe!r} is unknown; there are {', '.join(RECIPES)}")
    chosen = dict(RECIPES[recipe])
    if not chosen and (q_bits, q_group_size, q_mode) != (None, None, None):
        raise InputError(
            f"recipe {recipe} quantizes nothing, so --q-bits and its like change nothing; drop one"
        )
    for kind, quantization in chosen.items():
        chosen[kind] = _changed(f"recipe {recipe}, {kind}", quantization, q_bits, q_group_size, q_mode)
    for text in overrides:
        kind, override = _parse(text)
        chosen.pop(kind, None)
        if override is not None:
            chosen[kind] = override
    return chosen


def _changed(
    what: str, base: Quantization, bits: int | None, group_size: int | None, mode: str | None
) -> Quantization:
    """`base` with changes. A mode that has one width or one group size brings it along."""
    mode = base.mode if mode is None else mode
    if mode not in QUANTIZATIONS:
        raise InputError(f"{what}: mode {mode!r} is unknown; MLX has {', '.join(QUANTIZATIONS)}")
    known_bits, known_groups = QUANTIZATIONS[mode]
    if bits is None:
        bits = base.bits if base.bits in known_bits else known_bits[0]
    if group_size is None:
        group_size = next((size for size in (base.group_size, 64) if size in known_groups), known_groups[0])
    for value, known, name in ((bits, known_bits, "bits"), (group_size, known_groups, "group size")):
        if value not in known:
            raise InputError(f"{what}: {mode} has no {name} {value}, only {', '.join(map(str, known))}")
    return Quantization(bits, group_size, mode)


def _parse(text: str) -> tuple[str, Quantization | None]:
    """`CLASS=BITS[:GROUP[:MODE]]`."""
    kind, _, value = text.partition("=")
    if kind not in QUANTIZABLE:
        reason = "it stays as it is" if kind in CLASSES else "no such class"
        raise InputError(f"--set {text}: {kind!r}: {reason}; there are {', '.join(QUANTIZABLE)}")
    match = re.fullmatch(r"(\d{1,2})(?::(\d{1,4})(?::(\w+))?)?", value)
    if match is None:
        raise InputError(f"--set {text}: {value!r} is not BITS[:GROUP[:MODE]], such as 8, 4:32 or 4:32:mxfp4")
    bits, group_size, mode = int(match[1]), int(match[2]) if match[2] else None, match[3]
    if bits == _UNQUANTIZED_BITS:
        if group_size is not None:
            raise InputError(
                f"--set {text}: 16 bits are not quantized, so they have no groups; drop {match[2]}"
            )
        return kind, None
    return kind, _changed(f"--set {text}", Quantization(bits), bits, group_size, mode)
