"""Denoising steps of a generation, kept for viewers."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from itertools import groupby

import numpy as np

from .noise import NoiseKey
from .state import Step

MOST_STEPS = 1536  # of canvases of 256 tokens, 10 MB at most


@dataclass(frozen=True, slots=True)
class TracedStep:
    """One denoising step of one canvas. Host arrays `[C]`, with the meaning that they have in `Step`.

    block: number of the canvas. attempt: number of earlier tries at it. seconds: since this try began.
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

    committed_ids: int32 `[C]`, the ids that were committed of this try. None if it was denoised again, or if
    an interrupt or an error ended it. token_count: number of these ids in the block. The others are behind
    the stop id or beyond max_new_tokens. committed_logprobs: float32 `[C]`, log-probabilities of
    committed_ids in the last step, if they are not its draft and its logits were kept.
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
        """Positions of the block's tokens that a grammar or a thinking budget set after the last step."""
        if self.committed_ids is None:
            return np.zeros(0, np.intp)
        return np.flatnonzero((self.committed_ids != self.steps[-1].draft_ids)[: self.token_count])

    @property
    def logprobs(self) -> np.ndarray:
        """float32 `[C]`: natural log-probabilities of the committed tokens, or of the last draft.

        Their distribution is that of the last step, at its temperature, see `Step`. No earlier step decides:
        each one decides every position again. A token that was pinned, or set by a grammar or a thinking
        budget, has the probability that the model gave it there, which may be small. It is NaN in the rare
        case that nobody kept the model's logits.
        """
        if self.committed_logprobs is not None:
            return self.committed_logprobs
        last = self.steps[-1]
        if self.committed_ids is None:
            return last.logprobs
        return np.where(self.committed_ids == last.draft_ids, last.logprobs, np.float32(np.nan))

    @property
    def draft_ids(self) -> np.ndarray:
        """int32 `[S, C]`: the likeliest tokens at each step."""
        return np.stack([step.draft_ids for step in self.steps])

    @property
    def entropies(self) -> np.ndarray:
        """float32 `[S, C]`, nats."""
        return np.stack([step.entropies for step in self.steps])

    @property
    def accepted(self) -> np.ndarray:
        """bool `[S, C]`: positions that kept their sample."""
        return np.stack([step.accepted for step in self.steps])

    @property
    def last_changed(self) -> np.ndarray:
        """int `[C]`: index in `steps` of the last step that changed the draft's token, 0 if none did."""
        drafts = self.draft_ids
        changed = np.vstack([np.zeros_like(drafts[:1], dtype=bool), drafts[1:] != drafts[:-1]])
        return (len(drafts) - 1 - changed[::-1].argmax(axis=0)) * changed.any(axis=0)


class Trace:
    """Denoising steps of one generation, including those of canvases that were denoised again.

    Bounded: a longer generation keeps its last `MOST_STEPS` steps. total_steps: number of all of them.
    """

    def __init__(self) -> None:
        self.steps: deque[TracedStep] = deque(maxlen=MOST_STEPS)
        self.total_steps = 0
        # By block and attempt, for tries whose steps are kept: arguments of `TracedCanvas`.
        self._commits: dict[tuple[int, int], tuple[np.ndarray, int, np.ndarray | None]] = {}

    def __repr__(self) -> str:
        if not self.total_steps:
            return "<Trace: no step yet; iterate the generation or ask for its answer>"
        return f"<Trace: {self.total_steps} steps of {len(self.canvases)} canvases>"

    @property
    def canvases(self) -> list[TracedCanvas]:
        """Kept steps by try, oldest first. A canvas whose first steps were dropped begins later."""
        return [
            TracedCanvas(*key, list(steps), *self._commits.get(key, ()))
            for key, steps in groupby(self.steps, key=lambda step: (step.block, step.attempt))
        ]

    @property
    def last_tries(self) -> list[TracedCanvas]:
        """Tries that were committed, and the last one if an interrupt or an error ended it."""
        canvases = self.canvases
        return [canvas for canvas in canvases if canvas.committed or canvas is canvases[-1]]

    def record(self, step: Step, row: int, key: NoiseKey) -> None:
        """Keep row `row` of `step`, unless the row was done before and only its batch goes on."""
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
        """Keep the ids that were committed of the try at `key`, `token_count` of them for its block.

        logprobs: of `ids` in the last step, for ids that differ from its draft.
        """
        oldest = (self.steps[0].block, self.steps[0].attempt) if self.steps else (0, 0)
        self._commits = {key: commit for key, commit in self._commits.items() if key >= oldest}
        self._commits[key.block, key.attempt] = np.array(ids, np.int32), token_count, logprobs
