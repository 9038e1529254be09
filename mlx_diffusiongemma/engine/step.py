"""One denoising step as a pure function, `CanvasState -> CanvasState`, and the random draws of it."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple, Protocol

import mlx.core as mx
import numpy as np

from ..cache import CanvasView
from ..errors import InputError
from ..ops import FREE, TOLERANCE, Acceptance, Proposal, RowStatistics, processed_logits, row_statistics
from .rules import Rules

if TYPE_CHECKING:
    from ..model import DiffusionGemma


class Draws(Protocol):
    """Random numbers of a canvas: two draws per position and step."""

    def initial(self) -> mx.array:
        """Return the noise that a canvas starts from: int32 `[B, C]`, uniform over the vocabulary."""
        ...

    def step(self, index: int) -> tuple[mx.array, mx.array]:
        """Return uniforms in [0, 1), fp32 `[B, C]`, and noise tokens, int32 `[B, C]`, of step 0, 1, ..."""
        ...


def checked_seed(seed: int | None) -> int:
    """Return `seed`, or a new one for None. `InputError` when it is out of range."""
    if seed is None:
        return secrets.randbits(32)
    if isinstance(seed, bool) or not hasattr(seed, "__index__") or not 0 <= seed < 2**64:
        raise InputError(f"seed must be an integer from 0 to 2**64 - 1, found {seed!r}")
    return int(seed)


class Stream(NamedTuple):
    """Key of the draws of one row of one canvas. The step completes it."""

    seed: int
    candidate: int
    block: int
    attempt: int


class SeededDraws:
    """Draws that depend only on each row's `Stream` and the step, never on the rest of the batch."""

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


class Remainder(NamedTuple):
    """Results of a step that the next one does not read.

    left_out: fp32 `[B * C]`, the probability that each position's sparse soft embedding lacks; 0 in rows that
    were done. logits: `[B * C, V]`, before softcap and temperature. log_normalizer: fp32 `[B * C]`, the
    logarithm of the sum of exponentials of the processed logits.
    """

    left_out: mx.array
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


def denoise_step(
    model: DiffusionGemma,
    view: CanvasView,
    state: CanvasState,
    temperature: float | mx.array,
    countdown: tuple[int | mx.array, int | mx.array],
    draws: tuple[mx.array, mx.array],
    rules: Rules,
) -> tuple[CanvasState, Remainder]:
    """Decode the canvas, sample, accept and renoise. Lazy: nothing is evaluated or read here.

    countdown: step and steps, see `Proposal`.
    """
    uniforms, noise = draws
    before = state.acceptance
    shape = before.canvas.shape  # [B, C]

    hidden = model.decode_hidden(before.canvas, view, state.soft_embedding)
    logits = model.logits(hidden).flatten(0, 1)  # [B * C, V]
    softcap = model.config.text.final_logit_softcapping
    statistics = row_statistics(logits, uniforms.flatten(), temperature, softcap)
    proposal = proposal_of(statistics, shape, *countdown)
    after, asked = rules.apply(proposal, noise, state.pins, before)

    soft, left_out = model.soft_embedding(logits, statistics, temperature)
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
    return state, Remainder(left_out, logits, statistics.log_normalizer)


def proposal_of(
    statistics: RowStatistics, shape: Sequence[int], step: int | mx.array, steps: int | mx.array
) -> Proposal:
    """Return the proposal for a canvas of `shape [B, C]` from the statistics of its `B * C` positions."""
    confidences = mx.exp(statistics.chunk_peaks.max(axis=-1) - statistics.log_normalizer)
    return Proposal(
        entropies=statistics.entropy.reshape(shape),
        samples=statistics.sample.reshape(shape),
        argmaxes=statistics.argmax.reshape(shape),
        invalid=statistics.invalid.reshape(shape),
        confidences=confidences.reshape(shape),
        step=step,
        steps=steps,
    )


def logprobs_of(
    ids: mx.array,
    logits: mx.array,
    log_normalizer: mx.array,
    temperature: float | mx.array,
    softcap: float | None,
) -> mx.array:
    """Natural log-probabilities of `ids [B, C]`, fp32 `[B, C]`, in the softmax of the processed logits.

    logits, log_normalizer: `[B * C, V]` and `[B * C]`, as in `Remainder`.
    """
    chosen = mx.take_along_axis(logits, ids.reshape(-1, 1), axis=-1)
    logprobs = processed_logits(chosen, temperature, softcap)[:, 0] - log_normalizer
    return mx.minimum(logprobs, 0).reshape(ids.shape)  # rounding could lift a certain token's above 0


def _stopped(state: CanvasState, rows: mx.array, by: int) -> CanvasState:
    """`state` after the rule of index `by` ended `rows`, bool `[B]`."""
    rows = rows & ~state.acceptance.done
    return state._replace(
        acceptance=state.acceptance._replace(done=state.acceptance.done | rows),
        stopped_by=mx.where(rows, by, state.stopped_by),
    )


# Rows of one dense product. Each needs about 20 bytes per logit.
_DENSE_ROWS = 64


def settle(
    model: DiffusionGemma, state: CanvasState, remainder: Remainder, temperature: float
) -> CanvasState:
    """Return `state` with the dense soft embedding where the sparse one leaves out too much.

    Reads `left_out`. Otherwise lazy: a soft embedding that no step follows is never computed.
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
