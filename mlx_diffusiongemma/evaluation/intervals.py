"""Intervals for shares, differences of shares and medians: closed forms, 95 %.

They take answers as independent: they tell what other seeds would give on the same tasks, not what other
tasks would.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

_Z = 1.959964  # the normal distribution's 97.5 % quantile

Interval = tuple[float, float]


def wilson(right: int, total: int) -> Interval:
    """Of the share right / total (Wilson 1927); 0 to 1 when there is nothing to count."""
    if total == 0:
        return 0.0, 1.0
    share, z2 = right / total, _Z * _Z
    center = share + z2 / (2 * total)
    spread = _Z * math.sqrt(share * (1 - share) / total + z2 / (4 * total * total))
    low, high = ((center + sign * spread) / (1 + z2 / total) for sign in (-1, 1))
    return max(0.0, low), min(1.0, high)


def paired_difference(pairs: Sequence[tuple[bool, bool]]) -> tuple[float, Interval]:
    """Of the shares of True, second less first, and its interval (Newcombe 1998, method 10).

    The more the two agree, beyond what chance would have it, the narrower. Unlike the textbook's it has a
    width when no pair differs.
    """
    total = len(pairs)
    if total == 0:
        return 0.0, (-1.0, 1.0)
    both, first_only = pairs.count((True, True)), pairs.count((True, False))
    second_only, neither = pairs.count((False, True)), pairs.count((False, False))
    first, second = (both + first_only) / total, (both + second_only) / total
    low1, high1 = wilson(both + first_only, total)
    low2, high2 = wilson(both + second_only, total)
    margins = (both + first_only) * (second_only + neither) * (both + second_only) * (first_only + neither)
    phi = 0.0
    if margins:
        covariance: float = both * neither - first_only * second_only
        if covariance > 0:  # Newcombe's continuity correction
            covariance = max(covariance - total / 2, 0)
        phi = covariance / math.sqrt(margins)
    down2, up2 = second - low2, high2 - second
    down1, up1 = first - low1, high1 - first
    low = math.sqrt(max(0.0, down2 * down2 - 2 * phi * down2 * up1 + up1 * up1))
    high = math.sqrt(max(0.0, up2 * up2 - 2 * phi * up2 * down1 + down1 * down1))
    difference = second - first
    return difference, (max(-1.0, difference - low), min(1.0, difference + high))


def median_interval(values: Sequence[float]) -> tuple[float, Interval | None]:
    """The median and its interval from order statistics, whatever the distribution; None below six values."""
    ordered = sorted(values)
    count = len(ordered)
    median = (ordered[(count - 1) // 2] + ordered[count // 2]) / 2
    # The k-th lowest and highest miss the median with the binomial probability of fewer than k on one side.
    tail, k = 0.0, 0
    while k < count:
        tail += math.exp(_log_binomial(count, k) - count * math.log(2))
        if 2 * tail > 0.05:
            break
        k += 1
    return median, (ordered[k - 1], ordered[count - k]) if k else None


def _log_binomial(n: int, k: int) -> float:
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)
