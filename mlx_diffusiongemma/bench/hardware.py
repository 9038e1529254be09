"""The ceilings of a chip: how many bytes and operations a second it can do at most.

Of Apple's chips from a table, of everything else (and of MLX's CPU backend) measured here.

Bandwidth: Apple's technical specifications. Arithmetic of M1 to M4: GPU cores * 128 FMA a cycle (the same for
fp32 and fp16) * 2 * clock, as metal-benchmarks (Philip Turner) found it; of M5: cores * 1024 FLOP of its
neural accelerators a cycle (16-bit input), as Taras Zakharko measured on A19, at 1.6 GHz. Apple publishes no
clocks; these were reported by others and may be off by several per cent. A name stands for its largest
configuration: of M3 Max and M4 Max there are smaller ones with 300 and 410 GB/s.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import dataclass

import mlx.core as mx

# "M4 Max" -> (GB/s, GPU cores, GHz)
_CHIPS: dict[str, tuple[float, int, float]] = {
    "M1": (68, 8, 1.278),
    "M1 Pro": (200, 16, 1.296),
    "M1 Max": (400, 32, 1.296),
    "M1 Ultra": (800, 64, 1.296),
    "M2": (100, 10, 1.398),
    "M2 Pro": (200, 19, 1.398),
    "M2 Max": (400, 38, 1.398),
    "M2 Ultra": (800, 76, 1.398),
    "M3": (100, 10, 1.398),
    "M3 Pro": (150, 18, 1.398),
    "M3 Max": (400, 40, 1.398),
    "M3 Ultra": (819, 80, 1.398),
    "M4": (120, 10, 1.578),
    "M4 Pro": (273, 20, 1.578),
    "M4 Max": (546, 40, 1.678),
    "M5": (153, 10, 1.6),
    "M5 Pro": (307, 20, 1.6),
    "M5 Max": (614, 40, 1.6),
}
_FLOP_A_CYCLE, _FLOP_A_CYCLE_M5 = 2 * 128, 1024  # of a core

_COPIED_BYTES = 2**27  # larger than any cache
_LEAST_SECONDS, _LARGEST_MATRIX = 0.03, 8192  # shorter runs say little about the chip
_TIMED_RUNS = 3


@dataclass(frozen=True)
class Ceilings:
    """Of a chip: GB (10^9 bytes) and TFLOP a second; source is "table" or "measured"."""

    chip: str
    bandwidth_gb_per_second: float
    arithmetic_tflop_per_second: float
    source: str


def ceilings(dtype: mx.Dtype) -> Ceilings:
    """Those of MLX's default device; measured ones, of a matrix product in `dtype`, take about a second."""
    device = mx.default_device()
    # A backend that is not built has no device_name.
    chip = str(mx.device_info(device).get("device_name", "unknown"))
    known = from_table(chip) if device.type == mx.DeviceType.gpu else None  # the table is of GPUs
    return known or Ceilings(chip, _bandwidth(), _arithmetic(dtype), "measured")


def from_table(chip: str) -> Ceilings | None:
    """What the table says of "Apple M4 Max" and the like; None when it does not know the chip."""
    name = re.fullmatch(r"Apple (M\d+(?: (?:Pro|Max|Ultra))?)", chip)
    if name is None or name[1] not in _CHIPS:
        return None
    bandwidth, cores, gigahertz = _CHIPS[name[1]]
    flop = _FLOP_A_CYCLE_M5 if name[1].startswith("M5") else _FLOP_A_CYCLE
    return Ceilings(chip, bandwidth, cores * flop * gigahertz / 1e3, "table")


def _bandwidth() -> float:
    """GB/s of a negation, which reads and writes as a copy does (MLX would not copy without need)."""
    array = mx.zeros((_COPIED_BYTES // 4,))
    mx.eval(array)
    return 2 * array.nbytes / _shortest(lambda: -array) / 1e9


def _arithmetic(dtype: mx.Dtype) -> float:
    """TFLOP/s of a square matrix product, of a size that takes a while."""
    size = 256
    while True:
        matrix = mx.full((size, size), 0.5, dtype=dtype)
        seconds = _shortest(lambda matrix=matrix: matrix @ matrix)  # type: ignore[misc]
        if seconds > _LEAST_SECONDS or size == _LARGEST_MATRIX:
            return 2.0 * size**3 / seconds / 1e12
        size *= 2


def _shortest(operation: Callable[[], mx.array]) -> float:
    """Seconds of the fastest of a few runs, after one that is not timed."""
    mx.eval(operation())
    times = []
    for _ in range(_TIMED_RUNS):
        start = time.perf_counter()
        mx.eval(operation())
        times.append(time.perf_counter() - start)
    return min(times)
