"""Bytes that the sampling of one denoising step moves at the real shapes: kernels beside array operations.

    python benchmarks/kernel_traffic.py

Kernels: every load and store of every thread, counted while the generated Metal source runs on the tests'
emulator for a few rows, times the rows of a canvas. Caches are not modelled: rows of the embedding table
that several positions read count once for each. Array operations: the graph is traced, not run; each
operation reads its inputs once and writes its outputs once, views cost nothing, a broadcast scalar is a
scalar. That is what eager MLX does; `mx.compile` would fuse the element-wise operations among them.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from emulator import emulate

from mlx_diffusiongemma.engine.state import initial_state
from mlx_diffusiongemma.ops import Bounds, Proposal, RowStatistics, dense_soft_embedding, processed_logits
from mlx_diffusiongemma.ops.accept_and_renoise import accept_and_renoise_kernel, accept_and_renoise_reference
from mlx_diffusiongemma.ops.metal import Kernel
from mlx_diffusiongemma.ops.row_statistics import row_statistics_kernel, row_statistics_reference
from mlx_diffusiongemma.ops.soft_embedding import soft_embedding_kernel, soft_embedding_reference

CANVAS, VOCAB, WIDTH, SOFTCAP, TEMPERATURE = 256, 262144, 2816, 30.0, 0.6
ROWS = 2  # emulated; traffic is proportional to rows
LOGITS_BYTES = CANVAS * VOCAB * 2
VIEWS = {
    "Broadcast",
    "Reshape",
    "Squeeze",
    "ExpandDims",
    "Flatten",
    "Unflatten",
    "Transpose",
    "Slice",
    "AsStrided",
}


def kernel_traffic(call: Callable[[], Any], scale: float) -> tuple[float, float]:
    """Bytes read and written by the one launch in `call`, times `scale`."""
    seen = []
    launch_on_metal = Kernel.__call__

    def launch(kernel: Kernel, inputs: Any, **how: Any) -> list[mx.array]:
        seen.append(emulate(lambda *arrays: launch_on_metal(kernel, arrays, **how), *inputs))
        return seen[0].outputs

    Kernel.__call__ = launch  # type: ignore[method-assign]
    try:
        call()
    finally:
        Kernel.__call__ = launch_on_metal  # type: ignore[method-assign]
    return sum(seen[0].loads.values()) * scale, sum(seen[0].stores.values()) * scale


def array_traffic(function: Callable[..., Any], *inputs: mx.array) -> tuple[float, float]:
    """Bytes read and written by the operations that `function` is traced to."""
    size: dict[str, int] = {}
    read = written = 0

    def visit(event: dict[str, Any]) -> None:
        nonlocal read, written
        if event["type"] == "constants":
            size.update({name: array.nbytes for name, array in event["constants"]})
        if event["type"] == "inputs":
            size.update({name: math.prod(shape) * dtype.size for name, shape, dtype in event["inputs"]})
        if event["type"] == "primitive":
            sources = sum(size[name] for name, _, _ in event["inputs"])
            for name, shape, dtype in event["outputs"]:
                size[name] = math.prod(shape) * dtype.size
                if event["name"] in VIEWS:
                    size[name] = min(size[name], sources)
                else:
                    written += size[name]
            read += 0 if event["name"] in VIEWS else sources

    mx.export_function(visit, function, *inputs)
    return read, written


def logits_with_support(tokens: int) -> mx.array:
    """Rows whose probability lies on this many tokens."""
    rng = np.random.default_rng(0)
    rows = np.full((ROWS, VOCAB), -30.0, dtype=np.float32)
    for row in rows:
        row[rng.choice(VOCAB, size=tokens, replace=False)] = 20.0
    return mx.array(rows).astype(mx.bfloat16)


def shape_only(dtype: mx.Dtype = mx.bfloat16) -> mx.array:
    return mx.broadcast_to(mx.array(0, dtype=dtype), (CANVAS, VOCAB))


def main() -> None:
    uniforms = mx.full((ROWS,), 0.5)
    packed = mx.broadcast_to(mx.array(0x01020304, dtype=mx.uint32), (VOCAB, WIDTH // 4))
    groups = mx.broadcast_to(mx.array(0.01, dtype=mx.bfloat16), (VOCAB, WIDTH // 64))
    table = nn.QuantizedEmbedding(64, 64, 64, 8)
    table.weight, table.scales, table.biases = (mx.contiguous(x) for x in (packed, groups, groups))

    noise = mx.zeros((1, CANVAS), dtype=mx.int32)
    before = initial_state(noise, soft_embedding=mx.zeros((1,)))
    flags = mx.zeros((1, CANVAS), dtype=mx.bool_)
    entropies = mx.full((1, CANVAS), 0.01)
    proposal = Proposal(entropies, noise, noise, flags, confidences=mx.exp(-entropies))
    accept = (proposal, noise, before.pins, before.acceptance, Bounds(0.1, 1, 0.005))

    rows: list[tuple[str, tuple[float, float]]] = []
    logits = logits_with_support(100)
    statistics = row_statistics_reference(logits, uniforms, TEMPERATURE, SOFTCAP)
    scale = CANVAS / ROWS
    rows.append(
        (
            "row_statistics, kernel",
            kernel_traffic(lambda: row_statistics_kernel(logits, uniforms, TEMPERATURE, SOFTCAP), scale),
        )
    )
    rows.append(
        (
            "row_statistics, array operations",
            array_traffic(
                lambda x, u: list(row_statistics_reference(x, u, TEMPERATURE, SOFTCAP)),
                shape_only(),
                mx.zeros((CANVAS,)),
            ),
        )
    )
    rows.append(("accept_and_renoise, kernel", kernel_traffic(lambda: accept_and_renoise_kernel(*accept), 1)))
    rows.append(
        (
            "accept_and_renoise, array operations",
            array_traffic(
                lambda entropies: list(
                    accept_and_renoise_reference(proposal._replace(entropies=entropies), *accept[1:])
                ),
                proposal.entropies,
            ),
        )
    )
    for tokens in (1, 100, 2000):
        logits = logits_with_support(tokens)
        statistics = row_statistics_reference(logits, uniforms, TEMPERATURE, SOFTCAP)

        def soft(logits: mx.array = logits, statistics: RowStatistics = statistics) -> Any:
            return soft_embedding_kernel(logits, statistics, TEMPERATURE, SOFTCAP, table, mx.bfloat16)

        rows.append((f"soft_embedding, kernel, {tokens} tokens a row", kernel_traffic(soft, scale)))
    whole = RowStatistics(*(mx.zeros((CANVAS, *field.shape[1:])) for field in statistics))

    def sparse(x: mx.array) -> mx.array:
        return soft_embedding_reference(x, whole, TEMPERATURE, SOFTCAP, table, mx.bfloat16).embedding

    def dense(x: mx.array) -> mx.array:
        return dense_soft_embedding(processed_logits(x, TEMPERATURE, SOFTCAP), table, mx.bfloat16)

    rows.append(("soft_embedding, array operations", array_traffic(sparse, shape_only())))
    rows.append(("soft_embedding, dense product", array_traffic(dense, shape_only())))

    print(f"[{CANVAS}, {VOCAB}] bf16 logits ({LOGITS_BYTES / 1e6:.0f} MB), 8-bit table of width {WIDTH}")
    print(f"{'':44}{'MB read':>10}{'MB written':>12}{'x logits':>10}")
    for name, (read, written) in rows:
        total = (read + written) / LOGITS_BYTES
        print(f"{name:44}{read / 1e6:10.2f}{written / 1e6:12.2f}{total:10.3f}")


if __name__ == "__main__":
    main()
