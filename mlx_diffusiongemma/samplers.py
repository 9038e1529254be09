"""What decides a denoising step, as parts that can be exchanged: samplers, temperature schedules, stop rules.

The parts here are the released model's and the usual alternatives. Anything with the same methods will do;
all arrays stay on the device, and nothing is read back.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import mlx.core as mx

from .errors import InputError
from .generation_config import GenerationConfig
from .ops import Acceptance, Bounds, Proposal, accept_and_renoise, advance, within_entropy_bound

if TYPE_CHECKING:
    from .sampling import CanvasState


class Sampler(Protocol):
    """Which proposed tokens a canvas keeps, and what it holds elsewhere. Pinned positions are not its
    concern."""

    def accept(self, proposal: Proposal, pins: mx.array) -> mx.array:
        """The positions that are settled for now: bool `[B, C]`. pins: int32 `[B, C]`, -1 where free."""
        ...

    def renoise(self, accepted: mx.array, proposal: Proposal, noise: mx.array) -> mx.array:
        """The next step's canvas, int32 `[B, C]`. noise: fresh uniform tokens of that shape."""
        ...


class StopRule(Protocol):
    """Which canvases are finished."""

    def __call__(self, state: CanvasState) -> mx.array:
        """bool `[B]` from what the step found."""
        ...


class Schedule(Protocol):
    """The temperature that logits are divided by."""

    def __call__(self, step: int, steps: int) -> float:
        """Of one step; `step` counts down from `steps` to 1."""
        ...


class _KeepSamples:
    """Accepted positions hold what was sampled, all others noise, as the model was trained."""

    def renoise(self, accepted: mx.array, proposal: Proposal, noise: mx.array) -> mx.array:
        return mx.where(accepted, proposal.samples, noise)


@dataclass(frozen=True)
class EntropyBound(_KeepSamples):
    """Accepts the most certain positions while the entropies (nats) before each sum to at most `bound`.

    The released model's sampler: Ben-Hamu et al., arXiv:2505.24857.
    """

    bound: float = 0.1

    def accept(self, proposal: Proposal, pins: mx.array) -> mx.array:
        return within_entropy_bound(proposal.entropies, pins, self.bound)


@dataclass(frozen=True)
class ConfidenceThreshold(_KeepSamples):
    """Accepts positions whose likeliest token is at least so probable, and always the most certain one."""

    threshold: float = 0.9

    def accept(self, proposal: Proposal, pins: mx.array) -> mx.array:
        confidences = mx.where(pins >= 0, -1, proposal.confidences)
        best = mx.arange(pins.shape[-1]) == mx.argmax(confidences, axis=-1, keepdims=True)
        return (confidences >= self.threshold) | best


@dataclass(frozen=True)
class LinearSchedule:
    """From near `t_max` (first step) straight to near `t_min` (last step): the released model's."""

    t_min: float = 0.4
    t_max: float = 0.8

    def __call__(self, step: int, steps: int) -> float:
        return self.t_min + (self.t_max - self.t_min) * step / steps


@dataclass(frozen=True)
class CosineSchedule:
    """From `t_max` to near `t_min` along half a cosine: slow at both ends."""

    t_min: float = 0.4
    t_max: float = 0.8

    def __call__(self, step: int, steps: int) -> float:
        return self.t_min + (self.t_max - self.t_min) * (1 - math.cos(math.pi * step / steps)) / 2


@dataclass(frozen=True)
class ConstantSchedule:
    """The same at every step."""

    temperature: float = 0.6

    def __call__(self, step: int, steps: int) -> float:
        return self.temperature


@dataclass(frozen=True)
class StableAndConfident:
    """The argmax repeated `stability_threshold` times in a row and the mean entropy (nats) is below the
    other.

    The released model's rule.
    """

    stability_threshold: int = 1
    confidence_threshold: float = 0.005

    def __call__(self, state: CanvasState) -> mx.array:
        found = state.acceptance
        stable = found.stable_steps >= self.stability_threshold
        return stable & (found.mean_entropy < self.confidence_threshold)


@dataclass(frozen=True)
class Stalled:
    """The same positions were accepted `steps` times in a row, and the mean entropy is below `mean_entropy`
    nats:
    more steps would change little."""

    steps: int = 8
    mean_entropy: float = 0.05

    def __call__(self, state: CanvasState) -> mx.array:
        return (state.unchanged_steps >= self.steps) & (state.acceptance.mean_entropy < self.mean_entropy)


class Rules(NamedTuple):
    """Sampler and stop rules of a generation; the first stop rule that fires ends a canvas."""

    sampler: Any
    stop: tuple[Any, ...]

    @property
    def are_ours(self) -> bool:
        """Whether nothing here was written by somebody else, who may do in Python what no trace can hold."""
        return all(type(part).__module__ == __name__ for part in (self.sampler, *self.stop))

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
        canvas = self.sampler.renoise(accepted, proposal, noise)
        return advance(proposal, accepted, canvas, pins, previous), 0


def rules_of(settings: GenerationConfig) -> Rules:
    """The sampler and stop rules that `settings` ask for; the checkpoint's where they name none."""
    stop = settings.stop
    if stop is None:
        stop = StableAndConfident(settings.stability_threshold, settings.confidence_threshold)
    rules = tuple(stop) if isinstance(stop, Sequence) else (stop,)
    if settings.guard_stalled:
        rules += (Stalled(),)
    return Rules(settings.sampler or EntropyBound(settings.entropy_bound), rules)


def temperature_at(step: int, settings: GenerationConfig) -> float:
    """The schedule's temperature; `step` counts down from max_denoising_steps to 1."""
    schedule = settings.schedule or LinearSchedule(settings.t_min, settings.t_max)
    return float(schedule(step, settings.max_denoising_steps))


def check_schedule(settings: GenerationConfig) -> None:
    """`InputError` when the schedule gives some step a temperature that logits cannot be divided by."""
    for step in range(settings.max_denoising_steps, 0, -1):
        temperature = temperature_at(step, settings)
        if not 0 < temperature < math.inf:
            raise InputError(
                f"schedule: temperature {temperature:g} at step {step} of {settings.max_denoising_steps}; "
                "it must be a finite number above 0"
            )
