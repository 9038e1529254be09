"""Runs the whole benchmark: checks the arguments, loads the model, and times every point."""

from __future__ import annotations

import platform
import re
from dataclasses import asdict
from importlib.metadata import version
from itertools import product
from typing import TYPE_CHECKING, Any

from ..checkpoint.loading import load, resolve
from ..config import released
from ..config.model import ModelConfig
from ..console.progress import bar
from ..engine.memory import check_fits, wired_limit
from ..engine.noise import checked_seed
from ..errors import InputError
from ..generation import generate
from ..ops import on_gpu
from . import cost, synthetic
from .hardware import Ceilings, ceilings, probe
from .measure import Times, measure

if TYPE_CHECKING:
    from ..model import DiffusionGemma

_PROMPT_TOKENS = (128, 1024, 4096)
_MOST_STEPS = 1000
_QUESTION, _DEMO_QUESTION = "Why is the sky blue?", "Count to 37."  # the demo knows only a few tasks
# Values of `Stats` that the result reports about one real generation.
GENERATION = (
    "new_tokens", "answer_tokens", "blocks", "denoising_steps", "steps_per_block", "tokens_per_forward",
    "in_step_tokens_per_second", "gross_tokens_per_second", "net_tokens_per_second",
    "seconds", "peak_memory_gb",
)  # fmt: skip


def lengths(text: str | None, option: str) -> tuple[int, ...] | None:
    """Return the numbers in a text such as "128,1024", or None for None. Other texts raise `InputError`."""
    if text is None:
        return None
    words = [word.strip() for word in text.split(",")]
    if not all(re.fullmatch("0*[1-9][0-9]{0,8}", word) for word in words):
        raise InputError(f"{option} must be whole numbers above 0 with commas between, found {text[:80]!r}")
    return tuple(dict.fromkeys(int(word) for word in words))


def run(
    name: str,
    layers: int | None = None,
    prompt_tokens: tuple[int, ...] | None = None,
    canvas_lengths: tuple[int, ...] | None = None,
    steps: int = 8,
    seed: int = 0,
) -> dict[str, Any]:
    """Measure the model `name` at every prompt and canvas length. Return the output of `mlx_dg bench`.

    An argument that is None has the default in the command's help. Units are part of the result's keys: a GB
    is 10^9 bytes, a TFLOP is 10^12 operations.

    Raises:
        InputError: an argument is invalid or a point does not fit. Raised before anything is timed.
    """
    synthetic_layers = synthetic.layers_of(name, layers)
    seed = checked_seed(seed)
    if not 1 <= steps <= _MOST_STEPS:
        raise InputError(f"--steps must be from 1 to {_MOST_STEPS}, found {steps}")
    if synthetic_layers is not None:
        config = released.real_config(synthetic_layers)
        points = _points(config, prompt_tokens, canvas_lengths)
        dtype = synthetic.default_dtype()
        _check_memory(synthetic.quantized_skeleton(config, dtype), points)
        model = synthetic.build(config, seed, dtype)
        # A random model is not asked to generate, because its answers mean nothing.
        generation: dict[str, Any] = dict.fromkeys(("prompt", *GENERATION))
    else:
        directory = resolve(name)
        points = _points(ModelConfig.load(directory), prompt_tokens, canvas_lengths)
        model, tokenizer = load(directory)
        _check_memory(model, points)
        question = _DEMO_QUESTION if name == "demo" else _QUESTION
        list(generate(model, tokenizer, question, seed=seed, max_denoising_steps=2))  # warms up
        answer = generate(model, tokenizer, question, seed=seed)
        list(answer)
        generation = {"prompt": question, **{key: answer.stats.to_dict()[key] for key in GENERATION}}
    return measured(model, name, points, steps, seed) | {"generation": generation}


def measured(
    model: DiffusionGemma, name: str, points: list[tuple[int, int]], steps: int, seed: int
) -> dict[str, Any]:
    """Return the result of `run` for a loaded model. points: pairs of prompt tokens and canvas length."""
    limits = ceilings(model.dtype)
    times = []
    with wired_limit():  # as in generations
        for prompt_tokens, canvas_length in bar("points", iterable=points, unit="point"):
            times.append(measure(model, prompt_tokens, canvas_length, steps, seed))
            if limits.source == "measured":  # again, because other work may have slowed the first one
                limits = limits.raised(*probe(model.dtype))
    stored = cost.stored_bytes(model)
    needed = [
        cost.step_cost(
            model.config,
            stored,
            prefix=prompt_tokens,
            canvas=canvas_length,
            itemsize=model.dtype.size,
            dense_rows=timed.dense_rows,
        )
        for (prompt_tokens, canvas_length), timed in zip(points, times, strict=True)
    ]
    for parts, timed in zip(needed, times, strict=True):
        limits = limits.raised(*_speeds(parts, timed))
    return {
        "model": name,
        "layers": model.config.text.num_hidden_layers,
        "weights_gb": sum(stored.values()) / 1e9,
        "dtype": str(model.dtype).removeprefix("mlx.core."),
        "device": "gpu" if on_gpu() else "cpu",
        "metal_kernels": list(model.checked_kernels((1, points[0][1]))),
        "versions": {
            "python": platform.python_version(),
            **{package: version(package) for package in ("mlx-diffusiongemma", "mlx", "mlx-lm")},
        },
        "ceilings": asdict(limits),
        "steps": steps,
        "seed": seed,
        "points": [
            _point(limits, *point, timed, parts)
            for point, timed, parts in zip(points, times, needed, strict=True)
        ],
    }


def _points(
    config: ModelConfig, prompt_tokens: tuple[int, ...] | None, canvas_lengths: tuple[int, ...] | None
) -> list[tuple[int, int]]:
    """Return all pairs of prompt and canvas length. Raise `InputError` if a pair does not fit the model."""
    limit, longest = config.text.max_position_embeddings, config.canvas_length
    canvases = canvas_lengths or (longest,)
    if max(canvases) > longest:
        raise InputError(
            f"--canvas-lengths has {max(canvases)}, but this model's canvas is {longest}; use at most that"
        )
    room = limit - max(canvases)
    prompts = prompt_tokens or tuple(length for length in _PROMPT_TOKENS if length <= room) or (room,)
    if max(prompts) > room:
        raise InputError(
            f"--prompt-tokens {max(prompts)} and a canvas of {max(canvases)} need more than the {limit} "
            f"positions of this model's context; prompts may have {room} tokens"
        )
    return list(product(prompts, canvases))


def _check_memory(model: DiffusionGemma, points: list[tuple[int, int]]) -> None:
    """Raise `InputError` if a point needs more memory than there is. Lazy weights stay lazy."""
    for prompt_tokens, canvas_length in points:
        try:
            check_fits(model, prompt_tokens, canvas_length, model.generation_config.prefill_step_size)
        except InputError as error:
            shortage = str(error).partition(";")[0]
            raise InputError(f"{shortage}; lower --prompt-tokens, or --layers of a synthetic model") from None


def _speeds(needed: dict[str, cost.Cost], times: Times) -> tuple[float, float]:
    """Return the GB/s and TFLOP/s of a step: the cost that it needs, divided by its time."""
    total = cost.total(needed)
    return total.nbytes / 1e9 / times.step, total.flop / 1e12 / times.step


def _point(
    limits: Ceilings, prompt_tokens: int, canvas_length: int, times: Times, needed: dict[str, cost.Cost]
) -> dict[str, Any]:
    bandwidth, arithmetic = _speeds(needed, times)
    total = cost.total(needed)
    return {
        "prompt_tokens": prompt_tokens,
        "canvas_length": canvas_length,
        "prefill_seconds": times.prefill,
        "prefill_tokens_per_second": prompt_tokens / times.prefill,
        "step_seconds": times.step,
        "in_step_tokens_per_second": canvas_length / times.step,
        **{f"{name}_seconds": seconds for name, seconds in times.parts.items()},
        "parts_sum_seconds": sum(times.parts.values()),
        "encode_canvas_seconds": times.encode_canvas,
        "dense_soft_embedding_rows": times.dense_rows,
        "peak_memory_gb": times.peak_memory / 1e9,
        "step_gb": total.nbytes / 1e9,
        "step_tflop": total.flop / 1e12,
        "bandwidth_fraction": bandwidth / limits.bandwidth_gb_per_second,
        "arithmetic_fraction": arithmetic / limits.arithmetic_tflop_per_second,
        "needed": {
            name: {"gb": part.nbytes / 1e9, "tflop": part.flop / 1e12} for name, part in needed.items()
        },
    }
