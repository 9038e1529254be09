"""Settings of one generation: the checkpoint's numbers, limits, guards, and exchangeable parts."""

from __future__ import annotations

import dataclasses
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict

from ..config.generation import GenerationConfig
from ..config.ranges import in_range
from ..console.messages import shown
from ..errors import InputError
from ..habits import unknown_setting
from .parts import described, is_traceable
from .samplers import EntropyBound, LinearSchedule, StableAndConfident, Stalled
from .state import Sampler, Schedule, StopRule
from .step import Rules


class SettingsDict(TypedDict, total=False):
    """Keywords of `generate` that change settings, see `Settings`. None leaves a setting unchanged."""

    max_new_tokens: int | None
    max_denoising_steps: int | None
    t_min: float | None
    t_max: float | None
    entropy_bound: float | None
    stability_threshold: int | None
    confidence_threshold: float | None
    eos_token_id: int | Sequence[int] | None
    prefill_step_size: int | None
    thinking_budget: int | None
    answer_reserve: int | None
    guard_empty: bool | None
    guard_unconverged: bool | None
    guard_stalled: bool | None
    sampler: Sampler | None
    schedule: Schedule | None
    stop: StopRule | Sequence[StopRule] | None


@dataclass(frozen=True)
class Settings(GenerationConfig):
    """Settings of a generation: those of `GenerationConfig`, and the ones below. Entropies are in nats.

    thinking_budget: maximum number of tokens of thought text. A longer thought is closed. None: no limit.
    answer_reserve: tokens of max_new_tokens that a thought must leave for the answer. None: with a thinking
        budget or a grammar, a quarter of max_new_tokens, at most a canvas. Otherwise 0.
    guard_empty: if a canvas leaves the answer empty, denoise it again with other noise, at most 3 times.
    guard_unconverged: denoise a canvas again, once, if it ends at the step cap with a mean entropy above 0.2.
    guard_stalled: end a canvas that accepts the same positions for 8 steps with a mean entropy below 0.05.
    sampler, schedule, stop: parts that replace the released model's, see `samplers`. `stop` may be a list. A
        part cannot be combined with the numbers that it replaces.
    """

    thinking_budget: int | None = None
    answer_reserve: int | None = None
    guard_empty: bool = True
    guard_unconverged: bool = True
    guard_stalled: bool = False
    sampler: Sampler | None = None
    schedule: Schedule | None = None
    stop: StopRule | Sequence[StopRule] | None = None

    @classmethod
    def of(cls, config: GenerationConfig, **changes: Any) -> Settings:
        """Return the settings of a checkpoint's `config` with `changes`. See `override`."""
        numbers = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
        return cls(**numbers).override(**changes)

    def override(self, **changes: Any) -> Settings:
        """Return a copy with `changes`. None leaves a setting unchanged.

        Raises:
            InputError: a name is unknown, a value is out of range, or a part replaces a number in `changes`.
        """
        changes = {name: value for name, value in changes.items() if value is not None}
        for name in changes:
            if name not in _NAMES:
                raise unknown_setting(name, _NAMES)
        _check_parts({part: changes.get(part, getattr(self, part)) for part in _REPLACED}, changes)
        own = {name: _CHECKS[name](name, changes[name]) for name in _CHECKS if name in changes}
        numbers = {name: value for name, value in changes.items() if name not in own}
        config = dataclasses.replace(super().override(**numbers), **own)
        _check_shares(config)
        return config

    @property
    def rules(self) -> Rules:
        """Sampler and stop rules, by default those of the released model."""
        sampler, stop = self.sampler, self.stop
        if sampler is None:
            sampler = EntropyBound(self.entropy_bound)
        if stop is None:
            stop = StableAndConfident(self.stability_threshold, self.confidence_threshold)
        rules = tuple(stop) if isinstance(stop, list | tuple) else (stop,)
        return Rules(sampler, (*rules, Stalled()) if self.guard_stalled else rules)

    def temperature_at(self, step: int) -> float:
        """Return the schedule's temperature. `step` counts down from max_denoising_steps to 1.

        Raises:
            InputError: the schedule fails, or its temperature is out of range.
        """
        schedule, steps = self.schedule, self.max_denoising_steps
        if schedule is None:
            schedule = LinearSchedule(self.t_min, self.t_max)
        try:
            temperature = float(schedule(step, steps))
        except Exception as error:  # user code may raise anything
            raise InputError(
                f"schedule: fails at step {step} of {steps} ({described(error)}); "
                "it takes step and steps, and returns a temperature"
            ) from error
        return float(in_range("temperature", temperature, f"schedule: temperature at step {step}"))

    def check_schedule(self) -> None:
        """Raise `InputError` if the schedule fails at some step, or its temperature is out of range."""
        for step in range(self.max_denoising_steps, 0, -1):
            self.temperature_at(step)


_NAMES = tuple(SettingsDict.__annotations__)
# part -> valid values, in words
_PARTS = {
    "sampler": "an object with accept and renoise, such as EntropyBound(0.1); t_max sets a temperature",
    "schedule": "a function of step and steps (such as LinearSchedule(0.4, 0.8))",
    "stop": "a stop rule or several (such as StableAndConfident(1, 0.005)); eos_token_id ends an answer",
}
# part -> the settings that it replaces
_REPLACED = {
    "sampler": ("entropy_bound",),
    "schedule": ("t_min", "t_max"),
    "stop": ("stability_threshold", "confidence_threshold"),
}


def _check_parts(parts: Mapping[str, Any], changes: Container[str]) -> None:
    """Raise `InputError` if one of `parts` replaces a setting in `changes`."""
    for part, replaced in _REPLACED.items():
        useless = [name for name in replaced if name in changes]
        if useless and parts[part] is not None:
            raise InputError(
                f"{part} replaces {' and '.join(useless)}, so they cannot be given together; leave one out, "
                "or set the number in the part itself"
            )


def _check_shares(config: Settings) -> None:
    """Raise `InputError` if max_new_tokens is too small for thinking_budget or answer_reserve."""
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
        raise InputError(f"{name} must be True or False, found {shown(value)}")
    return value


def _part(name: str, value: Any) -> Any:
    parts = list(value) if name == "stop" and isinstance(value, list | tuple) else [value]
    methods = ("accept", "renoise") if name == "sampler" else ("__call__",)
    wrong = [part for part in parts if not all(callable(getattr(part, each, None)) for each in methods)]
    wrong += [part for part in parts if isinstance(part, type)]
    if wrong or not parts:
        culprit = (wrong or [value])[0]
        found = f"the class {culprit.__name__}" if isinstance(culprit, type) else shown(culprit)
        raise InputError(f"{name}: found {found}; give {_PARTS[name]}")
    for part in parts:
        _check_traceable(name, part)
    return value


def _check_traceable(name: str, part: Any) -> None:
    """Raise `InputError` if `part` says that it is traceable but has `begin` or is not hashable.

    Compiled steps are looked up by their parts, so these must be hashable.
    """
    if not is_traceable(part):
        return
    if callable(getattr(part, "begin", None)):
        raise InputError(
            f"{name}: {shown(part)} is traceable and has begin, but a compiled step does not see what begin "
            "changes; give it no begin, or traceable = False"
        )
    try:
        hash(part)
    except TypeError as error:
        raise InputError(
            f"{name}: {shown(part)} is traceable and must be hashable ({error}); "
            "for example, make it a frozen dataclass"
        ) from error


# Settings that a checkpoint does not have -> the function that checks a value.
_CHECKS = {
    "thinking_budget": in_range,
    "answer_reserve": in_range,
    "guard_empty": _switch,
    "guard_unconverged": _switch,
    "guard_stalled": _switch,
    "sampler": _part,
    "schedule": _part,
    "stop": _part,
}
