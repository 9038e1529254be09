"""95% confidence intervals for shares, differences of shares and medians, in closed form.

They assume independent answers. They tell what to expect from other seeds, but not from other tasks.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

_Z = 1.959964  # 97.5% quantile of the normal distribution

Interval = tuple[float, float]


def wilson(right: int, total: int) -> Interval:
    """Return the interval of the share right / total (Wilson 1927). It is 0 to 1 if the total is 0."""
    if total == 0:
        return 0.0, 1.0
    share, z2 = right / total, _Z * _Z
    center = share + z2 / (2 * total)
    spread = _Z * math.sqrt(share * (1 - share) / total + z2 / (4 * total * total))
    low, high = ((center + sign * spread) / (1 + z2 / total) for sign in (-1, 1))
    return max(0.0, low), min(1.0, high)


def paired_difference(pairs: Sequence[tuple[bool, bool]]) -> tuple[float, Interval]:
    """Return the share of True among second values minus the share among first values, and its interval.

    The interval is method 10 of Newcombe 1998. It is wider than 0 even if both values of each pair are equal.
    """
    total = len(pairs)
    if total == 0:
        return 0.0, (-1.0, 1.0)
    both, first_only = pairs.count((True, True)), pairs.count((True, False))
    second_only, neither = pairs.count((False, True)), pairs.count((False, False))
    first, second = (both + first_only) / total, (both + second_only) / total
    (low1, high1), (low2, high2) = wilson(both + first_only, total), wilson(both + second_only, total)
    margins = (both + first_only) * (second_only + neither) * (both + second_only) * (first_only + neither)
    phi = 0.0
    if margins:
        covariance: float = both * neither - first_only * second_only
        if covariance > 0:  # Newcombe's continuity correction
            covariance = max(covariance - total / 2, 0)
        phi = covariance / math.sqrt(margins)
    down, up = (second - low2, high1 - first), (high2 - second, first - low1)
    low, high = (math.sqrt(max(0.0, a * a - 2 * phi * a * b + b * b)) for a, b in (down, up))
    difference = second - first
    return difference, (max(-1.0, difference - low), min(1.0, difference + high))


def median_interval(values: Sequence[float]) -> tuple[float, Interval | None]:
    """Return the median and its interval from order statistics. The interval is None below six values."""
    ordered, count = sorted(values), len(values)
    median = (ordered[(count - 1) // 2] + ordered[count // 2]) / 2
    # The k-th lowest to k-th highest value miss the median if under k values are on one side of it: binomial.
    tail, k = 0.0, 0
    while k < count:
        log_ways = math.lgamma(count + 1) - math.lgamma(k + 1) - math.lgamma(count - k + 1)
        tail += math.exp(log_ways - count * math.log(2))
        if 2 * tail > 0.05:
            break
        k += 1
    return median, (ordered[k - 1], ordered[count - k]) if k else None
