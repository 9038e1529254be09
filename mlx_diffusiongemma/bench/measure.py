"""Times one point of a sweep: a prompt length and a canvas length.

A step is timed as a generation runs it, then once more in parts with a barrier after each. Barriers keep
the device from overlapping parts, so these may add up to more than the step.
"""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import mlx.core as mx
import numpy as np

from ..engine.denoise import denoise
from ..engine.noise import NoiseKey, SeededDraws
from ..engine.rules import rules_of, temperature_at
from ..engine.state import CanvasState, SparseRemainder, initial_state
from ..engine.step import proposal_of, settle
from ..ops import TOLERANCE, is_sparse, row_statistics

if TYPE_CHECKING:
    from ..cache import PrefixCache
    from ..config.generation import GenerationConfig
    from ..model import DiffusionGemma

PARTS = ("embedding", "body", "logits", "sampler", "soft_embedding")

_CANVASES = 3  # timed; their median counts


@dataclass(frozen=True)
class Times:
    """Seconds, and what else was seen at one point.

    prefill: encoding the prompt. step: one denoising step. parts: the same, part by part. encode_canvas:
    encoding a committed canvas. dense_rows: rows of a step whose soft embedding took the whole vocabulary
    (median): the sparse one left out too much, or the vocabulary is so small that there is none.
    peak_memory: bytes, weights included, while encoding the prompt and denoising.
    """

    prefill: float
    step: float
    parts: dict[str, float]
    encode_canvas: float
    dense_rows: float
    peak_memory: int


def measure(model: DiffusionGemma, prompt_tokens: int, canvas_length: int, steps: int, seed: int) -> Times:
    """Times a random prompt and canvases of `steps` denoising steps behind it; nothing cold is timed."""
    ids = np.random.default_rng(seed).integers(model.config.text.vocab_size, size=(1, prompt_tokens))
    prompt = mx.array(ids, dtype=mx.int32)
    draws = SeededDraws([NoiseKey(seed, 0, 0, 0)], canvas_length, model.config.text.vocab_size)
    # Thresholds that no canvas passes: the step cap alone ends it.
    settings = model.generation_config.override(max_denoising_steps=steps, confidence_threshold=0.0)

    mx.clear_cache()
    mx.reset_peak_memory()
    warm_up = model.make_cache()
    model.encode(prompt, warm_up, settings.prefill_step_size)
    model.encode(draws.initial(), warm_up, settings.prefill_step_size)
    del warm_up
    cache = model.make_cache()
    prefill = _encode_seconds(model, prompt, cache, settings)
    denoise(model, cache, settings.override(max_denoising_steps=2), draws)  # the second has a belief to read
    step = statistics.median(_canvas_seconds(model, cache, settings, draws) for _ in range(_CANVASES)) / steps
    peak_memory = mx.get_peak_memory()
    parts, dense_rows = _parts(model, cache, settings, draws)
    encode_canvas = _encode_seconds(model, draws.initial(), cache, settings)
    return Times(prefill, step, parts, encode_canvas, dense_rows, peak_memory)


def _encode_seconds(
    model: DiffusionGemma, ids: mx.array, cache: PrefixCache, settings: GenerationConfig
) -> float:
    mx.eval(ids)
    start = time.perf_counter()
    model.encode(ids, cache, settings.prefill_step_size)
    return time.perf_counter() - start


def _canvas_seconds(
    model: DiffusionGemma, cache: PrefixCache, settings: GenerationConfig, draws: SeededDraws
) -> float:
    start = time.perf_counter()
    denoise(model, cache, settings, draws)
    return time.perf_counter() - start


class PartClock:
    """Times stretches of lazy work, each evaluated at its end."""

    def __init__(self) -> None:
        self.times: dict[str, list[float]] = {name: [] for name in PARTS}
        self.start()

    def start(self) -> None:
        self.last = time.perf_counter()

    def lap(self, name: str, *results: Any) -> None:
        mx.eval(*results)
        now = time.perf_counter()
        self.times[name].append(now - self.last)
        self.last = now

    def medians(self) -> dict[str, float]:
        """Of all laps but each part's first, which warms up."""
        return {name: statistics.median(times[1:]) for name, times in self.times.items()}


def _parts(
    model: DiffusionGemma, cache: PrefixCache, settings: GenerationConfig, draws: SeededDraws
) -> tuple[dict[str, float], float]:
    """Median seconds of each part over the steps of a canvas but its first, which warms up; dense rows."""
    noise = draws.initial()
    state = initial_state(noise, model.zero_self_conditioning(noise.shape))
    clock = PartClock()
    dense_rows: list[int] = []
    mx.eval(state)
    for index in range(settings.max_denoising_steps + 1):
        state, dense = step_in_parts(model, cache, state, settings, draws, index, clock)
        dense_rows.append(dense)
    return clock.medians(), statistics.median(dense_rows[1:])


def step_in_parts(
    model: DiffusionGemma,
    cache: PrefixCache,
    state: CanvasState,
    settings: GenerationConfig,
    draws: SeededDraws,
    index: int,
    clock: PartClock,
) -> tuple[CanvasState, int]:
    """`sampling.denoise_step` of one row with barriers: the state after it, and its dense rows."""
    shape = state.pins.shape  # [1, C]
    softcap = model.config.text.final_logit_softcapping
    step, steps = max(1, settings.max_denoising_steps - index), settings.max_denoising_steps
    temperature = temperature_at(step, settings)
    model.checked_kernels(shape)
    clock.start()
    with cache.canvas(*shape) as view:
        x = model.embed_canvas(state.acceptance.canvas, state.soft_embedding)
        clock.lap("embedding", x)
        hidden = model.body(x, view)
        clock.lap("body", hidden, view.buffers)
    logits = model.logits(hidden).flatten(0, 1)  # [C, V]
    clock.lap("logits", logits)

    uniforms, noise = draws.step(index)
    seen = row_statistics(logits, uniforms.flatten(), temperature, softcap)
    proposal = proposal_of(seen, shape, step, steps)
    acceptance, _ = rules_of(settings).apply(proposal, noise, state.pins, state.acceptance)
    clock.lap("sampler", acceptance, seen)

    soft, dropped_mass = model.soft_embedding(logits, seen, temperature)
    state = state._replace(acceptance=acceptance, soft_embedding=soft.reshape(*shape, -1))
    state = settle(model, state, SparseRemainder(dropped_mass, logits, seen.log_normalizer), temperature)
    clock.lap("soft_embedding", state.soft_embedding)
    lacking = int(np.count_nonzero(np.array(dropped_mass) > TOLERANCE))
    return state, lacking if is_sparse(model.decoder.embed_tokens) else shape[1]
