"""Exchangeable parts of a denoising step: samplers, temperature schedules, stop rules.

This module has those of the released model and the usual alternatives. Any object with the same methods can
replace them. All arrays stay on the device, and nothing is read back.

On a GPU a part is compiled with the step if it or its class says `traceable = True`. A subclass must say it
again. Such a part must be hashable, and a pure function of MLX arrays that `mx.compile` can trace. All other
parts run in Python at every step and may keep state.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import mlx.core as mx

from ..config.ranges import in_range
from ..ops import Proposal, within_entropy_bound

if TYPE_CHECKING:
    from .state import CanvasState


class _KeepSamples:
    """Keeps samples at accepted positions and puts noise elsewhere, as in the model's training."""

    def renoise(self, accepted: mx.array, proposal: Proposal, noise: mx.array) -> mx.array:
        return mx.where(accepted, proposal.samples, noise)


@dataclass(frozen=True)
class EntropyBound(_KeepSamples):
    """Accepts positions by ascending entropy, while the sum of the earlier entropies is at most `bound` nats.

    The released model's sampler: Ben-Hamu et al., arXiv:2505.24857.
    """

    bound: float = 0.1
    traceable = True

    def __post_init__(self) -> None:
        in_range("entropy_bound", self.bound)

    def accept(self, proposal: Proposal, pins: mx.array) -> mx.array:
        return within_entropy_bound(proposal.entropies, pins, self.bound)


@dataclass(frozen=True)
class ConfidenceThreshold(_KeepSamples):
    """Accepts positions whose argmax has at least probability `threshold`, and the most certain one."""

    threshold: float = 0.9
    traceable = True

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
    """Falls linearly from `t_max` (first step) to near `t_min` (last step). The released model's schedule."""

    def __call__(self, step: int, steps: int) -> float:
        return self.t_min + (self.t_max - self.t_min) * step / steps


class CosineSchedule(_Falling):
    """Falls from `t_max` to near `t_min` along half a cosine, slowly at both ends."""

    def __call__(self, step: int, steps: int) -> float:
        return self.t_min + (self.t_max - self.t_min) * (1 - math.cos(math.pi * step / steps)) / 2


@dataclass(frozen=True)
class ConstantSchedule:
    """Gives every step the same temperature."""

    temperature: float = 0.6

    def __post_init__(self) -> None:
        in_range("temperature", self.temperature)

    def __call__(self, step: int, steps: int) -> float:
        return self.temperature


@dataclass(frozen=True)
class StableAndConfident:
    """Stops when the argmax canvas repeated and the mean entropy is low. The released model's rule.

    The canvas must have repeated `stability_threshold` times in a row, and the mean entropy must be below
    `confidence_threshold` nats.
    """

    stability_threshold: int = 1
    confidence_threshold: float = 0.005
    traceable = True

    def __post_init__(self) -> None:
        in_range("stability_threshold", self.stability_threshold)
        in_range("confidence_threshold", self.confidence_threshold)

    def __call__(self, state: CanvasState) -> mx.array:
        stable = state.stable_steps >= self.stability_threshold
        return stable & (state.mean_entropy < self.confidence_threshold)


@dataclass(frozen=True)
class Stalled:
    """Stops when more steps would probably change little.

    The same positions must have been accepted `steps` times in a row, and the mean entropy must be below
    `mean_entropy` nats.
    """

    steps: int = 8
    mean_entropy: float = 0.05
    traceable = True

    def __post_init__(self) -> None:
        in_range("steps", self.steps)
        in_range("mean_entropy", self.mean_entropy)

    def __call__(self, state: CanvasState) -> mx.array:
        return (state.unchanged_steps >= self.steps) & (state.mean_entropy < self.mean_entropy)
