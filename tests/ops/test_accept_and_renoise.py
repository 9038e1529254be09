"""Accepting, renoising and stopping against their definition; reference and kernel alike."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest
from support import exact

from mlx_diffusiongemma.engine.state import initial_state
from mlx_diffusiongemma.ops import FREE, Acceptance, Bounds, Proposal, accept_and_renoise

pytestmark = pytest.mark.usefixtures("path")

SAMPLE, NOISE = 7, 9
BOUNDS = Bounds(entropy_bound=0.1, stability_threshold=1, confidence_threshold=0.005)


def start(canvas: np.ndarray, **changes: mx.array) -> Acceptance:
    return initial_state(mx.array(canvas, dtype=mx.int32), soft_embedding=mx.zeros((1,))).acceptance._replace(
        **changes
    )


def step(
    entropies: np.ndarray,
    argmaxes: np.ndarray,
    previous: Acceptance,
    pins: np.ndarray | None = None,
    invalid: np.ndarray | None = None,
    bounds: Bounds = BOUNDS,
) -> Acceptance:
    shape = entropies.shape
    proposal = Proposal(
        entropies=mx.array(entropies.astype(np.float32)),
        samples=mx.full(shape, SAMPLE, dtype=mx.int32),
        argmaxes=mx.array(argmaxes.astype(np.int32)),
        invalid=mx.array(np.zeros(shape, dtype=bool) if invalid is None else invalid),
        confidences=mx.zeros(shape),
    )
    noise = mx.full(shape, NOISE, dtype=mx.int32)
    pins = np.full(shape, FREE) if pins is None else pins
    return accept_and_renoise(proposal, noise, mx.array(pins.astype(np.int32)), previous, bounds)


def hard_entropies(length: int, rng: np.random.Generator) -> np.ndarray:
    """`[7, length]`: small, around the bound, large, equal, tied and summing to it exactly, descending,
    and one whose lowest is the last."""
    lowest_last = np.full(length, 1 / 16)
    lowest_last[-1] = 1 / 32
    return np.stack(
        [
            rng.random(length) * 1e-4,
            rng.random(length) * 0.02,
            rng.random(length) * 3,
            np.full(length, 1 / 256),
            rng.integers(0, 3, length) / 64,
            np.linspace(0.5, 0, length),
            lowest_last,
        ]
    ).astype(np.float32)


@pytest.mark.parametrize("length", [1, 5, 64, 255, 256, 1000])
def test_acceptance_follows_the_definition(length: int) -> None:
    rng = np.random.default_rng(length)
    entropies = hard_entropies(length, rng)
    pinned = np.concatenate([rng.random((6, length)) < 0.3, np.ones((1, length), dtype=bool)])
    canvas = np.zeros(entropies.shape)
    for pins in (np.where(pinned, 5, FREE), np.full(pinned.shape, FREE)):
        result = step(entropies, canvas, start(canvas), pins, bounds=Bounds(0.125, 1, 0.005))
        accepted, mean = np.array(result.accepted), np.array(result.mean_entropy)
        for row, (values, where) in enumerate(zip(entropies, pins != FREE, strict=True)):
            np.testing.assert_array_equal(accepted[row], exact.accepted(values, where, 0.125))
            free = values[~where].astype(np.float64)
            assert mean[row] == pytest.approx(free.mean() if free.size else 0.0, rel=1e-5)
        expected = np.where(pins != FREE, pins, np.where(accepted, SAMPLE, NOISE))
        np.testing.assert_array_equal(np.array(result.canvas), expected)


def test_the_lowest_position_goes_first_among_equals() -> None:
    canvas = np.zeros((1, 40))
    result = step(np.full((1, 40), 0.0625), canvas, start(canvas), bounds=Bounds(0.125, 1, 0.005))
    assert np.flatnonzero(np.array(result.accepted)).tolist() == [0, 1, 2]


@pytest.mark.parametrize(("threshold", "done_after"), [(0, 1), (1, 2), (3, 4)])
def test_stability_counts_repeats_of_the_argmax(threshold: int, done_after: int) -> None:
    canvas = np.zeros((1, 4))
    state, sure = start(canvas), np.full((1, 4), 1e-4)
    for steps in range(1, done_after + 1):
        state = step(sure, canvas, state, bounds=Bounds(0.1, threshold, 0.005))
        assert state.done.item() == (steps == done_after)


def test_a_mean_at_the_threshold_is_not_below_it() -> None:
    canvas = np.zeros((1, 64))
    state = start(canvas, argmax=mx.zeros((1, 64), dtype=mx.int32))
    for mean, done in [(1 / 128, False), (1 / 256, True)]:
        result = step(np.full((1, 64), mean), canvas, state, bounds=Bounds(0.1, 1, 1 / 128))
        assert result.done.item() == done


def test_a_large_entropy_takes_nothing_from_the_sum_before_it() -> None:
    canvas = np.zeros((1, 3))
    result = step(np.array([[0.1, 0.0, 12.3]]), canvas, start(canvas))
    assert np.array(result.accepted).tolist() == [[True, True, True]]


@pytest.mark.parametrize("where", [0, 33, 63])
def test_a_change_anywhere_starts_the_count_again_and_doubt_prevents_the_stop(where: int) -> None:
    canvas = np.zeros((1, 64))
    sure, changed = np.full((1, 64), 1e-4), canvas.copy()
    changed[0, where] = 1
    state = step(sure, canvas, start(canvas))
    state = step(sure, changed, state)
    assert state.stable_steps.item() == 0
    assert not state.done.item()
    state = step(sure * 100, changed, state)
    assert state.stable_steps.item() == 1
    assert not state.done.item()


def test_done_rows_are_frozen() -> None:
    canvas = np.array([[1, 2], [3, 4]])
    previous = start(
        canvas,
        done=mx.array([True, False]),
        argmax=mx.array([[5, 6], [5, 6]], dtype=mx.int32),
        stable_steps=mx.array([2, 2], dtype=mx.int32),
        mean_entropy=mx.array([0.001, 0.001]),
    )
    invalid = np.array([[True, False], [False, False]])
    result = step(np.full((2, 2), 9.0), np.array([[8, 8], [8, 8]]), previous, invalid=invalid)
    assert np.array(result.canvas)[0].tolist() == [1, 2]
    assert np.array(result.argmax).tolist() == [[5, 6], [8, 8]]
    assert np.array(result.done).tolist() == [True, False]
    assert np.array(result.stable_steps).tolist() == [2, 0]
    np.testing.assert_allclose(np.array(result.mean_entropy), [0.001, 9.0])
    assert not np.array(result.invalid).any()  # what a done row would still say is not asked


def test_pinned_positions_hold_their_token_and_have_no_say_in_the_stop() -> None:
    canvas, pins = np.zeros((1, 40)), np.full((1, 40), FREE)
    pins[0, [0, 35]] = [11, 0]
    entropies = np.full((1, 40), 1e-4)
    entropies[0, [0, 35]] = 8.0  # neither in the budget nor in the mean
    state = start(canvas)
    for steps, proposed in enumerate([1, 2], start=1):
        argmaxes = canvas.copy()
        argmaxes[0, [0, 35]] = proposed  # a changing mind where nobody asks
        state = step(entropies, argmaxes, state, pins)
        assert np.array(state.argmax)[0, [0, 35]].tolist() == [11, 0]
        assert np.array(state.canvas)[0, [0, 1, 35]].tolist() == [11, SAMPLE, 0]
        assert state.mean_entropy.item() == pytest.approx(1e-4)
        assert state.done.item() == (steps == 2)


@pytest.mark.parametrize("length", [3, 200])
def test_an_invalid_position_marks_its_row(length: int) -> None:
    invalid, entropies = np.zeros((3, length), dtype=bool), np.zeros((3, length))
    invalid[1, -1], entropies[1, -1] = True, np.nan
    pins = np.full((3, length), FREE)
    pins[1, -1] = 4  # broken logits are broken under a pin too
    result = step(entropies, np.zeros((3, length)), start(np.zeros((3, length))), pins, invalid)
    assert np.array(result.invalid).tolist() == [False, True, False]
