"""The memory that macOS lets a GPU hold."""

from __future__ import annotations

import math

_WIRED_SHARES = ((24, 74), (48, 78), (96, 81), (math.inf, 84))  # up to this many GB, percent of memory


def gpu_limit(gigabytes: int) -> int:
    """Bytes that macOS 26 lets the GPU of a Mac with so much memory wire by default (16 GB are 16 * 2**30).

    What Metal recommended on users' Macs, in MB: 12713.12 of 16 GB, 19069.67 of 24, 26800.60 of 32, 30150.67
    of 36, 40200.90 of 48, 55662.79 of 64, 115448.73 of 128. Nobody's 96 GB was seen: the lower share. Up to
    macOS 15 it was two thirds of memory up to 36 GB, three quarters above.
    """
    share = next(share for largest, share in _WIRED_SHARES if gigabytes <= largest)
    return gigabytes * 2**30 * share // 100
