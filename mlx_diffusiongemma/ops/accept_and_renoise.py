"""The end of a denoising step: accept the most certain tokens, replace the others by noise."""

from __future__ import annotations

from typing import NamedTuple

import mlx.core as mx

from .metal import Kernel, scalar

FREE = -1  # in `pins`: the position is not pinned


class Proposal(NamedTuple):
    """Proposed tokens of each position, `[B, C]`, from `row_statistics`.

    entropies: fp32, nats.
    samples, argmaxes: int32.
    invalid: bool, True if the logits are not a distribution, see `row_statistics`.
    confidences: fp32, probability of the argmax.
    step, steps: the schedule's arguments. `step` counts down to 1. It starts at `steps`, or lower for a
        canvas with fewer steps. For a traceable sampler both are int32 scalars, so that one compiled step
        serves all values. For other samplers they are Python ints.
    """

    entropies: mx.array
    samples: mx.array
    argmaxes: mx.array
    invalid: mx.array
    confidences: mx.array
    step: int | mx.array = 1
    steps: int | mx.array = 1


class Bounds(NamedTuple):
    """Settings of the released sampler and stop rule, named as in `GenerationConfig`."""

    entropy_bound: float
    stability_threshold: int
    confidence_threshold: float


class Acceptance(NamedTuple):
    """Result of one step. Arrays are `[B, C]` unless said otherwise.

    canvas: int32, the next canvas.
    argmax: int32, this step's likeliest tokens.
    accepted: bool, True for positions that keep their sample.
    stable_steps: int32 `[B]`, number of steps in a row that repeated the argmax.
    mean_entropy: fp32 `[B]`, nats, over positions that are not pinned.
    done: bool `[B]`, True for rows that need no more steps.
    invalid: bool `[B]`, True if the logits of some position are not a distribution.
    """

    canvas: mx.array
    argmax: mx.array
    accepted: mx.array
    stable_steps: mx.array
    mean_entropy: mx.array
    done: mx.array
    invalid: mx.array


def accept_and_renoise(
    proposal: Proposal, noise: mx.array, pins: mx.array, previous: Acceptance, bounds: Bounds
) -> Acceptance:
    """Accept the most certain positions, renoise the others, and decide which rows are done.

    Positions of a row are accepted by ascending entropy, as long as the sum of the entropies *before* a
    position is at most `entropy_bound` (Ben-Hamu et al., arXiv:2505.24857). The position with the lowest
    entropy is always accepted. Accepted positions keep their sample, all others get `noise`.

    A row is done when its argmax repeated `stability_threshold` times in a row and its mean entropy is below
    `confidence_threshold`. In later steps it keeps its canvas, argmax, stable_steps and mean_entropy.

    Args:
        noise: fresh tokens, int32 `[B, C]`.
        pins: int32 `[B, C]`, the token of a pinned position, or `FREE` (-1). A pinned position holds its
            token and counts as accepted. It has no influence on the sum, the mean entropy or the repetition.
        previous: result of the step before.
    """
    takes_kernel = _KERNEL.in_use and suits_length(noise.shape[-1])
    choose = accept_and_renoise_kernel if takes_kernel else accept_and_renoise_reference
    return choose(proposal, noise, pins, previous, bounds)


_MAX_LENGTH = 1024  # one thread per position; Metal's largest threadgroup


def suits_length(length: int) -> bool:
    """Return True if the kernel supports canvases of this length."""
    return length <= _MAX_LENGTH


_KERNEL = Kernel(
    "accept_and_renoise",
    inputs=(
        "entropies", "samples", "argmaxes", "invalid", "noise", "pins",
        "canvas", "argmax", "stable_steps", "mean_entropy", "done",
        "entropy_bound", "stability_threshold", "confidence_threshold",
    ),
    outputs=(
        "next_canvas", "next_argmax", "accepted",
        "next_stable_steps", "next_mean_entropy", "next_done", "row_invalid",
    ),
)  # fmt: skip


def accept_and_renoise_kernel(
    proposal: Proposal, noise: mx.array, pins: mx.array, previous: Acceptance, bounds: Bounds
) -> Acceptance:
    """`accept_and_renoise` in one launch, for canvases of at most 1024 positions."""
    rows, length = noise.shape
    simdgroups = -(-length // 32)
    inputs = [
        proposal.entropies, proposal.samples, proposal.argmaxes, proposal.invalid, noise, pins,
        previous.canvas, previous.argmax, previous.stable_steps, previous.mean_entropy, previous.done,
        scalar(bounds.entropy_bound),
        scalar(bounds.stability_threshold, mx.int32),
        scalar(bounds.confidence_threshold),
    ]  # fmt: skip
    canvases, by_row = (mx.int32, mx.int32, mx.bool_), (mx.int32, mx.float32, mx.bool_, mx.bool_)
    results = _KERNEL(
        inputs,
        template={"C": length, "SIMDGROUPS": simdgroups},
        threadgroups=(1, rows),
        threads=32 * simdgroups,
        outputs=[*((noise.shape, dtype) for dtype in canvases), *(((rows,), dtype) for dtype in by_row)],
    )
    return Acceptance(*results)


def accept_and_renoise_reference(
    proposal: Proposal, noise: mx.array, pins: mx.array, previous: Acceptance, bounds: Bounds
) -> Acceptance:
    """`accept_and_renoise` in plain MLX."""
    accepted = within_entropy_bound(proposal.entropies, pins, bounds.entropy_bound)
    after = advance(proposal, accepted, mx.where(accepted, proposal.samples, noise), pins, previous)
    stable = after.stable_steps >= bounds.stability_threshold
    return after._replace(done=after.done | (stable & (after.mean_entropy < bounds.confidence_threshold)))


def within_entropy_bound(entropies: mx.array, pins: mx.array, bound: float) -> mx.array:
    """Return the positions that `accept_and_renoise` accepts: bool `[B, C]`.

    entropies: fp32 `[B, C]`, nats.
    pins: int32 `[B, C]`.
    bound: largest sum of the entropies before an accepted position, in nats.
    """
    pinned = pins >= 0
    order = mx.argsort(mx.where(pinned, mx.inf, entropies), axis=-1)
    ascending = mx.take_along_axis(mx.where(pinned, 0, entropies), order, axis=-1)
    before = mx.pad(mx.cumsum(ascending, axis=-1)[:, :-1], [(0, 0), (1, 0)])
    return mx.take_along_axis(before <= bound, mx.argsort(order, axis=-1), axis=-1) | pinned


def advance(
    proposal: Proposal, accepted: mx.array, canvas: mx.array, pins: mx.array, previous: Acceptance
) -> Acceptance:
    """Return the result of a step that accepted `accepted` and wrote `canvas`. No row becomes done."""
    pinned, frozen = pins >= 0, previous.done
    canvas = mx.where(frozen[:, None], previous.canvas, canvas)
    argmax = mx.where(frozen[:, None], previous.argmax, proposal.argmaxes)
    repeated = (pinned | (argmax == previous.argmax)).all(axis=-1)
    stable_steps = mx.where(frozen, previous.stable_steps, mx.where(repeated, previous.stable_steps + 1, 0))
    free = mx.maximum((~pinned).sum(axis=-1), 1)
    mean_entropy = mx.where(pinned, 0, proposal.entropies).sum(axis=-1) / free
    return Acceptance(
        canvas=mx.where(pinned, pins, canvas),
        argmax=mx.where(pinned, pins, argmax),
        accepted=accepted | pinned,
        stable_steps=stable_steps,
        mean_entropy=mx.where(frozen, previous.mean_entropy, mean_entropy),
        done=frozen,
        invalid=~frozen & proposal.invalid.any(axis=-1),
    )
