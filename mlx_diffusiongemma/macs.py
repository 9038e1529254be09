"""The memory that macOS lets a GPU use."""

from __future__ import annotations

import math

_WIRED_SHARES = ((24, 74), (48, 78), (96, 81), (math.inf, 84))  # (largest memory in GB, percent of it)


def gpu_limit(gigabytes: int) -> int:
    """Return the bytes that macOS 26 lets the GPU of a Mac wire by default.

    Metal's recommendations on users' Macs, in MB: 12713.12 of 16 GB, 19069.67 of 24, 26800.60 of 32, 30150.67
    of 36, 40200.90 of 48, 55662.79 of 64, 115448.73 of 128. No value is known for 96 GB, which gets the share
    of 64 GB. Up to macOS 15 the share was two thirds for up to 36 GB and three quarters above.

    gigabytes: memory of the Mac, in units of 2**30 bytes.
    """
    share = next(share for largest, share in _WIRED_SHARES if gigabytes <= largest)
    return gigabytes * 2**30 * share // 100
