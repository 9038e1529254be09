"""One canvas: noise in, converged ids out."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple
from weakref import finalize, ref

import mlx.core as mx
import numpy as np

from ..cache import CanvasView, KeysValues, Layout, PrefixCache
from ..config.generation import GenerationConfig
from ..errors import GenerationError
from .noise import Draws
from .rules import Rules, naming_the_step, rules_of, temperature_at
from .state import CanvasState, SparseRemainder, initial_state
from .step import denoise_step, logprobs_of, settle

if TYPE_CHECKING:
    from ..model import DiffusionGemma


class CanvasInit(NamedTuple):
    """Beginning of a canvas that is not noise alone.

    pins: int32 `[B, C]`, the token that a position holds throughout, or `FREE`. None pins nothing.
    canvas: int32 `[B, C]`, ids to begin with. None takes noise.
    steps: number of denoising steps, with the temperatures of the last ones. None takes them all.
    """

    pins: mx.array | None = None
    canvas: mx.array | None = None
    steps: int | None = None


@dataclass(frozen=True)
class Step:
    """One denoising step for a watcher: host arrays, `[B, C]` unless said otherwise.

    index: 0, 1, ... step: the countdown that sets the temperature (max_denoising_steps ... 1).
    draft_ids: the argmax canvas, which would be committed now if no grammar or budget changed it.
    canvas_ids: the next step's input. entropies: nats. accepted: positions that kept their sample.
    logprobs: natural log-probabilities of draft_ids in this step's distribution, which is the softmax of the
    processed logits: softcapped, then divided by `temperature`. At a pinned position that of its pin.
    mean_entropy, done: `[B]`. A row that was done before keeps draft_ids, logprobs and mean_entropy.
    seconds: time since the first step of this canvas began.
    rows: indices of these rows among the generations that share the step. Only some are denoised again.
    """

    index: int
    step: int
    temperature: float
    draft_ids: np.ndarray
    canvas_ids: np.ndarray
    entropies: np.ndarray
    accepted: np.ndarray
    logprobs: np.ndarray
    mean_entropy: np.ndarray
    done: np.ndarray
    seconds: float
    rows: tuple[int, ...] = (0,)


@dataclass(frozen=True)
class DenoisedCanvas:
    """The argmax canvas of each row's last step, int32 `[B, C]`, and how it was reached.

    Per row: steps, decoder passes until it was done; mean_entropy, nats, at the last of them; stopped_by, the
    stop rule that ended it, None if the step cap did. temperatures: of the last steps.
    logits, log_normalizer: `[B * C, V]` and `[B * C]` of each row's last step, as in `SparseRemainder`. None
    unless they were to be kept. watched: the steps were read.
    """

    ids: mx.array
    steps: list[int]
    mean_entropy: list[float]
    stopped_by: list[Any]
    temperatures: list[float]
    softcap: float | None
    logits: mx.array | None = None
    log_normalizer: mx.array | None = None
    watched: bool = False

    def logprobs(self, row: int, ids: Sequence[int]) -> np.ndarray | None:
        """Log-probabilities of `ids [C]` in the last step of `row`, float32 `[C]`. See `Step`.

        None unless the logits were kept.
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
    """Denoises canvases with one model, and owns the compiled steps for it.

    The model is held weakly, so that a denoiser does not keep weights alive. Get one with `denoiser_of`.
    """

    def __init__(self, model: DiffusionGemma):
        self._model = ref(model)
        self._compiled: OrderedDict[Rules, StepFunction] = OrderedDict()

    @property
    def model(self) -> DiffusionGemma:
        model = self._model()
        if model is None:
            raise GenerationError("the model of this generation was deleted; keep a reference to it")
        return model

    def run(
        self,
        cache: PrefixCache,
        settings: GenerationConfig,
        draws: Draws,
        start: CanvasInit = CanvasInit(),  # noqa: B008
        keep_logits: bool = False,
        watched: bool = False,
    ) -> Generator[Step | None, None, DenoisedCanvas]:
        """Denoise one canvas per cached row until every row is done or the step cap is reached.

        Yields after each step: its host arrays if `watched`, otherwise None, which reads back the stop record
        only. Closing the generator between two steps leaves the cache valid.

        Raises:
            GenerationError: the logits of some position hold NaN or +inf, or nothing finite.
        """
        model = self.model
        clock = time.perf_counter()
        canvas = draws.initial() if start.canvas is None else start.canvas
        cache.reserve(canvas.shape[0], 0, canvas.shape[1])
        layout, offset = cache.layout(canvas.shape[1]), mx.array(cache.offset)
        rules = rules_of(settings)
        kernels = model.checked_kernels(canvas.shape)
        take_step = self.step_function(rules)
        belief = model.zero_self_conditioning(canvas.shape)
        if start.pins is not None:
            belief = mx.where((start.pins >= 0)[..., None], model.embed(mx.maximum(start.pins, 0)), belief)
        state = initial_state(canvas, belief, start.pins)
        softcap = model.config.text.final_logit_softcapping
        kept: dict[int, tuple[mx.array, mx.array]] = {}  # row -> logits and log_normalizer of its last step
        logprobs = np.zeros(canvas.shape, np.float32)  # of each row's draft, for a watcher
        row_steps, temperatures = [0] * canvas.shape[0], [0.0] * canvas.shape[0]
        done = [False] * canvas.shape[0]
        most = settings.max_denoising_steps
        limit = most if start.steps is None else start.steps
        with naming_the_step(f"before step {limit} of {most}"):
            rules.begin(state.acceptance.canvas)
        for index in range(limit):
            step = limit - index
            temperature = temperature_at(step, settings)
            with naming_the_step(f"at step {step} of {most}"):
                state, remainder, cache.buffers = take_step(
                    kernels,
                    layout,
                    cache.buffers,
                    offset,
                    cache.left_padding,
                    state,
                    mx.array(temperature),
                    rules.countdown(step, most),
                    draws.step(index),
                )

            # The stop record, the one readback of a step. (A watcher reads more.)
            record = state.acceptance
            mx.eval(record, state.entropies, state.unchanged_steps, state.stopped_by, remainder.dropped_mass)
            running = [row for row, was_done in enumerate(done) if not was_done]
            for row in running:
                row_steps[row], temperatures[row] = index + 1, temperature
            done = np.array(record.done).tolist()
            if np.array(record.invalid).any():
                cache.forget_canvas(*canvas.shape)
                raise GenerationError(
                    f"the model's logits are NaN or infinite at denoising step {index + 1}; "
                    "the weights are damaged or the dtype overflows: load with dtype=float32 or convert again"
                )
            rules.check_ids(record.canvas, model.config.text.vocab_size)
            watch = None
            if watched:
                drafted = logprobs_of(
                    record.argmax, remainder.logits, remainder.log_normalizer, temperature, softcap
                )
                logprobs[running] = np.array(drafted)[running]
                seconds = time.perf_counter() - clock
                watch = _watch(index, step, temperature, state, logprobs.copy(), seconds)
            is_last = all(done) or index + 1 == limit
            if keep_logits:
                logits = remainder.logits.reshape(*canvas.shape, -1)
                normalizer = remainder.log_normalizer.reshape(canvas.shape)
                kept |= {row: (logits[row], normalizer[row]) for row in running if done[row] or is_last}
                mx.eval(list(kept.values()))
                del logits
            paused = time.perf_counter()
            yield watch
            clock += time.perf_counter() - paused
            if is_last:
                break
            state = settle(model, state, remainder, temperature)
            del remainder  # its logits would live through the next step
        return DenoisedCanvas(
            ids=state.acceptance.argmax,
            steps=row_steps,
            mean_entropy=np.array(state.acceptance.mean_entropy).tolist(),
            stopped_by=[rules.stop[by] if by >= 0 else None for by in np.array(state.stopped_by).tolist()],
            temperatures=temperatures,
            softcap=softcap,
            logits=mx.concatenate([kept[row][0] for row in sorted(kept)]) if keep_logits else None,
            log_normalizer=mx.concatenate([kept[row][1] for row in sorted(kept)]) if keep_logits else None,
            watched=watched,
        )

    def step_function(self, rules: Rules) -> StepFunction:
        """Return `denoise_step` of the model and these rules as one function, compiled if all are traceable.

        Its arguments: the names of the kernels that ops take, a `Layout`, the cache's buffers, offset (int32
        scalar) and left_padding, then the arguments of `denoise_step` between view and rules. It also returns
        the buffers, which hold the canvas now. The compiled functions of the last few rules are kept. They
        are traced again for new shapes and layouts. Weights are inputs, so they may change between steps.
        """
        if not (_compiles() and rules.traceable):
            return _step_function(self._model, rules)
        if rules not in self._compiled:
            self._compiled[rules] = _compiled(self._model, rules)
            if len(self._compiled) > _MOST_COMPILED:
                self._compiled.popitem(last=False)
        self._compiled.move_to_end(rules)
        return self._compiled[rules]


def denoise(
    model: DiffusionGemma,
    cache: PrefixCache,
    settings: GenerationConfig,
    draws: Draws,
    on_step: Callable[[Step], None] | None = None,
    start: CanvasInit = CanvasInit(),  # noqa: B008
    keep_logits: bool = False,
) -> DenoisedCanvas:
    """Denoise one canvas per cached row at once. See `Denoiser.run`. on_step: called with each step."""
    steps = denoiser_of(model).run(cache, settings, draws, start, keep_logits, on_step is not None)
    while True:
        try:
            step = next(steps)
        except StopIteration as end:
            canvas: DenoisedCanvas = end.value
            return canvas
        if on_step is not None and step is not None:
            on_step(step)


StepFunction = Callable[..., tuple[CanvasState, SparseRemainder, list[KeysValues]]]

_MOST_COMPILED = 8  # per model
_denoisers: dict[int, Denoiser] = {}  # by the id of a model that is alive


def denoiser_of(model: DiffusionGemma) -> Denoiser:
    """Return the denoiser of `model`, which keeps its compiled steps from one generation to the next."""
    if id(model) not in _denoisers:
        _denoisers[id(model)] = Denoiser(model)
        finalize(model, _denoisers.pop, id(model), None)
    return _denoisers[id(model)]


def _step_function(model: Callable[[], DiffusionGemma | None], rules: Rules) -> StepFunction:
    def step(
        kernels: tuple[str, ...],
        layout: Layout,
        buffers: list[KeysValues],
        offset: mx.array,
        left_padding: mx.array | None,
        state: CanvasState,
        temperature: mx.array,
        countdown: tuple[int | mx.array, int | mx.array],
        draws: tuple[mx.array, mx.array],
    ) -> tuple[CanvasState, SparseRemainder, list[KeysValues]]:
        network = model()
        assert network is not None
        view = CanvasView(network.config, layout, offset, buffers, left_padding)
        return (*denoise_step(network, view, state, temperature, countdown, draws, rules), view.buffers)

    return step


def _compiled(model: Callable[[], DiffusionGemma | None], rules: Rules) -> StepFunction:
    """The compiled step.

    `mx.compile(inputs=model)` would hold the model, so weights are arguments instead.
    """
    step = _step_function(model, rules)

    def with_weights(weights: Any, *arguments: Any) -> Any:
        network = model()
        assert network is not None
        own = network.parameters()
        network.update(weights)  # placeholders of the trace
        try:
            return step(*arguments)
        finally:
            network.update(own)

    compiled = mx.compile(with_weights)

    def call(*arguments: Any) -> Any:
        network = model()
        assert network is not None
        return compiled(network.parameters(), *arguments)

    return call


def _compiles() -> bool:
    """True on a GPU. On a CPU, MLX runs the C++ compiler: 20 seconds, to gain 5% of a step."""
    return bool(mx.default_device().type == mx.DeviceType.gpu)


def _watch(
    index: int, step: int, temperature: float, state: CanvasState, logprobs: np.ndarray, seconds: float
) -> Step:
    result = state.acceptance
    return Step(
        index=index,
        step=step,
        temperature=temperature,
        draft_ids=np.array(result.argmax),
        canvas_ids=np.array(result.canvas),
        entropies=np.array(state.entropies),
        accepted=np.array(result.accepted),
        logprobs=logprobs,
        mean_entropy=np.array(result.mean_entropy),
        done=np.array(result.done),
        seconds=seconds,
    )
