"""What decides a denoising step, as parts that can be exchanged: samplers, temperature schedules, stop rules.

The parts here are the released model's and the usual alternatives. Anything with the same methods will do;
all arrays stay on the device, and nothing is read back.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import mlx.core as mx

from .generation_config import in_range
from .ops import Proposal, within_entropy_bound

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

    def __post_init__(self) -> None:
        in_range("entropy_bound", self.bound)

    def accept(self, proposal: Proposal, pins: mx.array) -> mx.array:
        return within_entropy_bound(proposal.entropies, pins, self.bound)


@dataclass(frozen=True)
class ConfidenceThreshold(_KeepSamples):
    """Accepts positions whose likeliest token is at least so probable, and always the most certain one."""

    threshold: float = 0.9

    def __post_init__(self) -> None:
        in_range("probability", self.threshold)

    def accept(self, proposal: Proposal, pins: mx.array) -> mx.array:
        confidences = mx.where(pins >= 0, -1, proposal.confidences)
        best = mx.arange(pins.shape[-1]) == mx.argmax(confidences, axis=-1, keepdims=True)
        return (confidences >= self.threshold) | best


@dataclass(frozen=True)
class _Falling:
    t_min: float = 0.4
    t_max: float = 0.8

    def __post_init__(self) -> None:
        in_range("t_min", self.t_min)
        in_range("t_max", self.t_max)


class LinearSchedule(_Falling):
    """From near `t_max` (first step) straight to near `t_min` (last step): the released model's."""

    def __call__(self, step: int, steps: int) -> float:
        return self.t_min + (self.t_max - self.t_min) * step / steps


class CosineSchedule(_Falling):
    """From `t_max` to near `t_min` along half a cosine: slow at both ends."""

    def __call__(self, step: int, steps: int) -> float:
        return self.t_min + (self.t_max - self.t_min) * (1 - math.cos(math.pi * step / steps)) / 2


@dataclass(frozen=True)
class ConstantSchedule:
    """The same at every step."""

    temperature: float = 0.6

    def __post_init__(self) -> None:
        in_range("temperature", self.temperature)

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

    def __post_init__(self) -> None:
        in_range("stability_threshold", self.stability_threshold)
        in_range("confidence_threshold", self.confidence_threshold)

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

    def __post_init__(self) -> None:
        in_range("stability_threshold", self.steps, "steps")
        in_range("confidence_threshold", self.mean_entropy, "mean_entropy")

    def __call__(self, state: CanvasState) -> mx.array:
        return (state.unchanged_steps >= self.steps) & (state.acceptance.mean_entropy < self.mean_entropy)
