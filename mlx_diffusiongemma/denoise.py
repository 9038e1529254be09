"""One canvas: noise in, converged ids out."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import mlx.core as mx
import numpy as np

from .cache import CanvasView, KeysValues, Layout, PrefixCache
from .errors import GenerationError
from .generation_config import GenerationConfig
from .rules import Rules, rules_of, temperature_at
from .sampling import CanvasState, Draws, Remainder, denoise_step, initial_state, settle

if TYPE_CHECKING:
    from .model import DiffusionGemma


class Start(NamedTuple):
    """How a canvas begins, where not as noise alone.

    pins: int32 `[B, C]`, the token that a position holds throughout, or `FREE`; None pins nothing. canvas:
    int32 `[B, C]`, ids to begin with; None takes noise. steps: how many denoising steps are left, with the
    temperatures of the last ones; None takes them all.
    """

    pins: mx.array | None = None
    canvas: mx.array | None = None
    steps: int | None = None


@dataclass(frozen=True)
class Step:
    """What a watcher sees after one denoising step; host arrays, `[B, C]` unless said otherwise.

    index: 0, 1, ...; step: the countdown that sets the temperature (max_denoising_steps ... 1).
    draft_ids: the argmax canvas, which would be committed now if nothing mended it. canvas_ids: the next
    step's input.
    entropies: nats. accepted: which positions kept their sample. mean_entropy, done: `[B]`.
    seconds: since the canvas began to be denoised.
    rows: which of the generations that share this step these are; fewer where some are denoised again.
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
    seconds: float
    rows: tuple[int, ...] = (0,)


@dataclass(frozen=True)
class DenoisedCanvas:
    """The argmax canvas of each row's last step: ids int32 `[B, C]`, and how it came about.

    Per row: steps, decoder passes until it was done; mean_entropy, nats, at the last of them; stopped_by, the
    stop rule that ended it, None where the step cap did. logits: `[B * C, V]` of each row's last step, before
    softcap and temperature; None unless they were to be kept.
    """

    ids: mx.array
    steps: list[int]
    mean_entropy: list[float]
    stopped_by: list[Any]
    logits: mx.array | None = None


def denoise(
    model: DiffusionGemma,
    cache: PrefixCache,
    settings: GenerationConfig,
    draws: Draws,
    on_step: Callable[[Step], None] | None = None,
    start: Start = Start(),  # noqa: B008
    keep_logits: bool = False,
) -> DenoisedCanvas:
    """Denoises one canvas per cached row until every row is done or the step cap is reached.

    Raises `GenerationError` when the logits of some position hold NaN or +inf, or nothing finite.
    """
    clock = time.perf_counter()
    canvas = draws.initial() if start.canvas is None else start.canvas
    cache.make_room(canvas.shape[0], 0, canvas.shape[1])
    layout, offset = cache.layout(canvas.shape[1]), mx.array(cache.offset)
    rules = rules_of(settings)
    kernels = model.checked_kernels(canvas.shape)
    take_step = compiled_step(model, rules)
    belief = model.no_belief(canvas.shape)
    if start.pins is not None:
        belief = mx.where((start.pins >= 0)[..., None], model.embed(mx.maximum(start.pins, 0)), belief)
    state = initial_state(canvas, belief, start.pins)
    kept: dict[int, mx.array] = {}  # row -> logits [C, V] of its last step
    steps = [0] * canvas.shape[0]
    done = [False] * canvas.shape[0]
    limit = settings.max_denoising_steps if start.steps is None else start.steps
    for index in range(limit):
        step = limit - index
        temperature = temperature_at(step, settings)
        state, remainder, cache.buffers = take_step(
            *(kernels, layout, cache.buffers, offset, cache.pads),
            *(state, mx.array(temperature), draws.step(index)),
        )

        # The stop record, the one readback of a step. (A watcher reads more.)
        record = state.acceptance
        rules.check_ids(record.canvas, model.config.text.vocab_size)
        mx.eval(record, state.entropies, state.unchanged_steps, state.stopped_by, remainder.left_out)
        running = [row for row, was_done in enumerate(done) if not was_done]
        for row in running:
            steps[row] = index + 1
        done = np.array(record.done).tolist()
        if np.array(record.invalid).any():
            cache.forget_canvas(*canvas.shape)
            raise GenerationError(
                f"the model's logits are NaN or infinite at denoising step {index + 1}; "
                "the weights are damaged or the dtype overflows: load with dtype=float32 or convert again"
            )
        if on_step is not None:
            on_step(_watch(index, step, temperature, state, time.perf_counter() - clock))
        is_last = all(done) or index + 1 == limit
        if keep_logits:
            logits = remainder.logits.reshape(*canvas.shape, -1)
            kept |= {row: logits[row] for row in running if done[row] or is_last}
            mx.eval(kept)
            del logits
        if is_last:
            break
        state = settle(model, state, remainder, temperature)
        del remainder  # its logits would live through the next step
    return DenoisedCanvas(
        ids=state.acceptance.argmax,
        steps=steps,
        mean_entropy=np.array(state.acceptance.mean_entropy).tolist(),
        stopped_by=[rules.stop[by] if by >= 0 else None for by in np.array(state.stopped_by).tolist()],
        logits=mx.concatenate([kept[row] for row in range(len(steps))]) if keep_logits else None,
    )


StepFunction = Callable[..., tuple[CanvasState, Remainder, list[KeysValues]]]


def compiled_step(model: DiffusionGemma, rules: Rules) -> StepFunction:
    """`denoise_step` of this model and these rules as one `mx.compile`d function, made once and kept with the
    model.

    Takes the names of the kernels that ops take, a `Layout`, the cache's buffers, offset (int32 scalar) and
    pads, then what `denoise_step` takes before its rules. It returns also the buffers, which hold the canvas
    now. It is traced again for shapes and layouts that it has not met. Weights are inputs of it: they may change
    between steps.
    """
    if not (_compiles() and rules.are_ours):
        return _step_function(model, rules)
    if model.compiled_step is None:
        model.compiled_step = functools.cache(
            lambda rules: mx.compile(_step_function(model, rules), inputs=model)
        )
    return model.compiled_step(rules)


def _step_function(model: DiffusionGemma, rules: Rules) -> StepFunction:
    def step(
        kernels: tuple[str, ...],
        layout: Layout,
        buffers: list[KeysValues],
        offset: mx.array,
        pads: mx.array | None,
        state: CanvasState,
        temperature: mx.array,
        draws: tuple[mx.array, mx.array],
    ) -> tuple[CanvasState, Remainder, list[KeysValues]]:
        view = CanvasView(model.config, layout, offset, buffers, pads)
        return (*denoise_step(model, view, state, temperature, draws, rules), view.buffers)

    return step


def _compiles() -> bool:
    """On a GPU. MLX's CPU backend runs the C++ compiler over what it fuses: 20 seconds, to gain 5% a step."""
    return bool(mx.default_device().type == mx.DeviceType.gpu)


def _watch(index: int, step: int, temperature: float, state: CanvasState, seconds: float) -> Step:
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
        seconds=seconds,
    )
