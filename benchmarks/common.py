"""Command line and memory reading that the benchmarks share."""

from __future__ import annotations

import argparse
import importlib.util
import resource
from pathlib import Path
from typing import Any


def parse(
    parser: argparse.ArgumentParser, smoke: dict[str, Any], needs_mlx_vlm: bool = False
) -> argparse.Namespace:
    """Parse the command line. Exits with status 2 for a wrong option, a number below 1 or a missing mlx-vlm.

    smoke: defaults that `--smoke` sets. A run with them takes seconds. It shows that the script works, but
    its figures mean nothing.
    """
    parser.add_argument("--smoke", action="store_true", help="tiny sizes, to see in seconds that it works")
    if parser.parse_args().smoke:
        parser.set_defaults(**smoke)
    options = parser.parse_args()
    for name, value in vars(options).items():
        if type(value) is int and value < 1:
            parser.error(f"--{name.replace('_', '-')} must be at least 1, found {value}")
    if needs_mlx_vlm and importlib.util.find_spec("mlx_vlm") is None:
        parser.error("mlx-vlm is missing; pip install mlx-vlm==0.7.10 to compare with it")
    return options


def resident_bytes(peak: bool = False) -> int:
    """Return the resident memory of this process, or its peak. Without /proc, always return the peak."""
    status = Path("/proc/self/status")
    if status.exists():  # on Linux, ru_maxrss starts at the parent's memory
        name = "VmHWM:" if peak else "VmRSS:"
        (line,) = (line for line in status.read_text().splitlines() if line.startswith(name))
        return 1024 * int(line.split()[1])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # in bytes on a Mac
