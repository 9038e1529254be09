"""Takes one measurement of one side (mlx_dg or mlx-vlm). `versus_mlx_vlm.py` starts it for each measurement.

    python benchmarks/versus_sides.py < job.json
    python benchmarks/versus_sides.py --smoke

A job is a JSON object with `side` ("mlx_dg" or "mlx-vlm"), `measure` (a key of `MEASURES`) and the other
arguments of that measure. `model` is a converted directory whose floating-point tensors are all float32. The
answer is one line of JSON on stdout. Both sides get the same token ids, and never denoise a canvas again.
mlx_dg also detokenizes, mlx-vlm does not. mlx-vlm's side calls `Model.generate` as mlx-vlm's command line
does, except for `diffusion_sampler="entropy-bound"`, `temperature=1` (its default, 0, takes argmaxes instead
of samples) and `diffusion_full_canvas=True`. Its stop ids are those of generation_config.json.
"""

from __future__ import annotations

import argparse
import importlib
import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import mlx.core as mx
import sampler
from common import parse, resident_bytes
from mlx.utils import tree_flatten

from mlx_diffusiongemma import generate, load
from mlx_diffusiongemma.evaluation.runners.vlm import Silent

MAX_NEW_TOKENS = 256
PREFILL_STEP_SIZE = 2048  # value of mlx-vlm's command line
STEPS_BEFORE = 2  # denoising steps of the shorter generation that a longer one is compared with
# The first temperature of a real schedule. It stays the same, so that long generations begin like short ones.
TEMPERATURE = 0.8
Job = dict[str, Any]
SMOKE: list[Job] = [
    {"side": "mlx_dg", "measure": "prefill", "model": "demo", "prompt": [2, 105, 106]},
    {"side": "mlx_dg", "measure": "memory", "model": "demo", "prompt": [2, 105, 106], "steps": 1},
    {"side": "mlx_dg", "measure": "sampler", "rows": 8, "vocab": 1024},
]


@dataclass(frozen=True)
class Run:
    """A whole generation. seconds include prefill. mean_entropy: nats at the last step, None for mlx-vlm."""

    seconds: float
    prefill: float
    token_ids: list[int]
    denoising_steps: int
    mean_entropy: float | None = None


class Side(Protocol):
    def __call__(self, prompt: list[int], seed: int, steps: int | None = None) -> Run:
        """Generate. steps: steps of every canvas, at `TEMPERATURE`, or None to stop at convergence."""
        ...


class Ours:
    def __init__(self, directory: str) -> None:
        self.model, self.tokenizer = load(directory, dtype=mx.float32)

    def __call__(self, prompt: list[int], seed: int, steps: int | None = None) -> Run:
        settings: dict[str, Any] = {"max_new_tokens": MAX_NEW_TOKENS}
        settings |= {"guard_empty": False, "guard_unconverged": False}
        if steps is not None:  # a mean entropy is never below 0, so no canvas converges
            settings |= {"max_denoising_steps": steps, "confidence_threshold": 0.0}
            settings |= {"t_min": TEMPERATURE, "t_max": TEMPERATURE}
        start = time.perf_counter()
        generation = generate(self.model, self.tokenizer, prompt, seed=seed, **settings)
        token_ids = generation.token_ids
        seconds = time.perf_counter() - start
        stats, entropy = generation.stats, generation.blocks[-1].mean_entropy
        return Run(seconds, stats.prefill_seconds, token_ids, stats.denoising_steps, entropy)


def never_converged(argmax: mx.array, *_: Any) -> bool:
    """Replaces mlx-vlm's check of convergence. Reads from the device at every step, as the check does."""
    return bool(mx.any(argmax < 0).item())


class Theirs:
    def __init__(self, directory: str) -> None:
        self.engine: Any = importlib.import_module("mlx_vlm.generate.diffusion")
        self.common: Any = importlib.import_module("mlx_vlm.generate.common")
        utils: Any = importlib.import_module("mlx_vlm.utils")
        self.model = utils.load_model(Path(directory))
        parameters: Any = tree_flatten(self.model.parameters())
        for name, array in parameters:  # mlx-vlm computes in the dtype of the weights
            if mx.issubdtype(array.dtype, mx.floating) and array.dtype != mx.float32:
                sys.exit(f"{directory}: {name} is {array.dtype}, not float32; convert with dtype float32")

    def __call__(self, prompt: list[int], seed: int, steps: int | None = None) -> Run:
        if steps is not None:
            self.model.config.generation_config |= {"t_min": TEMPERATURE, "t_max": TEMPERATURE}
            self.engine._diffusion_stable_and_confident = never_converged
        stats: dict[str, float] = {}
        mx.random.seed(seed)
        start = time.perf_counter()
        with self.common.wired_limit(self.model, [self.common.generation_stream]):
            tokens = self.model.generate(
                mx.array([prompt]),
                temperature=1.0,
                steps=steps,
                gen_length=MAX_NEW_TOKENS,
                tokenizer=Silent(),
                stats=stats,
                diffusion_full_canvas=True,
                diffusion_sampler="entropy-bound",
                prefill_step_size=PREFILL_STEP_SIZE,
            )
            token_ids = tokens[0].tolist()
        seconds = time.perf_counter() - start
        return Run(seconds, stats["prompt_time"], token_ids, round(stats["diffusion_denoising_steps"]))


SIDES: dict[str, Callable[[str], Side]] = {"mlx_dg": Ours, "mlx-vlm": Theirs}
SAMPLERS = {"mlx_dg": sampler.our_step, "mlx-vlm": sampler.their_step}


def step(side: str, model: str, prompt: list[int], steps: int) -> dict[str, Any]:
    """Return seconds of a step: the time that `steps` more steps add to a generation, divided by `steps`.

    On both sides the first step has no self-conditioning, and the last step ends early. The short and the
    long generation have both, so their difference is the time of complete steps. An untimed generation warms
    up.
    """
    run = SIDES[side](model)
    run(prompt, 0, STEPS_BEFORE)
    short, long = (run(prompt, 0, STEPS_BEFORE + more) for more in (0, steps))
    if long.denoising_steps - short.denoising_steps != steps:
        sys.exit(f"{side} took {short.denoising_steps} and {long.denoising_steps} steps, not {steps} more")
    seconds = (long.seconds - long.prefill) - (short.seconds - short.prefill)
    return {"seconds": seconds / steps, "mean_entropy": [short.mean_entropy, long.mean_entropy]}


def prefill(side: str, model: str, prompt: list[int]) -> dict[str, Any]:
    """Return the seconds from the call until the prompt is in the cache: median of three, after a warm-up."""
    run = SIDES[side](model)
    times = [run(prompt, 0, steps=1).prefill for _ in range(4)]
    return {"seconds": statistics.median(times[1:])}


def sampling(side: str, rows: int, vocab: int) -> dict[str, Any]:
    """Return the seconds of a step of `sampler.py`, with softcap: median of three, after a warm-up."""
    logits = sampler.raw_logits(rows, vocab, mx.float32)
    mx.eval(logits)
    one_step = SAMPLERS[side](logits, sampler.SOFTCAP)
    times = [sampler.seconds(one_step) for _ in range(4)]
    return {"seconds": statistics.median(times[1:])}


def memory(side: str, model: str, prompt: list[int], steps: int) -> dict[str, Any]:
    """Load, generate once, and return memory peaks. Only the resident peak includes loading."""
    run = SIDES[side](model)
    mx.reset_peak_memory()
    run(prompt, 0, steps)
    return {"mlx_gb": mx.get_peak_memory() / 1e9, "resident_gb": resident_bytes(peak=True) / 1e9}


def answers(side: str, model: str, prompts: list[list[int]], seed: int) -> dict[str, Any]:
    """Answer all prompts, after a warm-up. Return the sum of their seconds and steps, and the ids of each."""
    run = SIDES[side](model)
    run(prompts[0], seed)
    runs = [run(prompt, seed + index) for index, prompt in enumerate(prompts)]
    return {
        "seconds": sum(one.seconds for one in runs),
        "denoising_steps": sum(one.denoising_steps for one in runs),
        "token_ids": [one.token_ids for one in runs],
    }


MEASURES: dict[str, Callable[..., dict[str, Any]]] = {
    "step": step,
    "prefill": prefill,
    "sampler": sampling,
    "memory": memory,
    "generation": answers,
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description="One measurement of one side. Reads a job, JSON, from stdin."
    )
    jobs = SMOKE if parse(parser, smoke={}).smoke else [json.load(sys.stdin)]
    for job in jobs:
        arguments = {name: value for name, value in job.items() if name != "measure"}
        print(json.dumps(MEASURES[job["measure"]](**arguments)))


if __name__ == "__main__":
    main()
