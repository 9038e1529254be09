"""The engine's loop: prefill, then canvas after canvas, for rows that share prefill and steps."""

from __future__ import annotations

import math
import time
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import mlx.core as mx

from ..cache import PrefixCache
from ..errors import InputError
from ..prompt import Prompt, chunk_end, merge_spans
from .constraint import Look
from .denoise import Stepped, denoiser_of
from .ids import check_ids
from .memory import check_fits, wired_limit
from .noise import CheckedDraws, Draws, DrawsOf, SeededDraws
from .parts import named
from .prompt_cache import PromptCache
from .row import Committed, Row
from .state import CanvasInit

if TYPE_CHECKING:
    from ..model.network import Network


@dataclass(frozen=True)
class Prefill:
    """Event: a chunk of the prompt was encoded.

    done: number of tokens of the longest prompt that are encoded.
    total: number of tokens of the longest prompt.
    cached: number of tokens that came from a prompt cache.
    seconds: time since the batch began.
    """

    done: int
    total: int
    cached: int
    seconds: float


@dataclass(frozen=True)
class Finished:
    """Event: every row that is not closed has committed a canvas.

    seconds: time since the previous canvas, or since the prefill.
    """

    committed: list[Committed]
    seconds: float


Event = Prefill | Stepped | Finished


class Batch:
    """Rows that are denoised together. A row that has ended or is closed drops out.

    Args:
        prompt_cache: keeps the encoded tokens. Only for rows with the same prompt.
        watched: read each step back, so that `Stepped` carries host arrays.

    Raises:
        InputError: a prompt exceeds the context limit, or the batch needs more memory than there is.
    """

    def __init__(
        self,
        model: Network,
        rows: Sequence[Row],
        prompt_cache: PromptCache | None = None,
        watched: bool = False,
        draws: DrawsOf = SeededDraws,
    ):
        self.model, self.rows, self.prompt_cache, self.watched = model, list(rows), prompt_cache, watched
        self.draws_of = draws
        self.settings, self.spec = rows[0].settings, rows[0].spec
        self._longest = max(len(row.prompt) for row in rows)
        self._canvases = math.ceil(self.settings.max_new_tokens / self.spec.length)
        self._positions = self._longest + self._canvases * self.spec.length
        self._check_prompts()
        self._cache: PromptCache | None = None  # set for a single row, whose canvases are added to it
        self._ticket: object = None

    def run(self) -> Generator[Event, None, None]:
        """Yield an event after each chunk of prefill, each denoising step and each round of canvases.

        Closing the generator between two events keeps prefix and prompt cache valid, with all encoded tokens.
        The caller's time between two events is not counted.
        """
        with wired_limit():
            active = [row for row in self.rows if not row.closed]
            if not active:
                return
            prefix = yield from self._prefill()
            if active != self.rows:
                prefix = prefix.take([self.rows.index(row) for row in active])
            clock = _Clock()
            while True:
                yield from self._denoise(active, prefix, clock)
                committed = [row.commit() for row in active if not row.closed]
                yield Finished(committed, clock.stop())
                clock.start()
                running = [row for row in active if row.finish_reason is None and not row.closed]
                if not running:
                    return
                prefix = self._append(active, running, prefix)
                active = running

    def _denoise(self, active: list[Row], prefix: PrefixCache, clock: _Clock) -> Generator[Event, None, None]:
        """Denoise one canvas of each row. If some are rejected, denoise only these rows again."""
        denoiser = denoiser_of(self.model)
        for index, row in enumerate(active):
            for scout in row.scouts:
                yield from self._scout(scout, row, prefix, index, clock)
            row.begin()
        pending, together, cache = active, active, prefix
        while pending:
            rows = [row for row in pending if row.steps == pending[0].steps]
            if rows != together:
                together, cache = rows, prefix.take([active.index(row) for row in rows])
            draws = self._draws(rows)
            clock.pause()
            canvas = yield from denoiser.run(
                cache,
                self.settings,
                draws,
                self._init(rows, draws),
                rows=tuple(self.rows.index(row) for row in rows),
                keep_logits=any(row.needs_logits for row in rows),
                watched=self.watched,
            )
            clock.resume(canvas.seconds)
            self._check_cache()
            share = canvas.seconds / len(rows)
            stand = [row for index, row in enumerate(rows) if row.judge(canvas, index, share)]
            del canvas  # frees its logits before the next canvas
            pending = [row for row in pending if row not in stand and not row.closed]

    def _scout(
        self, constraint: Any, row: Row, prefix: PrefixCache, index: int, clock: _Clock
    ) -> Generator[Event, None, None]:
        """Denoise the trial canvases that `constraint` asks for. index: index of `row` in `prefix`."""
        looks, canvas = constraint.scout(row.written), None
        while True:
            try:
                look: Look = looks.send(canvas)
            except StopIteration:
                return
            count = len(look.pins)
            clock.pause()
            canvas = yield from denoiser_of(self.model).run(
                prefix.take([index] * count),
                self.settings,
                self._draws([row] * count),
                CanvasInit(mx.array(look.pins, dtype=mx.int32), steps=look.steps),
                rows=(self.rows.index(row),) * count,
                keep_logits=True,
            )
            clock.resume(canvas.seconds)
            self._check_cache()

    def _draws(self, rows: Sequence[Row]) -> Draws:
        length, vocab_size = self.spec.length, self.spec.vocab_size
        with named("draws"):
            draws = self.draws_of([row.noise_key for row in rows], length, vocab_size)
        if type(draws) is SeededDraws and draws.shape == (len(rows), length, vocab_size):
            return draws
        return CheckedDraws(draws, (len(rows), length), vocab_size)

    def _init(self, rows: list[Row], draws: Draws) -> CanvasInit:
        steps, pins = rows[0].steps, mx.array([row.pins for row in rows], dtype=mx.int32)
        draft = rows[0].draft
        if draft is None:
            return CanvasInit(pins, steps=steps)
        canvas, steps = draft.initial(rows[0].blocks, draws, (len(rows), self.spec.length), steps)
        return CanvasInit(pins, canvas, steps)

    def _prefill(self) -> Generator[Event, None, PrefixCache]:
        """Encode every row's prompt, chunk by chunk."""
        clock, chunk_size = _Clock(), self.settings.prefill_step_size
        first, *others = (row.prompt for row in self.rows)
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
        self._cache = None  # with several rows, the prompt cache keeps the prompt only
        return cache.prefix.take([0] * len(self.rows))

    def _prefill_padded(self, clock: _Clock) -> Generator[Event, None, PrefixCache]:
        """Encode different prompts, padded on the left so that all end at the same position."""
        cache, chunk_size = self.model.make_cache(), self.settings.prefill_step_size
        cache.reserved = self._positions
        padding = [Prompt([self.spec.pad_id] * (self._longest - len(row.prompt))) for row in self.rows]
        cache.left_padding = [len(each) for each in padding]
        padded = [each + row.prompt for each, row in zip(padding, self.rows, strict=True)]
        unbroken, start = merge_spans(span for each in padded for span in each.spans), 0
        while start < self._longest:
            end = chunk_end(start, self._longest, chunk_size, unbroken)
            self.model.encode([each.part(start, end) for each in padded], cache, end - start)
            yield Prefill(end, self._longest, 0, clock.stop())
            clock.resume()
            start = end
        return cache

    def _append(self, active: list[Row], running: list[Row], prefix: PrefixCache) -> PrefixCache:
        """Return the prefix of the rows in `running`, with their committed canvases encoded."""
        chunk_size = self.settings.prefill_step_size
        canvases = [row.canvas.ids for row in running if row.canvas is not None]
        if self._cache is not None:
            self._check_cache()
            self._cache.encode(Prompt(canvases[0]), chunk_size)
            return self._cache.prefix
        if running != active:
            prefix = prefix.take([active.index(row) for row in running])
        self.model.encode(mx.array(canvases, dtype=mx.int32), prefix, chunk_size)
        return prefix

    def _check_cache(self) -> None:
        if self._cache is not None:
            self._cache.check(self._ticket)

    def _check_prompts(self) -> None:
        settings = self.settings
        first = self.rows[0]
        for row in self.rows:
            check_ids("the prompt", row.prompt.ids, self.spec.vocab_size)
            if (row.settings, row.spec, row.draft) != (first.settings, first.spec, first.draft):
                raise InputError("rows of one batch must have the same settings and draft; make several")
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
            cache_bytes=self.prompt_cache.nbytes if self.prompt_cache else 0,
        )


class _Clock:
    """A stopwatch for the engine's own work, without the time that the caller takes between two events."""

    def __init__(self) -> None:
        self.start()

    def start(self) -> None:
        self._counted, self._since = 0.0, time.perf_counter()

    def stop(self) -> float:
        """Pause, and return the seconds so far."""
        self.pause()
        return self._counted

    def pause(self) -> None:
        self._counted += time.perf_counter() - self._since

    def resume(self, seconds: float = 0.0) -> None:
        """Continue. seconds: time to add for work during the pause, which was timed elsewhere."""
        self._counted += seconds
        self._since = time.perf_counter()
