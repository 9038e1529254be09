"""The Metal kernels against the MLX operations that define them, on this device.

A spot check, on inputs where a mistake would show. The package's tests compare both with float64 on many
more. Here they are compared with each other, and may differ by what the tests allow the two together. Times
are shown and judge nothing. A kernel that a generation has switched off is compared all the same.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import mlx.core as mx
import mlx.nn as nn

from ..console.tables import aligned
from ..engine.memory import usable_memory
from ..ops import metal
from ..ops.trials import (
    FEWEST_ROWS,
    Trial,
    accept_and_renoise_trial,
    row_statistics_trial,
    soft_embedding_trial,
)
from .sheet import Sheet, first_line


class Shape(NamedTuple):
    """rows: positions of a canvas. width: of an embedding."""

    rows: int
    vocab: int
    width: int

    def __str__(self) -> str:
        return f"{self.rows} x {self.vocab}"


def _random_table(shape: Shape, dtype: mx.Dtype) -> nn.QuantizedEmbedding:
    """An embedding in 8 bits, as in the default recipe, of values up to 1/32."""
    group, bits = 64, 8
    table: Any = nn.QuantizedEmbedding(shape.vocab, shape.width, group, bits)  # its own values stay lazy
    words = mx.random.randint(-(2**31), 2**31 - 1, table.weight.shape, key=mx.random.key(4))
    table.weight = words.view(mx.uint32)
    steps = 2.0**-12 * mx.random.uniform(0.5, 1, table.scales.shape, key=mx.random.key(5))
    table.scales, table.biases = steps.astype(dtype), (-(2**bits - 1) / 2 * steps).astype(dtype)
    mx.eval(table.parameters())
    return table


def _soft_embedding_trial(shape: Shape, dtype: mx.Dtype) -> Trial:
    return soft_embedding_trial(shape.rows, _random_table(shape, dtype), dtype, dtype)


# Kernel -> how its trial is made, and the dtypes to try
TRIALS: dict[str, tuple[Callable[[Shape, mx.Dtype], Trial], tuple[mx.Dtype, ...]]] = {
    "row_statistics": (
        lambda shape, dtype: row_statistics_trial(shape.rows, shape.vocab, dtype),
        (mx.bfloat16, mx.float32),
    ),
    "accept_and_renoise": (
        lambda shape, _: accept_and_renoise_trial(shape.rows, shape.vocab),
        (mx.float32,),
    ),
    "soft_embedding": (_soft_embedding_trial, (mx.bfloat16, mx.float32)),
}

_SMALL, _REAL = Shape(FEWEST_ROWS, 4097, 192), Shape(256, 262144, 2816)
_TIMED_RUNS = 3
_BYTES_A_LOGIT = 24  # what row_statistics_reference holds, logits included; 20 were measured on a CPU
_TO_DO = "set MLX_DG_KERNELS=off until this is fixed, and please report it with this text"


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
        metal.enabled()  # raises if MLX_DG_KERNELS is on
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
    sheet.lines.append(f"generations use {'the kernels' if metal.enabled() else 'MLX operations'}")


def _compared(sheet: Sheet, name: str, shape: Shape, dtype: mx.Dtype) -> Iterator[_Line]:
    trial = TRIALS[name][0](shape, dtype)
    differences = trial.compare(trial.kernel(), trial.reference())
    times = [f"{_milliseconds(run):.2f}" for run in (trial.kernel, trial.reference)]
    for difference in differences:
        what, found, allowed = difference
        if difference.is_too_large:
            sheet.problems.append(
                f"kernel {name} at {trial.size}, {_short(dtype)}: {what} differs by {found:.2g} from MLX's "
                f"operations, allowed is {allowed:.2g}; {_TO_DO}"
            )
        yield _Line(name, trial.size, _short(dtype), what, f"{found:.2g}", f"{allowed:.2g}", *times)
        times = ["", ""]


def _affordable(shape: Shape) -> Shape:
    """The same shape with fewer rows where the reference would take more than half of the memory."""
    usable = usable_memory()
    if usable is None:
        return shape
    return shape._replace(
        rows=max(FEWEST_ROWS, min(shape.rows, usable // 2 // (_BYTES_A_LOGIT * shape.vocab)))
    )


def _milliseconds(run: Callable[[], Any]) -> float:
    """Time of the fastest of a few runs. It has run before."""
    times = []
    for _ in range(_TIMED_RUNS):
        start = time.perf_counter()
        mx.eval(run())
        times.append(time.perf_counter() - start)
    return 1e3 * min(times)


def _short(dtype: mx.Dtype) -> str:
    return str(dtype).rpartition(".")[2]
