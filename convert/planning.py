"""Decides what becomes of each tensor, from names and shapes alone.

Noise in the logits costs denoising steps, so only the experts, which are most of the bytes, get 4 bits;
embedding, attention and the dense MLPs get 8, and router, norms and the vision tower stay as they are.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from mlx_diffusiongemma.errors import InputError

_GROUP_SIZE = 64

# The first pattern found in a tensor's name decides; names without any stay unquantized.
_BITS_BY_PATTERN = [
    (re.compile(r"^model\.encoder\."), None),
    (re.compile(r"\.experts\.(gate_up_proj|down_proj)(\.weight)?$"), 4),
    (re.compile(r"\.self_attn\.[qkvo]_proj\.weight$"), 8),
    (re.compile(r"\.(mlp|self_conditioning)\.(gate|up|down)_proj\.weight$"), 8),
    (re.compile(r"\.embed_tokens\.weight$"), 8),
]


@dataclass(frozen=True)
class Quantization:
    """Affine quantization: `bits` per weight, with a scale and a bias for each `group_size` of a row."""

    bits: int
    group_size: int = _GROUP_SIZE

    def to_dict(self) -> dict[str, int]:
        return {"group_size": self.group_size, "bits": self.bits}


DEFAULT = Quantization(bits=4)


def module_path(name: str) -> str:
    """The module that a weight belongs to; Hugging Face's expert stacks have no `.weight` suffix."""
    return name.removesuffix(".weight")


def plan(shapes: dict[str, tuple[int, ...]]) -> dict[str, Quantization | None]:
    """Each tensor's quantization, or None to keep it. `InputError` names a width that does not divide."""
    plan: dict[str, Quantization | None] = {}
    for name, shape in shapes.items():
        bits = next((bits for pattern, bits in _BITS_BY_PATTERN if pattern.search(name)), None)
        if bits is not None and shape[-1] % _GROUP_SIZE:
            raise InputError(
                f"{name} has width {shape[-1]}, which groups of {_GROUP_SIZE} do not divide, "
                "so it cannot be quantized"
            )
        plan[name] = Quantization(bits) if bits is not None else None
    return plan
