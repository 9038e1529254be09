"""One denoising step as a pure function: `CanvasState -> CanvasState`.

Also the temperature schedule and the random draws, so that everything that decides which token
appears stands in one file.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple, Protocol

import mlx.core as mx
import numpy as np

from .cache import CanvasView
from .generation_config import GenerationConfig
from .ops import (
    FREE,
    TOLERANCE,
    Acceptance,
    Bounds,
    Proposal,
    accept_and_renoise,
    processed_logits,
    row_statistics,
)

if TYPE_CHECKING:
    from .model import DiffusionGemma


class Draws(Protocol):
    """Where a canvas's randomness comes from: two draws per position and step."""

    def initial(self) -> mx.array:
        """The noise a canvas starts from: int32 `[B, C]`, uniform over the vocabulary."""
        ...

    def step(self, index: int) -> tuple[mx.array, mx.array]:
        """For step `index` (0, 1, ...): uniforms in [0, 1) fp32 `[B, C]` and noise tokens int32 `[B, C]`."""
        ...


class SeededDraws:
    """Draws that depend only on (seed, candidate, block, attempt, step), never on the batch around them."""

    def __init__(
        self, seed: int, candidates: Sequence[int], block: int, attempt: int, length: int, vocab_size: int
    ):
        self.streams = [(seed, candidate, block, attempt) for candidate in candidates]
        self.length, self.vocab_size = length, vocab_size

    def initial(self) -> mx.array:
        return self._noise([self._key(stream, 0) for stream in self.streams])

    def step(self, index: int) -> tuple[mx.array, mx.array]:
        pairs = [mx.random.split(self._key(stream, index + 1)) for stream in self.streams]
        uniforms = mx.stack([mx.random.uniform(shape=(self.length,), key=pair[0]) for pair in pairs])
        return uniforms, self._noise([pair[1] for pair in pairs])

    def _key(self, stream: tuple[int, ...], step: int) -> mx.array:
        # SeedSequence mixes the coordinates; MLX has no fold_in.
        return mx.random.key(int(np.random.SeedSequence((*stream, step)).generate_state(1, np.uint64)[0]))

    def _noise(self, keys: list[mx.array]) -> mx.array:
        return mx.stack([mx.random.randint(0, self.vocab_size, (self.length,), key=key) for key in keys])


class CanvasState(NamedTuple):
    """What one step hands to the next.

    acceptance: canvas, argmax, counters and flags (see `ops.Acceptance`). pins: int32 `[B, C]`.
    soft_embedding: `[B, C, D]`. entropies: fp32 `[B, C]`, nats.
    """

    acceptance: Acceptance
    pins: mx.array
    soft_embedding: mx.array
    entropies: mx.array


class Remainder(NamedTuple):
    """What a step's sparse soft embedding lacks.

    left_out: fp32 `[B * C]`, the probability that each position's lacks; 0 in rows that were done.
    logits: `[B * C, V]`.
    """

    left_out: mx.array
    logits: mx.array


def initial_state(noise: mx.array, soft_embedding: mx.array, pins: mx.array | None = None) -> CanvasState:
    """A canvas `[B, C]` of noise and pins, and `soft_embedding [B, C, D]`, what is believed of it.

    No token equals the argmax -1, so step 1 is never stable.
    """
    rows = noise.shape[0]
    if pins is None:
        pins = mx.full(noise.shape, FREE, dtype=mx.int32)
    acceptance = Acceptance(
        canvas=mx.where(pins >= 0, pins, noise),
        argmax=mx.full(noise.shape, -1, dtype=mx.int32),
        accepted=mx.zeros(noise.shape, dtype=mx.bool_),
        stable_steps=mx.zeros((rows,), dtype=mx.int32),
        mean_entropy=mx.zeros((rows,)),
        done=mx.zeros((rows,), dtype=mx.bool_),
        invalid=mx.zeros((rows,), dtype=mx.bool_),
    )
    return CanvasState(acceptance, pins, soft_embedding, entropies=mx.zeros(noise.shape))


def temperature_at(step: int, settings: GenerationConfig) -> float:
    """Linear schedule; `step` counts down from max_denoising_steps (near t_max) to 1 (near t_min)."""
    return settings.t_min + (settings.t_max - settings.t_min) * step / settings.max_denoising_steps


def denoise_step(
    model: DiffusionGemma,
    view: CanvasView,
    state: CanvasState,
    temperature: float | mx.array,
    draws: tuple[mx.array, mx.array],
    bounds: Bounds,
) -> tuple[CanvasState, Remainder]:
    """Decode the canvas, sample, accept and renoise. Lazy: nothing is evaluated or read here."""
    uniforms, noise = draws
    before = state.acceptance
    shape = before.canvas.shape  # [B, C]

    hidden = model.decode_hidden(before.canvas, view, state.soft_embedding)
    logits = model.logits(hidden).flatten(0, 1)  # [B * C, V]
    softcap = model.config.text.final_logit_softcapping
    seen = row_statistics(logits, uniforms.flatten(), temperature, softcap)
    rows = (seen.entropy, seen.sample, seen.argmax, seen.invalid)
    proposal = Proposal(*(x.reshape(shape) for x in rows))
    after = accept_and_renoise(proposal, noise, state.pins, before, bounds)

    soft, left_out = model.soft_embedding(logits, seen, temperature)
    done = before.done[:, None]
    soft = mx.where(done[..., None], state.soft_embedding, soft.reshape(*shape, -1))
    left_out = mx.where(done, 0, left_out.reshape(shape)).flatten()
    return CanvasState(after, state.pins, soft, proposal.entropies), Remainder(left_out, logits)


# Rows that take the dense product at a time: each needs some 20 bytes per logit of its own.
_DENSE_ROWS = 64


def settle(
    model: DiffusionGemma, state: CanvasState, remainder: Remainder, temperature: float
) -> CanvasState:
    """`state` after a step, with the dense soft embedding where the sparse one leaves out too much.

    Reads `left_out`. Lazy otherwise: a soft embedding that no step follows is never computed.
    """
    lacking = np.flatnonzero(np.array(remainder.left_out) > TOLERANCE)
    if not lacking.size:
        return state
    softcap = model.config.text.final_logit_softcapping
    soft = state.soft_embedding.flatten(0, 1)
    for start in range(0, lacking.size, _DENSE_ROWS):
        rows = mx.array(lacking[start : start + _DENSE_ROWS])
        soft[rows] = model.dense_soft_embedding(
            processed_logits(remainder.logits[rows], temperature, softcap)
        )
    return state._replace(soft_embedding=soft.reshape(state.soft_embedding.shape))
