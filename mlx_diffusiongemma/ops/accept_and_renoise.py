"""Which tokens a step keeps, and what the others become."""

from __future__ import annotations

from typing import NamedTuple

import mlx.core as mx


class Acceptance(NamedTuple):
    """What follows from one step; `[B, C]` unless said otherwise.

    canvas, argmax: the next canvas and this step's best guess, int32. accepted: bool.
    stable_steps: int32 `[B]`, how many steps in a row repeated the argmax.
    mean_entropy: fp32 `[B]`, nats. done: bool `[B]`.
    """

    canvas: mx.array
    argmax: mx.array
    accepted: mx.array
    stable_steps: mx.array
    mean_entropy: mx.array
    done: mx.array


def accept_and_renoise(
    *,
    entropies: mx.array,
    samples: mx.array,
    argmaxes: mx.array,
    noise: mx.array,
    previous: Acceptance,
    entropy_bound: float,
    stability_threshold: int,
    confidence_threshold: float,
) -> Acceptance:
    """Accepts the most certain positions, renoises the rest, and decides whether each row is done.

    A row's positions are taken by ascending entropy while the sum of the entropies *before* one is
    within `entropy_bound` (Ben-Hamu et al., arXiv:2505.24857); the lowest is always accepted. Accepted
    positions hold their sample, all others fresh noise. A row is done when its argmax repeated
    `stability_threshold` times in a row and its mean entropy is below `confidence_threshold`; done rows
    keep canvas and argmax from then on.
    """
    order = mx.argsort(entropies, axis=-1)
    ascending = mx.take_along_axis(entropies, order, axis=-1)
    within = mx.cumsum(ascending, axis=-1) - ascending <= entropy_bound
    accepted = mx.take_along_axis(within, mx.argsort(order, axis=-1), axis=-1)

    frozen = previous.done[:, None]
    canvas = mx.where(frozen, previous.canvas, mx.where(accepted, samples, noise))
    argmax = mx.where(frozen, previous.argmax, argmaxes)
    repeated = (argmax == previous.argmax).all(axis=-1)
    stable_steps = mx.where(repeated, previous.stable_steps + 1, 0)
    mean_entropy = mx.where(previous.done, previous.mean_entropy, entropies.mean(axis=-1))
    confident = mean_entropy < confidence_threshold
    done = previous.done | ((stable_steps >= stability_threshold) & confident)
    return Acceptance(canvas, argmax, accepted, stable_steps, mean_entropy, done)
