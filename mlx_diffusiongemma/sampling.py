"""One denoising step as a pure function, `CanvasState -> CanvasState`, and the random draws that it takes."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple, Protocol

import mlx.core as mx
import numpy as np

from .cache import CanvasView
from .errors import InputError
from .ops import FREE, TOLERANCE, Acceptance, Proposal, RowStatistics, processed_logits, row_statistics
from .rules import Rules

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


def checked_seed(seed: int | None) -> int:
    """`seed`, or a new one for None; `InputError` when it is out of range."""
    if seed is None:
        return secrets.randbits(32)
    if isinstance(seed, bool) or not hasattr(seed, "__index__") or not 0 <= seed < 2**64:
        raise InputError(f"seed must be an integer from 0 to 2**64 - 1, found {seed!r}")
    return int(seed)


class Stream(NamedTuple):
    """What the draws of one row of one canvas depend on, beside the step."""

    seed: int
    candidate: int
    block: int
    attempt: int


class SeededDraws:
    """Draws that depend only on each row's `Stream` and on the step, never on the batch around them."""

    def __init__(self, streams: Sequence[Stream], length: int, vocab_size: int):
        self.streams, self.length, self.vocab_size = streams, length, vocab_size

    def initial(self) -> mx.array:
        return self._noise([self._key(stream, 0) for stream in self.streams])

    def step(self, index: int) -> tuple[mx.array, mx.array]:
        pairs = [mx.random.split(self._key(stream, index + 1)) for stream in self.streams]
        uniforms = mx.stack([mx.random.uniform(shape=(self.length,), key=pair[0]) for pair in pairs])
        return uniforms, self._noise([pair[1] for pair in pairs])

    def _key(self, stream: Stream, step: int) -> mx.array:
        # SeedSequence mixes the coordinates; MLX has no fold_in.
        return mx.random.key(int(np.random.SeedSequence((*stream, step)).generate_state(1, np.uint64)[0]))

    def _noise(self, keys: list[mx.array]) -> mx.array:
        return mx.stack([mx.random.randint(0, self.vocab_size, (self.length,), key=key) for key in keys])


class CanvasState(NamedTuple):
    """What one step hands to the next.

    acceptance: canvas, argmax, counters and flags (see `ops.Acceptance`).
    pins: int32 `[B, C]`, the token that a position is pinned to, or `FREE`. soft_embedding: `[B, C, D]`.
    entropies: fp32 `[B, C]`, nats, 0 where pinned.
    unchanged_steps: int32 `[B]`, how many steps in a row accepted the same positions.
    stopped_by: int32 `[B]`, the index of the stop rule that ended the row, or -1.
    """

    acceptance: Acceptance
    pins: mx.array
    soft_embedding: mx.array
    entropies: mx.array
    unchanged_steps: mx.array
    stopped_by: mx.array


class Remainder(NamedTuple):
    """What a step's sparse soft embedding lacks.

    left_out: fp32 `[B * C]`, the probability that each position's lacks; 0 in rows that were done.
    logits: `[B * C, V]`.
    """

    left_out: mx.array
    logits: mx.array


def initial_state(canvas: mx.array, soft_embedding: mx.array, pins: mx.array | None = None) -> CanvasState:
    """What the first step takes: ids int32 `[B, C]` (noise, usually), and `soft_embedding [B, C, D]`, what is
    believed of them. Pinned positions hold their pins instead.

    No token equals the argmax -1, so step 1 is never stable.
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


def denoise_step(
    model: DiffusionGemma,
    view: CanvasView,
    state: CanvasState,
    temperature: float | mx.array,
    draws: tuple[mx.array, mx.array],
    rules: Rules,
) -> tuple[CanvasState, Remainder]:
    """Decode the canvas, sample, accept and renoise. Lazy: nothing is evaluated or read here."""
    uniforms, noise = draws
    before = state.acceptance
    shape = before.canvas.shape  # [B, C]

    hidden = model.decode_hidden(before.canvas, view, state.soft_embedding)
    logits = model.logits(hidden).flatten(0, 1)  # [B * C, V]
    softcap = model.config.text.final_logit_softcapping
    seen = row_statistics(logits, uniforms.flatten(), temperature, softcap)
    proposal = proposal_of(seen, shape)
    after, asked = rules.apply(proposal, noise, state.pins, before)

    soft, left_out = model.soft_embedding(logits, seen, temperature)
    pinned, done = state.pins >= 0, before.done[:, None]
    soft = mx.where(done[..., None], state.soft_embedding, soft.reshape(*shape, -1))
    soft = mx.where(pinned[..., None], model.embed(mx.maximum(state.pins, 0)), soft)  # one-hot
    left_out = mx.where(done | pinned, 0, left_out.reshape(shape)).flatten()
    entropies = mx.where(pinned, 0, proposal.entropies)
    same = (after.accepted == before.accepted).all(axis=-1)
    state = CanvasState(
        after,
        state.pins,
        soft,
        entropies,
        unchanged_steps=mx.where(same, state.unchanged_steps + 1, 0),
        stopped_by=mx.where(after.done & (state.stopped_by < 0), 0, state.stopped_by),
    )
    for index in range(asked, len(rules.stop)):
        state = _stopped(state, rules.stops(index, state), index)
    return state, Remainder(left_out, logits)


def proposal_of(seen: RowStatistics, shape: Sequence[int]) -> Proposal:
    """What the statistics of `[B * C]` rows propose for a canvas of `shape [B, C]`."""
    confidence = mx.exp(seen.chunk_peaks.max(axis=-1) - seen.log_normalizer)
    rows = (seen.entropy, seen.sample, seen.argmax, seen.invalid, confidence)
    return Proposal(*(x.reshape(shape) for x in rows))


def _stopped(state: CanvasState, rows: mx.array, by: int) -> CanvasState:
    """`state` with those of `rows`, bool `[B]`, done that were not."""
    rows = rows & ~state.acceptance.done
    return state._replace(
        acceptance=state.acceptance._replace(done=state.acceptance.done | rows),
        stopped_by=mx.where(rows, by, state.stopped_by),
    )


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
