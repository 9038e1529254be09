"""State between two denoising steps, and the protocols of the parts that decide them."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import mlx.core as mx

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
    """State between two steps.

    acceptance: canvas, argmax, counters and flags (see `ops.Acceptance`).
    pins: int32 `[B, C]`, the token that a position is pinned to, or `FREE`. soft_embedding: `[B, C, D]`.
    entropies: fp32 `[B, C]`, nats, 0 where pinned.
    unchanged_steps: int32 `[B]`, number of steps in a row that accepted the same positions.
    stopped_by: int32 `[B]`, index of the stop rule that ended the row, or -1.
    """

    acceptance: Acceptance
    pins: mx.array
    soft_embedding: mx.array
    entropies: mx.array
    unchanged_steps: mx.array
    stopped_by: mx.array


class SparseRemainder(NamedTuple):
    """Results of a step that the next one does not read.

    dropped_mass: fp32 `[B * C]`, the probability that each position's sparse soft embedding lacks; 0 in rows
    that were done. logits: `[B * C, V]`, before softcap and temperature. log_normalizer: fp32 `[B * C]`, the
    logarithm of the sum of exponentials of the processed logits.
    """

    dropped_mass: mx.array
    logits: mx.array
    log_normalizer: mx.array


def initial_state(canvas: mx.array, soft_embedding: mx.array, pins: mx.array | None = None) -> CanvasState:
    """Return the state before the first step. Pinned positions hold their pins.

    canvas: int32 `[B, C]`, usually noise. soft_embedding: `[B, C, D]`, the self-conditioning. No token equals
    the argmax -1, so the first step is never stable.
    """
    rows = canvas.shape[0]
    if pins is None:
        pins = mx.full(canvas.shape, FREE, dtype=mx.int32)
    acceptance = Acceptance(
        canvas=mx.where(pins >= 0, pins, canvas),
        argmax=mx.full(canvas.shape, -1, dtype=mx.int32),
        accepted=mx.zeros(canvas.shape, dtype=mx.bool_),
        stable_steps=mx.zeros((rows,), dtype=mx.int32),
        mean_entropy=mx.zeros((rows,)),
        done=mx.zeros((rows,), dtype=mx.bool_),
        invalid=mx.zeros((rows,), dtype=mx.bool_),
    )
    return CanvasState(
        acceptance,
        pins,
        soft_embedding,
        entropies=mx.zeros(canvas.shape),
        unchanged_steps=mx.zeros((rows,), dtype=mx.int32),
        stopped_by=mx.full((rows,), -1, dtype=mx.int32),
    )
