"""The one loop: canvas after canvas, for rows that share prefill and denoising steps."""

from __future__ import annotations

import math
import time
from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import mlx.core as mx

from ..cache import PrefixCache
from ..errors import InputError
from .denoise import CanvasInit, DenoisedCanvas, Step, denoiser_of
from .memory import check_fits, wired_limit
from .noise import SeededDraws
from .prompt_cache import PromptCache
from .row import Committed, Row

if TYPE_CHECKING:
    from ..config.generation import GenerationConfig
    from ..model import DiffusionGemma


@dataclass(frozen=True)
class Prefill:
    """A chunk of the prompt was encoded. Tokens done and in total, of the longest prompt; cached: those that
    a prompt cache held. seconds: since the batch began."""

    done: int
    total: int
    cached: int
    seconds: float


@dataclass(frozen=True)
class Stepped:
    """A denoising step of some rows. step: its host arrays, None unless the batch is watched."""

    rows: tuple[Row, ...]
    step: Step | None


@dataclass(frozen=True)
class Finished:
    """All rows that were denoised committed a canvas. seconds: since the last one, or since the prefill."""

    committed: list[Committed]
    seconds: float


Event = Prefill | Stepped | Finished


class Batch:
    """Rows that are denoised together. A row that has ended or is closed drops out.

    watched: `Stepped` carries host arrays, which costs reading them. prompt_cache: for one prompt; it keeps
    the encoded tokens.

    Raises `InputError` for a prompt beyond the context limit, or when the memory that it would take is more
    than there is.
    """

    def __init__(
        self,
        model: DiffusionGemma,
        rows: Sequence[Row],
        prompt_cache: PromptCache | None = None,
        watched: bool = False,
    ):
        self.model, self.rows, self.prompt_cache, self.watched = model, list(rows), prompt_cache, watched
        self.settings: GenerationConfig = rows[0].settings
        self.spec = rows[0].spec
        self._longest = max(len(row.prompt_ids) for row in rows)
        self._canvases = math.ceil(self.settings.max_new_tokens / self.spec.length)
        self._positions = self._longest + self._canvases * self.spec.length
        self._check_prompts()
        self._cache: PromptCache | None = None  # of a single row, whose canvases go into it
        self._ticket: object = None

    def run(self) -> Generator[Event, None, None]:
        """Yield an event after each chunk of prefill, each denoising step and each round of canvases.

        Closing the generator between two events leaves prefix and prompt cache valid, with everything that
        was encoded. The caller's time between two events is not counted.
        """
        with wired_limit():
            active = [row for row in self.rows if not row.closed]
            if not active:
                return
            prefix = yield from self._prefill()
            if active != self.rows:
                prefix = prefix.take([self.rows.index(row) for row in active])
            clock = _Clock()
            for _ in range(self._canvases):
                yield from self._denoise(active, prefix, clock)
                committed = [row.commit() for row in active if not row.closed]
                yield Finished(committed, clock.stop())
                clock.start()
                left = [row for row in active if row.finish_reason is None and not row.closed]
                if not left:
                    return
                prefix = self._append(active, left, prefix)
                active = left

    def _denoise(self, active: list[Row], prefix: PrefixCache, clock: _Clock) -> Generator[Event, None, None]:
        """Denoise one canvas of each row. Rows whose canvas does not stand go again, without the others."""
        for row in active:
            row.begin()
        pending, together, cache = active, active, prefix
        while pending:
            rows = [row for row in pending if row.steps == pending[0].steps]
            if rows != together:
                together, cache = rows, prefix.take([active.index(row) for row in rows])
            seconds = clock.total()
            canvas = yield from self._steps(rows, cache, clock)
            self._check_cache()
            share = (clock.total() - seconds) / len(rows)
            stand = [row for index, row in enumerate(rows) if row.judge(canvas, index, share)]
            del canvas  # its logits would live through the next one
            pending = [row for row in pending if row not in stand]

    def _steps(
        self, rows: list[Row], cache: PrefixCache, clock: _Clock
    ) -> Generator[Event, None, DenoisedCanvas]:
        draws = SeededDraws([row.noise_key for row in rows], self.spec.length, self.spec.vocab_size)
        steps = denoiser_of(self.model).run(
            cache,
            self.settings,
            draws,
            start=self._start(rows, draws),
            keep_logits=any(row.needs_logits for row in rows),
            watched=self.watched,
        )
        numbers = tuple(self.rows.index(row) for row in rows)
        while True:
            try:
                step = next(steps)
            except StopIteration as end:
                canvas: DenoisedCanvas = end.value
                return canvas
            clock.pause()
            yield Stepped(tuple(rows), None if step is None else replace(step, rows=numbers))
            clock.resume()

    def _start(self, rows: list[Row], draws: SeededDraws) -> CanvasInit:
        steps, pins = rows[0].steps, mx.array([row.pins for row in rows], dtype=mx.int32)
        draft = rows[0].draft
        if draft is None:
            return CanvasInit(pins, steps=steps)
        canvas, steps = draft.initial(rows[0].blocks, draws, (len(rows), self.spec.length), steps)
        return CanvasInit(pins, canvas, steps)

    def _prefill(self) -> Generator[Event, None, PrefixCache]:
        """Encode every row's prompt, chunk by chunk."""
        clock, chunk_size = _Clock(), self.settings.prefill_step_size
        first, *others = (row.prompt_ids for row in self.rows)
        if any(prompt != first for prompt in others):
            return (yield from self._prefill_padded(clock))
        cache = self.prompt_cache or PromptCache(self.model)
        self._cache, self._ticket = cache, cache.acquire()
        cached = cache.go_to(first, self._positions)
        yield Prefill(cached, len(first), cached, clock.stop())
        clock.resume()
        for done in cache.encode_rest(first, chunk_size):
            yield Prefill(done, len(first), cached, clock.stop())
            clock.resume()
            self._check_cache()
        if not others:
            return cache.prefix
        self._cache = None  # only the prompt stays in it
        return cache.prefix.take([0] * len(self.rows))

    def _prefill_padded(self, clock: _Clock) -> Generator[Event, None, PrefixCache]:
        """Prompts of several lengths end together: shorter ones are padded on the left."""
        cache, chunk_size = self.model.make_cache(), self.settings.prefill_step_size
        cache.reserved = self._positions
        cache.left_padding = [self._longest - len(row.prompt_ids) for row in self.rows]
        pad = self.spec.pad_id
        ids = [[pad] * (self._longest - len(row.prompt_ids)) + row.prompt_ids for row in self.rows]
        whole = mx.array(ids, dtype=mx.int32)
        for start in range(0, self._longest, chunk_size):
            self.model.encode(whole[:, start : start + chunk_size], cache, chunk_size)
            yield Prefill(min(start + chunk_size, self._longest), self._longest, 0, clock.stop())
            clock.resume()
        return cache

    def _append(self, active: list[Row], left: list[Row], prefix: PrefixCache) -> PrefixCache:
        """`prefix` of the rows that are `left`, their committed canvases encoded."""
        chunk_size = self.settings.prefill_step_size
        canvases = [row.canvas.ids for row in left if row.canvas is not None]
        if self._cache is not None:
            self._check_cache()
            self._cache.encode(canvases[0], chunk_size)
            return self._cache.prefix
        if left != active:
            prefix = prefix.take([active.index(row) for row in left])
        self.model.encode(mx.array(canvases, dtype=mx.int32), prefix, chunk_size)
        return prefix

    def _check_cache(self) -> None:
        if self._cache is not None:
            self._cache.check(self._ticket)

    def _check_prompts(self) -> None:
        settings, vocab_size = self.settings, self.spec.vocab_size
        largest = max(max(row.prompt_ids) for row in self.rows)
        if largest >= vocab_size:  # MLX would read beyond the embedding table without an error
            raise InputError(
                f"the prompt has token id {largest}, but the model's ids end at {vocab_size - 1}"
            )
        limit = self.model.config.text.max_position_embeddings
        if self._positions > limit:
            raise InputError(
                f"the prompt has {self._longest} tokens and max_new_tokens "
                f"{settings.max_new_tokens} needs {self._canvases} canvases of {self.spec.length}: "
                f"{self._positions} positions, but the context holds {limit}; "
                "shorten the prompt or lower max_new_tokens"
            )
        check_fits(
            self.model,
            self._longest,
            settings.max_new_tokens,
            settings.prefill_step_size,
            batch=len(self.rows),
            held=self.prompt_cache.nbytes if self.prompt_cache else 0,
        )


class _Clock:
    """Seconds of the engine's own work, without the time of those who consume its events."""

    def __init__(self) -> None:
        self.start()

    def start(self) -> None:
        self._counted, self._since = 0.0, time.perf_counter()

    def total(self) -> float:
        return self._counted + time.perf_counter() - self._since

    def stop(self) -> float:
        """Pause, and return the seconds so far."""
        self.pause()
        return self._counted

    def pause(self) -> None:
        self._counted = self.total()
        self._since = time.perf_counter()

    def resume(self) -> None:
        self._since = time.perf_counter()
