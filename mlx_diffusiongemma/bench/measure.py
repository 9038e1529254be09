"""Times one point of a benchmark. A point is a prompt length and a canvas length.

A step is timed as in a generation, and then again part by part, with a barrier after each part. Barriers keep
the device from overlapping parts, so the parts may add up to more than the step.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import mlx.core as mx
import numpy as np

from ..engine.denoise import denoise
from ..engine.noise import NoiseKey, SeededDraws
from ..engine.settings import Settings
from ..ops import TOLERANCE, is_sparse

if TYPE_CHECKING:
    from ..cache import PrefixCache
    from ..model import DiffusionGemma

PARTS = ("body", "logits", "sampler", "soft_embedding")

_CANVASES = 3  # number of timed canvases, whose median is reported


@dataclass(frozen=True)
class Times:
    """Times in seconds, and other measurements, of one point.

    prefill: time to encode the prompt.
    step: time of one denoising step.
    parts: time of each part of a step.
    encode_canvas: time to encode a committed canvas.
    dense_rows: median number of positions per step whose soft embedding is computed over the whole
        vocabulary: a sparse one would drop too much probability, or the vocabulary is too small for one.
    peak_memory: peak bytes during prefill and denoising, including weights.
    """

    prefill: float
    step: float
    parts: dict[str, float]
    encode_canvas: float
    dense_rows: float
    peak_memory: int


def measure(model: DiffusionGemma, prompt_tokens: int, canvas_length: int, steps: int, seed: int) -> Times:
    """Warm up, then time a random prompt and canvases of `steps` denoising steps after it."""
    ids = np.random.default_rng(seed).integers(model.config.text.vocab_size, size=(1, prompt_tokens))
    prompt = mx.array(ids, dtype=mx.int32)
    draws = SeededDraws([NoiseKey(seed, 0, 0, 0)], canvas_length, model.config.text.vocab_size)
    # No canvas passes this threshold, so each one ends at the step cap.
    settings = Settings.of(model.generation_config, max_denoising_steps=steps, confidence_threshold=0.0)

    chunk_size = settings.prefill_step_size
    noise = draws.initial()
    mx.eval(prompt, noise)

    mx.clear_cache()
    mx.reset_peak_memory()
    warm_up = model.make_cache()
    model.encode(prompt, warm_up, chunk_size)
    model.encode(noise, warm_up, chunk_size)
    del warm_up
    cache = model.make_cache()
    prefill = _seconds(lambda: model.encode(prompt, cache, chunk_size))
    # Two steps to warm up: the first has no self-conditioning.
    denoise(model, cache, settings.override(max_denoising_steps=2), draws)
    canvases = [_seconds(lambda: denoise(model, cache, settings, draws)) for _ in range(_CANVASES)]
    peak_memory = mx.get_peak_memory()
    parts, dense_rows = _parts(model, cache, settings, draws)
    encode_canvas = _seconds(lambda: model.encode(noise, cache, chunk_size))
    return Times(prefill, statistics.median(canvases) / steps, parts, encode_canvas, dense_rows, peak_memory)


def _seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


class PartClock:
    """Times the parts of a step. Pass `lap` to `denoise`. It evaluates each part before it stops the time."""

    def __init__(self) -> None:
        self.times: dict[str, list[float]] = {name: [] for name in PARTS}
        self.start()

    def start(self) -> None:
        self._since = time.perf_counter()

    def lap(self, name: str, *results: Any) -> None:
        mx.eval(*results)
        now = time.perf_counter()
        self.times[name].append(now - self._since)
        self._since = now

    def medians(self) -> dict[str, float]:
        """Return the median time of each part. The first lap of a part is a warm-up and is left out."""
        return {name: statistics.median(times[1:]) for name, times in self.times.items()}


def _parts(
    model: DiffusionGemma, cache: PrefixCache, settings: Settings, draws: SeededDraws
) -> tuple[dict[str, float], float]:
    """Return the median seconds of each part over the steps of a canvas, and the median of `dense_rows`."""
    clock = PartClock()
    dense_rows: list[int] = []
    sparse = is_sparse(model.decoder.embed_tokens)

    def lap(name: str, *results: Any) -> None:
        clock.lap(name, *results)
        if name == "soft_embedding":
            dense_rows.append(int((np.array(results[1]) > TOLERANCE).sum()) if sparse else len(results[1]))

    # The last step needs no soft embedding, and the first warms up.
    longer = settings.override(max_denoising_steps=settings.max_denoising_steps + 2)
    clock.start()
    denoise(model, cache, longer, draws, lap=lap)
    return clock.medians(), statistics.median(dense_rows[1:])
