"""Measures two denoising steps with the 26B model's shapes and random 4-bit weights: times and memory peaks.

    python benchmarks/real_widths.py [--layers 30] [--prompt-tokens 64] [--smoke]

Builds `synthetic:26b`, encodes a prompt and denoises one full canvas, with a barrier after each part of a
step. Prints one line of JSON with the seconds of each part in both steps, and the memory peaks of MLX and of
the process in 10^9 bytes. The first step is cold. The second step is the last one of the canvas, so it
computes no soft embedding. On MLX's CPU backend the script takes 45 minutes and 19 GB. On faster machines
`mlx_dg bench` measures more. `--smoke` uses the demo's shapes.
"""

from __future__ import annotations

import argparse
import json
import time
from typing import Any

import mlx.core as mx
import numpy as np
from common import parse, resident_bytes

from mlx_diffusiongemma.bench import synthetic
from mlx_diffusiongemma.bench.measure import PartClock
from mlx_diffusiongemma.checkpoint.loading import resolve
from mlx_diffusiongemma.config.model import ModelConfig
from mlx_diffusiongemma.config.released import REAL_LAYERS, real_config
from mlx_diffusiongemma.engine.denoise import denoise
from mlx_diffusiongemma.engine.memory import check_fits
from mlx_diffusiongemma.engine.noise import NoiseKey, SeededDraws
from mlx_diffusiongemma.engine.settings import Settings
from mlx_diffusiongemma.ops import TOLERANCE


def main() -> None:
    parser = argparse.ArgumentParser(description="Two denoising steps of the 26B model's shapes.")
    parser.add_argument("--layers", type=int, default=REAL_LAYERS)
    parser.add_argument("--prompt-tokens", type=int, default=64)
    options = parse(parser, smoke={"prompt_tokens": 8})
    if options.layers > REAL_LAYERS:
        parser.error(f"--layers must be at most {REAL_LAYERS}")

    start = time.perf_counter()
    config = ModelConfig.load(resolve("demo")) if options.smoke else real_config(options.layers)
    model = synthetic.build(config, seed=0, dtype=synthetic.default_dtype())
    build = time.perf_counter() - start
    vocab, length = config.text.vocab_size, config.canvas_length
    settings = Settings.of(model.generation_config, max_denoising_steps=2, confidence_threshold=0.0)
    check_fits(model, options.prompt_tokens, length, settings.prefill_step_size)

    cache = model.make_cache()
    prompt = mx.array(np.random.default_rng(0).integers(vocab, size=(1, options.prompt_tokens)))
    start = time.perf_counter()
    model.encode(prompt, cache)
    prefill = time.perf_counter() - start

    dense_rows = 0
    clock = PartClock()

    def lap(name: str, *results: Any) -> None:
        nonlocal dense_rows
        clock.lap(name, *results)
        if name == "soft_embedding":
            dense_rows = (results[1] > TOLERANCE).sum().item()

    canvas = denoise(model, cache, settings, SeededDraws([NoiseKey(0, 0, 0, 0)], length, vocab), lap=lap)
    figures = {
        "layers": config.text.num_hidden_layers,
        "prompt_tokens": options.prompt_tokens,
        "build_seconds": round(build, 3),
        "prefill_seconds": round(prefill, 3),
        "part_seconds": {name: [round(one, 4) for one in times] for name, times in clock.times.items()},
        "dense_rows": dense_rows,
        "mean_entropy_nats": canvas.mean_entropy[0],
        "mlx_peak_gb": round(mx.get_peak_memory() / 1e9, 3),
        "process_peak_gb": round(resident_bytes(peak=True) / 1e9, 3),
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
