"""Counts the bytes that the sampler of a denoising step moves, by kernels and by MLX operations.

    python benchmarks/kernel_traffic.py [--vocab 262144] [--width 2816] [--smoke]

For kernels, the tests' emulator runs the generated Metal source for a few rows and counts every load and
store of every thread. The counts are scaled to the rows of a canvas. Caches are not modelled, so a row of the
embedding table counts once for each position that reads it. Array operations are traced, not run. Each
operation reads its inputs once and writes its outputs once. Views cost nothing, and a broadcast scalar counts
as a scalar. This is eager MLX. `mx.compile` would fuse element-wise operations.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from common import parse

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from emulator import emulate

from mlx_diffusiongemma.engine.state import initial_state
from mlx_diffusiongemma.ops import Bounds, Proposal, RowStatistics, dense_soft_embedding, processed_logits
from mlx_diffusiongemma.ops.accept_and_renoise import accept_and_renoise_kernel, accept_and_renoise_reference
from mlx_diffusiongemma.ops.metal import Kernel
from mlx_diffusiongemma.ops.row_statistics import row_statistics_kernel, row_statistics_reference
from mlx_diffusiongemma.ops.soft_embedding import soft_embedding_kernel, soft_embedding_reference

CANVAS, SOFTCAP, TEMPERATURE = 256, 30.0, 0.6
ROWS = 2  # number of emulated rows; traffic is proportional to it
VIEWS = {
    "Broadcast", "Reshape", "Squeeze", "ExpandDims", "Flatten", "Unflatten", "Transpose", "Slice",
    "AsStrided",
}  # fmt: skip


def kernel_traffic(call: Callable[[], Any], scale: float) -> tuple[float, float]:
    """Return the bytes read and written by the one launch in `call`, times `scale`."""
    launches = []
    launch_on_metal = Kernel.__call__

    def launch(kernel: Kernel, inputs: Any, **how: Any) -> list[mx.array]:
        launches.append(emulate(lambda *arrays: launch_on_metal(kernel, arrays, **how), *inputs))
        return launches[0].outputs

    Kernel.__call__ = launch  # type: ignore[method-assign]
    try:
        call()
    finally:
        Kernel.__call__ = launch_on_metal  # type: ignore[method-assign]
    return sum(launches[0].loads.values()) * scale, sum(launches[0].stores.values()) * scale


def array_traffic(function: Callable[..., Any], *inputs: mx.array) -> tuple[float, float]:
    """Trace `function`. Return the bytes that its operations read and write."""
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


def logits_with_support(tokens: int, vocab: int) -> mx.array:
    """Return ROWS rows of logits that give all probability to this number of tokens."""
    rng = np.random.default_rng(0)
    rows = np.full((ROWS, vocab), -30.0, dtype=np.float32)
    for row in rows:
        row[rng.choice(vocab, size=tokens, replace=False)] = 20.0
    return mx.array(rows).astype(mx.bfloat16)


def embedding_table(vocab: int, width: int) -> nn.QuantizedEmbedding:
    table = nn.QuantizedEmbedding(64, 64, 64, 8)
    table.weight = mx.full((vocab, width // 4), 0x01020304, dtype=mx.uint32)
    table.scales = table.biases = mx.full((vocab, width // 64), 0.01, dtype=mx.bfloat16)
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description="Bytes that the sampler of one denoising step moves.")
    parser.add_argument("--vocab", type=int, default=262144, help="at least 2000")
    parser.add_argument("--width", type=int, default=2816, help="of the embedding table, a multiple of 64")
    options = parse(parser, smoke={"vocab": 8192, "width": 128})
    vocab, width = options.vocab, options.width
    if vocab < 2000 or width % 64:
        parser.error("--vocab must be at least 2000 and --width a multiple of 64")

    table = embedding_table(vocab, width)
    canvas_logits = mx.broadcast_to(mx.array(0, dtype=mx.bfloat16), (CANVAS, vocab))  # only its shape is used
    uniforms, scale = mx.full((ROWS,), 0.5), CANVAS / ROWS

    noise = mx.zeros((1, CANVAS), dtype=mx.int32)
    before = initial_state(noise, soft_embedding=mx.zeros((1,)))
    flags = mx.zeros((1, CANVAS), dtype=mx.bool_)
    entropies = mx.full((1, CANVAS), 0.01)
    proposal = Proposal(entropies, noise, noise, flags, confidences=mx.exp(-entropies))
    rest = (noise, before.pins, before.acceptance, Bounds(0.1, 1, 0.005))

    def statistics_by_arrays(x: mx.array, u: mx.array) -> list[mx.array]:
        return list(row_statistics_reference(x, u, TEMPERATURE, SOFTCAP))

    def acceptance_by_arrays(entropies: mx.array) -> list[mx.array]:
        return list(accept_and_renoise_reference(proposal._replace(entropies=entropies), *rest))

    logits = logits_with_support(100, vocab)
    rows = {
        "row_statistics, kernel": kernel_traffic(
            lambda: row_statistics_kernel(logits, uniforms, TEMPERATURE, SOFTCAP), scale
        ),
        "row_statistics, array operations": array_traffic(
            statistics_by_arrays, canvas_logits, mx.zeros((CANVAS,))
        ),
        "accept_and_renoise, kernel": kernel_traffic(lambda: accept_and_renoise_kernel(proposal, *rest), 1),
        "accept_and_renoise, array operations": array_traffic(acceptance_by_arrays, entropies),
    }
    for tokens in (1, 100, 2000):
        some = logits_with_support(tokens, vocab)
        statistics = row_statistics_reference(some, uniforms, TEMPERATURE, SOFTCAP)
        call = partial(soft_embedding_kernel, some, statistics, TEMPERATURE, SOFTCAP, table, mx.bfloat16)
        rows[f"soft_embedding, kernel, {tokens} tokens a row"] = kernel_traffic(call, scale)
    whole = RowStatistics(*(mx.zeros((CANVAS, *field.shape[1:])) for field in statistics))

    def sparse(x: mx.array) -> mx.array:
        return soft_embedding_reference(x, whole, TEMPERATURE, SOFTCAP, table, mx.bfloat16).embedding

    def dense(x: mx.array) -> mx.array:
        return dense_soft_embedding(processed_logits(x, TEMPERATURE, SOFTCAP), table, mx.bfloat16)

    rows["soft_embedding, array operations"] = array_traffic(sparse, canvas_logits)
    rows["soft_embedding, dense product"] = array_traffic(dense, canvas_logits)

    logits_bytes = CANVAS * vocab * 2
    print(f"[{CANVAS}, {vocab}] bf16 logits ({logits_bytes / 1e6:.0f} MB), 8-bit table of width {width}")
    print(f"{'':44}{'MB read':>10}{'MB written':>12}{'x logits':>10}")
    for name, (read, written) in rows.items():
        total = (read + written) / logits_bytes
        print(f"{name:44}{read / 1e6:10.2f}{written / 1e6:12.2f}{total:10.3f}")


if __name__ == "__main__":
    main()
