"""One sequence that is written canvas by canvas, with its constraints and the tries at its canvas."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import mlx.core as mx
import numpy as np

from ..errors import GenerationError
from ..ops import FREE
from ..prompt import Prompt
from .constraint import Canvas, CanvasSpec, Constraint, Redo, Reroll
from .denoise import DenoisedCanvas
from .noise import NoiseKey
from .settings import Settings

_REVISIONS_PER_HALVING = 4

FinishReason = Literal["stop", "length"]


class RowKey(NamedTuple):
    """Seed and candidate number. Rows with the same key, prompt and settings write the same text."""

    seed: int
    candidate: int = 0


@dataclass
class Tries:
    """Tries at one canvas. Prefix, pins and plans apply to the next try. Counts are sums over all tries.

    number: number of the next try, from 0. Part of the key of its draws.
    revisions: number of tries that a `Redo` asked for.
    prefix: pinned ids at the beginning of the canvas.
    pins: other pins, position -> token.
    plans: index of a constraint -> `plan` of its last verdict.
    steps: number of denoising steps.
    seconds: this row's share of the denoising time.
    rerolls: reason -> number of `Reroll`s.
    reviews: name of a constraint -> number of its verdicts, without `Reroll`s.
    redos: name of a constraint -> number of its `Redo`s.
    remarks: problems that the last try still has.
    """

    number: int = 0
    revisions: int = 0
    prefix: list[int] = field(default_factory=list)
    pins: dict[int, int] = field(default_factory=dict)
    plans: dict[int, Any] = field(default_factory=dict)
    steps: int = 0
    seconds: float = 0.0
    rerolls: Counter[str] = field(default_factory=Counter)
    reviews: Counter[str] = field(default_factory=Counter)
    redos: Counter[str] = field(default_factory=Counter)
    remarks: tuple[str, ...] = ()


@dataclass(frozen=True)
class Committed:
    """A canvas that a row committed.

    block: number of the canvas, from 0.
    ids: ids of the block, which end with the stop id or at the token limit.
    canvas: all ids of the canvas, `[C]`. The next canvas follows them.
    stopped: True if `ids` ends with a stop id.
    mean_entropy: mean entropy at the last step, in nats.
    stopped_by: the stop rule that ended denoising, or None.
    logprobs: log-probabilities of `canvas`, float32 `[C]`. None if they equal those of the last draft, or
        were not computed.
    """

    row: Row
    block: int
    ids: list[int]
    canvas: list[int]
    stopped: bool
    mean_entropy: float
    stopped_by: Any
    tries: Tries
    logprobs: np.ndarray | None


class Row:
    """One sequence of a batch.

    For each block, call `begin`, then denoise and call `judge` until it accepts a canvas, then call `commit`.
    Set `closed` if no further block is wanted.
    """

    def __init__(
        self,
        prompt: Prompt,
        settings: Settings,
        spec: CanvasSpec,
        key: RowKey,
        constraints: Sequence[Constraint] = (),
    ):
        self.prompt, self.settings, self.spec, self.key = prompt, settings, spec, key
        self.constraints = list(constraints)
        self.written: list[int] = []
        self.blocks = 0
        self.finish_reason: FinishReason | None = None
        self.closed = False
        self.tries = Tries()
        self.canvas: DenoisedRow | None = None

    @property
    def draft(self) -> Any:
        """The constraint that starts canvases from a draft, or None."""
        return next((each for each in self.constraints if hasattr(each, "initial")), None)

    @property
    def scouts(self) -> list[Any]:
        """Constraints that look at trial canvases before they choose pins."""
        return [each for each in self.constraints if hasattr(each, "scout")]

    @property
    def remaining(self) -> int:
        """Number of ids that may still be written."""
        return self.settings.max_new_tokens - len(self.written)

    @property
    def noise_key(self) -> NoiseKey:
        """Key of the draws for the next try."""
        return NoiseKey(self.key.seed, self.key.candidate, self.blocks, self.tries.number)

    @property
    def pins(self) -> list[int]:
        """Pins of the next try, `[C]`: token ids or `FREE`."""
        prefix = self.tries.prefix
        pins = prefix + [FREE] * (self.spec.length - len(prefix))
        for position, token in self.tries.pins.items():
            pins[position] = token
        return pins

    @property
    def steps(self) -> int:
        """Maximum number of denoising steps of the next try. It is halved after every four `Redo`s."""
        return max(1, self.settings.max_denoising_steps >> self.tries.revisions // _REVISIONS_PER_HALVING)

    @property
    def needs_logits(self) -> bool:
        return any(constraint.needs_logits for constraint in self.constraints)

    def begin(self) -> None:
        """Start a new canvas."""
        self.tries = Tries()
        for constraint in self.constraints:
            self.tries.pins |= constraint.begin(self.written)

    def judge(self, result: DenoisedCanvas, index: int, seconds: float = 0.0) -> bool:
        """Return True if row `index` of `result` can be committed.

        Otherwise it has to be denoised again, with the new draws and pins of `tries`.

        seconds: this row's share of the denoising time.
        """
        tries = self.tries
        tries.steps += result.steps[index]
        tries.seconds += seconds
        capped = result.stopped_by[index] is None and self.steps == self.settings.max_denoising_steps
        denoised = DenoisedRow(
            np.array(result.ids[index]).tolist(), result.mean_entropy[index], capped, result.stopped_by[index]
        )
        self.canvas, tries.remarks = denoised, ()

        for number, constraint in enumerate(self.constraints):
            verdict = constraint.review(self._canvas(number), _Best(result, index * self.spec.length))
            if isinstance(verdict, Reroll):
                tries.rerolls[verdict.reason] += 1
                tries.number += 1
                return False
            tries.plans[number] = verdict.plan
            tries.reviews[verdict.by] += 1
            if isinstance(verdict, Redo):
                tries.redos[verdict.by] += 1
                return self._redo(verdict, result, index)
            tries.remarks += (verdict.remark,) if verdict.remark else ()
            if verdict.ids is not None:
                self.canvas = self.canvas._replace(ids=list(verdict.ids))
        return True

    def _redo(self, verdict: Redo, result: DenoisedCanvas, index: int) -> bool:
        tries, length, prefix = self.tries, self.spec.length, verdict.prefix
        assert self.canvas is not None
        if len(prefix) >= length or any(token in self.spec.stop_ids for token in prefix):
            ids = prefix + [self.spec.pad_id] * (length - len(prefix))
            logprobs = result.logprobs(index, ids) if result.watched else None
            self.canvas = self.canvas._replace(ids=ids, logprobs=logprobs)
            return True
        pins = {**tries.pins, **verdict.pins}
        if len(prefix) + len(pins) <= len(tries.prefix) + len(tries.pins):  # it would loop without end
            raise GenerationError("a repair of a canvas would change its pins; please report this")
        tries.prefix, tries.pins = prefix, pins
        tries.number += 1
        tries.revisions += 1
        return False

    def commit(self) -> Committed:
        """Commit the canvas that `judge` accepted, and return it."""
        assert self.canvas is not None
        ids, stopped = self._canvas(0).until_stop()
        for number, constraint in enumerate(self.constraints):
            constraint.commit(self._canvas(number), ids)
        committed = Committed(
            row=self,
            block=self.blocks,
            ids=ids,
            canvas=self.canvas.ids,
            stopped=stopped,
            mean_entropy=self.canvas.mean_entropy,
            stopped_by=self.canvas.stopped_by,
            tries=self.tries,
            logprobs=self.canvas.logprobs,
        )
        self.written += ids
        self.blocks += 1
        if stopped or self.remaining == 0:
            self.finish_reason = "stop" if stopped else "length"
        return committed

    def _canvas(self, number: int) -> Canvas:
        """Return the current canvas for constraint `number`."""
        assert self.canvas is not None
        return Canvas(
            written=self.written,
            ids=self.canvas.ids,
            remaining=self.remaining,
            spec=self.spec,
            mean_entropy=self.canvas.mean_entropy,
            capped=self.canvas.capped,
            rerolls=self.tries.rerolls,
            plan=self.tries.plans.get(number),
        )


class _Best:
    """Implements `Best` for a canvas whose logits begin at row `start` of the result's logits."""

    def __init__(self, result: DenoisedCanvas, start: int):
        self._result, self._start = result, start

    def __call__(self, position: int, allowed: np.ndarray) -> int:
        return int(np.array(mx.argmax(mx.where(mx.array(allowed), self._logits(position), -mx.inf))))

    def scores(self, position: int) -> np.ndarray:
        return np.array(self._logits(position).astype(mx.float32))

    def _logits(self, position: int) -> mx.array:
        assert self._result.logits is not None
        return self._result.logits[self._start + position]


class DenoisedRow(NamedTuple):
    """One row of a `DenoisedCanvas`. `ids` are those of a constraint if it replaced them."""

    ids: list[int]
    mean_entropy: float
    capped: bool
    stopped_by: Any
    logprobs: np.ndarray | None = None
