"""Runs one batch, and turns its events into blocks, traces and statistics."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress

import mlx.core as mx

from .answer import Answer
from .engine.batch import Batch, Event, Finished, Prefill
from .engine.denoise import Stepped
from .engine.noise import DrawsOf, SeededDraws
from .engine.prompt_cache import PromptCache
from .engine.state import Step
from .errors import GenerationError
from .model import DiffusionGemma


class Writer:
    """Writes several answers together.

    Args:
        timeout: seconds from the first call of `advance`. After that, all rows end with their blocks so far.
        on_end: called whenever rows have written their last block, with the number of these rows.
    """

    def __init__(
        self,
        model: DiffusionGemma,
        answers: list[Answer],
        on_step: Callable[[Step], None] | None = None,
        prompt_cache: PromptCache | None = None,
        timeout: float | None = None,
        on_end: Callable[[int], object] | None = None,
        draws: DrawsOf | None = None,
    ):
        self.answers, self.on_step, self.timeout, self.on_end = answers, on_step, timeout, on_end
        watched = on_step is not None or any(answer.trace is not None for answer in answers)
        batch = Batch(model, [answer.row for answer in answers], prompt_cache, watched, draws or SeededDraws)
        self._of_row = {id(answer.row): answer for answer in answers}
        self._events = batch.run()
        self._busy = False
        self._deadline: float | None = None
        self.started = self.is_over = False
        self.failure: Exception | None = None

    def advance(self) -> None:
        """Write one more block of every row that has not ended. Do nothing after an interrupt.

        Raises `GenerationError` if an earlier call failed or another call is running.
        """
        if self.failure is not None:
            raise GenerationError(
                f"this generation failed ({type(self.failure).__name__}); start a new one, "
                "its blocks so far are in .blocks"
            ) from self.failure
        if self._busy:
            raise GenerationError(
                "this generation is already running; do not use it from its own on_step or from two threads"
            )
        self._busy = True
        if not self.started:
            mx.reset_peak_memory()
            if self.timeout is not None:
                self._deadline = time.monotonic() + self.timeout
        self.started = True
        try:
            if self._is_unwanted():
                self._stop()
            for event in self._events:
                self._take(event)
                if self._is_unwanted():
                    self._stop()
                elif isinstance(event, Finished):
                    return
            self._stop()
        except Exception as error:
            self.failure = error
            self._stop()
            raise
        except BaseException:  # an interrupt
            self._stop()
            raise
        finally:
            self._busy = False

    def _is_unwanted(self) -> bool:
        """Return True if the caller closed every unfinished row. At the deadline, end them first."""
        running = [answer for answer in self.answers if answer.finish_reason is None]
        if self._deadline is not None and time.monotonic() >= self._deadline:
            for answer in running:
                if not answer.row.closed:
                    answer.end(f"timeout {self.timeout:g} s ended it; raise it, or ask for less")
            return True
        return all(answer.row.closed for answer in running)

    def _stop(self) -> None:
        """End the engine's loop, which frees the prefix cache."""
        self.is_over = True
        self._events.close()

    def close(self) -> None:
        """Stop if all rows are closed or have ended. A thread that runs `advance` stops at its next event."""
        if not self._busy and all(answer.row.closed or answer.finish_reason for answer in self.answers):
            with suppress(ValueError):  # another thread has just started to run the loop
                self._stop()

    def _take(self, event: Event) -> None:
        if isinstance(event, Prefill):
            for answer in self.answers:
                answer.stats.cached_tokens = event.cached
                answer.stats.prefill_seconds = answer.stats.seconds = event.seconds / len(self.answers)
        elif isinstance(event, Stepped):
            self._show(event)
        else:
            self._deliver(event)

    def _show(self, event: Stepped) -> None:
        if event.step is None:
            return
        for index, number in enumerate(event.rows):
            answer = self.answers[number]
            if answer.trace is not None:
                answer.trace.record(event.step, index, answer.row.noise_key)
        if self.on_step is not None:
            self.on_step(event.step)

    def _deliver(self, event: Finished) -> None:
        ended = 0
        shared = event.seconds - sum(committed.tries.seconds for committed in event.committed)
        for committed in event.committed:
            answer = self._of_row[id(committed.row)]
            answer.add(committed)
            answer.stats.seconds += committed.tries.seconds + shared / len(event.committed)
            answer.stats.peak_memory_gb = max(answer.stats.peak_memory_gb, mx.get_peak_memory() / 1e9)
            ended += answer.finish_reason is not None
        if self.on_end is not None and ended:
            self.on_end(ended)
