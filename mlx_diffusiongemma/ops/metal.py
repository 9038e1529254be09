"""Metal kernels: read from `kernels/`, built once, launched on Metal only.

A `.metal` file is the body of one kernel; MLX writes its signature from the names given here.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx

from ..errors import InputError

_SWITCH = "MLX_DG_KERNELS"
# In a wheel the sources are inside the package, in an editable install they lie beside it.
_PACKAGE = Path(__file__).parents[1]
SOURCES = _PACKAGE / "kernels" if (_PACKAGE / "kernels").is_dir() else _PACKAGE.parent / "kernels"


def available() -> tuple[bool, str]:
    """Whether Metal kernels can run here, and if not, why."""
    if not mx.metal.is_available():
        return False, "this build of MLX has no Metal, which needs a Mac with Apple silicon"
    if mx.default_device().type != mx.DeviceType.gpu:
        return False, "MLX's default device is the CPU; choose mx.set_default_device(mx.gpu)"
    return True, ""


def enabled() -> bool:
    """Whether ops take their kernels: where available, unless `MLX_DG_KERNELS` is set to `on` or `off`.

    Raises `InputError` when `on` cannot be had, saying why, and for any other value.
    """
    choice = os.environ.get(_SWITCH, "auto")
    if choice not in ("auto", "on", "off"):
        raise InputError(f"{_SWITCH} is {choice!r}; it may be auto, on or off")
    ok, reason = available()
    if choice == "on" and not ok:
        raise InputError(f"{_SWITCH}=on, but Metal kernels cannot run: {reason}; unset it to run without")
    return ok and choice != "off"


@dataclass(frozen=True)
class Kernel:
    """One `.metal` file of `kernels/` with the headers it needs and the names of its arguments, in order."""

    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    headers: tuple[str, ...] = ()

    def __call__(
        self,
        inputs: Sequence[mx.array],
        *,
        template: dict[str, int | bool | mx.Dtype],
        threadgroups: tuple[int, int],
        threads: int,
        outputs: Sequence[tuple[Sequence[int], mx.Dtype]],
    ) -> list[mx.array]:
        """Launches `threadgroups` (x, y) groups of `threads`; `outputs` are shapes and dtypes.

        A kernel that Metal cannot compile raises MLX's error, with the compiler's message, on evaluation.
        """
        shapes, dtypes = zip(*outputs, strict=True)
        results: list[mx.array] = _build(self)(
            inputs=list(inputs),
            template=list(template.items()),
            grid=(threadgroups[0] * threads, threadgroups[1], 1),
            threadgroup=(threads, 1, 1),
            output_shapes=list(shapes),
            output_dtypes=list(dtypes),
        )
        return results


@functools.cache
def _build(kernel: Kernel) -> Any:
    return mx.fast.metal_kernel(
        name=f"mlx_dg_{kernel.name}",
        input_names=list(kernel.inputs),
        output_names=list(kernel.outputs),
        source=(SOURCES / f"{kernel.name}.metal").read_text(),
        header="".join((SOURCES / header).read_text() for header in kernel.headers),
    )


def scalar(value: float | mx.array, dtype: mx.Dtype = mx.float32) -> mx.array:
    """A 0-d array, which a kernel sees as a constant: other values need no other build of it."""
    return value.astype(dtype) if isinstance(value, mx.array) else mx.array(value, dtype=dtype)
