"""Finds how config.json says that a module is quantized."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..config.released import QUANTIZATIONS
from ..errors import ConfigError
from .weights import TensorInfo

_DEFAULT_BITS, _DEFAULT_GROUP_SIZE = 4, 64  # MLX's defaults, in modes that have these values


def module_quantization(path: str, scales: TensorInfo, block: Mapping[str, Any]) -> tuple[int, int, str]:
    """Return bits, group size and mode of the quantized module at `path`.

    Args:
        path: the module's own path. A tied weight may be stored and overridden under another path.
        scales: the module's tensor of scales.
        block: config.json's quantization: a default, and overrides by path. An override without `mode` means
            affine, whatever the default is. Missing bits and group size are MLX's defaults for the mode.

    Raises:
        ConfigError: MLX has no such quantization.
    """
    stored = scales.name.removesuffix(".scales")
    chosen = block.get(stored, block.get(path, block))
    if not isinstance(chosen, Mapping):
        raise ConfigError(f"config.json: quantization of {path} must be an object, found {chosen!r}")
    mode, bits, group_size = chosen.get("mode", "affine"), chosen.get("bits"), chosen.get("group_size")
    known_bits, known_groups = QUANTIZATIONS.get(str(mode), ((), ()))
    if known_bits and bits is None:
        bits = _DEFAULT_BITS if _DEFAULT_BITS in known_bits else known_bits[0]
    if known_groups and group_size is None:
        group_size = _DEFAULT_GROUP_SIZE if _DEFAULT_GROUP_SIZE in known_groups else known_groups[0]
    if type(bits) is not int or bits not in known_bits or group_size not in known_groups:
        raise ConfigError(
            f"config.json: quantization of {path} is {bits!r} bits in groups of {group_size!r}, "
            f"mode {mode!r}; MLX has no such quantization"
        )
    return bits, group_size, mode
