"""Compares the sampler of a denoising step with mlx-vlm's, on the same logits, in one process.

    python benchmarks/sampler.py [--rows 256] [--vocab 262144] [--rounds 5] [--dtype float32] [--smoke]

Both sides start from the same random raw logits `[rows, vocab]` and end with the next canvas, evaluated:

- mlx_dg: `row_statistics` and `accept_and_renoise`, with the draws of their uniforms and noise. They include
  the stop rule, which mlx-vlm's side leaves out. They run as Metal kernels if possible, else in plain MLX.
- mlx-vlm: the step of `stream_diffusion_generate` with `diffusion_sampler="entropy-bound"`, composed of
  mlx-vlm's functions: division by the step's temperature, argmax, sample, entropy, acceptance mask, renoise.
  `temperature` is 1, which samples from the step's distribution as mlx_dg does. mlx-vlm's default, 0, takes
  the argmax. Its stability check is left out, because it reads from the device and seldom does more.

In rows "with softcap", each side caps the raw logits, mlx-vlm with its compiled softcap (`mx.compile`, which
on the CPU needs a C++ compiler). In rows "without", neither side does, and mlx-vlm's side casts to fp32, as
its softcap would.

Each side has one untimed call. Then the sides take turns, in the opposite order in every other round. A ratio
is mlx-vlm's time divided by mlx_dg's time in the same round. Exits with status 2 if mlx-vlm is missing.
"""

from __future__ import annotations

import argparse
import importlib
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import mlx.core as mx
from common import parse

from mlx_diffusiongemma.engine.step import proposal_of
from mlx_diffusiongemma.ops import FREE, Acceptance, Bounds, accept_and_renoise, row_statistics

SOFTCAP, TEMPERATURE = 30.0, 0.6
BOUNDS = Bounds(entropy_bound=0.1, stability_threshold=1, confidence_threshold=0.005)


def raw_logits(rows: int, vocab: int, dtype: mx.Dtype) -> mx.array:
    """Return random logits `[rows, vocab]`, the same on every call."""
    return (4 * mx.random.normal((rows, vocab), key=mx.random.key(0))).astype(dtype)


def our_step(logits: mx.array, softcap: float | None) -> Callable[[], Sequence[mx.array]]:
    rows, vocab = logits.shape
    free = mx.full((1, rows), FREE, dtype=mx.int32)
    no = mx.zeros((1,), dtype=mx.bool_)
    before = Acceptance(
        canvas=mx.zeros((1, rows), dtype=mx.int32),
        argmax=mx.full((1, rows), -1, dtype=mx.int32),  # no token, so nothing is stable yet
        accepted=mx.zeros((1, rows), dtype=mx.bool_),
        stable_steps=mx.zeros((1,), dtype=mx.int32),
        mean_entropy=mx.zeros((1,)),
        done=no,
        invalid=no,
    )
    mx.eval(before, free)

    def step() -> Sequence[mx.array]:
        uniforms, noise = mx.random.uniform(shape=(rows,)), mx.random.randint(0, vocab, (1, rows))
        per_row = row_statistics(logits, uniforms, TEMPERATURE, softcap)
        return accept_and_renoise(proposal_of(per_row, noise.shape, 1, 1), noise, free, before, BOUNDS)

    return step


def their_step(logits: mx.array, softcap: float | None) -> Callable[[], Sequence[mx.array]]:
    theirs: Any = importlib.import_module("mlx_vlm.generate.diffusion")
    language: Any = importlib.import_module("mlx_vlm.models.diffusion_gemma.language")
    cap = language.make_compiled_softcap(softcap) if softcap is not None else lambda x: x.astype(mx.float32)
    rows, vocab = logits.shape
    canvas = mx.zeros((1, rows), dtype=mx.int32)
    mx.eval(canvas)

    def step() -> Sequence[mx.array]:
        processed = cap(logits[None]) / TEMPERATURE
        argmax = mx.argmax(processed, axis=-1).astype(mx.int32)
        sample = theirs._diffusion_sample_canvas(processed, mx.int32, 1.0)
        entropy = theirs._diffusion_token_entropy(processed)
        accepted = theirs._diffusion_entropy_transfer_mask(entropy, BOUNDS.entropy_bound)
        kept = mx.where(accepted, sample, canvas)
        noise = theirs._diffusion_initialize_canvas(1, rows, vocab, mx.int32)
        return argmax, mx.where(accepted, kept, noise), accepted

    return step


def seconds(step: Callable[[], Sequence[mx.array]]) -> float:
    start = time.perf_counter()
    mx.eval(step())
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description="The sampler of a denoising step against mlx-vlm's.")
    parser.add_argument("--rows", type=int, default=256, help="canvas positions")
    parser.add_argument("--vocab", type=int, default=262144)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    options = parse(parser, smoke={"rows": 8, "vocab": 4096, "rounds": 1}, needs_mlx_vlm=True)

    logits = raw_logits(options.rows, options.vocab, getattr(mx, options.dtype))
    variants = [
        (name, our_step(logits, softcap), their_step(logits, softcap))
        for name, softcap in [("with softcap", SOFTCAP), ("without", None)]
    ]
    mx.eval(logits)
    print(f"{logits.shape} {options.dtype}, {mx.default_device()}, {options.rounds} rounds")
    print(f"{'':16}{'mlx_dg ms':>12}{'mlx-vlm ms':>12}{'ratio':>8}   min..max")
    for name, *steps in variants:
        times: list[list[float]] = [[], []]
        for index in range(-1, options.rounds):
            for side in (0, 1) if index % 2 else (1, 0):
                duration = seconds(steps[side])
                if index >= 0:
                    times[side].append(1e3 * duration)
        medians = [statistics.median(side) for side in times]
        ratios = [theirs / ours for ours, theirs in zip(*times, strict=True)]
        print(f"{name:16}{medians[0]:12.1f}{medians[1]:12.1f}{statistics.median(ratios):8.2f}", end="")
        print(f"   {min(ratios):.2f}..{max(ratios):.2f}")


if __name__ == "__main__":
    main()
