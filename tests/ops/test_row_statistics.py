"""Row statistics against float64, on rows that are easy to get wrong; reference and kernel alike."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest
from support import exact

from mlx_diffusiongemma.ops import RowStatistics, row_statistics
from mlx_diffusiongemma.ops.row_statistics import row_statistics_kernel

pytestmark = pytest.mark.usefixtures("path")

SOFTCAP = 30.0
VOCABULARIES = [1, 7, 31, 32, 33, 640, 4097, 70000, 262144]


def assert_agrees(got: RowStatistics, exactly: exact.ExactRows, uniforms: np.ndarray) -> None:
    """The argmax is exact where fp32 tells logits apart, the sample where the uniform is at no edge."""
    argmax = np.array(got.argmax)
    best = np.take_along_axis(exactly.processed, exactly.argmax[:, None], axis=-1)[:, 0]
    found = np.take_along_axis(exactly.processed, argmax[:, None], axis=-1)[:, 0]
    assert ((argmax == exactly.argmax) | ((best != found) & (best - found < 1e-6 * np.abs(best)))).all()

    np.testing.assert_allclose(np.array(got.entropy), exactly.entropy, atol=1e-4)
    np.testing.assert_allclose(np.array(got.log_normalizer), exactly.log_normalizer, rtol=1e-6, atol=1e-5)
    assert not np.array(got.invalid).any()

    sample, cdf = np.array(got.sample), exactly.probabilities.cumsum(axis=-1)
    picked = np.take_along_axis(exactly.probabilities, sample[:, None], axis=-1)[:, 0]
    above = np.take_along_axis(cdf, sample[:, None], axis=-1)[:, 0]
    assert (picked > 0).all()
    assert (above > uniforms - 1e-5).all()
    assert (above - picked < uniforms + 1e-5).all()

    vocab = exactly.processed.shape[1]
    for chunk, peaks in enumerate(np.array(got.chunk_peaks).T):
        expected = exactly.processed[:, chunk * exact.CHUNK : (chunk + 1) * exact.CHUNK].max(axis=-1)
        np.testing.assert_allclose(peaks, expected, rtol=1e-6, atol=1e-6)
    assert chunk == (vocab - 1) // exact.CHUNK


@pytest.mark.parametrize("vocab", VOCABULARIES)
@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16, mx.float16])
def test_agrees_with_float64(vocab: int, dtype: mx.Dtype) -> None:
    rng = np.random.default_rng(vocab)
    logits = mx.array(exact.difficult_rows(vocab, rng)).astype(dtype)
    uniforms = rng.random(logits.shape[0], dtype=np.float32)
    for softcap, temperature in [(SOFTCAP, 0.4083), (None, 0.8)]:
        got = row_statistics(logits, mx.array(uniforms), temperature, softcap)
        exactly = exact.row_statistics(np.array(logits.astype(mx.float32)), temperature, softcap)
        assert_agrees(got, exactly, uniforms)


@pytest.mark.parametrize("rows", [1, 2])
def test_few_rows_are_rows_too(rows: int) -> None:
    """Metal hands inputs of fewer than 8 elements to a kernel in another address space."""
    logits, uniforms = np.linspace(-1, 1, 3 * rows, dtype=np.float32).reshape(rows, 3), np.full(rows, 0.5)
    got = row_statistics(mx.array(logits), mx.array(uniforms, dtype=mx.float32), 0.5, SOFTCAP)
    assert_agrees(got, exact.row_statistics(logits, 0.5, SOFTCAP), uniforms)


def test_strided_logits_are_read_in_their_order() -> None:
    logits = np.random.default_rng(0).normal(size=(40, 9)).astype(np.float32)
    got = row_statistics(mx.array(logits).T, mx.full((9,), 0.3), 1.0, None)
    assert_agrees(got, exact.row_statistics(logits.T, 1.0, None), np.full(9, 0.3))


@pytest.mark.parametrize("uniform", [0.0, 1 - 2**-24])
@pytest.mark.parametrize("possible", [[3, 511, 512, 1200], [1023, 1024], [1024], [0, 4096]])
def test_extreme_uniforms_pick_the_first_and_last_possible_token(uniform: float, possible: list[int]) -> None:
    logits = np.full((1, 4097), -np.inf, dtype=np.float32)
    logits[0, possible] = np.linspace(-3, 3, len(possible))
    sample = row_statistics(mx.array(logits), mx.array([uniform]), 1.0, SOFTCAP).sample.item()
    assert sample == (possible[0] if uniform == 0 else possible[-1])


def test_a_uniform_at_an_edge_belongs_to_the_next_token() -> None:
    got = row_statistics(mx.zeros((4, 4)), mx.array([0.0, 0.25, 0.5, 0.75]), 1.0, None)
    assert np.array(got.sample).tolist() == [0, 1, 2, 3]


def test_parallel_sums_that_rise_where_there_is_no_mass_draw_nothing_there(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MLX's sums on a GPU are rounded in another order at every place; the kernel is guarded alike."""
    cumsum = mx.cumsum

    def uneven(x: mx.array, axis: int) -> mx.array:
        wobble = 1 + 3e-7 * mx.sin(7.0 * mx.arange(x.shape[axis]))
        return cumsum(x, axis=axis) * wobble

    monkeypatch.setattr(mx, "cumsum", uneven)
    rng = np.random.default_rng(3)
    logits = rng.normal(size=(200, 5000)).astype(np.float32)
    logits[rng.random(logits.shape) < 0.7] = -np.inf
    logits[:, 2048:4096] = -np.inf
    logits[:, 4500:] = -np.inf
    for uniform in (1 - 2**-24, 0.5, 0.0):
        sample = np.array(row_statistics(mx.array(logits), mx.full((200,), uniform), 1.0, None).sample)
        assert np.isfinite(logits[np.arange(200), sample]).all()


def test_nothing_without_mass_is_drawn_where_rounding_ends_the_row_early() -> None:
    """The largest uniform meets sums in another order than the total's; some rows end below it."""
    rng = np.random.default_rng(2)
    logits = np.full((64, 4097), -np.inf, dtype=np.float32)
    logits[:, 1030:1900] = rng.normal(size=(64, 870))
    sample = row_statistics(mx.array(logits), mx.full((64,), 1 - 2**-24), 1.0, None).sample
    assert (np.array(sample) >= 1890).all()
    assert (np.array(sample) < 1900).all()


def test_every_token_of_a_row_can_be_drawn_and_where_its_share_begins() -> None:
    """An even row over two chunks: uniform (id + 1/2) / V draws id, on chunk and lane edges too."""
    vocab = 1500
    ids = np.array([0, 1, 3, 4, 31, 127, 128, 511, 512, 1022, 1023, 1024, 1025, 1151, 1152, 1499])
    logits = mx.zeros((len(ids), vocab))
    got = row_statistics(logits, mx.array((ids + 0.5) / vocab, dtype=mx.float32), 0.7, None)
    np.testing.assert_array_equal(np.array(got.sample), ids)


@pytest.mark.parametrize("vocab", [3, 5000])
@pytest.mark.parametrize("softcap", [SOFTCAP, None])
def test_rows_that_are_no_distribution_are_flagged_and_leave_the_others_alone(
    vocab: int, softcap: float | None
) -> None:
    cases = exact.cannot_be_a_distribution()
    logits = np.full((len(cases) + 1, vocab), -np.inf, dtype=np.float32)
    logits[: len(cases), -3:] = list(cases.values())
    logits[-1, :3] = [0.0, 1.0, -np.inf]
    got = row_statistics(mx.array(logits), mx.full((len(logits),), 0.9), 1.0, softcap)
    assert np.array(got.invalid).tolist() == [True] * len(cases) + [False]
    assert np.isnan(np.array(got.entropy)[:-1]).all()
    assert not np.array(got.sample)[:-1].any()
    assert got.sample[-1].item() == got.argmax[-1].item() == 1
    assert got.entropy[-1].item() == pytest.approx(0.5822, abs=1e-3)


def test_logits_that_overflow_when_divided_by_the_temperature_are_flagged() -> None:
    logits = mx.array([[3e38, 0.0], [-3e38, 0.0]])
    got = row_statistics(logits, mx.array([0.5, 0.5]), 0.4, None)
    assert np.array(got.invalid).tolist() == [True, False]
    assert got.sample[1].item() == 1


@pytest.mark.slow
def test_samples_follow_the_distribution(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chi-square over 80,000 draws; 37 degrees of freedom stay below 80 with p < 1e-4 of failing."""
    # The row has one chunk: the emulator need not start 16 simdgroups for each.
    monkeypatch.setitem(row_statistics_kernel.__globals__, "_SIMDGROUPS", 1)
    rng = np.random.default_rng(1)
    logits, draws = rng.normal(size=38).astype(np.float32) * 1.5, 80_000
    expected = exact.row_statistics(logits[None], 0.8, SOFTCAP).probabilities[0] * draws
    observed = np.zeros(38)
    rows = mx.broadcast_to(mx.array(logits), (draws // 20, 38))
    for key in mx.random.split(mx.random.key(3), 20):
        uniforms = mx.random.uniform(shape=(draws // 20,), key=key)
        samples = row_statistics(rows, uniforms, 0.8, SOFTCAP).sample
        observed += np.bincount(np.array(samples), minlength=38)
    assert ((observed - expected) ** 2 / expected).sum() < 80
