"""One denoising step as a pure function, `CanvasState -> CanvasState`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import mlx.core as mx
import numpy as np

from ..cache import CanvasView
from ..ops import TOLERANCE, Proposal, RowStatistics, processed_logits, row_statistics
from .rules import Rules
from .state import CanvasState, SparseRemainder

if TYPE_CHECKING:
    from ..model import DiffusionGemma


def denoise_step(
    model: DiffusionGemma,
    view: CanvasView,
    state: CanvasState,
    temperature: float | mx.array,
    countdown: tuple[int | mx.array, int | mx.array],
    draws: tuple[mx.array, mx.array],
    rules: Rules,
) -> tuple[CanvasState, SparseRemainder]:
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

    soft, dropped_mass = model.soft_embedding(logits, statistics, temperature)
    pinned, done = state.pins >= 0, before.done[:, None]
    soft = mx.where(done[..., None], state.soft_embedding, soft.reshape(*shape, -1))
    soft = mx.where(pinned[..., None], model.embed(mx.maximum(state.pins, 0)), soft)  # one-hot
    dropped_mass = mx.where(done | pinned, 0, dropped_mass.reshape(shape)).flatten()
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
    return state, SparseRemainder(dropped_mass, logits, statistics.log_normalizer)


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

    logits, log_normalizer: `[B * C, V]` and `[B * C]`, as in `SparseRemainder`.
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
    model: DiffusionGemma, state: CanvasState, remainder: SparseRemainder, temperature: float
) -> CanvasState:
    """Return `state` with the dense soft embedding where the sparse one leaves out too much.

    Reads `dropped_mass`. Otherwise lazy: a soft embedding that no step follows is never computed.
    """
    lacking = np.flatnonzero(np.array(remainder.dropped_mass) > TOLERANCE)
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
