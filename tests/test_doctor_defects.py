"""That the inputs of `mlx_dg doctor` show mistakes in kernels that only ties, bounds and edges show, and that
nothing in them hangs on rounding, which another device does otherwise."""

from __future__ import annotations

import math

import exact
import mlx.core as mx
import numpy as np
import pytest
from emulator import KernelFault
from kernel_defects import DEFECTS
from kernel_paths import ON_METAL, plug_in_emulator

from mlx_diffusiongemma.doctor.kernels import TRIALS, Shape
from mlx_diffusiongemma.ops import FREE, TOLERANCE
from mlx_diffusiongemma.ops.trials import FEWEST_ROWS, Trial, _difference

# Sizes of tests in test_kernels.py, where they can be: for these the broken kernels are built already.
CANVAS, FEW_CHUNKS = Shape(255, 1100, 64), Shape(FEWEST_ROWS, 5000, 64)
SMALL = Shape(FEWEST_ROWS, 1100, 64)
MANY_CHUNKS = Shape(FEWEST_ROWS, 70000, 64)
FAULTS = ("read outside of", "embedding.* was never written")  # the emulator sees these by itself
WIDE = Shape(FEWEST_ROWS, 1100, 2112)


def trial(kernel: str, shape: Shape, dtype: mx.Dtype = mx.float32) -> Trial:
    return TRIALS[kernel][0](shape, dtype)


@pytest.mark.skipif(ON_METAL, reason="broken kernels are for the emulator; runs wherever there is no Metal")
@pytest.mark.parametrize(
    ("kernel", "defect", "shape", "what"),
    [
        ("row_statistics", "tie goes to the run's last chunk", MANY_CHUNKS, "argmax of equal logits, rows"),
        ("row_statistics", "a target that is just reached", FEW_CHUNKS, "sample at an edge, rows"),
        ("row_statistics", "samples without mass", FEW_CHUNKS, "sample at an edge, rows"),
        *(
            ("accept_and_renoise", defect, CANVAS, "ids, masks and counts, values")
            for defect in (
                "tie goes to the highest",
                "bound not reached",
                "one position too few",
                "pinned ones change the argmax",
                "mean at the threshold",
            )
        ),
        ("soft_embedding", "one token too many", SMALL, FAULTS[0]),
        ("soft_embedding", "looks ahead once only", MANY_CHUNKS, "left out, probability"),
        ("soft_embedding", "first packs only", WIDE, FAULTS[1]),
        ("soft_embedding", "threshold off by 0.2 nats", SMALL, "left out of a tail, probability"),
        ("soft_embedding", "rows not covered are summed", SMALL, "flat rows that are summed"),
    ],
)
def test_a_mistake_that_only_a_tie_or_an_edge_shows(
    kernel: str, defect: str, shape: Shape, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = DEFECTS[kernel][defect]
    plug_in_emulator(monkeypatch, edits={kernel: lambda source: source.replace(old, new)})
    made = trial(kernel, shape)
    if what in FAULTS:
        with pytest.raises(KernelFault, match=what):
            made.kernel()
    else:
        differences = made.compare(made.kernel(), made.reference())
        assert what in [name for name, found, allowed in differences if not found <= allowed]


@pytest.mark.parametrize("length", [FEWEST_ROWS, 40, 85, 256])
def test_sums_of_entropies_are_exact_and_no_mean_is_near_the_threshold_by_chance(length: int) -> None:
    proposal, _, pins, _, bounds = trial("accept_and_renoise", Shape(length, 262144, 64)).kernel.args  # type: ignore[attr-defined]
    entropies, free = np.array(proposal.entropies), np.array(pins) == FREE
    units = (entropies.astype(np.float64) * 2**18).astype(np.int64)
    assert (units == entropies.astype(np.float64) * 2**18).all()
    assert (units.sum(axis=1) / np.gcd.reduce(units, axis=1) < 2**24).all()  # float32 holds every sum
    means = np.array([row[where].mean() for row, where in zip(entropies, free, strict=True)])
    assert (free[-1].sum(), means[-1]) == (1, bounds.confidence_threshold)
    assert (np.abs(means[:-1] / bounds.confidence_threshold - 1) > 1e-3).all()
    accepted = np.array(trial("accept_and_renoise", Shape(length, 262144, 64)).reference().accepted)
    for row, values, where in zip(accepted, entropies, free, strict=True):
        np.testing.assert_array_equal(row, exact.accepted(values, ~where, bounds.entropy_bound))


@pytest.mark.parametrize("vocab", [1100, 4097, 262144])
@pytest.mark.parametrize("dtype", [mx.bfloat16, mx.float32])
def test_the_tail_is_well_above_the_threshold_and_would_be_missed(vocab: int, dtype: mx.Dtype) -> None:
    logits, _, temperature, softcap, *_ = trial("soft_embedding", Shape(4, vocab, 64), dtype).kernel.args  # type: ignore[attr-defined]
    p = exact.row_statistics(np.array(logits[-2:-1].astype(mx.float32)), temperature, softcap).probabilities[
        0
    ]
    limit = min(2048, vocab // 16)
    nats = np.log(p * limit / TOLERANCE)
    tail = (nats > -1) & (p < 0.5)
    assert 0.04 < nats[tail].min() <= nats[tail].max() < 0.15
    assert tail.sum() < limit
    assert TOLERANCE / 2 < p[tail].sum() < TOLERANCE  # more than twice what is allowed
    assert math.isclose(p.sum() - p[tail].sum() - p.max(), 0, abs_tol=1e-7)


@pytest.mark.parametrize("vocab", [1100, 4097, 262144])
def test_even_tokens_weigh_exactly_the_same(vocab: int) -> None:
    """A uniform of a half is where the third of four begins; none exceeds 1."""
    found = trial("row_statistics", Shape(FEWEST_ROWS, vocab, 64)).reference()
    assert np.array(found.sample)[6:8].tolist() == [vocab // 2 + 1, vocab - 5]


@pytest.mark.parametrize(
    ("got", "differs"),
    [([-math.inf, 1.0], False), ([-math.inf, 2.0], True), ([0.0, 1.0], True), ([math.nan, 1.0], True)],
)
def test_equal_infinities_are_no_difference_and_allow_none(got: list[float], differs: bool) -> None:
    found = _difference("peaks", np.array(got), np.array([-math.inf, 1.0]), atol=0.1, rtol=0.1)
    assert (found.found <= found.allowed) != differs
