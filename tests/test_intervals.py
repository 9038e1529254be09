"""Intervals against published values and exactly computed coverage."""

from __future__ import annotations

import math
from itertools import product

import pytest

from mlx_diffusiongemma.evaluation.intervals import median_interval, paired_difference, wilson


@pytest.mark.parametrize(
    ("right", "total", "low", "high"),
    [
        # Newcombe 1998, "Two-sided confidence intervals for the single proportion", table I, method 3
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
        (20, 20, 1 - 0.1611, 1.0),
        (0, 0, 0.0, 1.0),
    ],
)
def test_a_share(right, total, low, high):
    assert wilson(right, total) == pytest.approx((low, high), abs=5e-5)


def pairs(both, first_only, second_only, neither):
    kinds = {
        (True, True): both,
        (True, False): first_only,
        (False, True): second_only,
        (False, False): neither,
    }
    return [kind for kind, count in kinds.items() for _ in range(count)]


def test_a_published_difference():
    # Newcombe 1998, "Improved confidence intervals for the difference between binomial proportions based on
    # paired data", 36 / 12 / 2 / 0, method 10; there it is the first less the second.
    difference, (low, high) = paired_difference(pairs(36, 12, 2, 0))
    assert (difference, low, high) == pytest.approx((-0.2, -0.3404, -0.0569), abs=5e-5)


def test_a_difference_turns_with_its_sides():
    forward, (low, high) = paired_difference(pairs(9, 5, 2, 4))
    backward, (other_low, other_high) = paired_difference(pairs(9, 2, 5, 4))
    assert (forward, low, high) == pytest.approx((-backward, -other_high, -other_low))


def test_no_pairs_say_nothing_and_equal_ones_not_everything():
    assert paired_difference([]) == (0.0, (-1.0, 1.0))
    difference, (low, high) = paired_difference(pairs(10, 0, 0, 10))
    assert difference == 0
    assert low < 0 < high


@pytest.mark.parametrize("chances", [(0.4, 0.2, 0.1, 0.3), (0.6, 0.05, 0.15, 0.2), (0.05, 0.05, 0.1, 0.8)])
def test_a_difference_is_covered_as_often_as_promised(chances):
    total, covered = 18, 0.0
    for a, b, c in product(range(total + 1), repeat=3):
        if (d := total - a - b - c) < 0:
            continue
        log = math.lgamma(total + 1) - sum(math.lgamma(n + 1) for n in (a, b, c, d))
        log += sum(n * math.log(p) for n, p in zip((a, b, c, d), chances, strict=True))
        _, (low, high) = paired_difference(pairs(a, b, c, d))
        covered += math.exp(log) * (low <= chances[2] - chances[1] <= high)
    assert 0.93 < covered < 0.995


@pytest.mark.parametrize("count", [6, 7, 9, 18, 60])
def test_a_median_is_covered_as_often_as_promised_and_no_wider(count):
    median, interval = median_interval(range(1, count + 1))
    assert median == (count + 1) / 2
    assert interval is not None
    low, high = interval

    def missed(k):  # by the k-th lowest and highest: fewer than k values on one side of the true median
        return 2 * sum(math.comb(count, i) for i in range(k)) / 2**count

    assert low + high == count + 1
    assert missed(low) <= 0.05 < missed(low + 1)


def test_five_values_have_a_median_and_no_interval():
    assert median_interval([5, 1, 4, 2, 3]) == (3, None)
