"""One canvas: noise in, converged ids out."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import mlx.core as mx
import numpy as np

from .cache import CanvasView, KeysValues, Layout, PrefixCache
from .errors import GenerationError
from .generation_config import GenerationConfig
from .ops import Bounds, enabled
from .sampling import CanvasState, Draws, Remainder, denoise_step, initial_state, settle, temperature_at

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
    noise = draws.initial()
    cache.make_room(noise.shape[0], 0, noise.shape[1])
    layout, offset = cache.layout(noise.shape[1]), mx.array(cache.offset)
    take_step = compiled_step(model)
    bounds = Bounds(settings.entropy_bound, settings.stability_threshold, settings.confidence_threshold)
    state = initial_state(noise, model.no_belief(noise.shape))
    converged, mean_entropy = [False], [math.nan]
    for index in range(settings.max_denoising_steps):
        step = settings.max_denoising_steps - index
        temperature = temperature_at(step, settings)
        state, remainder, cache.buffers = take_step(
            *(enabled(), layout, cache.buffers, offset),
            *(state, mx.array(temperature), draws.step(index), bounds),
        )

        # The stop record, the one readback of a step. (A watcher reads more.)
        record = state.acceptance
        mx.eval(record, state.entropies, remainder.left_out)
        converged = np.array(record.done).tolist()
        mean_entropy = np.array(record.mean_entropy).tolist()
        if np.array(record.invalid).any():
            cache.forget_canvas(*noise.shape)
            raise GenerationError(
                f"the model's logits are NaN or infinite at denoising step {index + 1}; "
                "the weights are damaged or the dtype overflows: load with dtype=float32 or convert again"
            )
        if on_step is not None:
            on_step(_watch(index, step, temperature, state))
        if all(converged):
            break
        state = settle(model, state, remainder, temperature)
        del remainder  # its logits would live through the next step
    return DenoisedCanvas(state.acceptance.argmax, index + 1, mean_entropy, converged)


StepFunction = Callable[..., tuple[CanvasState, Remainder, list[KeysValues]]]


def compiled_step(model: DiffusionGemma) -> StepFunction:
    """`denoise_step` of this model as one `mx.compile`d function, made once and kept with the model.

    Takes whether ops take their kernels, a `Layout`, the cache's buffers and offset (int32 scalar), then
    what `denoise_step` takes; returns also the buffers, which hold the canvas now. It is traced again for
    shapes, layouts and bounds that it has not met. Weights are inputs of it: they may change between steps.
    """

    def step(
        kernels: bool, layout: Layout, buffers: list[KeysValues], offset: mx.array, *others: Any
    ) -> tuple[CanvasState, Remainder, list[KeysValues]]:
        view = CanvasView(model.config, layout, offset, buffers)
        return (*denoise_step(model, view, *others), view.buffers)

    if not _compiles():
        return step
    if model.compiled_step is None:
        model.compiled_step = mx.compile(step, inputs=model)
    return model.compiled_step


def _compiles() -> bool:
    """On a GPU. MLX's CPU backend runs the C++ compiler over what it fuses: 20 seconds, to gain 5% a step."""
    return bool(mx.default_device().type == mx.DeviceType.gpu)


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
