"""What each denoising step of a generation looked like, kept for those who look at it afterwards."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from itertools import groupby

import numpy as np

from .denoise import Step
from .sampling import Stream

MOST_STEPS = 2048  # of canvases of 256 tokens they take 10 MB at most


@dataclass(frozen=True, slots=True)
class TracedStep:
    """One denoising step of one canvas; host arrays `[C]`, what they mean as in `Step`.

    block: the canvas's number; attempt: how often it was denoised again before. seconds: since the try began.
    """

    block: int
    attempt: int
    index: int
    step: int
    temperature: float
    seconds: float
    mean_entropy: float
    done: bool
    draft_ids: np.ndarray  # int32
    canvas_ids: np.ndarray  # int32
    entropies: np.ndarray  # float32, nats
    accepted: np.ndarray  # bool


@dataclass(frozen=True)
class TracedCanvas:
    """The steps of one try at a canvas.

    committed_ids: int32 `[C]`, what was committed of this try; None when it was denoised again, or when an
    interrupt or an error ended it. token_count: how many of these ids the block has; the others are behind
    the stop id or beyond max_new_tokens.
    """

    block: int
    attempt: int
    steps: list[TracedStep]
    committed_ids: np.ndarray | None = None
    token_count: int = 0

    @property
    def committed(self) -> bool:
        return self.committed_ids is not None

    @property
    def finished(self) -> np.ndarray:
        """Positions of the block's tokens that are not the last draft's, but the grammar's or the thinking
        budget's, which finished the canvas themselves."""
        if self.committed_ids is None:
            return np.zeros(0, np.intp)
        return np.flatnonzero((self.committed_ids != self.steps[-1].draft_ids)[: self.token_count])

    @property
    def draft_ids(self) -> np.ndarray:
        """int32 `[S, C]`: the likeliest tokens of each step, which would be committed then if nothing mended
        them."""
        return np.stack([step.draft_ids for step in self.steps])

    @property
    def entropies(self) -> np.ndarray:
        """float32 `[S, C]`, nats."""
        return np.stack([step.entropies for step in self.steps])

    @property
    def accepted(self) -> np.ndarray:
        """bool `[S, C]`: which positions kept their sample."""
        return np.stack([step.accepted for step in self.steps])

    @property
    def last_changed(self) -> np.ndarray:
        """int `[C]`: index in `steps` of the last step that changed the draft's token; 0: none did."""
        drafts = self.draft_ids
        changed = np.vstack([np.zeros_like(drafts[:1], dtype=bool), drafts[1:] != drafts[:-1]])
        return (len(drafts) - 1 - changed[::-1].argmax(axis=0)) * changed.any(axis=0)


class Trace:
    """The denoising steps of one generation, those of canvases that were denoised again included.

    Bounded: of a longer generation the last `MOST_STEPS` steps are kept. total_steps: how many there were.
    """

    def __init__(self) -> None:
        self.steps: deque[TracedStep] = deque(maxlen=MOST_STEPS)
        self.total_steps = 0
        self._commits: dict[tuple[int, int], tuple[np.ndarray, int]] = {}  # of the tries whose steps are kept

    @property
    def canvases(self) -> list[TracedCanvas]:
        """The steps kept, by try, oldest first. A canvas whose first steps were dropped begins later."""
        return [
            TracedCanvas(*key, list(steps), *self._commits.get(key, ()))
            for key, steps in groupby(self.steps, key=lambda step: (step.block, step.attempt))
        ]

    @property
    def last_tries(self) -> list[TracedCanvas]:
        """The tries that were committed, and the last one if an interrupt or an error ended it."""
        canvases = self.canvases
        return [canvas for canvas in canvases if canvas.committed or canvas is canvases[-1]]

    def record(self, step: Step, row: int, stream: Stream) -> None:
        """Keeps row `row` of `step`, unless that was done before and only its batch goes on."""
        before = self.steps[-1] if self.steps else None
        if before and (before.block, before.attempt) == (stream.block, stream.attempt) and before.done:
            return
        self.total_steps += 1
        self.steps.append(
            TracedStep(
                block=stream.block,
                attempt=stream.attempt,
                index=step.index,
                step=step.step,
                temperature=step.temperature,
                seconds=step.seconds,
                mean_entropy=float(step.mean_entropy[row]),
                done=bool(step.done[row]),
                draft_ids=step.draft_ids[row].copy(),
                canvas_ids=step.canvas_ids[row].copy(),
                entropies=step.entropies[row].copy(),
                accepted=step.accepted[row].copy(),
            )
        )

    def commit(self, stream: Stream, ids: list[int], token_count: int) -> None:
        """Keeps what was committed of the try at `stream`, `token_count` tokens of it for its block."""
        oldest = (self.steps[0].block, self.steps[0].attempt) if self.steps else (0, 0)
        self._commits = {key: commit for key, commit in self._commits.items() if key >= oldest}
        self._commits[stream.block, stream.attempt] = np.array(ids, np.int32), token_count
