"""Denoising steps of a generation, kept for viewers."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from itertools import groupby

import numpy as np

from .noise import NoiseKey
from .state import Step

MOST_STEPS = 1536  # at most 10 MB for canvases of 256 tokens


@dataclass(frozen=True, slots=True)
class TracedStep:
    """One denoising step of one canvas. Fields mean the same as in `Step`. Arrays are `[C]`.

    block: number of the canvas.
    attempt: number of earlier tries at the canvas.
    seconds: time since this try began.
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
    logprobs: np.ndarray  # float32, natural logarithms, of draft_ids


@dataclass(frozen=True)
class TracedCanvas:
    """Steps of one try at a canvas.

    committed_ids: int32 `[C]`, the ids that were committed. None if the canvas was denoised again, or if an
        interrupt or an error ended the try.
    token_count: number of these ids that belong to the block. The rest comes after the stop id or
        max_new_tokens.
    committed_logprobs: float32 `[C]`, log-probabilities of committed_ids in the last step. None if they equal
        the draft's or were not computed.
    """

    block: int
    attempt: int
    steps: list[TracedStep]
    committed_ids: np.ndarray | None = None
    token_count: int = 0
    committed_logprobs: np.ndarray | None = None

    @property
    def committed(self) -> bool:
        return self.committed_ids is not None

    @property
    def finished(self) -> np.ndarray:
        """Positions in the block whose tokens a grammar or a thinking budget set after the last step."""
        if self.committed_ids is None:
            return np.zeros(0, np.intp)
        return np.flatnonzero((self.committed_ids != self.steps[-1].draft_ids)[: self.token_count])

    @property
    def logprobs(self) -> np.ndarray:
        """Natural log-probabilities of the committed tokens, or of the last draft, float32 `[C]`.

        They come from the last step, at its temperature, see `Step`. Earlier steps have no influence, because
        each step decides every position anew. A token that was pinned, or set by a grammar or a thinking
        budget, has the probability that the model gave it, which may be small. In the rare case that this was
        not computed, the value is NaN.
        """
        if self.committed_logprobs is not None:
            return self.committed_logprobs
        last = self.steps[-1]
        if self.committed_ids is None:
            return last.logprobs
        return np.where(self.committed_ids == last.draft_ids, last.logprobs, np.float32(np.nan))

    @property
    def draft_ids(self) -> np.ndarray:
        """Likeliest tokens at each step, int32 `[S, C]`."""
        return np.stack([step.draft_ids for step in self.steps])

    @property
    def entropies(self) -> np.ndarray:
        """Entropies at each step in nats, float32 `[S, C]`."""
        return np.stack([step.entropies for step in self.steps])

    @property
    def accepted(self) -> np.ndarray:
        """Positions that kept their sample at each step, bool `[S, C]`."""
        return np.stack([step.accepted for step in self.steps])

    @property
    def last_changed(self) -> np.ndarray:
        """Index of the last step that changed each token of the draft, int `[C]`. 0 if none did."""
        drafts = self.draft_ids
        changed = np.vstack([np.zeros_like(drafts[:1], dtype=bool), drafts[1:] != drafts[:-1]])
        return (len(drafts) - 1 - changed[::-1].argmax(axis=0)) * changed.any(axis=0)


class Trace:
    """Denoising steps of one generation, including those of canvases that were denoised again.

    Keeps the last `MOST_STEPS` steps. `total_steps` counts all of them.
    """

    def __init__(self) -> None:
        self.steps: deque[TracedStep] = deque(maxlen=MOST_STEPS)
        self.total_steps = 0
        # (block, attempt) of a try in `steps` -> the last three arguments of its `TracedCanvas`.
        self._commits: dict[tuple[int, int], tuple[np.ndarray, int, np.ndarray | None]] = {}

    def __repr__(self) -> str:
        if not self.total_steps:
            return "<Trace: no step yet; iterate the generation or ask for its answer>"
        return f"<Trace: {self.total_steps} steps of {len(self.canvases)} canvases>"

    @property
    def canvases(self) -> list[TracedCanvas]:
        """Steps grouped by try, oldest first. The first steps of the oldest try may be missing."""
        return [
            TracedCanvas(*key, list(steps), *self._commits.get(key, ()))
            for key, steps in groupby(self.steps, key=lambda step: (step.block, step.attempt))
        ]

    @property
    def last_tries(self) -> list[TracedCanvas]:
        """Tries that were committed, and also the last try if an interrupt or an error ended it."""
        canvases = self.canvases
        return [canvas for canvas in canvases if canvas.committed or canvas is canvases[-1]]

    def record(self, step: Step, row: int, key: NoiseKey) -> None:
        """Keep row `row` of `step`, unless the row was done before this step. key: key of the row's draws."""
        before = self.steps[-1] if self.steps else None
        if before and (before.block, before.attempt) == (key.block, key.attempt) and before.done:
            return
        self.total_steps += 1
        self.steps.append(
            TracedStep(
                block=key.block,
                attempt=key.attempt,
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
                logprobs=step.logprobs[row].copy(),
            )
        )

    def commit(
        self, key: NoiseKey, ids: list[int], token_count: int, logprobs: np.ndarray | None = None
    ) -> None:
        """Record the committed ids of the try at `key`. The first `token_count` belong to the block.

        logprobs: log-probabilities of `ids` in the last step, if `ids` differ from its draft.
        """
        oldest = (self.steps[0].block, self.steps[0].attempt) if self.steps else (0, 0)
        self._commits = {key: commit for key, commit in self._commits.items() if key >= oldest}
        self._commits[key.block, key.attempt] = np.array(ids, np.int32), token_count, logprobs
