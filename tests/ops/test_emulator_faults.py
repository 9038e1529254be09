"""Faults that the emulator must refuse: each fault once, and next to it the same kernel without the fault."""

from __future__ import annotations

import re
from collections.abc import Sequence

import emulator.build
import mlx.core as mx
import pytest
from emulator import Emulation, KernelFault, emulate
from ops.test_emulator import kernel
from support.kernel_paths import ON_EMULATOR

pytestmark = ON_EMULATOR

BARRIER = "metal::threadgroup_barrier(metal::mem_flags::mem_threadgroup);"

# `mode` says which one. Two threadgroups of 64 threads; `out` has 128 elements, `x` has 16, `few` 3.
FAULTS = """
    uint i = thread_position_in_grid.x, t = thread_index_in_threadgroup;
    threadgroup float shared[64];
    threadgroup uint total;
    threadgroup float other[8];
    float own[4] = {1.0f, 2.0f, 3.0f, 4.0f};
    const int m = mode[0];
    const metal::mem_flags all = metal::mem_flags::mem_threadgroup;
    float v = 0;
    if (m == 1) v = x[t == 5 ? 16 : 0];
    if (m == 2) v = few[t == 0 ? -1 : 0];
    if (m == 3) { device float* behind = out + 200; behind[t] = 1; }
    if (m == 4) shared[t + 1] = 1;
    if (m == 5) v = own[x_shape[0]];
    if (m == 6) v = 7 / (x_shape[0] - 16);
    if (m == 7) v = x[x_strides[0] << 62];
    if (m == 8) v = shared[t];
    if (m == 9 && t == 3) other[2] = 1;
    if (m == 9) metal::threadgroup_barrier(all);
    if (m == 9) { if (t == 3) other[2] = 2; v = t == 9 ? other[2] : 0.0f; }
    if (m == 10) { if (t < 2) other[4] = t; }
    if (m == 11) { shared[t] = t; metal::threadgroup_barrier(all); v = shared[63 - t]; shared[t] = v; }
    if (m == 12) { shared[t] = t; metal::simdgroup_barrier(all); v = shared[t ^ 1]; }
    if (m == 13) { shared[t] = t; metal::simdgroup_barrier(all); v = shared[t ^ 32]; }
    if (m == 14) { shared[t] = t; metal::threadgroup_barrier(metal::mem_flags::mem_none); v = shared[t ^ 1]; }
    if (m == 15) { if (t == 0) total = 5; metal::threadgroup_barrier(all); v = total; }
    if (m == 16 && t == 7) return;
    if (m == 16) metal::threadgroup_barrier(all);
    if (m == 17 && t < 32)
        metal::threadgroup_barrier(all);
    else if (m == 17)
        metal::threadgroup_barrier(all);
    if (m == 18) { if (t < 40) v = metal::simd_sum(v); }
    if (m == 19) v = t % 2 ? metal::simd_sum(v) : metal::simd_max(v);
    if (m == 20) { if (t != 2) v = metal::simd_sum(v); metal::threadgroup_barrier(all); }
    if (m == 21) v = metal::simd_shuffle(v, 32);
    if (m == 22) out[i ^ 1] = 0;
    if (m == 23) { out[i] = 0; metal::threadgroup_barrier(metal::mem_flags::mem_device); v = out[i ^ 1]; }
    if (m == 24) { out[i] = 0; metal::threadgroup_barrier(all); v = out[i ^ 1]; }
    if (m == 25) v = out[i];
    if (m == 26) v = ((const device float2*)(x + 1))[0].x;
    if (m == 27) { shared[t] = shared[t ^ 1] = t; }
    if (m == 29) {
        if (t == 0) other[0] = 1;
        metal::threadgroup_barrier(all);
        if (t == 40 || t < 4) v = other[0];
        metal::simdgroup_barrier(all);
        if (t == 0) other[0] = 2;
    }
    if (m != 23 && (m != 28 || i != 70)) out[i] = v;
"""
LAUNCH = kernel(FAULTS, {"out": ((128,), mx.float32)}, ["x", "few", "mode"], (128, 1, 1), (64, 1, 1))


def run(mode: int, seed: int = 0) -> Emulation:
    return emulate(LAUNCH, mx.arange(16.0), mx.zeros((3,)), mx.array([mode]), schedule_seed=seed)


@pytest.mark.parametrize("mode", [0, 12, 15, 23])
def test_no_fault(mode: int) -> None:
    assert run(mode).outputs[0].shape == (128,)


@pytest.mark.parametrize(("mode", "message"), [
    (1, r"read outside of x: index 16, size 16: thread 5 of threadgroup \([01], 0, 0\)"),
    (2, r"read outside of few: index -1, size 3: thread 0 of .*"),
    (3, r"write outside of out: index 2\d\d, size 128: .*"),
    (4, r"write outside of shared: index 64, size 64: thread 63 of .*"),
    (5, r"index 16 is outside of a thread's own array at line \d+: .*"),
    (6, r"division by zero at line \d+: .*"),
    (7, r"read outside of x: index .*"),
    (8, r"read of shared\[\d+\], which nobody has written: .*"),
    (9, r"race: (read of other\[2\], written by thread 3|write to other\[2\], read by thread 9) of .*"),
    (10, r"race: write to other\[4\], written by thread [01] of .* no barrier since: thread [01] .*"),
    (11, r"race: (write to|read of) shared\[\d+\], (read|written) by thread \d+ .* no barrier since: .*"),
    (13, r"(race: read of shared\[\d+\], written by .*|read of shared\[\d+\], which nobody .*)"),
    (14, r"race: read of shared\[\d+\], written by .*"),
    (16, r"barrier divergence: .* returned.*"),
    (17, r"barrier divergence: threadgroup_barrier at line \d+, while others .* at line \d+: .*"),
    (18, r"divergent simdgroup operation: .* returned.*"),
    (19, r"divergent simdgroup operation: simd_\w+ at line \d+, while others .* wait at .*"),
    (20, r"deadlock in .*: thread \d+ waits at (simd_sum|threadgroup_barrier) at .*, thread \d+ at .*"),
    (21, r"simd_shuffle at line \d+: lane 32 of 32: .*"),
    (22, r"out\[\d+\] written by two threads, the first was thread \d+ of .*: thread \d+ of .*"),
    (24, r"race: read of out\[\d+\], written by thread \d+ of .* with no barrier since: .*"),
    (25, r"read of out\[\d+\], which nobody has written: .*"),
    (26, r"misaligned cast of a pointer into x: .*"),
    (27, r"race: write to shared\[\d+\], written by .*"),
    (29, r"race: (write to other\[0\], read by thread 40|read of other\[0\], written by thread 0) of .*"),
    (28, r"out\[70\] was never written"),
])  # fmt: skip
def test_fault(mode: int, message: str) -> None:
    with pytest.raises(KernelFault) as fault:
        run(mode)
    assert re.fullmatch(message, str(fault.value)), fault.value


def test_a_barrier_removed_is_seen_under_each_seed() -> None:
    for seed in range(3):
        assert run(15, seed).outputs[0].tolist() == [5.0] * 128


REVERSED = f"""
    uint t = thread_index_in_threadgroup;
    threadgroup float shared[64];
    shared[t] = x[t];
    {BARRIER}
    out[t] = shared[63 - t];
"""


def test_edit_plants_a_defect() -> None:
    call = kernel(REVERSED, {"out": ((64,), mx.float32)}, ["x"], (64, 1, 1), (64, 1, 1))
    x = mx.arange(64.0)
    assert mx.array_equal(emulate(call, x).outputs[0], x[::-1])
    for seed in range(3):
        with pytest.raises(KernelFault, match="shared"):
            emulate(call, x, schedule_seed=seed, edit=lambda source: source.replace(BARRIER, ""))
    with pytest.raises(AssertionError, match="the edit changed nothing"):
        emulate(call, x, edit=lambda source: source)


def test_after_a_fault_the_next_run_is_untouched() -> None:
    with pytest.raises(KernelFault):
        run(19)
    assert run(0).outputs[0].tolist() == [0.0] * 128


@pytest.mark.parametrize(("source", "message"), [
    ("x[0] = 1; out[0] = 1;", "const"),
    ("out[0] = undeclared;", r"kernel.metal:\d+:\d+: error: .undeclared. was not declared"),
    ("threadgroup float s[4]; s[0] = 1; out[0] = x[0] > 0 ? s[0] : 0;", "float-conversion"),
])  # fmt: skip
def test_what_does_not_compile(source: str, message: str) -> None:
    call = kernel(source, {"out": ((1,), mx.float32)}, ["x"], (1, 1, 1), (1, 1, 1))
    with pytest.raises(RuntimeError, match=message):
        emulate(call, mx.arange(16.0))


@pytest.mark.parametrize(("source", "message"), [
    ("float a[2]; thread float* p = a; out[0] = p[0];", "thread's own memory"),
    ("threadgroup float s[4][4]; out[0] = 0;", "threadgroup memory declared as"),
])  # fmt: skip
def test_what_cannot_be_checked_is_refused(source: str, message: str) -> None:
    call = kernel(source, {"out": ((1,), mx.float32)}, [], (1, 1, 1), (1, 1, 1))
    with pytest.raises(AssertionError, match=message):
        emulate(call)


def test_what_metal_would_not_launch() -> None:
    for group, source in [
        ((1025, 1, 1), "out[0] = 0;"),
        ((1, 1, 1), "threadgroup float s[8200]; out[0] = s[0];"),
    ]:
        call = kernel(source, {"out": ((1,), mx.float32)}, [], (1025, 1, 1), group)
        with pytest.raises(KernelFault, match=r"not 1 to 1024 threads|more than Metal's 32768"):
            emulate(call)


def test_a_call_must_make_one_kernel_call() -> None:
    def nothing(x: mx.array) -> Sequence[mx.array]:
        return [x + 1]

    with pytest.raises(AssertionError, match="makes 0 custom kernel calls"):
        emulate(nothing, mx.zeros((8,)))


def test_without_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(emulator.build, "COMPILER", "no-such-compiler")
    with pytest.raises(RuntimeError, match=r"needs a C\+\+17 compiler: no `no-such-compiler` found"):
        emulator.build.build("// never built")
