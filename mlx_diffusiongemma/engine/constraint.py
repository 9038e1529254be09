"""Constraints restrict the canvases of a row. A constraint reviews a canvas and returns a verdict."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import numpy as np


class Best(Protocol):
    """The model's choice of tokens at single positions of a canvas."""

    def __call__(self, position: int, allowed: np.ndarray) -> int:
        """Return the likeliest token at `position` among those that `allowed`, bool `[V]`, marks."""
        ...

    def scores(self, position: int) -> np.ndarray:
        """Return the raw logits of a position, float32 `[V]`."""
        ...


class CanvasSpec(NamedTuple):
    """Sizes and special ids of every canvas of a model. Each of `stop_ids` ends the answer."""

    length: int
    vocab_size: int
    stop_ids: tuple[int, ...]
    pad_id: int


@dataclass(frozen=True)
class Canvas:
    """A denoised canvas that is not committed yet.

    written: ids of earlier canvases.
    ids: ids of this canvas, `[C]`.
    remaining: number of ids that may still be written, counted from the start of this canvas.
    mean_entropy: mean entropy at the last step, in nats.
    capped: True if the step cap ended denoising, and `Redo`s had not lowered the cap.
    rerolls: reason -> number of times that this canvas was denoised again.
    plan: `plan` of the same constraint's previous verdict on this canvas, None at first.
    """

    written: Sequence[int]
    ids: list[int]
    remaining: int
    spec: CanvasSpec
    mean_entropy: float
    capped: bool
    rerolls: Mapping[str, int] = field(default_factory=Counter)
    plan: Any = None

    def until_stop(self) -> tuple[list[int], bool]:
        """Return the ids up to `remaining` or through the first stop id, and True if there is a stop id."""
        ids = self.ids[: self.remaining]
        for position, token in enumerate(ids):
            if token in self.spec.stop_ids:
                return ids[: position + 1], True
        return ids, False


@dataclass(frozen=True)
class Stand:
    """Verdict: the canvas may be committed.

    plan: any value. The constraint gets it back as `Canvas.plan` in the next review and in `commit`.
    by: name of the constraint, for statistics.
    remark: a problem that the canvas still has.
    ids: ids to commit instead of the canvas's. They may be fewer if the row is alone in its batch. The next
        canvas then begins after them.
    """

    plan: Any = None
    by: str = ""
    remark: str = ""
    ids: Sequence[int] | None = None


@dataclass(frozen=True)
class Reroll:
    """Verdict: denoise the canvas again, with other noise."""

    reason: str


@dataclass(frozen=True)
class Redo:
    """Verdict: keep `prefix` at the beginning and the tokens of `pins`, and denoise the rest again.

    A prefix that has a stop id or fills the canvas is committed without more steps.

    pins: position -> token.
    plan, by: see `Stand`.
    """

    prefix: list[int]
    plan: Any = None
    by: str = ""
    pins: Mapping[int, int] = field(default_factory=dict)


Verdict = Stand | Reroll | Redo


class Look(NamedTuple):
    """Request for trial canvases, which share prefix and noise and are never committed.

    pins: `[N, C]`, for each of N canvases the token of each position, or `FREE`.
    steps: maximum number of denoising steps. They have the temperatures of the schedule's last steps.
    """

    pins: list[list[int]]
    steps: int


class Constraint(Protocol):
    """A condition on the canvases of one row.

    needs_logits: True if `review` may call `best`.

    Two methods are optional. `scout(written)` is a generator that runs before `begin`. For each `Look` that
    it yields, the engine sends it a `DenoisedCanvas` with logits. `initial(...)` returns the ids that
    denoising starts from, see `control.draft`.
    """

    needs_logits: bool

    def begin(self, written: Sequence[int]) -> Mapping[int, int]:
        """Return pins of the next canvas: position -> token. written: ids of earlier canvases."""
        ...

    def review(self, canvas: Canvas, best: Best) -> Verdict:
        """Judge a canvas, without side effects."""
        ...

    def commit(self, canvas: Canvas, ids: Sequence[int]) -> None:
        """Record that `ids`, the beginning of `canvas`, were committed.

        State changes only here and in `scout`.
        """
        ...
