"""The rules of a generation: which parts its settings ask for, and what somebody else's parts must return."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import mlx.core as mx
import numpy as np

from . import samplers
from .errors import InputError
from .generation_config import GenerationConfig, in_range
from .ops import Acceptance, Bounds, Proposal, accept_and_renoise, advance
from .samplers import EntropyBound, LinearSchedule, StableAndConfident, Stalled

if TYPE_CHECKING:
    from .sampling import CanvasState


class Rules(NamedTuple):
    """Sampler and stop rules; the first stop rule that fires ends a canvas."""

    sampler: Any
    stop: tuple[Any, ...]

    @property
    def are_ours(self) -> bool:
        """Whether nothing here was written by somebody else, who may do in Python what no trace can hold."""
        return all(type(part).__module__ == samplers.__name__ for part in (self.sampler, *self.stop))

    @property
    def fused(self) -> Bounds | None:
        """The bounds of the operation that is sampler and first stop rule in one; None for others."""
        first = self.stop[0]
        if type(self.sampler) is EntropyBound and type(first) is StableAndConfident:
            return Bounds(self.sampler.bound, first.stability_threshold, first.confidence_threshold)
        return None

    def apply(
        self, proposal: Proposal, noise: mx.array, pins: mx.array, previous: Acceptance
    ) -> tuple[Acceptance, int]:
        """One step's acceptance, and how many stop rules have been asked for it."""
        if self.fused is not None:
            return accept_and_renoise(proposal, noise, pins, previous, self.fused), 1
        accepted = self.sampler.accept(proposal, pins)
        _check("sampler: accept", accepted, pins.shape, mx.bool_)
        canvas = self.sampler.renoise(accepted, proposal, noise)
        _check("sampler: renoise", canvas, pins.shape, mx.integer)
        return advance(proposal, accepted, canvas.astype(mx.int32), pins, previous), 0

    def stops(self, index: int, state: CanvasState) -> mx.array:
        """Which rows the rule of that `index` ends: bool `[B]`."""
        rows = self.stop[index](state)
        _check("stop: a rule", rows, state.stopped_by.shape, mx.bool_)
        return rows

    def check_ids(self, canvas: mx.array, vocab_size: int) -> None:
        """`InputError` when somebody else's sampler took ids that the model has no embedding of."""
        if self.are_ours:
            return
        ids = np.array(canvas)
        if ids.min() < 0 or ids.max() >= vocab_size:  # MLX would read beyond the table without a word
            wrong = ids[(ids < 0) | (ids >= vocab_size)][0]
            raise InputError(
                f"sampler: renoise returned token {wrong}; the model's ids are 0 to {vocab_size - 1}"
            )


def _check(what: str, value: Any, shape: Sequence[int], dtype: mx.Dtype | mx.DtypeCategory) -> None:
    is_array = isinstance(value, mx.array)
    if is_array and value.shape == tuple(shape) and mx.issubdtype(value.dtype, dtype):
        return
    kind = "bool" if dtype == mx.bool_ else "integer"
    found = f"{value.dtype} {list(value.shape)}" if is_array else type(value).__name__
    raise InputError(f"{what} must return an MLX array, {kind} {list(shape)}; found {found}")


def rules_of(settings: GenerationConfig) -> Rules:
    """The sampler and stop rules that `settings` ask for; the checkpoint's where they name none."""
    sampler, stop = settings.sampler, settings.stop
    if sampler is None:
        sampler = EntropyBound(settings.entropy_bound)
    if stop is None:
        stop = StableAndConfident(settings.stability_threshold, settings.confidence_threshold)
    rules = tuple(stop) if isinstance(stop, list | tuple) else (stop,)
    return Rules(sampler, (*rules, Stalled()) if settings.guard_stalled else rules)


def temperature_at(step: int, settings: GenerationConfig) -> float:
    """The schedule's temperature; `step` counts down from max_denoising_steps to 1."""
    schedule = settings.schedule
    if schedule is None:
        schedule = LinearSchedule(settings.t_min, settings.t_max)
    return float(schedule(step, settings.max_denoising_steps))


def check_schedule(settings: GenerationConfig) -> None:
    """`InputError` when the schedule fails at some step, or gives a temperature out of range."""
    for step in range(settings.max_denoising_steps, 0, -1):
        try:
            temperature: Any = temperature_at(step, settings)
        except Exception as error:  # whatever somebody else's function raises
            raise InputError(
                f"schedule: fails at step {step} of {settings.max_denoising_steps} "
                f"({type(error).__name__}: {error}); it takes step and steps, and returns a temperature"
            ) from error
        in_range("temperature", temperature, f"schedule: temperature at step {step}")
