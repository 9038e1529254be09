"""One denoising step of the whole 26B model's shapes, with random 4-bit weights: what it takes.

    python benchmarks/real_widths.py [--layers 30] [--prompt-tokens 64]

Builds `synthetic:26b`, encodes a prompt and takes one step of a full canvas behind it, cold, with a barrier
after each part. Prints one line of JSON: seconds of each, and peaks in 10^9 bytes, MLX's and the process's.
On MLX's CPU backend this takes half an hour and 17 GB; `mlx_dg bench` measures more where a step takes less.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import time

import mlx.core as mx
import numpy as np

from mlx_diffusiongemma.bench import synthetic
from mlx_diffusiongemma.bench.measure import PartClock, step_in_parts
from mlx_diffusiongemma.engine.memory import check_fits
from mlx_diffusiongemma.engine.noise import NoiseKey, SeededDraws
from mlx_diffusiongemma.engine.state import initial_state


def main() -> None:
    parser = argparse.ArgumentParser(description="One denoising step of the 26B model's shapes.")
    parser.add_argument("--layers", type=int, default=synthetic.REAL_LAYERS)
    parser.add_argument("--prompt-tokens", type=int, default=64)
    options = parser.parse_args()
    if not 1 <= options.layers <= synthetic.REAL_LAYERS or options.prompt_tokens < 1:
        parser.error(f"--layers must be from 1 to {synthetic.REAL_LAYERS}, --prompt-tokens at least 1")

    start = time.perf_counter()
    config = synthetic.real_config(options.layers)
    model = synthetic.build(config, seed=0, dtype=synthetic.default_dtype())
    seconds = {"build": time.perf_counter() - start}
    vocab, length = config.text.vocab_size, config.canvas_length
    check_fits(model, options.prompt_tokens, length, model.generation_config.prefill_step_size)

    cache = model.make_cache()
    prompt = mx.array(np.random.default_rng(0).integers(vocab, size=(1, options.prompt_tokens)))
    start = time.perf_counter()
    model.encode(prompt, cache)
    seconds["prefill"] = time.perf_counter() - start

    draws = SeededDraws([NoiseKey(0, 0, 0, 0)], length, vocab)
    noise = draws.initial()
    clock = PartClock()
    state = initial_state(noise, model.zero_self_conditioning(noise.shape))
    state, dense_rows = step_in_parts(model, cache, state, model.generation_config, draws, 0, clock)
    seconds |= {name: times[0] for name, times in clock.times.items()}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    figures = {
        "layers": options.layers,
        "prompt_tokens": options.prompt_tokens,
        "dense_rows": dense_rows,
        "seconds": {name: round(taken, 3) for name, taken in seconds.items()},
        "step_seconds": round(sum(times[0] for times in clock.times.values()), 3),
        "mean_entropy_nats": state.acceptance.mean_entropy.item(),
        "mlx_peak_gb": round(mx.get_peak_memory() / 1e9, 2),
        "process_peak_gb": round(peak / 1e9, 2),
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
