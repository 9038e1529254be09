"""The emulator that the kernel tests rely on: it computes what Metal would, and sees what Metal would not.

Few kernels, each compiled once: which of its ways a kernel takes, the input `mode` says at run time.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from emulator import KernelFault, emulate
from support.kernel_paths import ON_EMULATOR

pytestmark = ON_EMULATOR

Call = Callable[..., list[mx.array]]


def kernel(
    source: str,
    outputs: dict[str, tuple[tuple[int, ...], mx.Dtype]],
    inputs: list[str],
    grid: tuple[int, int, int],
    threadgroup: tuple[int, int, int],
    header: str = "",
    **settings: Any,
) -> Call:
    launch = mx.fast.metal_kernel(
        name="tested", input_names=inputs, output_names=list(outputs), source=source, header=header
    )

    def call(*arrays: mx.array) -> list[mx.array]:
        shapes, dtypes = zip(*outputs.values(), strict=True)
        return launch(
            inputs=list(arrays),
            grid=grid,
            threadgroup=threadgroup,
            output_shapes=list(shapes),
            output_dtypes=list(dtypes),
            **settings,
        )

    return call


def assert_same(got: mx.array, expected: np.ndarray[Any, Any]) -> None:
    np.testing.assert_array_equal(np.array(got), expected)


# --- simdgroup operations -----------------------------------------------------------------------------------

SIMD_OPERATIONS = """
    uint i = thread_position_in_grid.x;
    uint lane = thread_index_in_simdgroup;
    T v = x[i];
    device T* row = out + i * 11;
    row[0] = metal::simd_sum(v);
    row[1] = metal::simd_max(v);
    row[2] = metal::simd_min(v);
    row[3] = metal::simd_prefix_inclusive_sum(v);
    row[4] = metal::simd_prefix_exclusive_sum(v);
    row[5] = metal::simd_shuffle(v, 7 - lane % 8);
    row[6] = metal::simd_shuffle_up(v, 3);
    row[7] = metal::simd_shuffle_down(v, 3);
    row[8] = metal::simd_shuffle_xor(v, 5);
    row[9] = metal::simd_broadcast(v, 2);
    row[10] = metal::simd_broadcast_first(v);
    votes[2 * i] = metal::simd_any(v == x[40]);
    votes[2 * i + 1] = metal::simd_all(v > T(3));
"""


@pytest.mark.parametrize("dtype", [mx.float32, mx.int32, mx.uint32])
def test_simdgroup_operations(dtype: mx.Dtype) -> None:
    """On two whole simdgroups and one of 8 lanes."""
    size = 72
    values = np.random.default_rng(0).permutation(size).astype(np.array(mx.zeros((1,), dtype)).dtype)
    call = kernel(
        SIMD_OPERATIONS,
        {"out": ((size, 11), dtype), "votes": ((size, 2), mx.bool_)},
        ["x"],
        (size, 1, 1),
        (128, 1, 1),
        template=[("T", dtype)],
    )
    out, votes = (np.array(output) for output in emulate(call, mx.array(values)).outputs)
    for start in (0, 32, 64):
        v = values[start : start + 32]
        lanes = np.arange(len(v))
        got = out[start : start + 32].T
        np.testing.assert_array_equal(got[0], np.full_like(v, v.sum()))
        np.testing.assert_array_equal(got[1], np.full_like(v, v.max()))
        np.testing.assert_array_equal(got[2], np.full_like(v, v.min()))
        np.testing.assert_array_equal(got[3], v.cumsum())
        np.testing.assert_array_equal(got[4], v.cumsum() - v)
        np.testing.assert_array_equal(got[5], v[7 - lanes % 8])
        np.testing.assert_array_equal(got[6], v[np.where(lanes >= 3, lanes - 3, lanes)])
        np.testing.assert_array_equal(got[7][:5], v[3:8])
        if len(v) == 32:
            np.testing.assert_array_equal(got[7], v[np.where(lanes < 29, lanes + 3, lanes)])
        np.testing.assert_array_equal(got[8], v[lanes ^ 5])
        np.testing.assert_array_equal(got[9], np.full_like(v, v[2]))
        np.testing.assert_array_equal(got[10], np.full_like(v, v[0]))
        assert votes[start : start + 32, 0].tolist() == [values[40] in v] * len(v)
        assert votes[start : start + 32, 1].tolist() == [bool(min(v) > 3)] * len(v)


# --- the language -------------------------------------------------------------------------------------------

LANGUAGE_HEADER = """
#include <metal_stdlib>
using namespace metal;
constant float TABLE[3] = {1.0, 2.0, 4.0};  // device float* in a comment
constexpr constant uint STEP = 2;
template <typename P>
inline float total(P values, uint count) {
    float sum = 0;
    _Pragma("clang loop unroll(full)")
    for (uint i = 0; i < count; ++i) sum += values[i];
    return sum;
}
inline float second(threadgroup float* values, constant uint& count) { return count > 1 ? values[1] : 0.0; }
METAL_FUNC float times(const device bfloat16_t* values, thread const float& factor) {
    return values[0] * factor;
}
"""
LANGUAGE = """
    threadgroup float one[4], two[SIZE + 1];
    threadgroup uint count;
    if (thread_index_in_threadgroup == 0) {
        for (uint i = 0; i < 4; ++i) { one[i] = TABLE[min(i, STEP)]; two[i] = 0.5; }
        one[1] += one[2];
        one[3] *= -one[1];
        count = 3;
        count++;
        threadgroup float* middle = one + 1;
        out[0] = total(middle, 3);
        out[1] = total(one, count) + max(one[0], 0.25);
        auto kept = one[0];
        one[0] = as_type<float>(as_type<uint>(kept) + 1u);
        out[2] = kept;
        auto row = x + STEP;
        out[3] = total(row, 2) + times(row, 2.0f);
        out[4] = few[0] + few[2] + scalar;
        const device float4* wide = (const device float4*)(y + 4);
        float4 sum = wide[0] + float4(wide[1]) * 2;
        out[5] = sum.x + sum[3];
        out[6] = float(half(1.0f / 3.0f)) + float(bfloat16_t(1.0f / 3.0f));
        out[7] = isnan(precise::tanh(NAN)) && isinf(-INFINITY) ? numeric_limits<float>::infinity() : 0.0;
        out[8] = select(rsqrt(4.0f), clamp(5.0f, 0.0f, FLT_MAX), y_ndim == 1) + x_shape[0] + x_strides[0];
        out[9] = fast::exp(second(two, STEP) - 0.5f) + abs(-2) + fma(2.0f, 3.0f, 1.0f) + metal::exp2(3.0f);
        for (uint i = 0; i < 4; ++i) rounded[i] = bfloat16_t(few[i % 3] * y[i]);
        for (uint i = 0; i < 4; ++i) halves[i] = half(y[i]) * half(y[i]);
    }
"""


def test_language() -> None:
    """Address spaces, constant and scalar inputs, templates, 16-bit floats, vectors, the library."""
    x = mx.array([1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0], mx.bfloat16)
    y = mx.random.normal((12,), key=mx.random.key(1))
    few = mx.array([0.5, 0.25, 8.0])
    call = kernel(
        LANGUAGE,
        {"out": ((10,), mx.float32), "rounded": ((4,), mx.bfloat16), "halves": ((2, 2), mx.float16)},
        ["x", "y", "few", "scalar"],
        (32, 1, 1),
        (32, 1, 1),
        LANGUAGE_HEADER,
        template=[("SIZE", 3)],
    )
    result = emulate(call, x, y, few, mx.array(100.0))
    wide = np.array(y)
    third = sum(
        np.array(mx.array(1 / 3).astype(dtype).astype(mx.float32)) for dtype in (mx.float16, mx.bfloat16)
    )
    expected = [6 + 4 - 24, 1 + 6 + 4 - 24 + 1, 1, 7 + 6, 108.5, 0, third, np.inf, 5 + 8 + 1, 1 + 2 + 7 + 8]
    expected[5] = wide[4] + 2 * wide[8] + (wide[7] + 2 * wide[11])
    np.testing.assert_allclose(np.array(result.outputs[0]), np.array(expected, np.float32), rtol=1e-6)
    assert mx.array_equal(result.outputs[1], (mx.concatenate([few, few[:1]]) * y[:4]).astype(mx.bfloat16))
    assert mx.array_equal(result.outputs[2], mx.square(y[:4].astype(mx.float16)).reshape(2, 2))
    assert result.outputs[2].dtype == mx.float16
    assert (result.grid, result.threadgroup) == ((32, 1, 1), (32, 1, 1))
    assert "tested" in result.name


ROUNDING = """
    uint i = thread_position_in_grid.x;
    brain[i] = bfloat16_t(x[i]);
    small[i] = float16_t(x[i]);
    back[i] = small[i];
"""


def test_16_bit_floats_round_as_mlx_does() -> None:
    """Ties, subnormal numbers, overflow, infinities; NaN stays NaN."""
    rng = np.random.default_rng(2)
    bits = rng.integers(0, 2**32, 4000, dtype=np.uint32)
    exponents = rng.integers(90, 145, 4000, dtype=np.uint32)
    near = (
        bits & 0x80000000 | exponents << 23 | bits & 0x7FE000 | rng.choice([0, 0x1000, 0x1001, 0xFFF], 4000)
    )
    special = np.array([0.0, -0.0, np.inf, -np.inf, 65504, 65519, 65520, 3.4e38, 2**-24, 2**-25], np.float32)
    x = mx.array(np.concatenate([bits.view(np.float32), near.astype(np.uint32).view(np.float32), special]))
    x = mx.concatenate([x, mx.array([np.nan])])
    size = x.size
    outputs = {"brain": ((size,), mx.bfloat16), "small": ((size,), mx.float16), "back": ((size,), mx.float32)}
    brain, small, back = emulate(kernel(ROUNDING, outputs, ["x"], (size, 1, 1), (256, 1, 1)), x).outputs
    assert mx.array_equal(brain, x.astype(mx.bfloat16), equal_nan=True)
    assert mx.array_equal(small, x.astype(mx.float16), equal_nan=True)
    assert mx.array_equal(back, x.astype(mx.float16).astype(mx.float32), equal_nan=True)


POSITIONS = """
    uint3 p = thread_position_in_grid;
    uint i = p.x + threads_per_grid.x * (p.y + threads_per_grid.y * p.z);
    uint3 g = threadgroup_position_in_grid, t = thread_position_in_threadgroup, s = threads_per_threadgroup;
    device uint* row = out + i * 10;
    row[0] = g.x; row[1] = g.y; row[2] = t.x; row[3] = t.y; row[4] = t.z; row[5] = s.x * 100 + s.y * 10 + s.z;
    row[6] = thread_index_in_threadgroup;
    row[7] = thread_index_in_simdgroup + 100 * simdgroup_index_in_threadgroup;
    row[8] = simdgroups_per_threadgroup + threads_per_simdgroup;
    row[9] = threadgroups_per_grid.x * 100 + threadgroups_per_grid.y * 10 + threadgroups_per_grid.z;
"""


def test_positions_and_smaller_groups_at_the_edges() -> None:
    grid = (13, 5, 3)
    call = kernel(POSITIONS, {"out": ((3, 5, 13, 10), mx.uint32)}, [], grid, (5, 3, 4))
    z, y, x = np.meshgrid(range(3), range(5), range(13), indexing="ij")
    sx, sy = np.where(x < 10, 5, 3), np.where(y < 3, 3, 2)
    index = x % 5 + sx * (y % 3 + sy * z)
    simdgroups = (sx * sy * 3 + 31) // 32
    rows = [x // 5, y // 3, x % 5, y % 3, z, sx * 100 + sy * 10 + 3, index]
    rows += [index % 32 + 100 * (index // 32), simdgroups + 32, np.full_like(x, 321)]
    assert_same(emulate(call).outputs[0], np.stack(rows, axis=-1))


# --- scheduling, atomics, traffic ---------------------------------------------------------------------------

QUEUE = """
    threadgroup atomic_uint waiting;
    uint i = thread_index_in_threadgroup;
    if (i == 0) metal::atomic_store_explicit(&waiting, 0u, metal::memory_order_relaxed);
    metal::threadgroup_barrier(metal::mem_flags::mem_threadgroup | metal::mem_flags::mem_device);
    uint place = metal::atomic_fetch_add_explicit(&waiting, 1, metal::memory_order_relaxed);
    order[threadgroup_position_in_grid.x * threads_per_threadgroup.x + place] = i;
"""
TOTALS = """
    uint i = thread_position_in_grid.x;
    metal::atomic_fetch_add_explicit(&totals[0], x[i], metal::memory_order_relaxed);
    metal::atomic_fetch_max_explicit(totals + 1, x[i], metal::memory_order_relaxed);
    metal::atomic_fetch_min_explicit(totals + 2, x[i], metal::memory_order_relaxed);
"""


def test_seeds_give_orders_and_the_same_seed_the_same() -> None:
    call = kernel(QUEUE, {"order": ((4, 64), mx.uint32)}, [], (256, 1, 1), (64, 1, 1))
    first, again, other = (np.array(emulate(call, schedule_seed=seed).outputs[0]) for seed in (0, 0, 1))
    assert_same(mx.array(first), again)
    assert (first != other).any()
    assert (first[0] != first[1]).any()
    assert_same(mx.array(np.sort(first)), np.tile(np.arange(64), (4, 1)))


def test_atomic_outputs_and_initial_values() -> None:
    launch = mx.fast.metal_kernel(
        name="totals", input_names=["x"], output_names=["totals"], source=TOTALS, atomic_outputs=True
    )
    settings: dict[str, Any] = {"output_shapes": [(3,)], "output_dtypes": [mx.int32], "grid": (100, 1, 1)}
    x = mx.arange(-20, 80, dtype=mx.int32)
    result = emulate(lambda x: launch(inputs=[x], threadgroup=(32, 1, 1), init_value=0, **settings), x)
    assert result.outputs[0].tolist() == [int(mx.sum(x).item()), 79, -20]
    assert (result.loads, result.stores) == ({"x": 1200, "totals": 1200}, {"x": 0, "totals": 1200})
    with pytest.raises(KernelFault, match=r"atomic operation on totals\[0\], which nobody has written"):
        emulate(lambda x: launch(inputs=[x], threadgroup=(32, 1, 1), **settings), x)
