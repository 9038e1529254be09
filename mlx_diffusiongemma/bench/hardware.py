"""The ceilings of a chip: how many bytes and operations a second it can do at most.

Apple's chips are in a table. Everything else, and MLX's CPU backend, is measured here. What a step reaches
raises both, because the table may be wrong and a busy machine slows what measures it.

Bandwidth: Apple's technical specifications. Arithmetic of M1 to M4: GPU cores * 128 FMA a cycle (the same for
fp32 and fp16) * 2 * clock, as metal-benchmarks (Philip Turner) found it. M5: cores * 1024 FLOP of its neural
accelerators a cycle (16-bit input), as Taras Zakharko measured on A19, at 1.6 GHz. Apple publishes no clocks.
These were reported by others and may be off by several per cent. A name stands for its largest configuration:
M3 Max and M4 Max exist with 300 and 410 GB/s, too.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

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
    """Most that a chip can do: GB (10^9 bytes) and TFLOP a second.

    source: "table"; "measured"; or "exceeded", a table's values that were raised by what was reached.
    """

    chip: str
    bandwidth_gb_per_second: float
    arithmetic_tflop_per_second: float
    source: str

    def raised(self, bandwidth: float, arithmetic: float) -> Ceilings:
        """These ceilings, or what was reached where that is more."""
        most = replace(
            self,
            bandwidth_gb_per_second=max(self.bandwidth_gb_per_second, bandwidth),
            arithmetic_tflop_per_second=max(self.arithmetic_tflop_per_second, arithmetic),
        )
        return replace(most, source="exceeded") if self.source == "table" and most != self else most


def ceilings(dtype: mx.Dtype) -> Ceilings:
    """Return those of MLX's default device. For a chip that is not in the table, `probe` measures them."""
    device = mx.default_device()
    # A backend that is not built has no device_name.
    chip = str(mx.device_info(device).get("device_name", "unknown"))
    known = from_table(chip) if device.type == mx.DeviceType.gpu else None  # the table is of GPUs
    return known or Ceilings(chip, *probe(dtype), "measured")


def probe(dtype: mx.Dtype) -> tuple[float, float]:
    """GB/s and TFLOP/s of simple operations, the latter in `dtype`. Takes about a second."""
    return _bandwidth(), _arithmetic(dtype)


def from_table(chip: str) -> Ceilings | None:
    """Ceilings of "Apple M4 Max" and the like, or None if the chip is not in the table."""
    name = re.fullmatch(r"Apple (M\d+(?: (?:Pro|Max|Ultra))?)", chip)
    if name is None or name[1] not in _CHIPS:
        return None
    bandwidth, cores, gigahertz = _CHIPS[name[1]]
    flop = _FLOP_A_CYCLE_M5 if name[1].startswith("M5") else _FLOP_A_CYCLE
    return Ceilings(chip, bandwidth, cores * flop * gigahertz / 1e3, "table")


def _bandwidth() -> float:
    """GB/s of the faster of a sum, which reads, and a negation, which reads and writes.

    MLX would not make a copy without need.
    """
    array = mx.zeros((_COPIED_BYTES // 4,))
    mx.eval(array)
    seconds = min(_shortest(lambda: array.sum()), _shortest(lambda: -array) / 2)
    return array.nbytes / seconds / 1e9


def _arithmetic(dtype: mx.Dtype) -> float:
    """TFLOP/s of a square matrix product, the best of sizes up to one that takes a while."""
    size, best = 256, 0.0
    while True:
        matrix = mx.full((size, size), 0.5, dtype=dtype)
        seconds = _shortest(lambda matrix=matrix: matrix @ matrix)  # type: ignore[misc]
        best = max(best, 2.0 * size**3 / seconds / 1e12)
        if seconds > _LEAST_SECONDS or size == _LARGEST_MATRIX:
            return best
        size *= 2


def _shortest(operation: Callable[[], mx.array]) -> float:
    """Return the seconds of the fastest of a few runs, after one that is not timed."""
    mx.eval(operation())
    times = []
    for _ in range(_TIMED_RUNS):
        start = time.perf_counter()
        mx.eval(operation())
        times.append(time.perf_counter() - start)
    return min(times)
