"""The sampler and stop rules of a generation, and the checks of parts that users wrote."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import mlx.core as mx
import numpy as np

from ..config.generation import GenerationConfig, is_traceable
from ..config.ranges import in_range
from ..errors import InputError
from ..ops import Acceptance, Bounds, Proposal, accept_and_renoise, advance
from .samplers import EntropyBound, LinearSchedule, StableAndConfident, Stalled
from .state import Sampler, StopRule

if TYPE_CHECKING:
    from .state import CanvasState


class PartError(InputError):
    """An error inside a part. It does not name the step, which a traced part does not know."""

    def __init__(self, part: str, error: Exception):
        self.part, self.error = part, error
        super().__init__(f"{part} fails ({_described(error)})")


@contextmanager
def naming_the_step(when: str) -> Iterator[None]:
    """Raise an error inside a part as an `InputError` that says `when`, from the original."""
    try:
        yield
    except PartError as failure:
        raise InputError(f"{failure.part} fails {when} ({_described(failure.error)})") from failure.error


class Rules(NamedTuple):
    """Sampler and stop rules. The first stop rule that fires ends a canvas."""

    sampler: Sampler
    stop: tuple[StopRule, ...]

    @property
    def traceable(self) -> bool:
        """True if every part is traceable, so the step can be compiled."""
        return all(map(is_traceable, (self.sampler, *self.stop)))

    @property
    def fused(self) -> Bounds | None:
        """Bounds of the fused operation for sampler and first stop rule; None if other parts are in use."""
        first = self.stop[0]
        if type(self.sampler) is EntropyBound and type(first) is StableAndConfident:
            return Bounds(self.sampler.bound, first.stability_threshold, first.confidence_threshold)
        return None

    def countdown(self, step: int, steps: int) -> tuple[int | mx.array, int | mx.array]:
        """`step` and `steps` as the sampler gets them, see `Proposal`."""
        return (mx.array(step), mx.array(steps)) if is_traceable(self.sampler) else (step, steps)

    def begin(self, canvas: mx.array) -> None:
        """Tell each part that has `begin`, once, that int32 `canvas [B, C]` is about to be denoised."""
        begun: list[Any] = []
        for name, part in (
            ("sampler", self.sampler),
            *((f"stop: {_name(rule)}", rule) for rule in self.stop),
        ):
            begin = getattr(part, "begin", None)
            if callable(begin) and not any(part is other for other in begun):
                begun.append(part)
                with _named(f"{name}: begin"):
                    begin(canvas)

    def apply(
        self, proposal: Proposal, noise: mx.array, pins: mx.array, previous: Acceptance
    ) -> tuple[Acceptance, int]:
        """Return the acceptance of one step, and the number of stop rules that it includes."""
        if self.fused is not None:
            return accept_and_renoise(proposal, noise, pins, previous, self.fused), 1
        with _named("sampler: accept"):
            accepted = self.sampler.accept(proposal, pins)
        _check("sampler: accept", accepted, pins.shape, mx.bool_)
        with _named("sampler: renoise"):
            canvas = self.sampler.renoise(accepted, proposal, noise)
        _check("sampler: renoise", canvas, pins.shape, mx.integer)
        return advance(proposal, accepted, canvas.astype(mx.int32), pins, previous), 0

    def stops(self, index: int, state: CanvasState) -> mx.array:
        """Rows that the rule of that `index` ends: bool `[B]`."""
        rule = self.stop[index]
        with _named(f"stop: {_name(rule)}"):
            rows = rule(state)
        _check(f"stop: {_name(rule)}", rows, state.stopped_by.shape, mx.bool_)
        return rows

    def check_ids(self, canvas: mx.array, vocab_size: int) -> None:
        """`InputError` when a sampler returned ids that the model has no embedding for."""
        if self.fused is not None:
            return
        ids = np.array(canvas)
        if ids.min() < 0 or ids.max() >= vocab_size:  # MLX would read beyond the table without an error
            wrong = ids[(ids < 0) | (ids >= vocab_size)][0]
            raise InputError(
                f"sampler: renoise returned token {wrong}; the model's ids are 0 to {vocab_size - 1}"
            )


def rules_of(settings: GenerationConfig) -> Rules:
    """Return the sampler and stop rules of `settings`, by default those of the released model."""
    sampler, stop = settings.sampler, settings.stop
    if sampler is None:
        sampler = EntropyBound(settings.entropy_bound)
    if stop is None:
        stop = StableAndConfident(settings.stability_threshold, settings.confidence_threshold)
    rules = tuple(stop) if isinstance(stop, list | tuple) else (stop,)
    return Rules(sampler, (*rules, Stalled()) if settings.guard_stalled else rules)


def temperature_at(step: int, settings: GenerationConfig) -> float:
    """Return the schedule's temperature. `step` counts down from max_denoising_steps to 1.

    Raises `InputError` when the schedule fails, or returns a temperature out of range.
    """
    schedule, steps = settings.schedule, settings.max_denoising_steps
    if schedule is None:
        schedule = LinearSchedule(settings.t_min, settings.t_max)
    try:
        temperature = float(schedule(step, steps))
    except Exception as error:  # user code may raise anything
        raise InputError(
            f"schedule: fails at step {step} of {steps} ({_described(error)}); "
            "it takes step and steps, and returns a temperature"
        ) from error
    return float(in_range("temperature", temperature, f"schedule: temperature at step {step}"))


def check_schedule(settings: GenerationConfig) -> None:
    """`InputError` when the schedule fails at some step, or returns a temperature out of range."""
    for step in range(settings.max_denoising_steps, 0, -1):
        temperature_at(step, settings)


@contextmanager
def _named(part: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # user code may raise anything
        raise PartError(part, error) from error


def _name(part: Any) -> str:
    return str(getattr(part, "__name__", type(part).__name__))


def _described(error: Exception) -> str:
    """Type and message of `error` in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}".removesuffix(": ")


def _check(name: str, value: Any, shape: Sequence[int], dtype: mx.Dtype | mx.DtypeCategory) -> None:
    is_array = isinstance(value, mx.array)
    if is_array and value.shape == tuple(shape) and mx.issubdtype(value.dtype, dtype):
        return
    kind = "bool" if dtype == mx.bool_ else "integer"
    actual = f"{value.dtype} {list(value.shape)}" if is_array else type(value).__name__
    raise InputError(f"{name} must return an MLX array, {kind} {list(shape)}; found {actual}")
