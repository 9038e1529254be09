"""How to denoise: generation_config.json in both dialects, and the settings that override it."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import operator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import ConfigError, InputError
from .json_file import JsonObject, read_json, token_ids

# mlx-lm's; bounds the attention scores of a long prompt.
PREFILL_STEP_SIZE = 2048
# name -> (type, smallest, largest)
_RANGES: dict[str, tuple[type, Any, Any]] = {
    "max_new_tokens": (int, 1, 2**31 - 1),
    "max_denoising_steps": (int, 1, 10_000),
    "t_min": (float, 1e-3, 100.0),
    "t_max": (float, 1e-3, 100.0),
    "entropy_bound": (float, 0.0, 1e6),
    "stability_threshold": (int, 0, 10_000),
    "confidence_threshold": (float, 0.0, 1e6),
    "prefill_step_size": (int, 1, 10_000_000),
}
# Older files nest what newer ones write flat; only the sampler has its own object in both.
_NESTED = ("sampler_config", "linear_temperature_schedule_config", "diffusion_stopping_config")


@dataclass(frozen=True)
class GenerationConfig:
    """Settings of a generation. Defaults are the released checkpoint's; entropies are in nats.

    max_new_tokens: most tokens of a generation (prompt excluded).
    max_denoising_steps: most decoder passes per canvas.
    t_min, t_max: temperature runs linearly from near t_max (first step) to near t_min (last step).
    entropy_bound: a step accepts the most certain positions, while the entropies before each add to at most
        this.
    stability_threshold: how many steps in a row must repeat the argmax canvas before stopping.
    confidence_threshold: mean entropy below which a stable canvas is finished.
    eos_token_id: ids that end the generation.
    prefill_step_size: tokens per encode pass over a prompt; fewer take less memory.
    """

    max_new_tokens: int = 256
    max_denoising_steps: int = 48
    t_min: float = 0.4
    t_max: float = 0.8
    entropy_bound: float = 0.1
    stability_threshold: int = 1
    confidence_threshold: float = 0.005
    eos_token_id: tuple[int, ...] = (1, 106, 50)
    prefill_step_size: int = PREFILL_STEP_SIZE

    @classmethod
    def from_dict(cls, values: Any, eos_token_id: tuple[int, ...] = eos_token_id) -> GenerationConfig:
        """Builds from the parsed generation_config.json; `eos_token_id` is used where it names none."""
        read = JsonObject(values, "", "generation_config.json")
        flat = dict(read.values)
        for name in _NESTED:
            nested = flat.pop(name, None)
            flat |= JsonObject({} if nested is None else nested, name, "generation_config.json").values
        if flat.get("_cls_name", "EntropyBoundSamplerConfig") != "EntropyBoundSamplerConfig":
            raise ConfigError(
                f"generation_config.json: sampler_config is a {flat['_cls_name']}; "
                "this package has the EntropyBoundSamplerConfig only"
            )
        settings = {k: v for k, v in flat.items() if k in _RANGES or k == "eos_token_id"}
        try:
            return cls(eos_token_id=eos_token_id).override(**settings)
        except InputError as error:
            raise ConfigError(f"generation_config.json: {error}") from None

    @classmethod
    def load(cls, directory: str | Path, eos_token_id: tuple[int, ...] = eos_token_id) -> GenerationConfig:
        """Reads `directory`/generation_config.json; without one, defaults with the model's stop ids."""
        path = Path(directory) / "generation_config.json"
        return cls.from_dict(read_json(path) if path.exists() else {}, eos_token_id)

    def override(self, **settings: Any) -> GenerationConfig:
        """A copy with `settings` replaced; None keeps a value. `InputError` names range or unknown name."""
        changes: dict[str, Any] = {}
        for name, value in settings.items():
            if value is None:
                continue
            if name in _RANGES:
                changes[name] = _in_range(name, value)
            elif name == "eos_token_id":
                changes[name] = token_ids(value, name)
            else:
                known = ", ".join([*_RANGES, "eos_token_id"])
                raise InputError(f"unknown setting {name!r}; known settings are {known}")
        config = dataclasses.replace(self, **changes)
        if config.t_min > config.t_max:
            raise InputError(
                f"t_min {config.t_min:g} is above t_max {config.t_max:g}; it must be between 0.001 and t_max"
            )
        return config


def _in_range(name: str, value: Any) -> int | float:
    """`value` as the setting's own type; NumPy's scalars count as numbers."""
    kind, low, high = _RANGES[name]
    number: Any = math.nan
    if not isinstance(value, (bool, str)):
        with contextlib.suppress(TypeError, ValueError, OverflowError):
            number = operator.index(value) if hasattr(value, "__index__") else float(value)
    if not low <= number <= high or kind(number) != number:
        what, spelled = ("an integer", "d") if kind is int else ("a number", "g")
        found = repr(value) if len(repr(value)) < 50 else f"{repr(value)[:40]}..."
        raise InputError(f"{name} must be {what} from {low:{spelled}} to {high:{spelled}}, found {found}")
    return kind(number)
