"""One canvas: noise in, converged ids out."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import mlx.core as mx
import numpy as np

from .cache import PrefixCache
from .errors import GenerationError
from .generation_config import GenerationConfig
from .sampling import CanvasState, Draws, denoise_step, initial_state, settle, temperature_at

if TYPE_CHECKING:
    from .model import DiffusionGemma


@dataclass(frozen=True)
class Step:
    """What a watcher sees after one denoising step; host arrays, `[B, C]` unless said otherwise.

    index: 0, 1, ...; step: the countdown that sets the temperature (max_denoising_steps ... 1).
    draft_ids: the argmax canvas, which would be committed now. canvas_ids: the next step's input.
    entropies: nats. accepted: which positions kept their sample. mean_entropy, done: `[B]`.
    """

    index: int
    step: int
    temperature: float
    draft_ids: np.ndarray
    canvas_ids: np.ndarray
    entropies: np.ndarray
    accepted: np.ndarray
    mean_entropy: np.ndarray
    done: np.ndarray


@dataclass(frozen=True)
class DenoisedCanvas:
    """The committed argmax canvas: ids int32 `[B, C]`, and how it came about.

    steps: decoder passes spent. mean_entropy: nats, per row, at each row's last step. converged: per
    row, whether it stopped by itself (False: the step cap ended it).
    """

    ids: mx.array
    steps: int
    mean_entropy: list[float]
    converged: list[bool]


def denoise(
    model: DiffusionGemma,
    cache: PrefixCache,
    settings: GenerationConfig,
    draws: Draws,
    on_step: Callable[[Step], None] | None = None,
) -> DenoisedCanvas:
    """Denoises one canvas per cached row until every row is done or the step cap is reached.

    Raises `GenerationError` when the logits of some position hold NaN or +inf, or nothing finite.
    """
    state = initial_state(draws.initial())
    converged, mean_entropy = [False], [math.nan]
    for index in range(settings.max_denoising_steps):
        step = settings.max_denoising_steps - index
        temperature = temperature_at(step, settings)
        before = state
        state, remainder = denoise_step(model, cache, before, temperature, draws.step(index), settings)

        # The stop record, the one readback of a step. (A watcher reads more.)
        record = state.acceptance
        mx.eval(record, state.entropies, remainder.left_out)
        converged = np.array(record.done).tolist()
        mean_entropy = np.array(record.mean_entropy).tolist()
        if np.array(record.invalid).any():
            raise GenerationError(
                f"the model's logits are NaN or infinite at denoising step {index + 1}; "
                "the weights are damaged or the dtype overflows: load with dtype=float32 or convert again"
            )
        if on_step is not None:
            on_step(_watch(index, step, temperature, state))
        if all(converged):
            break
        state = settle(model, before, state, remainder, temperature)
        del remainder  # its logits would live through the next step
    return DenoisedCanvas(state.acceptance.argmax, index + 1, mean_entropy, converged)


def _watch(index: int, step: int, temperature: float, state: CanvasState) -> Step:
    result = state.acceptance
    return Step(
        index=index,
        step=step,
        temperature=temperature,
        draft_ids=np.array(result.argmax),
        canvas_ids=np.array(result.canvas),
        entropies=np.array(state.entropies),
        accepted=np.array(result.accepted),
        mean_entropy=np.array(result.mean_entropy),
        done=np.array(result.done),
    )
