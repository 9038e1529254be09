"""The Metal kernels against the MLX operations that define them, on this device.

A spot check, on inputs where a mistake would show: the tests hold both against float64 on many more. Here
they are held against each other, and may differ by what the tests allow the two together. Times are shown and
judge nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import mlx.core as mx

from ..display.tables import aligned
from ..memory import usable_memory
from ..ops import enabled, metal
from .sheet import Sheet, first_line
from .trials import FEWEST_ROWS, TRIALS, Shape

_SMALL, _REAL = Shape(FEWEST_ROWS, 4097, 192), Shape(256, 262144, 2816)
_TIMED_RUNS = 3
_BYTES_A_LOGIT = 24  # what row_statistics_reference holds, logits included; 20 were measured on a CPU
_TO_DO = "run with MLX_DG_KERNELS=off until it is mended, and please report it with this text"


class _Line(NamedTuple):
    kernel: str
    shape: str
    dtype: str
    compared: str
    difference: str
    allowed: str
    kernel_ms: str
    reference_ms: str


_HEADINGS = _Line("kernel", "shape", "dtype", "compared", "difference", "allowed", "kernel ms", "MLX ms")


def check(sheet: Sheet) -> None:
    ok, reason = metal.available()
    if not ok:
        sheet.lines += [f"not checked: {reason}", "MLX operations are used instead"]
        enabled()  # raises when the kernels are asked for nevertheless
        return
    lines = [_HEADINGS]
    for name, (_, dtypes) in TRIALS.items():
        for shape in (_SMALL, _affordable(_REAL)):
            for dtype in dtypes:
                try:
                    lines += _compared(sheet, name, shape, dtype)
                except Exception as error:
                    place = f"kernel {name} at {shape}, {_short(dtype)}"
                    sheet.problems.append(f"{place}: {first_line(error)}; {_TO_DO}")
                    lines.append(_Line(name, str(shape), _short(dtype), "failed, see below", *[""] * 4))
                finally:
                    mx.clear_cache()
    sheet.lines += aligned(lines, left=4).splitlines()
    sheet.lines.append("a spot check: the package's tests compare them on more inputs")
    sheet.lines.append(f"generations use {'the kernels' if enabled() else 'MLX operations'}")


def _compared(sheet: Sheet, name: str, shape: Shape, dtype: mx.Dtype) -> Iterator[_Line]:
    trial = TRIALS[name][0](shape, dtype)
    differences = trial.compare(trial.kernel(), trial.reference())
    times = [f"{_milliseconds(run):.2f}" for run in (trial.kernel, trial.reference)]
    for what, found, allowed in differences:
        if not found <= allowed:  # NaN neither
            sheet.problems.append(
                f"kernel {name} at {trial.size}, {_short(dtype)}: {what} differs by {found:.2g} from MLX's "
                f"operations, allowed is {allowed:.2g}; {_TO_DO}"
            )
        yield _Line(name, trial.size, _short(dtype), what, f"{found:.2g}", f"{allowed:.2g}", *times)
        times = ["", ""]


def _affordable(shape: Shape) -> Shape:
    """With fewer rows where the reference's intermediates would take more than half of the memory."""
    usable = usable_memory()
    if usable is None:
        return shape
    return shape._replace(
        rows=max(FEWEST_ROWS, min(shape.rows, usable // 2 // (_BYTES_A_LOGIT * shape.vocab)))
    )


def _milliseconds(run: Callable[[], Any]) -> float:
    """Of the fastest of a few runs; it has run before."""
    times = []
    for _ in range(_TIMED_RUNS):
        start = time.perf_counter()
        mx.eval(run())
        times.append(time.perf_counter() - start)
    return 1e3 * min(times)


def _short(dtype: mx.Dtype) -> str:
    return str(dtype).rpartition(".")[2]
