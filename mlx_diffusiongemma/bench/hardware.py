"""The ceilings of a chip: the highest numbers of bytes and of operations per second.

Apple's chips are in a table. Other chips, and MLX's CPU backend, are measured. If a step is faster than a
ceiling, the ceiling is raised, because the table may be wrong and a busy machine slows the measurement.

Bandwidth is from Apple's technical specifications. Arithmetic of M1 to M4 is GPU cores * 128 FMA per cycle
(the same for fp32 and fp16) * 2 * clock, from metal-benchmarks (Philip Turner). Arithmetic of M5 is cores *
1024 FLOP per cycle of its neural accelerators (16-bit input), measured by Taras Zakharko on A19, at 1.6 GHz.
Apple does not publish clocks. The clocks here are reports by others and may be wrong by several per cent.
Each entry is the largest configuration of its name. M3 Max and M4 Max also exist with 300 and 410 GB/s.
"""

from __future__ import annotations

import re
import timeit
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
_FLOP_A_CYCLE, _FLOP_A_CYCLE_M5 = 2 * 128, 1024  # per core

_COPIED_BYTES = 2**27  # larger than any cache
_LEAST_SECONDS, _LARGEST_MATRIX = 0.03, 8192  # products that take less time do not reach the chip's speed
_TIMED_RUNS = 3


@dataclass(frozen=True)
class Ceilings:
    """Highest numbers of GB (10^9 bytes) and TFLOP per second of a chip.

    source: "table", "measured", or "exceeded" for values of the table that a step exceeded.
    """

    chip: str
    bandwidth_gb_per_second: float
    arithmetic_tflop_per_second: float
    source: str

    def raised(self, bandwidth: float, arithmetic: float) -> Ceilings:
        """Return these ceilings, each raised to the speed in the argument if that is higher."""
        most = replace(
            self,
            bandwidth_gb_per_second=max(self.bandwidth_gb_per_second, bandwidth),
            arithmetic_tflop_per_second=max(self.arithmetic_tflop_per_second, arithmetic),
        )
        return replace(most, source="exceeded") if self.source == "table" and most != self else most


def ceilings(dtype: mx.Dtype) -> Ceilings:
    """Return the ceilings of MLX's default device. A chip that is not in the table is measured by `probe`."""
    device = mx.default_device()
    # A backend that is not built in has no device_name.
    chip = str(mx.device_info(device).get("device_name", "unknown"))
    known = from_table(chip) if device.type == mx.DeviceType.gpu else None  # the table lists GPUs
    return known or Ceilings(chip, *probe(dtype), "measured")


def probe(dtype: mx.Dtype) -> tuple[float, float]:
    """Measure and return GB/s and, for `dtype`, TFLOP/s of simple operations. Takes about a second."""
    return _bandwidth(), _arithmetic(dtype)


def from_table(chip: str) -> Ceilings | None:
    """Return the ceilings of a chip such as "Apple M4 Max", or None if it is not in the table."""
    name = re.fullmatch(r"Apple (M\d+(?: (?:Pro|Max|Ultra))?)", chip)
    if name is None or name[1] not in _CHIPS:
        return None
    bandwidth, cores, gigahertz = _CHIPS[name[1]]
    flop = _FLOP_A_CYCLE_M5 if name[1].startswith("M5") else _FLOP_A_CYCLE
    return Ceilings(chip, bandwidth, cores * flop * gigahertz / 1e3, "table")


def _bandwidth() -> float:
    """Measure a sum, which reads, and a negation, which reads and writes. Return the higher GB/s.

    A plain copy cannot be measured, because MLX copies an array only if it must.
    """
    array = mx.zeros((_COPIED_BYTES // 4,))
    mx.eval(array)
    seconds = min(_shortest(lambda: array.sum()), _shortest(lambda: -array) / 2)
    return array.nbytes / seconds / 1e9


def _arithmetic(dtype: mx.Dtype) -> float:
    """Return the highest TFLOP/s of square matrix products of growing size."""
    size, best = 256, 0.0
    while True:
        matrix = mx.full((size, size), 0.5, dtype=dtype)
        seconds = _shortest(lambda matrix=matrix: matrix @ matrix)  # type: ignore[misc]
        best = max(best, 2.0 * size**3 / seconds / 1e12)
        if seconds > _LEAST_SECONDS or size == _LARGEST_MATRIX:
            return best
        size *= 2


def _shortest(operation: Callable[[], mx.array]) -> float:
    """Return the seconds of the fastest of a few runs, after one run that is not timed."""
    mx.eval(operation())
    return min(timeit.repeat(lambda: mx.eval(operation()), repeat=_TIMED_RUNS, number=1))
