"""Settings of a generation: generation_config.json in both dialects, and the caller's changes."""

from __future__ import annotations

import dataclasses
from collections.abc import Container
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import ConfigError, InputError
from ..habits import unknown_setting
from .json_file import JsonObject, read_json, token_ids
from .ranges import RANGES, in_range, short

# The released file's 256 is one canvas, which cuts most answers. It counts as not set.
_RELEASED_MAX_NEW_TOKENS, MAX_NEW_TOKENS = 256, 2048
# mlx-lm's; bounds the attention scores of a long prompt.
PREFILL_STEP_SIZE = 2048
_SWITCHES = ("guard_empty", "guard_unconverged", "guard_stalled")
# part -> the methods that it must have
_PARTS = {
    "sampler": "the methods accept and renoise (EntropyBound(0.1), say); t_max and t_min set a temperature",
    "schedule": "a function of step and steps (LinearSchedule(0.4, 0.8), say)",
    "stop": "a stop rule or several (StableAndConfident(1, 0.005), say); eos_token_id ends an answer",
}
# part -> the settings that it replaces
_REPLACED = {
    "sampler": ("entropy_bound",),
    "schedule": ("t_min", "t_max"),
    "stop": ("stability_threshold", "confidence_threshold"),
}
# Older files nest what newer ones write flat; only the sampler has its own object in both.
_NESTED = ("sampler_config", "linear_temperature_schedule_config", "diffusion_stopping_config")


@dataclass(frozen=True)
class GenerationConfig:
    """Settings of a generation. Defaults are the released checkpoint's, but for max_new_tokens. Entropies are
    in nats.

    max_new_tokens: most tokens of a generation (prompt excluded). A file's 256 (one canvas, which cuts most
        answers) counts as not set.
    max_denoising_steps: most decoder passes per canvas.
    t_min, t_max: the temperature falls linearly from t_max (first step) to near t_min (last step).
    entropy_bound: a step accepts the most certain positions while the entropies before each sum to at most
        this.
    stability_threshold: number of steps in a row that must repeat the argmax canvas before stopping.
    confidence_threshold: mean entropy below which a stable canvas is finished.
    eos_token_id: ids that end the generation.
    prefill_step_size: tokens per encode pass over a prompt; fewer take less memory.
    thinking_budget: most tokens of thought text. A thought still open there is closed. None: no limit.
    answer_reserve: number of max_new_tokens that a thought leaves for the answer. None: with a thinking
        budget or a grammar a quarter of them, at most a canvas, otherwise nothing.
    guard_empty: denoise an empty answer's canvas again, with other noise, at most 3 times.
    guard_unconverged: denoise a canvas again, once, that the step cap ended with a mean entropy above 0.2.
    guard_stalled: end a canvas that accepts the same positions for 8 steps with a mean entropy below 0.05.
    sampler, schedule, stop: parts that replace the released model's, see `samplers`. `stop` may be a list. A
        part and the numbers that it replaces cannot be given together.
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
    thinking_budget: int | None = None
    answer_reserve: int | None = None
    guard_empty: bool = True
    guard_unconverged: bool = True
    guard_stalled: bool = False
    sampler: Any = None  # these protocols are the engine's: see `engine.state`
    schedule: Any = None
    stop: Any = None

    @classmethod
    def from_dict(cls, values: Any, eos_token_id: tuple[int, ...] = eos_token_id) -> GenerationConfig:
        """Build from the parsed generation_config.json. `eos_token_id` serves a file that has none."""
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
        settings = {k: v for k, v in flat.items() if k in RANGES or k == "eos_token_id"}
        if settings.get("max_new_tokens") == _RELEASED_MAX_NEW_TOKENS:
            del settings["max_new_tokens"]
        try:
            return cls(eos_token_id=eos_token_id).override(**settings)
        except InputError as error:
            raise ConfigError(f"generation_config.json: {error}") from None

    @classmethod
    def load(cls, directory: str | Path, eos_token_id: tuple[int, ...] = eos_token_id) -> GenerationConfig:
        """Read `directory`/generation_config.json. Without the file, defaults with these stop ids."""
        path = Path(directory) / "generation_config.json"
        return cls.from_dict(read_json(path) if path.exists() else {}, eos_token_id)

    def override(self, **settings: Any) -> GenerationConfig:
        """Return a copy with other `settings`. None keeps a value.

        Raises `InputError` for an unknown name, a value out of range, and a number that a part replaces.
        """
        changes: dict[str, Any] = {}
        for name, value in settings.items():
            if value is None:
                continue
            if name in RANGES:
                changes[name] = in_range(name, value)
            elif name == "eos_token_id":
                changes[name] = token_ids(value, name)
            elif name in _SWITCHES:
                changes[name] = _switch(name, value)
            elif name in _PARTS:
                changes[name] = _part(name, value)
            else:
                raise unknown_setting(name, [*RANGES, "eos_token_id", *_SWITCHES, *_PARTS])
        config = dataclasses.replace(self, **changes)
        _check_parts(config, changes)
        if config.t_min > config.t_max:
            raise InputError(
                f"t_min {config.t_min:g} is above t_max {config.t_max:g}; it must be between 0.001 and t_max"
            )
        _check_shares(config)
        return config


def _check_parts(config: GenerationConfig, changes: Container[str]) -> None:
    """`InputError` if `changes` name a setting that a part of `config` replaces."""
    for part, replaced in _REPLACED.items():
        useless = [name for name in replaced if name in changes]
        if useless and getattr(config, part) is not None:
            raise InputError(
                f"{part} replaces {' and '.join(useless)}, so they cannot be given together; leave one out, "
                "or set the number in the part itself"
            )


def _check_shares(config: GenerationConfig) -> None:
    """`InputError` unless thought and answer fit into max_new_tokens."""
    most, budget, reserve = config.max_new_tokens, config.thinking_budget, config.answer_reserve
    if budget is not None and budget > most:
        raise InputError(
            f"thinking_budget {budget} is above max_new_tokens {most}; lower it or raise max_new_tokens"
        )
    if reserve is not None and reserve >= most:
        raise InputError(
            f"answer_reserve {reserve} leaves nothing of max_new_tokens {most} for a thought; "
            "lower it or raise max_new_tokens"
        )


def _switch(name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise InputError(f"{name} must be True or False, found {short(value)}")
    return value


def _part(name: str, value: Any) -> Any:
    parts = list(value) if name == "stop" and isinstance(value, list | tuple) else [value]
    methods = ("accept", "renoise") if name == "sampler" else ("__call__",)
    wrong = [part for part in parts if not all(callable(getattr(part, each, None)) for each in methods)]
    wrong += [part for part in parts if isinstance(part, type)]
    if wrong or not parts:
        found = (wrong or [value])[0]
        raise InputError(f"{name} must have {_PARTS[name]}, found {short(found)}")
    for part in parts:
        _check_traceable(name, part)
    return value


def is_traceable(part: Any) -> bool:
    """True if `part` or its class says `traceable = True`. A subclass does not inherit it."""
    own = {**vars(type(part)), **getattr(part, "__dict__", {})}
    return own.get("traceable") is True


def _check_traceable(name: str, part: Any) -> None:
    """`InputError` if `part` cannot keep what it says. A compiled step is found by its parts' hashes."""
    if not is_traceable(part):
        return
    if callable(getattr(part, "begin", None)):
        raise InputError(
            f"{name}: {short(part)} is traceable and has begin, but a compiled step does not see what begin "
            "changes; give it no begin, or traceable = False"
        )
    try:
        hash(part)
    except TypeError as error:
        raise InputError(
            f"{name}: {short(part)} is traceable and must be hashable ({error}); "
            "make it a frozen dataclass, say"
        ) from error
