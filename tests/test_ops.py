"""The device operations against float64 NumPy, on rows that are easy to get wrong."""

import math

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from mlx_diffusiongemma.ops import Acceptance, accept_and_renoise, row_statistics, soft_embedding

SOFTCAP = 30.0
VOCABULARIES = [1, 7, 31, 512, 513, 640, 4097]


def rows_of(vocab: int, rng: np.random.Generator) -> np.ndarray:
    """Logits [R, vocab] that are flat, peaked, tied, huge, and masked."""
    flat = np.zeros(vocab)
    peaked = rng.normal(size=vocab)
    peaked[rng.integers(vocab)] = 40.0
    tied = rng.integers(0, 2, vocab) * 3.0
    tied[-1] = 3.0
    huge = rng.normal(size=vocab) * 1e4
    masked = np.full(vocab, -np.inf)
    masked[rng.choice(vocab, size=max(1, vocab // 3), replace=False)] = 1.0
    return np.stack([flat, peaked, tied, huge, masked, *rng.normal(size=(3, vocab)) * 5]).astype(np.float32)


def exact_statistics(logits: np.ndarray, temperature: float, softcap: float | None):
    """Probabilities, argmax, entropy and log normaliser in float64."""
    x = logits.astype(np.float64)
    if softcap is not None:
        x = softcap * np.tanh(x / softcap)
    x = x / temperature
    top = x.max(axis=-1, keepdims=True)
    mass = np.exp(x - top)
    p = mass / mass.sum(axis=-1, keepdims=True)
    with np.errstate(divide="ignore", invalid="ignore"):
        entropy = -np.where(p > 0, p * np.log(p), 0.0).sum(axis=-1)
    return p, x.argmax(axis=-1), entropy, np.log(mass.sum(axis=-1)) + top[:, 0]


@pytest.mark.parametrize("vocab", VOCABULARIES)
@pytest.mark.parametrize("softcap", [SOFTCAP, None])
@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16, mx.float16])
def test_row_statistics_agree_with_float64(vocab: int, softcap: float | None, dtype: mx.Dtype) -> None:
    rng = np.random.default_rng(vocab)
    logits = mx.array(rows_of(vocab, rng)).astype(dtype)
    uniforms = rng.random(logits.shape[0], dtype=np.float32)
    temperature = 0.6
    got = row_statistics(logits, mx.array(uniforms), temperature, softcap)
    p, argmax, entropy, log_normalizer = exact_statistics(
        np.array(logits.astype(mx.float32)), temperature, softcap
    )

    if softcap is None:  # the cap rounds close logits together, so a float64 argmax may split an fp32 tie
        np.testing.assert_array_equal(np.array(got.argmax), argmax)
    np.testing.assert_array_equal(np.array(got.argmax)[[0, 2, 4]], argmax[[0, 2, 4]])
    np.testing.assert_allclose(np.array(got.entropy), entropy, atol=1e-4)
    np.testing.assert_allclose(np.array(got.log_normalizer), log_normalizer, rtol=1e-5, atol=1e-4)

    sample, cdf = np.array(got.sample), p.cumsum(axis=-1)
    picked = np.take_along_axis(p, sample[:, None], axis=-1)[:, 0]
    above = np.take_along_axis(cdf, sample[:, None], axis=-1)[:, 0]
    assert (picked > 0).all()
    assert (above > uniforms - 1e-5).all()
    assert (above - picked < uniforms + 1e-5).all()


@pytest.mark.parametrize("uniform", [0.0, 1 - 2**-24])
def test_extreme_uniforms_pick_the_first_and_last_possible_token(uniform: float) -> None:
    logits = np.full((1, 1300), -np.inf, dtype=np.float32)
    possible = [3, 511, 512, 1200]
    logits[0, possible] = [0.0, -1.0, 2.0, -3.0]
    sample = row_statistics(mx.array(logits), mx.array([uniform]), 1.0, None).sample.item()
    assert sample == (possible[0] if uniform == 0 else possible[-1])


@pytest.mark.parametrize("bad", [[math.nan, 0.0, 1.0], [-math.inf] * 3, [math.inf, 0.0, 1.0]])
def test_rows_without_a_distribution_have_nan_entropy(bad: list[float]) -> None:
    result = row_statistics(mx.array([bad, [0.0, 1.0, 2.0]]), mx.array([0.5, 0.5]), 1.0, None)
    assert math.isnan(result.entropy[0].item())
    assert math.isfinite(result.entropy[1].item())


def test_samples_follow_the_distribution() -> None:
    """Chi-square over 200,000 draws; 37 degrees of freedom stay below 80 with p < 1e-4 of failing."""
    rng = np.random.default_rng(1)
    logits, draws = rng.normal(size=38).astype(np.float32) * 1.5, 200_000
    expected = exact_statistics(logits[None], 0.8, SOFTCAP)[0][0] * draws
    observed = np.zeros(38)
    rows = mx.broadcast_to(mx.array(logits), (draws // 20, 38))
    for key in mx.random.split(mx.random.key(3), 20):
        uniforms = mx.random.uniform(shape=(draws // 20,), key=key)
        samples = row_statistics(rows, uniforms, 0.8, SOFTCAP).sample
        observed += np.bincount(np.array(samples), minlength=38)
    assert ((observed - expected) ** 2 / expected).sum() < 80


def start(canvas: np.ndarray, **changes: mx.array) -> Acceptance:
    rows = canvas.shape[0]
    state = Acceptance(
        canvas=mx.array(canvas),
        argmax=mx.full(canvas.shape, -1, dtype=mx.int32),
        accepted=mx.zeros(canvas.shape, dtype=mx.bool_),
        stable_steps=mx.zeros((rows,), dtype=mx.int32),
        mean_entropy=mx.zeros((rows,)),
        done=mx.zeros((rows,), dtype=mx.bool_),
    )
    return state._replace(**changes)


def step(entropies: np.ndarray, argmaxes: np.ndarray, previous: Acceptance, **settings: float) -> Acceptance:
    shape = entropies.shape
    return accept_and_renoise(
        entropies=mx.array(entropies.astype(np.float32)),
        samples=mx.full(shape, 7, dtype=mx.int32),
        argmaxes=mx.array(argmaxes.astype(np.int32)),
        noise=mx.full(shape, 9, dtype=mx.int32),
        previous=previous,
        entropy_bound=settings.get("entropy_bound", 0.1),
        stability_threshold=int(settings.get("stability_threshold", 1)),
        confidence_threshold=settings.get("confidence_threshold", 0.005),
    )


@pytest.mark.parametrize("length", [1, 5, 64, 255, 1000])
@pytest.mark.parametrize("scale", [1e-4, 0.02, 3.0])
def test_acceptance_follows_the_definition(length: int, scale: float) -> None:
    rng = np.random.default_rng(length)
    entropies = (rng.random((2, length)) * scale).astype(np.float32)
    canvas = np.zeros((2, length), dtype=np.int32)
    accepted = np.array(step(entropies, canvas, start(canvas)).accepted)
    for row in range(2):
        spent = np.float32(0)
        for position in np.argsort(entropies[row], kind="stable"):
            spent += entropies[row, position]
            if abs(spent - entropies[row, position] - 0.1) > 1e-5:  # away from the rounding edge
                assert accepted[row, position] == (spent - entropies[row, position] <= 0.1)
        assert accepted[row, entropies[row].argmin()]


def test_accepted_positions_take_the_sample_and_others_the_noise() -> None:
    canvas = np.zeros((1, 3), dtype=np.int32)
    result = step(np.array([[0.05, 5.0, 0.06]]), canvas, start(canvas))
    assert np.array(result.canvas).tolist() == [[7, 9, 7]]


@pytest.mark.parametrize(("threshold", "done_after"), [(0, 1), (1, 2), (3, 4)])
def test_stability_counts_repeats_of_the_argmax(threshold: int, done_after: int) -> None:
    canvas = np.zeros((1, 4), dtype=np.int32)
    state, sure = start(canvas), np.full((1, 4), 1e-4)
    for steps in range(1, done_after + 1):
        state = step(sure, canvas, state, stability_threshold=threshold)
        assert state.done.item() == (steps == done_after)


def test_a_change_starts_the_count_again_and_doubt_prevents_the_stop() -> None:
    canvas = np.zeros((1, 4), dtype=np.int32)
    sure = np.full((1, 4), 1e-4)
    state = step(sure, canvas, start(canvas))
    state = step(sure, canvas + 1, state)
    assert state.stable_steps.item() == 0
    assert not state.done.item()
    state = step(sure * 100, canvas + 1, state)
    assert state.stable_steps.item() == 1
    assert not state.done.item()


def test_done_rows_are_frozen() -> None:
    canvas = np.array([[1, 2], [3, 4]], dtype=np.int32)
    previous = start(canvas, done=mx.array([True, False]), argmax=mx.array([[5, 6], [5, 6]]))
    result = step(np.full((2, 2), 9.0), np.array([[8, 8], [8, 8]]), previous)
    assert np.array(result.canvas)[0].tolist() == [1, 2]
    assert np.array(result.argmax).tolist() == [[5, 6], [8, 8]]
    assert np.array(result.done).tolist() == [True, False]


@pytest.mark.parametrize(
    "mode", [None, ("affine", 64, 4), ("affine", 64, 8), ("mxfp4", 32, 4), ("nvfp4", 16, 4)]
)
def test_soft_embedding_is_the_expected_embedding(mode: tuple[str, int, int] | None) -> None:
    rng = np.random.default_rng(0)
    table = nn.Embedding(96, 64)
    dense = table.weight
    if mode is not None:
        table = nn.QuantizedEmbedding.from_embedding(table, mode[1], mode[2], mode=mode[0])
        dense = table(mx.arange(96))
    logits = rng.normal(size=(2, 5, 96)).astype(np.float32) * 4
    p = np.exp(logits.astype(np.float64))
    p /= p.sum(axis=-1, keepdims=True)
    got = np.array(soft_embedding(mx.array(logits), table, mx.float32))
    np.testing.assert_allclose(got, p @ np.array(dense.astype(mx.float32), dtype=np.float64), atol=2e-5)
