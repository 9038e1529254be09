"""Settings of generation_config.json, in the nested form of older files and the flat one of newer files."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ConfigError, InputError
from ..habits import unknown_setting
from .json_file import JsonObject, read_json, token_ids
from .ranges import in_range

if TYPE_CHECKING:
    from typing_extensions import Self

# The released file has 256, one canvas, which cuts most answers. It counts as not set.
_RELEASED_MAX_NEW_TOKENS, MAX_NEW_TOKENS = 256, 2048
# mlx-lm's value. It bounds the attention scores of a long prompt.
PREFILL_STEP_SIZE = 2048
# Objects in older files. Newer files have only the first, and other values at the top level.
_NESTED = ("sampler_config", "linear_temperature_schedule_config", "diffusion_stopping_config")


@dataclass(frozen=True)
class GenerationConfig:
    """Sampler settings of a checkpoint. Entropies are in nats.

    Defaults are those of the released checkpoint, except for max_new_tokens.

    max_new_tokens: maximum number of new tokens. 256 in a file counts as not set, because one canvas cuts
        most answers.
    max_denoising_steps: maximum number of decoder passes per canvas.
    t_min, t_max: the temperature falls linearly from t_max (first step) to near t_min (last step).
    entropy_bound: a step accepts positions, most certain first, while the entropies of those before each sum
        to at most this.
    stability_threshold: number of steps in a row that must leave the argmax canvas unchanged to finish it.
    confidence_threshold: mean entropy below which a stable canvas is finished.
    eos_token_id: ids that end the generation.
    prefill_step_size: tokens per encode pass over a prompt. Fewer need less memory.
    """

    max_new_tokens: int = MAX_NEW_TOKENS
    max_denoising_steps: int = 48
    t_min: float = 0.4
    t_max: float = 0.8
    entropy_bound: float = 0.1
    stability_threshold: int = 1
    confidence_threshold: float = 0.005
    eos_token_id: tuple[int, ...] = (1, 106, 50)
    prefill_step_size: int = PREFILL_STEP_SIZE

    @classmethod
    def from_dict(cls, values: Any, eos_token_id: tuple[int, ...] = eos_token_id) -> Self:
        """Return the settings of a parsed generation_config.json. Raise `ConfigError` for bad ones.

        eos_token_id: stop ids if `values` have none.
        """
        read = JsonObject(values, "", "generation_config.json")
        flat = dict(read.values)
        for name in _NESTED:
            nested = flat.pop(name, None)
            flat |= JsonObject({} if nested is None else nested, name, "generation_config.json").values
        if flat.get("_cls_name", "EntropyBoundSamplerConfig") != "EntropyBoundSamplerConfig":
            raise ConfigError(
                f"generation_config.json: sampler_config is a {flat['_cls_name']}; "
                "this package has only EntropyBoundSamplerConfig"
            )
        settings = {k: v for k, v in flat.items() if k in _NAMES}
        if settings.get("max_new_tokens") == _RELEASED_MAX_NEW_TOKENS:
            del settings["max_new_tokens"]
        try:
            return cls(eos_token_id=eos_token_id).override(**settings)
        except InputError as error:
            raise ConfigError(f"generation_config.json: {error}") from None

    @classmethod
    def load(cls, directory: str | Path, eos_token_id: tuple[int, ...] = eos_token_id) -> Self:
        """Read `directory`/generation_config.json. Without the file, return defaults with `eos_token_id`."""
        path = Path(directory) / "generation_config.json"
        return cls.from_dict(read_json(path) if path.exists() else {}, eos_token_id)

    def override(self, **changes: Any) -> Self:
        """Return a copy with `changes`. None leaves a setting unchanged.

        Raises:
            InputError: a name is unknown, or a value is out of range.
        """
        checked: dict[str, Any] = {}
        for name, value in changes.items():
            if value is None:
                continue
            if name not in _NAMES:
                raise unknown_setting(name, _NAMES)
            checked[name] = token_ids(value, name) if name == "eos_token_id" else in_range(name, value)
        config = dataclasses.replace(self, **checked)
        if config.t_min > config.t_max:
            raise InputError(
                f"t_min {config.t_min:g} is above t_max {config.t_max:g}; it must be between 0.001 and t_max"
            )
        return config


_NAMES = tuple(field.name for field in dataclasses.fields(GenerationConfig))
