"""Canvas after canvas, for rows that share prefill and denoising steps."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import mlx.core as mx

from .cache import PrefixCache
from .control.draft import Draft
from .denoise import Start, Step, denoise
from .errors import GenerationError, InputError
from .generation_config import GenerationConfig
from .memory import check_fits, wired_limit
from .prompt_cache import PromptCache
from .row import Row
from .sampling import SeededDraws

if TYPE_CHECKING:
    from .model import DiffusionGemma


class Run:
    """Rows that are denoised together, block by block; a row that has ended drops out.

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
    ):
        self.model, self.settings, self.rows, self.on_step = model, settings, rows, on_step
        self.prompt_cache, self.draft = prompt_cache, draft
        self._longest = max(len(row.prompt_ids) for row in rows)
        self._length = model.config.canvas_length
        self._canvases = math.ceil(settings.max_new_tokens / self._length)
        self._positions = self._longest + self._canvases * self._length
        self._check_prompts()
        self._cache: PromptCache | None = None  # of a single row, whose canvases go into it
        self._ticket: object = None
        self._running = self._run()
        self._failure: Exception | None = None
        self._busy = False

    def advance(self) -> None:
        """Runs one more block of every row that has not ended; after an interrupt, nothing."""
        if self._failure is not None:
            raise GenerationError(
                f"this generation failed ({type(self._failure).__name__}); start a new one, "
                "what it delivered is in .blocks"
            ) from self._failure
        if self._busy:
            raise GenerationError(
                "this generation is running already; ask it neither from its own on_step nor from two threads"
            )
        self._busy = True
        try:
            next(self._running, None)
        except Exception as error:
            self._failure = error
            raise
        finally:
            self._busy = False

    def _run(self) -> Iterator[None]:
        with wired_limit():
            yield from self._blocks()

    def _blocks(self) -> Iterator[None]:
        """Pauses between blocks, before what is written is encoded."""
        mx.reset_peak_memory()
        clock = time.perf_counter()
        prefix = self._prefill()
        for row in self.rows:
            row.stats.prefill_seconds = time.perf_counter() - clock

        active = list(self.rows)
        for _ in range(self._canvases):
            started = time.perf_counter()
            self._denoise(active, prefix)
            now = time.perf_counter()
            for row in active:
                row.commit(now - started)
                row.stats.denoising_seconds += now - started
                row.stats.seconds += now - clock
                row.stats.peak_memory_gb = max(row.stats.peak_memory_gb, mx.get_peak_memory() / 1e9)
            left = [row for row in active if row.finish_reason is None]
            if not left:
                return
            yield
            clock = time.perf_counter()  # the caller's own time between blocks is not ours
            prefix = self._append(active, left, prefix)
            active = left

    def _denoise(self, active: list[Row], prefix: PrefixCache) -> None:
        """One canvas of each row; rows that do not stand judgement are denoised again, without the others."""
        for row in active:
            row.begin()
        pending, taken, seen = active, active, prefix
        while pending:
            rows = [row for row in pending if row.steps == pending[0].steps]
            if rows != taken:
                taken, seen = rows, prefix.take([active.index(row) for row in rows])
            draws = SeededDraws([row.stream for row in rows], self._length, self.model.config.text.vocab_size)
            canvas = denoise(
                *(self.model, seen, self.settings, draws, self._watcher(rows), self._start(rows, draws)),
                keep_logits=any(row.needs_logits for row in rows),
            )
            self._check_cache()
            content = [row for index, row in enumerate(rows) if row.judge(canvas, index)]
            del canvas  # its logits would live through the next one
            pending = [row for row in pending if row not in content]

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
