"""One denoising step as a pure function, `CanvasState -> CanvasState`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import mlx.core as mx
import numpy as np

from ..cache import CanvasView, KeysValues, Layout
from ..ops import (
    TOLERANCE,
    Acceptance,
    Bounds,
    Proposal,
    RowStatistics,
    accept_and_renoise,
    advance,
    processed_logits,
    row_statistics,
)
from .parts import check_result, is_traceable, name_of, named
from .samplers import EntropyBound, StableAndConfident
from .state import CanvasState, Sampler, SparseRemainder, StopRule

if TYPE_CHECKING:
    from ..model.network import Network

Lap = Callable[..., None]  # called with a name and the arrays computed since the previous call


class Rules(NamedTuple):
    """Sampler and stop rules. The first stop rule that fires ends a canvas."""

    sampler: Sampler
    stop: tuple[StopRule, ...]

    @property
    def traceable(self) -> bool:
        """True if every part is traceable, so the step can be compiled."""
        return all(map(is_traceable, (self.sampler, *self.stop)))

    @property
    def fused(self) -> Bounds | None:
        """Bounds for the fused `accept_and_renoise`. None unless its parts are the released model's."""
        first = self.stop[0]
        if type(self.sampler) is EntropyBound and type(first) is StableAndConfident:
            return Bounds(self.sampler.bound, first.stability_threshold, first.confidence_threshold)
        return None

    def countdown(self, step: int, steps: int) -> tuple[int | mx.array, int | mx.array]:
        """Return `step` and `steps` for the sampler: as arrays if it is traceable, otherwise as ints."""
        return (mx.array(step), mx.array(steps)) if is_traceable(self.sampler) else (step, steps)

    def begin(self, canvas: mx.array) -> None:
        """Call `begin(canvas)` once on each part that has it. canvas: int32 `[B, C]`."""
        begun: list[Any] = []
        parts = [("sampler", self.sampler), *((f"stop: {name_of(rule)}", rule) for rule in self.stop)]
        for name, part in parts:
            begin = getattr(part, "begin", None)
            if callable(begin) and not any(part is other for other in begun):
                begun.append(part)
                with named(f"{name}: begin"):
                    begin(canvas)


class Prefix(NamedTuple):
    """Inputs that a step takes from a `PrefixCache`. See `CanvasView` for the fields."""

    layout: Layout
    offset: mx.array
    buffers: list[KeysValues]
    left_padding: mx.array | None


def denoise_step(
    model: Network,
    rules: Rules,
    prefix: Prefix,
    state: CanvasState,
    temperature: float | mx.array,
    countdown: tuple[int | mx.array, int | mx.array],
    draws: tuple[mx.array, mx.array],
    lap: Lap | None = None,
) -> tuple[CanvasState, SparseRemainder, list[KeysValues]]:
    """Decode the canvas, sample, accept and renoise. Lazy: nothing is evaluated or read back.

    Args:
        countdown: step and steps, see `Proposal`.
        draws: uniforms and noise tokens, see `Draws.step`.
        lap: see `Lap`. Called after the decoder body, after the logits and after the sampler.

    Returns:
        The next state, the remaining results of the step, and the cache's buffers with the canvas in them.
    """
    uniforms, noise = draws
    shape = state.canvas.shape  # [B, C]
    view = CanvasView(model.config, *prefix)

    hidden = model.decode_hidden(state.canvas, view, state.soft_embedding)
    if lap is not None:
        lap("body", hidden, view.buffers)
    logits = model.logits(hidden).flatten(0, 1)  # [B * C, V]
    if lap is not None:
        lap("logits", logits)
    softcap = model.config.text.final_logit_softcapping
    statistics = row_statistics(logits, uniforms.flatten(), temperature, softcap)
    proposal = proposal_of(statistics, shape, *countdown)
    if rules.fused is not None:
        acceptance = accept_and_renoise(proposal, noise, state.pins, state.acceptance, rules.fused)
    else:
        acceptance = _accepted(rules.sampler, proposal, noise, state)
    if lap is not None:
        lap("sampler", acceptance, statistics)

    soft, dropped_mass = model.soft_embedding(logits, statistics, temperature)
    pinned, done = state.pins >= 0, state.done[:, None]
    soft = mx.where(done[..., None], state.soft_embedding, soft.reshape(*shape, -1))
    soft = mx.where(pinned[..., None], model.embed(mx.maximum(state.pins, 0)), soft)  # one-hot
    dropped_mass = mx.where(done | pinned, 0, dropped_mass.reshape(shape)).flatten()
    same = (acceptance.accepted == state.accepted).all(axis=-1)
    state = CanvasState(
        *acceptance,
        pins=state.pins,
        soft_embedding=soft,
        entropies=mx.where(pinned, 0, proposal.entropies),
        unchanged_steps=mx.where(same, state.unchanged_steps + 1, 0),
        stopped_by=mx.where(acceptance.done & (state.stopped_by < 0), 0, state.stopped_by),
    )
    first = 1 if rules.fused is not None else 0  # the fused operation includes the first stop rule
    for index, rule in enumerate(rules.stop[first:], first):
        state = _stopped(state, rule, index)
    return state, SparseRemainder(dropped_mass, logits, statistics.log_normalizer), view.buffers


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


def _accepted(sampler: Sampler, proposal: Proposal, noise: mx.array, state: CanvasState) -> Acceptance:
    """Return the result of a step by the methods of `sampler`, without the fused operation."""
    shape = noise.shape
    with named("sampler: accept"):
        accepted = sampler.accept(proposal, state.pins)
    check_result("sampler: accept", accepted, shape, mx.bool_)
    with named("sampler: renoise"):
        canvas = sampler.renoise(accepted, proposal, noise)
    check_result("sampler: renoise", canvas, shape, mx.integer)
    return advance(proposal, accepted, canvas.astype(mx.int32), state.pins, state.acceptance)


def _stopped(state: CanvasState, rule: StopRule, index: int) -> CanvasState:
    """Return `state` after stop rule `index` has ended the rows that it chooses."""
    name = f"stop: {name_of(rule)}"
    with named(name):
        rows = rule(state)
    check_result(name, rows, state.stopped_by.shape, mx.bool_)
    rows = rows & ~state.done
    return state._replace(done=state.done | rows, stopped_by=mx.where(rows, index, state.stopped_by))


def logprobs_of(
    ids: mx.array,
    logits: mx.array,
    log_normalizer: mx.array,
    temperature: float | mx.array,
    softcap: float | None,
) -> mx.array:
    """Return natural log-probabilities of `ids [B, C]` in the softmax of the processed logits, fp32 `[B, C]`.

    logits, log_normalizer: `[B * C, V]` and `[B * C]`, as in `SparseRemainder`.
    """
    chosen = mx.take_along_axis(logits, ids.reshape(-1, 1), axis=-1)
    logprobs = processed_logits(chosen, temperature, softcap)[:, 0] - log_normalizer
    return mx.minimum(logprobs, 0).reshape(ids.shape)  # rounding can lift that of a certain token above 0


# Rows of one dense product. A row needs about 20 bytes per logit.
_DENSE_ROWS = 64


def settle(model: Network, state: CanvasState, remainder: SparseRemainder, temperature: float) -> CanvasState:
    """Return `state` with a dense soft embedding where the sparse one drops too much probability.

    Reads back `dropped_mass` only. The rest is lazy: without a next step, no soft embedding is computed.
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
