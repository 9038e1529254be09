"""Recipes: how each class of tensors is stored.

Errors in the logits cost denoising steps, and the classes differ in how much they add to these errors.
Measured by others on the 26B model: embedding, attention, router and MLPs at 8 bits instead of 4 cut the RMS
logit error from 0.050 to 0.015 and add 6% to the size. Nearly all bytes are the experts'.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from mlx_diffusiongemma.config.released import QUANTIZATIONS
from mlx_diffusiongemma.errors import InputError

CLASSES = ("experts", "attention", "mlp", "self_conditioning", "embedding", "router", "norms", "vision")
QUANTIZABLE = CLASSES[:6]
# The first pattern found in a tensor's name decides. Every matrix matches one.
_CLASS_PATTERNS = [
    (re.compile(r"^model\.encoder\.(vision_tower|embed_vision)\."), "vision"),
    (re.compile(r"\.experts\."), "experts"),
    (re.compile(r"\.router\.proj\."), "router"),
    (re.compile(r"\.self_attn\.[qkvo]_proj\."), "attention"),
    (re.compile(r"\.self_conditioning\.(gate|up|down)_proj\."), "self_conditioning"),
    (re.compile(r"\.mlp\.(gate|up|down)_proj\."), "mlp"),
    (re.compile(r"\.embed_tokens\."), "embedding"),
]
_UNQUANTIZED_BITS = 16  # in a CLASS=BITS override: not quantized


@dataclass(frozen=True)
class Quantization:
    """MLX's parameters: bits per weight, number of weights that share a scale, and number format (mode)."""

    bits: int
    group_size: int = 64
    mode: str = "affine"

    def __str__(self) -> str:
        return f"{self.bits}-bit {self.mode} g{self.group_size}"

    def to_dict(self) -> dict[str, int | str]:
        return {"group_size": self.group_size, "bits": self.bits, "mode": self.mode}


def stored_as(quantization: Quantization | None) -> str:
    return "unquantized" if quantization is None else str(quantization)


def _recipe(experts: Quantization, rest: Quantization, *unquantized: str) -> dict[str, Quantization]:
    chosen = {kind: rest for kind in QUANTIZABLE if kind not in unquantized}
    return chosen | {"experts": experts}


_EIGHT = Quantization(8)
# Class -> quantization. Other classes are not quantized.
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
    """Return the class of a tensor, one of `CLASSES`. Vectors and scalars are in the class norms."""
    return next((kind for pattern, kind in _CLASS_PATTERNS if pattern.search(name)), "norms")


def choose(
    recipe: str = DEFAULT_RECIPE,
    q_bits: int | None = None,
    q_group_size: int | None = None,
    q_mode: str | None = None,
    overrides: Iterable[str] = (),
) -> dict[str, Quantization]:
    """Return the quantization of each class that is quantized: a recipe with changes.

    First, `q_bits`, `q_group_size` and `q_mode` change every class that the recipe quantizes. Then each
    override, `CLASS=BITS[:GROUP[:MODE]]`, changes one class. 16 BITS mean that it is not quantized. Raises
    `InputError` for a quantization that MLX does not have.
    """
    if recipe not in RECIPES:
        raise InputError(f"recipe {recipe!r} is unknown; there are {', '.join(RECIPES)}")
    chosen = dict(RECIPES[recipe])
    if not chosen and (q_bits, q_group_size, q_mode) != (None, None, None):
        raise InputError(
            f"recipe {recipe} quantizes nothing, so --q-bits, --q-group-size and --q-mode have no effect; "
            "leave them out or choose another recipe"
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
    origin: str, base: Quantization, bits: int | None, group_size: int | None, mode: str | None
) -> Quantization:
    """Return `base` with other bits, group size or mode.

    None keeps the value of `base` if the mode has it, and otherwise takes one that the mode has.

    origin: what asks for the change, for error messages.
    """
    mode = base.mode if mode is None else mode
    if mode not in QUANTIZATIONS:
        raise InputError(f"{origin}: mode {mode!r} is unknown; MLX has {', '.join(QUANTIZATIONS)}")
    known_bits, known_groups = QUANTIZATIONS[mode]
    if bits is None:
        bits = base.bits if base.bits in known_bits else known_bits[0]
    if group_size is None:
        group_size = next((size for size in (base.group_size, 64) if size in known_groups), known_groups[0])
    for value, known, name in ((bits, known_bits, "bits"), (group_size, known_groups, "group size")):
        if value not in known:
            raise InputError(f"{origin}: {mode} has no {name} {value}, only {', '.join(map(str, known))}")
    return Quantization(bits, group_size, mode)


def _parse(text: str) -> tuple[str, Quantization | None]:
    """Return class and quantization of `CLASS=BITS[:GROUP[:MODE]]`. 16 BITS give None."""
    kind, _, value = text.partition("=")
    if kind not in QUANTIZABLE:
        reason = "never quantized" if kind in CLASSES else "no such class"
        raise InputError(f"--set {text}: {kind!r}: {reason}; there are {', '.join(QUANTIZABLE)}")
    match = re.fullmatch(r"(\d{1,2})(?::(\d{1,4})(?::(\w+))?)?", value)
    if match is None:
        raise InputError(f"--set {text}: {value!r} is not BITS[:GROUP[:MODE]], such as 8, 4:32 or 4:32:mxfp4")
    bits, group_size, mode = int(match[1]), int(match[2]) if match[2] else None, match[3]
    if bits == _UNQUANTIZED_BITS:
        if group_size is not None:
            raise InputError(
                f"--set {text}: 16 bits are not quantized, so they have no groups; leave out :{match[2]}"
            )
        return kind, None
    return kind, _changed(f"--set {text}", Quantization(bits), bits, group_size, mode)
