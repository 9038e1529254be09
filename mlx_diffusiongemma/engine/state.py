"""State of a canvas between two denoising steps, and the protocols of the parts that decide them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol

import mlx.core as mx
import numpy as np

from ..ops import FREE, Acceptance, Proposal


class Sampler(Protocol):
    """Chooses the proposed tokens that a canvas keeps, and the ids of the other positions.

    Pinned positions are replaced by their pins afterwards. A sampler or stop rule that keeps state may also
    have `begin(canvas)`. It is called before the first step of each canvas, and again for each new try at it,
    with the ids that the canvas begins with: int32 `[B, C]`, usually noise. B stays the same until the next
    `begin`.
    """

    def accept(self, proposal: Proposal, pins: mx.array) -> mx.array:
        """Return the positions that are settled for now: bool `[B, C]`.

        pins: int32 `[B, C]`, the token that a position is pinned to, -1 where it is free.
        """
        ...

    def renoise(self, accepted: mx.array, proposal: Proposal, noise: mx.array) -> mx.array:
        """Return the next step's canvas, int32 `[B, C]`. noise: fresh uniform tokens of that shape."""
        ...


class StopRule(Protocol):
    """Decides which canvases are finished. May have `begin(canvas)`, see `Sampler`."""

    def __call__(self, state: CanvasState) -> mx.array:
        """Return bool `[B]`, from the state after a step."""
        ...


class Schedule(Protocol):
    """Gives the temperature that logits are divided by."""

    def __call__(self, step: int, steps: int) -> float:
        """Return the temperature of one step. `step` counts down from `steps` to 1."""
        ...


class CanvasState(NamedTuple):
    """State between two steps. The first seven fields are the last step's `ops.Acceptance`.

    canvas, argmax: int32 `[B, C]`, the next step's input, and the likeliest tokens. accepted: bool `[B, C]`.
    stable_steps: int32 `[B]`, number of steps in a row that repeated the argmax. mean_entropy: fp32 `[B]`,
    nats. done, invalid: bool `[B]`.
    pins: int32 `[B, C]`, the token that a position is pinned to, or `FREE`. soft_embedding: `[B, C, D]`.
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
    """Results of a step that the next one does not read.

    dropped_mass: fp32 `[B * C]`, the probability that each position's sparse soft embedding lacks; 0 in rows
    that were done. logits: `[B * C, V]`, before softcap and temperature. log_normalizer: fp32 `[B * C]`, the
    logarithm of the sum of exponentials of the processed logits.
    """

    dropped_mass: mx.array
    logits: mx.array
    log_normalizer: mx.array


class CanvasInit(NamedTuple):
    """Beginning of a canvas that is not noise alone.

    pins: int32 `[B, C]`, the token that a position holds throughout, or `FREE`. None pins nothing.
    canvas: int32 `[B, C]`, ids to begin with. None takes noise.
    steps: number of denoising steps, with the temperatures of the last ones. None takes them all.
    """

    pins: mx.array | None = None
    canvas: mx.array | None = None
    steps: int | None = None


@dataclass(frozen=True)
class Step:
    """One denoising step for a watcher: host arrays, `[B, C]` unless said otherwise.

    index: 0, 1, ... step: the countdown that sets the temperature (max_denoising_steps ... 1).
    draft_ids: the argmax canvas, which would be committed now if no grammar or budget changed it.
    canvas_ids: the next step's input. entropies: nats. accepted: positions that kept their sample.
    logprobs: natural log-probabilities of draft_ids in this step's distribution, which is the softmax of the
    processed logits: softcapped, then divided by `temperature`. At a pinned position that of its pin.
    mean_entropy, done: `[B]`. A row that was done before keeps draft_ids, logprobs and mean_entropy.
    seconds: time since the first step of this canvas began.
    rows: indices of these rows among the generations that share the step. Only some are denoised again.
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

    canvas: int32 `[B, C]`, usually noise. soft_embedding: `[B, C, D]`, the self-conditioning. No token equals
    the argmax -1, so the first step is never stable.
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
