"""State of a canvas between two denoising steps, and protocols of samplers, stop rules and schedules."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol

import mlx.core as mx
import numpy as np

from ..ops import FREE, Acceptance, Proposal


class Sampler(Protocol):
    """Chooses the proposed tokens that a canvas keeps, and the ids of the other positions.

    Pinned positions get their pins afterwards.

    A sampler or stop rule that keeps state may also have `begin(canvas)`. It is called before the first step
    of each try at a canvas, with the ids that denoising starts from: int32 `[B, C]`, usually noise. B does
    not change until the next `begin`.
    """

    def accept(self, proposal: Proposal, pins: mx.array) -> mx.array:
        """Return the positions whose samples are kept in this step: bool `[B, C]`.

        pins: int32 `[B, C]`, the token of a pinned position, -1 where it is free.
        """
        ...

    def renoise(self, accepted: mx.array, proposal: Proposal, noise: mx.array) -> mx.array:
        """Return the next step's canvas, int32 `[B, C]`. noise: fresh uniform tokens of that shape."""
        ...


class StopRule(Protocol):
    """Decides which canvases are finished. May have `begin(canvas)`, see `Sampler`."""

    def __call__(self, state: CanvasState) -> mx.array:
        """Return the rows that are finished, bool `[B]`. state: the state after a step."""
        ...


class Schedule(Protocol):
    """Gives the temperature that logits are divided by."""

    def __call__(self, step: int, steps: int) -> float:
        """Return the temperature of one step. `step` counts down from `steps` to 1."""
        ...


class CanvasState(NamedTuple):
    """State between two steps. The first seven fields are the last step's `ops.Acceptance`.

    canvas: int32 `[B, C]`, the next step's input.
    argmax: int32 `[B, C]`, the likeliest tokens.
    accepted: bool `[B, C]`, positions that kept their sample.
    stable_steps: int32 `[B]`, number of steps in a row that repeated the argmax.
    mean_entropy: fp32 `[B]`, nats.
    done: bool `[B]`, True for rows that need no more steps.
    invalid: bool `[B]`, True if logits are NaN, +inf, or nowhere finite.
    pins: int32 `[B, C]`, the token of a pinned position, or `FREE`.
    soft_embedding: `[B, C, D]`, the next step's self-conditioning.
    entropies: fp32 `[B, C]`, nats, 0 where pinned.
    unchanged_steps: int32 `[B]`, number of steps in a row that accepted the same positions.
    stopped_by: int32 `[B]`, index of the stop rule that ended the row, or -1.
    """

    canvas: mx.array
    argmax: mx.array
    accepted: mx.array
    stable_steps: mx.array
    mean_entropy: mx.array
    done: mx.array
    invalid: mx.array
    pins: mx.array
    soft_embedding: mx.array
    entropies: mx.array
    unchanged_steps: mx.array
    stopped_by: mx.array

    @property
    def acceptance(self) -> Acceptance:
        return Acceptance(*self[: len(Acceptance._fields)])


class SparseRemainder(NamedTuple):
    """Results of a step that the next step does not read.

    dropped_mass: fp32 `[B * C]`, probability that each position's sparse soft embedding lacks. 0 at pinned
        positions and in rows that were done.
    logits: `[B * C, V]`, before softcap and temperature.
    log_normalizer: fp32 `[B * C]`, logsumexp of the processed logits.
    """

    dropped_mass: mx.array
    logits: mx.array
    log_normalizer: mx.array


class CanvasInit(NamedTuple):
    """Start of a canvas: pins, and optionally ids and a number of steps.

    pins: int32 `[B, C]`, the fixed token of a position, or `FREE`. None pins nothing.
    canvas: int32 `[B, C]`, ids to start from. None for noise.
    steps: maximum number of denoising steps. They have the temperatures of the schedule's last steps. None
        for max_denoising_steps.
    """

    pins: mx.array | None = None
    canvas: mx.array | None = None
    steps: int | None = None


@dataclass(frozen=True)
class Step:
    """One denoising step, as `on_step` gets it. NumPy arrays, `[B, C]` unless said otherwise.

    A row that was done before this step keeps its draft_ids, logprobs and mean_entropy.

    index: number of the step, from 0.
    step: countdown that sets the temperature, from max_denoising_steps to 1.
    draft_ids: the argmax canvas. If this is the last step it is committed, unless a constraint changes it.
    canvas_ids: the next step's input.
    entropies: entropy of each position, in nats.
    accepted: positions that kept their sample.
    logprobs: natural log-probabilities of draft_ids, or of the pin at a pinned position. Their distribution
        is the softmax of this step's processed logits: softcapped, then divided by `temperature`.
    mean_entropy: `[B]`, in nats.
    done: `[B]`, True for rows that need no more steps.
    seconds: time since this try at the canvas began.
    rows: index in the batch of each row here. Rows that are not denoised again are missing.
    """

    index: int
    step: int
    temperature: float
    draft_ids: np.ndarray
    canvas_ids: np.ndarray
    entropies: np.ndarray
    accepted: np.ndarray
    logprobs: np.ndarray
    mean_entropy: np.ndarray
    done: np.ndarray
    seconds: float
    rows: tuple[int, ...] = (0,)


def initial_state(canvas: mx.array, soft_embedding: mx.array, pins: mx.array | None = None) -> CanvasState:
    """Return the state before the first step. Pinned positions hold their pins.

    Its argmax is -1, which no token equals, so the first step is never stable.

    canvas: int32 `[B, C]`, usually noise.
    soft_embedding: `[B, C, D]`, the self-conditioning.
    """
    rows = canvas.shape[0]
    if pins is None:
        pins = mx.full(canvas.shape, FREE, dtype=mx.int32)
    return CanvasState(
        canvas=mx.where(pins >= 0, pins, canvas),
        argmax=mx.full(canvas.shape, -1, dtype=mx.int32),
        accepted=mx.zeros(canvas.shape, dtype=mx.bool_),
        stable_steps=mx.zeros((rows,), dtype=mx.int32),
        mean_entropy=mx.zeros((rows,)),
        done=mx.zeros((rows,), dtype=mx.bool_),
        invalid=mx.zeros((rows,), dtype=mx.bool_),
        pins=pins,
        soft_embedding=soft_embedding,
        entropies=mx.zeros(canvas.shape),
        unchanged_steps=mx.zeros((rows,), dtype=mx.int32),
        stopped_by=mx.full((rows,), -1, dtype=mx.int32),
    )
