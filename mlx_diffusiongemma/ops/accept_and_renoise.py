"""Which tokens a step keeps, and what the others become."""

from __future__ import annotations

from typing import NamedTuple

import mlx.core as mx

from .metal import Kernel, scalar

FREE = -1  # in `pins`: no token is pinned here


class Proposal(NamedTuple):
    """Proposed tokens of each position, `[B, C]`, from `row_statistics`.

    entropies: fp32, nats. samples, argmaxes: int32. invalid: bool, the logits are not a distribution.
    confidences: fp32, probability of the argmax.
    step, steps: the numbers that the schedule gets. `step` counts down to 1, from `steps` or from fewer for a
    canvas that has fewer steps to go. They are Python ints. A traceable sampler gets int32 scalars, so that
    one compiled step serves them all.
    """

    entropies: mx.array
    samples: mx.array
    argmaxes: mx.array
    invalid: mx.array
    confidences: mx.array
    step: int | mx.array = 1
    steps: int | mx.array = 1


class Bounds(NamedTuple):
    """The sampler's settings, named as in `GenerationConfig`."""

    entropy_bound: float
    stability_threshold: int
    confidence_threshold: float


class Acceptance(NamedTuple):
    """What follows from one step; `[B, C]` unless said otherwise.

    canvas, argmax: the next canvas and this step's best guess, int32. accepted: bool.
    stable_steps: int32 `[B]`, how many steps in a row repeated the argmax.
    mean_entropy: fp32 `[B]`, nats, over the positions that are not pinned.
    done: bool `[B]`. invalid: bool `[B]`, some position's logits were no distribution.
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
    """Accepts the most certain positions, renoises the rest, and decides whether each row is done.

    A row's positions are taken by ascending entropy while the sum of the entropies *before* one is
    within `entropy_bound` (Ben-Hamu et al., arXiv:2505.24857); the lowest is always accepted. Accepted
    positions hold their sample, all others fresh `noise`, int32 `[B, C]`. A row is done when its argmax
    repeated `stability_threshold` times in a row and its mean entropy is below `confidence_threshold`;
    done rows keep everything but `accepted` from then on.
    pins: int32 `[B, C]`, `FREE` (-1) or the token that a position is pinned to. It holds that token,
    counts as accepted, and takes no part in the sum, the mean and the repetition.
    """
    takes_kernel = _KERNEL.in_use and suits_length(noise.shape[-1])
    choose = accept_and_renoise_kernel if takes_kernel else accept_and_renoise_reference
    return choose(proposal, noise, pins, previous, bounds)


_MAX_LENGTH = 1024  # a thread a position, and Metal's largest threadgroup


def suits_length(length: int) -> bool:
    """Return True if the kernel takes canvases of this length."""
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
    canvas, row = (rows, length), (rows,)
    inputs = [
        proposal.entropies, proposal.samples, proposal.argmaxes, proposal.invalid, noise, pins,
        previous.canvas, previous.argmax, previous.stable_steps, previous.mean_entropy, previous.done,
        scalar(bounds.entropy_bound),
        scalar(bounds.stability_threshold, mx.int32),
        scalar(bounds.confidence_threshold),
    ]  # fmt: skip
    outputs = [
        (canvas, mx.int32), (canvas, mx.int32), (canvas, mx.bool_),
        (row, mx.int32), (row, mx.float32), (row, mx.bool_), (row, mx.bool_),
    ]  # fmt: skip
    results = _KERNEL(
        inputs,
        template={"C": length, "SIMDGROUPS": simdgroups},
        threadgroups=(1, rows),
        threads=32 * simdgroups,
        outputs=outputs,
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
    """Which positions `accept_and_renoise` accepts: bool `[B, C]`, from fp32 entropies and pins of that
    shape."""
    pinned = pins >= 0
    order = mx.argsort(mx.where(pinned, mx.inf, entropies), axis=-1)
    ascending = mx.take_along_axis(mx.where(pinned, 0, entropies), order, axis=-1)
    before = mx.pad(mx.cumsum(ascending, axis=-1)[:, :-1], [(0, 0), (1, 0)])
    return mx.take_along_axis(before <= bound, mx.argsort(order, axis=-1), axis=-1) | pinned


def advance(
    proposal: Proposal, accepted: mx.array, canvas: mx.array, pins: mx.array, previous: Acceptance
) -> Acceptance:
    """What follows from a step that accepted `accepted` and made `canvas`, both `[B, C]`; nobody becomes
    done."""
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
