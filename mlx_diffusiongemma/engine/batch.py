"""Canvas after canvas, for rows that share prefill and denoising steps."""

from __future__ import annotations

import inspect
import math
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING

import mlx.core as mx

from ..cache import PrefixCache
from ..config.generation import GenerationConfig
from ..control.draft import Draft
from ..errors import GenerationError, InputError
from .denoise import Halted, Start, Step, denoise
from .memory import check_fits, wired_limit
from .prompt_cache import PromptCache
from .row import Row
from .step import SeededDraws

if TYPE_CHECKING:
    from ..model import DiffusionGemma


class Run:
    """Rows that are denoised together, block by block. A row that has ended drops out.

    timeout: seconds after the first `advance` when all rows end with the blocks that they have. on_end:
    called with the number of rows that a block ended.

    Raises `InputError` for a prompt beyond the context limit, or when the memory that it would take is more
    than there is.
    """

    def __init__(
        self,
        model: DiffusionGemma,
        settings: GenerationConfig,
        rows: Sequence[Row],
        on_step: Callable[[Step], None] | None = None,
        prompt_cache: PromptCache | None = None,
        draft: Draft | None = None,
        timeout: float | None = None,
        on_end: Callable[[int], object] | None = None,
    ):
        self.model, self.settings, self.rows, self.on_step = model, settings, rows, on_step
        self.prompt_cache, self.draft, self.timeout, self.on_end = prompt_cache, draft, timeout, on_end
        self.started = False
        self._longest = max(len(row.prompt_ids) for row in rows)
        self._length = model.config.canvas_length
        self._canvases = math.ceil(settings.max_new_tokens / self._length)
        self._positions = self._longest + self._canvases * self._length
        self._check_prompts()
        self._cache: PromptCache | None = None  # of a single row, whose canvases go into it
        self._ticket: object = None
        self._running = self._run()
        self.failure: Exception | None = None
        self._busy = False
        self._deadline: float | None = None

    def advance(self) -> None:
        """Run one more block of every row that has not ended. Does nothing after an interrupt."""
        if self.failure is not None:
            raise GenerationError(
                f"this generation failed ({type(self.failure).__name__}); start a new one, "
                "what it delivered is in .blocks"
            ) from self.failure
        if self._busy:
            raise GenerationError(
                "this generation is running already; ask it neither from its own on_step nor from two threads"
            )
        self._busy = True
        if not self.started and self.timeout is not None:
            self._deadline = time.perf_counter() + self.timeout
        self.started = True
        try:
            next(self._running, None)
        except Exception as error:
            self.failure = error
            raise
        finally:
            self._busy = False

    def close(self) -> None:
        """Stop once all rows are closed or have ended: now, or after the step that another thread is in."""
        if not self._busy and all(row.closed or row.finish_reason for row in self.rows):
            with suppress(ValueError):  # another thread has begun to run it
                self._running.close()

    @property
    def is_over(self) -> bool:
        """True if no block will follow."""
        return inspect.getgeneratorstate(self._running) == inspect.GEN_CLOSED

    def _run(self) -> Generator[None, None, None]:
        with wired_limit():
            yield from self._blocks()

    def _blocks(self) -> Generator[None, None, None]:
        """Pause between blocks, before the written ids are encoded."""
        mx.reset_peak_memory()
        active = [row for row in self.rows if not row.closed]
        if not active:
            return
        clock = time.perf_counter()
        prefix = self._prefill()
        share = (time.perf_counter() - clock) / len(self.rows)
        for row in self.rows:
            row.stats.prefill_seconds = row.stats.seconds = share
        if active != self.rows:
            prefix = prefix.take([self.rows.index(row) for row in active])

        clock = time.perf_counter()
        for _ in range(self._canvases):
            if not self._denoise(active, prefix):
                return
            seconds = time.perf_counter() - clock
            for row in active:
                row.commit()
                row.stats.seconds += seconds / len(active)
                row.stats.peak_memory_gb = max(row.stats.peak_memory_gb, mx.get_peak_memory() / 1e9)
            left = [row for row in active if row.finish_reason is None]
            if self.on_end is not None and len(left) < len(active):
                self.on_end(len(active) - len(left))
            if not left:
                return
            yield
            left = [row for row in left if not row.closed]
            if not left or self._is_late(left):
                return
            clock = time.perf_counter()  # the caller's own time between blocks does not count
            prefix = self._append(active, left, prefix)
            active = left

    def _is_late(self, rows: Sequence[Row]) -> bool:
        """End `rows` if the time is up."""
        if not self._is_over_time():
            return False
        for row in rows:
            row.end(f"timeout {self.timeout:g} s ended it; raise it, or ask for less")
        return True

    def _is_halted(self, rows: Sequence[Row]) -> bool:
        return all(row.closed for row in rows) or self._is_over_time()

    def _is_over_time(self) -> bool:
        return self._deadline is not None and time.perf_counter() >= self._deadline

    def _denoise(self, active: list[Row], prefix: PrefixCache) -> bool:
        """Denoise one canvas of each row; False if nobody wants it any more.

        Rows whose canvas does not stand are denoised again, without the others.
        """
        for row in active:
            row.begin()
        pending, taken, seen = active, active, prefix
        while pending:
            rows = [row for row in pending if row.steps == pending[0].steps]
            if rows != taken:
                taken, seen = rows, prefix.take([active.index(row) for row in rows])
            draws = SeededDraws([row.stream for row in rows], self._length, self.model.config.text.vocab_size)
            clock = time.perf_counter()
            try:
                canvas = denoise(
                    *(self.model, seen, self.settings, draws, self._watcher(rows), self._start(rows, draws)),
                    keep_logits=any(row.needs_logits for row in rows),
                    halted=lambda: self._is_halted(active),
                )
            except Halted:
                self._is_late(active)
                return False
            self._check_cache()
            share = (time.perf_counter() - clock) / len(rows)
            content = [row for index, row in enumerate(rows) if row.judge(canvas, index, share)]
            del canvas  # its logits would live through the next one
            pending = [row for row in pending if row not in content]
        return True

    def _start(self, rows: list[Row], draws: SeededDraws) -> Start:
        steps, pins = rows[0].steps, mx.array([row.pins for row in rows], dtype=mx.int32)
        if self.draft is None:
            return Start(pins, steps=steps)
        canvas, steps = self.draft.start(len(rows[0].blocks), draws, (len(rows), self._length), steps)
        return Start(pins, canvas, steps)

    def _watcher(self, rows: list[Row]) -> Callable[[Step], None] | None:
        """What sees each step of `rows`: their traces, and `on_step`. None if nobody looks."""
        if self.on_step is None and all(row.trace is None for row in rows):
            return None
        indices = tuple(self.rows.index(row) for row in rows)

        def watch(step: Step) -> None:
            for index, row in enumerate(rows):
                if row.trace is not None:
                    row.trace.record(step, index, row.stream)
            if self.on_step is not None:
                self.on_step(replace(step, rows=indices))

        return watch

    def _prefill(self) -> PrefixCache:
        """The prefix cache with every row's prompt."""
        first, *others = (row.prompt_ids for row in self.rows)
        if any(prompt != first for prompt in others):
            return self._prefill_padded()
        cache = self.prompt_cache or PromptCache(self.model)
        self._cache, self._ticket = cache, cache.acquire()
        if self.prompt_cache is None:
            cache.prefix.reserved = self._positions
            cache.encode(first, self.settings.prefill_step_size)
        else:
            cached = cache.encode_prompt(first, self.settings.prefill_step_size, self._positions)
            for row in self.rows:
                row.stats.cached_tokens = cached
        if not others:
            return cache.prefix
        self._cache = None  # the prompt alone stays in it
        return cache.prefix.take([0] * len(self.rows))

    def _prefill_padded(self) -> PrefixCache:
        """Prompts of several lengths end together: shorter ones are padded on the left."""
        cache = self.model.make_cache()
        cache.reserved = self._positions
        cache.pads = [self._longest - len(row.prompt_ids) for row in self.rows]
        ids = [[row.pad_id] * (self._longest - len(row.prompt_ids)) + row.prompt_ids for row in self.rows]
        self.model.encode(mx.array(ids, dtype=mx.int32), cache, self.settings.prefill_step_size)
        return cache

    def _append(self, active: list[Row], left: list[Row], prefix: PrefixCache) -> PrefixCache:
        """`prefix` of the rows that are `left`, their committed canvases encoded."""
        chunk_size = self.settings.prefill_step_size
        if self._cache is not None:
            self._check_cache()
            self._cache.encode(left[0].canvas, chunk_size)
            return self._cache.prefix
        if left != active:
            prefix = prefix.take([active.index(row) for row in left])
        self.model.encode(mx.array([row.canvas for row in left], dtype=mx.int32), prefix, chunk_size)
        return prefix

    def _check_cache(self) -> None:
        if self._cache is not None:
            self._cache.check(self._ticket)

    def _check_prompts(self) -> None:
        vocab_size, settings = self.model.config.text.vocab_size, self.settings
        largest = max(max(row.prompt_ids) for row in self.rows)
        if largest >= vocab_size:  # MLX would read beyond the embedding table without a word
            raise InputError(
                f"the prompt has token id {largest}, but the model's ids end at {vocab_size - 1}"
            )
        limit = self.model.config.text.max_position_embeddings
        if self._positions > limit:
            raise InputError(
                f"the prompt has {self._longest} tokens and max_new_tokens "
                f"{settings.max_new_tokens} needs {self._canvases} canvases of {self._length}: "
                f"{self._positions} positions, but the context holds {limit}; "
                "shorten the prompt or lower max_new_tokens"
            )
        check_fits(
            self.model,
            *(self._longest, settings.max_new_tokens, settings.prefill_step_size),
            batch=len(self.rows),
            held=self.prompt_cache.nbytes if self.prompt_cache else 0,
        )
