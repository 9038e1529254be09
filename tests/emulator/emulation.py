"""Runs a custom Metal kernel without Metal: exported by MLX, translated, compiled, each thread a fiber."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import numpy as np

from .build import build
from .exported import ExportedKernel, Extent, export
from .translate import Parameter, translate

MAX_THREADS = 1024  # kMaxThreads in fibers.h
MESSAGE_BYTES = 1024
INPUT, OUTPUT, INITIALISED_OUTPUT = 0, 1, 2  # Role in memory.h
POISON = 0xA5  # what outputs hold before the run

METAL_TYPES = {
    mx.float32: "float",
    mx.bfloat16: "bfloat16_t",
    mx.float16: "float16_t",
    mx.int8: "int8_t",
    mx.int16: "int16_t",
    mx.int32: "int32_t",
    mx.int64: "int64_t",
    mx.uint8: "uint8_t",
    mx.uint16: "uint16_t",
    mx.uint32: "uint32_t",
    mx.uint64: "uint64_t",
    mx.bool_: "bool",
}


class KernelFault(Exception):
    """The kernel did what no kernel may do. One line: what, where, and which thread."""


@dataclass(frozen=True)
class Emulation:
    """Results of a run. `loads` and `stores` count bytes, every access of every thread, by argument."""

    outputs: list[mx.array]
    loads: dict[str, int]
    stores: dict[str, int]
    source: str
    name: str
    grid: Extent
    threadgroup: Extent


class Region(ctypes.Structure):
    """struct Region in memory.h, member for member."""

    _fields_ = (
        ("name", ctypes.c_char_p),
        ("data", ctypes.c_void_p),
        ("bytes", ctypes.c_uint64),
        ("item_bytes", ctypes.c_uint32),
        ("role", ctypes.c_uint32),
        ("loaded", ctypes.c_uint64),
        ("stored", ctypes.c_uint64),
        ("writes", ctypes.c_void_p),
        ("readers", ctypes.c_void_p),
    )


def emulate(
    call: Callable[..., Sequence[mx.array]],
    *inputs: mx.array,
    schedule_seed: int = 0,
    edit: Callable[[str], str] | None = None,
) -> Emulation:
    """Runs the one `mx.fast.metal_kernel` call that `call(*inputs)` makes, and returns what it computed.

    `call` passes the inputs straight through, in order, and returns the kernel's outputs. Inputs are
    given to the kernel row-contiguous. `schedule_seed` picks the order of threadgroups and threads; a
    kernel that is right gives the same outputs under each. `edit` changes the Metal source first, to plant
    a defect. Raises KernelFault for what the kernel does wrong, RuntimeError if it does not compile.
    """
    kernel = export(call, inputs)
    source = kernel.source
    if edit:
        source = edit(kernel.source)
        assert source != kernel.source, "the edit changed nothing"
    translation = translate(source)
    buffers = _buffers(kernel, inputs, translation.parameters)
    _run(ctypes.CDLL(str(build(translation.source))), kernel, buffers, schedule_seed)
    outputs = [
        mx.array(buffer.memory).view(dtype).reshape(shape)
        for buffer, (shape, dtype) in zip(buffers[-len(kernel.outputs) :], kernel.outputs, strict=True)
    ]
    loads = {buffer.name: buffer.loaded for buffer in buffers}
    stores = {buffer.name: buffer.stored for buffer in buffers}
    return Emulation(outputs, loads, stores, source, kernel.name, kernel.grid, kernel.threadgroup)


@dataclass
class Buffer:
    name: str
    memory: np.ndarray[Any, Any]  # bytes
    item_bytes: int
    role: int
    loaded: int = 0
    stored: int = 0


def _buffers(
    kernel: ExportedKernel, inputs: Sequence[mx.array], parameters: Sequence[Parameter]
) -> list[Buffer]:
    """The kernel's buffers in the order of its parameters, which they are checked against."""
    buffers: list[Buffer] = []

    def add(memory: np.ndarray[Any, Any], dtype: mx.Dtype, role: int, scalar: bool = False) -> None:
        parameter = parameters[len(buffers)]
        kind = parameter.type.removeprefix("atomic<").removesuffix(">")
        kind = "int32_t" if kind == "int" else kind  # of shapes
        assert (kind, parameter.scalar, parameter.writable) == (METAL_TYPES[dtype], scalar, role != INPUT), (
            f"{parameter.name}: the source says {parameter}, the call passes {METAL_TYPES[dtype]}"
        )
        buffers.append(Buffer(parameter.name, memory, dtype.size, role))

    for array, (wants_shape, wants_strides, wants_ndim) in zip(inputs, kernel.shape_infos, strict=True):
        add(_bytes_of(array), array.dtype, INPUT, scalar=array.ndim == 0)
        if array.ndim and wants_shape:
            add(np.array(array.shape, np.int32).view(np.uint8), mx.int32, INPUT)
        if array.ndim and wants_strides:
            strides = [math.prod(array.shape[axis + 1 :]) for axis in range(array.ndim)]
            add(np.array(strides, np.int64).view(np.uint8), mx.int64, INPUT)
        if array.ndim and wants_ndim:
            add(np.array([array.ndim], np.int32).view(np.uint8), mx.int32, INPUT, scalar=True)
    for shape, dtype in kernel.outputs:
        if kernel.init_value is None:
            add(np.full(math.prod(shape) * dtype.size, POISON, np.uint8), dtype, OUTPUT)
        else:
            add(_bytes_of(mx.full(shape, kernel.init_value, dtype)), dtype, INITIALISED_OUTPUT)
    assert len(buffers) == len(parameters), "the call passes fewer buffers than the kernel takes"
    return buffers


def _bytes_of(array: mx.array) -> np.ndarray[Any, Any]:
    return np.array(array.reshape(-1).view(mx.uint8))


def _region(buffer: Buffer) -> Region:
    memory = buffer.memory
    return Region(buffer.name.encode(), memory.ctypes.data, memory.size, buffer.item_bytes, buffer.role)


def _run(library: ctypes.CDLL, kernel: ExportedKernel, buffers: Sequence[Buffer], seed: int) -> None:
    group = [min(size, grid) for size, grid in zip(kernel.threadgroup, kernel.grid, strict=True)]
    if min(group) < 1 or math.prod(group) > MAX_THREADS:
        raise KernelFault(
            f"grid {kernel.grid} in threadgroups {kernel.threadgroup}: not 1 to {MAX_THREADS} threads"
        )
    regions = (Region * len(buffers))(*map(_region, buffers))
    extent = ctypes.c_uint32 * 3
    message = ctypes.create_string_buffer(MESSAGE_BYTES)
    faulted = library.emulator_run(
        regions,
        ctypes.c_int(len(buffers)),
        extent(*kernel.grid),
        extent(*group),
        ctypes.c_uint64(seed),
        message,
        ctypes.c_uint64(MESSAGE_BYTES),
    )
    if faulted:
        raise KernelFault(message.value.decode())
    for buffer, region in zip(buffers, regions, strict=True):
        buffer.loaded, buffer.stored = region.loaded, region.stored
