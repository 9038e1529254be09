"""Denoise one canvas per row, from noise to the ids of its last step."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any
from weakref import finalize, ref

import mlx.core as mx
import numpy as np

from ..cache import KeysValues, PrefixCache
from ..errors import GenerationError
from ..ops import on_gpu
from .noise import Draws
from .parts import check_token_ids, naming_the_step
from .settings import Settings
from .state import CanvasInit, CanvasState, SparseRemainder, Step, initial_state
from .step import Lap, Prefix, Rules, denoise_step, logprobs_of, settle

if TYPE_CHECKING:
    from ..model.network import Network


@dataclass(frozen=True)
class Stepped:
    """Event: a denoising step ended.

    rows: indices in the batch of the rows that were denoised.
    step: the step as host arrays. None if it was not copied to the host.
    """

    rows: tuple[int, ...]
    step: Step | None


@dataclass(frozen=True)
class DenoisedCanvas:
    """The result of denoising one canvas per row.

    ids: argmax tokens of each row's last step, int32 `[B, C]`.
    steps: number of decoder passes of each row.
    mean_entropy: mean entropy of each row at its last step, in nats.
    stopped_by: the stop rule that ended each row, or None if it reached the step cap.
    temperatures: temperature of each row's last step.
    softcap: the model's softcap of logits, or None.
    seconds: time spent denoising.
    logits, log_normalizer: `[B * C, V]` and `[B * C]` of each row's last step, as in `SparseRemainder`. None
        without `keep_logits`.
    watched: True if every step was copied to the host.
    """

    ids: mx.array
    steps: list[int]
    mean_entropy: list[float]
    stopped_by: list[Any]
    temperatures: list[float]
    softcap: float | None
    seconds: float
    logits: mx.array | None = None
    log_normalizer: mx.array | None = None
    watched: bool = False

    def logprobs(self, row: int, ids: Sequence[int]) -> np.ndarray | None:
        """Return log-probabilities of `ids [C]` in the last step of `row`, float32 `[C]`. See `Step`.

        Return None if the logits were not kept.
        """
        if self.logits is None or self.log_normalizer is None:
            return None
        length = len(ids)
        places = slice(row * length, (row + 1) * length)
        return np.array(
            logprobs_of(
                mx.array(list(ids), dtype=mx.int32),
                self.logits[places],
                self.log_normalizer[places],
                self.temperatures[row],
                self.softcap,
            )
        )


class Denoiser:
    """Denoises canvases with one model, and owns its compiled steps.

    The reference to the model is weak, so a denoiser does not keep weights alive. Get one with `denoiser_of`.
    """

    def __init__(self, model: Network):
        self._model = ref(model)
        self._compiled: OrderedDict[tuple[Rules, tuple[str, ...]], StepFunction] = OrderedDict()

    @property
    def model(self) -> Network:
        model = self._model()
        if model is None:
            raise GenerationError("the model of this generation was deleted; keep a reference to it")
        return model

    def run(
        self,
        cache: PrefixCache,
        settings: Settings,
        draws: Draws,
        init: CanvasInit = CanvasInit(),  # noqa: B008
        *,
        rows: tuple[int, ...] = (0,),
        keep_logits: bool = False,
        watched: bool = False,
        lap: Lap | None = None,
    ) -> Generator[Stepped, None, DenoisedCanvas]:
        """Denoise one canvas per cached row until every row is done or the step cap is reached.

        Yields after each step. Closing the generator between two steps leaves the cache valid. The caller's
        time between two steps is not counted.

        Args:
            rows: indices of the rows in the batch, for events.
            keep_logits: return the logits of each row's last step.
            watched: copy every step to the host for the events. Otherwise only what ends a canvas is copied.
            lap: see `denoise_step`. Also called after the soft embedding. With a lap, steps are not compiled.

        Raises:
            GenerationError: the logits of a position contain NaN or +inf, or no finite value.
        """
        model = self.model
        clock = time.perf_counter()
        canvas = draws.initial() if init.canvas is None else init.canvas
        shape = canvas.shape
        cache.reserve(shape[0], 0, shape[1])
        layout, offset = cache.layout(shape[1]), mx.array(cache.offset)
        rules = settings.rules
        take_step = self.step_function(rules, model.checked_kernels(shape), lap)
        soft_embedding = model.zero_self_conditioning(shape)
        if init.pins is not None:
            pinned = model.embed(mx.maximum(init.pins, 0))
            soft_embedding = mx.where((init.pins >= 0)[..., None], pinned, soft_embedding)
        state = initial_state(canvas, soft_embedding, init.pins)
        softcap = model.config.text.final_logit_softcapping
        last: dict[int, tuple[mx.array, mx.array]] = {}  # row -> logits and log_normalizer of its last step
        logprobs = np.zeros(shape, np.float32)  # log-probabilities of each row's draft, for `Step`
        row_steps, temperatures = [0] * shape[0], [0.0] * shape[0]
        done = [False] * shape[0]
        most = settings.max_denoising_steps
        limit = most if init.steps is None else min(init.steps, most)
        with naming_the_step(f"before step {limit} of {most}"):
            rules.begin(state.canvas)
        for index in range(limit):
            step = limit - index
            temperature = settings.temperature_at(step)
            with naming_the_step(f"at step {step} of {most}"):
                state, remainder, cache.buffers = take_step(
                    Prefix(layout, offset, cache.buffers, cache.left_padding),
                    state,
                    mx.array(temperature),
                    rules.countdown(step, most),
                    draws.step(index),
                )

            # These results decide which rows are done. Others stay lazy unless they are needed.
            record = state.acceptance, state.entropies, state.unchanged_steps, state.stopped_by
            mx.eval(record, remainder.dropped_mass)
            running = [row for row, was_done in enumerate(done) if not was_done]
            for row in running:
                row_steps[row], temperatures[row] = index + 1, temperature
            done = np.array(state.done).tolist()
            if np.array(state.invalid).any():
                cache.forget_canvas(*shape)
                raise GenerationError(
                    f"the model's logits are NaN or infinite at denoising step {index + 1}; "
                    "the weights are damaged or the dtype overflows: load with dtype=float32 or convert again"
                )
            if rules.fused is None:
                with naming_the_step(f"at step {step} of {most}"):
                    check_token_ids("sampler: renoise", state.canvas, model.config.text.vocab_size)
            watch = None
            if watched:
                drafted = logprobs_of(
                    state.argmax, remainder.logits, remainder.log_normalizer, temperature, softcap
                )
                logprobs[running] = np.array(drafted)[running]
                seconds = time.perf_counter() - clock
                watch = _watch(index, step, temperature, state, logprobs.copy(), seconds, rows)
            is_last = all(done) or index + 1 == limit
            if keep_logits:
                logits = remainder.logits.reshape(*shape, -1)
                normalizer = remainder.log_normalizer.reshape(shape)
                last |= {row: (logits[row], normalizer[row]) for row in running if done[row] or is_last}
                mx.eval(list(last.values()))
                del logits
            paused = time.perf_counter()
            yield Stepped(rows, watch)
            clock += time.perf_counter() - paused
            if is_last:
                break
            state = settle(model, state, remainder, temperature)
            if lap is not None:
                lap("soft_embedding", state.soft_embedding, remainder.dropped_mass)
            del remainder  # frees its logits before the next step
        return DenoisedCanvas(
            ids=state.argmax,
            steps=row_steps,
            mean_entropy=np.array(state.mean_entropy).tolist(),
            stopped_by=[rules.stop[by] if by >= 0 else None for by in np.array(state.stopped_by).tolist()],
            temperatures=temperatures,
            softcap=softcap,
            seconds=time.perf_counter() - clock,
            logits=mx.concatenate([last[row][0] for row in sorted(last)]) if keep_logits else None,
            log_normalizer=mx.concatenate([last[row][1] for row in sorted(last)]) if keep_logits else None,
            watched=watched,
        )

    def step_function(self, rules: Rules, kernels: tuple[str, ...], lap: Lap | None = None) -> StepFunction:
        """Return `denoise_step` for the model and `rules`, compiled on a GPU if every part is traceable.

        The most recent compiled functions are cached. MLX traces them again for new shapes and layouts.
        Weights are inputs of a compiled function, so they may change between steps.

        kernels: names of the Metal kernels in use.
        """
        if lap is not None or not (_compiles() and rules.traceable):
            return partial(denoise_step, self.model, rules, lap=lap)
        key = rules, kernels
        if key not in self._compiled:
            self._compiled[key] = _compiled(self._model, rules)
            if len(self._compiled) > _MOST_COMPILED:
                self._compiled.popitem(last=False)
        self._compiled.move_to_end(key)
        return self._compiled[key]


def denoise(
    model: Network,
    cache: PrefixCache,
    settings: Settings,
    draws: Draws,
    on_step: Callable[[Step], None] | None = None,
    init: CanvasInit = CanvasInit(),  # noqa: B008
    **options: Any,
) -> DenoisedCanvas:
    """Run `Denoiser.run` to its end, and return its result. on_step: called with each `Step`."""
    steps = denoiser_of(model).run(cache, settings, draws, init, watched=on_step is not None, **options)
    while True:
        try:
            event = next(steps)
        except StopIteration as end:
            canvas: DenoisedCanvas = end.value
            return canvas
        if on_step is not None and event.step is not None:
            on_step(event.step)


StepFunction = Callable[..., tuple[CanvasState, SparseRemainder, list[KeysValues]]]

_MOST_COMPILED = 8  # per model
_denoisers: dict[int, Denoiser] = {}  # `id` of a living model -> its denoiser


def denoiser_of(model: Network) -> Denoiser:
    """Return the denoiser of `model`. It is reused, so its compiled steps serve every generation."""
    if id(model) not in _denoisers:
        _denoisers[id(model)] = Denoiser(model)
        finalize(model, _denoisers.pop, id(model), None)
    return _denoisers[id(model)]


def _compiled(model: Callable[[], Network | None], rules: Rules) -> StepFunction:
    """Return `denoise_step`, compiled for `model()` and `rules`.

    `mx.compile(inputs=model)` would keep the model alive, so weights are arguments instead.
    """

    def with_weights(weights: Any, *arguments: Any) -> Any:
        network = model()
        assert network is not None
        own = network.parameters()
        network.update(weights)  # placeholders of the trace
        try:
            return denoise_step(network, rules, *arguments)
        finally:
            network.update(own)

    compiled = mx.compile(with_weights)

    def call(*arguments: Any) -> Any:
        network = model()
        assert network is not None
        return compiled(network.parameters(), *arguments)

    return call


def _compiles() -> bool:
    """Return True on a GPU. On a CPU, MLX would run a C++ compiler for 20 s to make a step 5% faster."""
    return on_gpu()


def _watch(
    index: int,
    step: int,
    temperature: float,
    state: CanvasState,
    logprobs: np.ndarray,
    seconds: float,
    rows: tuple[int, ...],
) -> Step:
    return Step(
        index=index,
        step=step,
        temperature=temperature,
        draft_ids=np.array(state.argmax),
        canvas_ids=np.array(state.canvas),
        entropies=np.array(state.entropies),
        accepted=np.array(state.accepted),
        logprobs=logprobs,
        mean_entropy=np.array(state.mean_entropy),
        done=np.array(state.done),
        seconds=seconds,
        rows=rows,
    )
