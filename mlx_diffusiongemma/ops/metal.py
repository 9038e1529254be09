"""Metal kernels: read from `kernels/`, built once, launched on Metal only.

A `.metal` file is the body of one kernel. MLX writes its signature from the argument names in a `Kernel`.
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
# In a wheel the sources are inside the package. In an editable install they are next to it.
_PACKAGE = Path(__file__).parents[1]
SOURCES = _PACKAGE / "kernels" if (_PACKAGE / "kernels").is_dir() else _PACKAGE.parent / "kernels"


def on_gpu() -> bool:
    """Return True if MLX's default device is a GPU."""
    return bool(mx.default_device().type == mx.DeviceType.gpu)


def available() -> tuple[bool, str]:
    """Return True if Metal kernels can run here. If not, the second value is the reason."""
    if not mx.metal.is_available():
        return False, "this build of MLX has no Metal, which needs a Mac with Apple silicon"
    if not on_gpu():
        return False, "MLX's default device is the CPU; choose mx.set_default_device(mx.gpu)"
    return True, ""


def switch() -> str:
    """Return the value of `MLX_DG_KERNELS`: auto, on or off. Raise `InputError` for any other value."""
    choice = os.environ.get(_SWITCH, "auto")
    if choice not in ("auto", "on", "off"):
        raise InputError(f"{_SWITCH} is {choice!r}; it may be auto, on or off")
    return choice


def enabled() -> bool:
    """Return True if Metal kernels are available and `MLX_DG_KERNELS` does not switch them off.

    Raises:
        InputError: the switch is on, but kernels cannot run.
    """
    choice, (ok, reason) = switch(), available()
    if choice == "on" and not ok:
        raise InputError(f"{_SWITCH}=on, but Metal kernels cannot run: {reason}; unset it to run without")
    return ok and choice != "off"


# Kernel name -> why its self-check failed in this process (see `self_check`).
failures: dict[str, str] = {}


@dataclass(frozen=True)
class Kernel:
    """A `.metal` file in `kernels/`, the names of its arguments in order, and the headers that it needs."""

    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    headers: tuple[str, ...] = ()

    @property
    def in_use(self) -> bool:
        """True if kernels are enabled and this one has not failed its self-check."""
        return enabled() and self.name not in failures

    def __call__(
        self,
        inputs: Sequence[mx.array],
        *,
        template: dict[str, int | bool | mx.Dtype],
        threadgroups: tuple[int, int],
        threads: int,
        outputs: Sequence[tuple[Sequence[int], mx.Dtype]],
    ) -> list[mx.array]:
        """Launch `threadgroups` (x, y) groups of `threads` threads each, and return the outputs.

        template: constants that are compiled into the kernel.
        outputs: shape and dtype of each output.

        If Metal cannot compile the kernel, evaluation raises MLX's error with the compiler's message.
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
    """Return `value` as a 0-d array. A kernel reads it at run time, so a new value needs no new build."""
    return value.astype(dtype) if isinstance(value, mx.array) else mx.array(value, dtype=dtype)
