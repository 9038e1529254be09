"""Constraints: the one way to hold the canvases of a row to something. Ids in, verdicts out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import numpy as np


class Best(Protocol):
    """The model's opinion on single positions of a canvas."""

    def __call__(self, position: int, allowed: np.ndarray) -> int:
        """Return the likeliest of the allowed tokens, bool `[V]`."""
        ...

    def scores(self, position: int) -> np.ndarray:
        """Return the raw logits of a position, fp32 `[V]`."""
        ...


class CanvasSpec(NamedTuple):
    """Sizes and special ids of every canvas of a model. stop_ids: they end the answer."""

    length: int
    vocab_size: int
    stop_ids: tuple[int, ...]
    pad_id: int


@dataclass(frozen=True)
class Canvas:
    """A canvas that has converged and is not committed.

    written: ids of the canvases before. ids: `[C]`. remaining: number of ids that may still be written, from
    this canvas's first on. spec: of the model. mean_entropy: nats, at the last step. capped: True if the full
    step cap ended it. rerolls: reason -> number of times that this canvas was denoised again for it.
    plan: `plan` of the same constraint's last verdict on this canvas, None at first.
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
        """Ids up to the limit and the first stop id; True if there is one."""
        ids = self.ids[: self.remaining]
        for position, token in enumerate(ids):
            if token in self.spec.stop_ids:
                return ids[: position + 1], True
        return ids, False


@dataclass(frozen=True)
class Stand:
    """The canvas may be committed.

    plan: handed back with this canvas in the next review and in `commit`. by: the constraint that looked at
    it, for statistics. remark: a problem that remains. ids: committed in place of the canvas's. They may be
    fewer if the row is alone in its batch; the next canvas then begins behind them.
    """

    plan: Any = None
    by: str = ""
    remark: str = ""
    ids: Sequence[int] | None = None


@dataclass(frozen=True)
class Reroll:
    """The canvas has to be denoised again, with other noise."""

    reason: str


@dataclass(frozen=True)
class Redo:
    """The canvas has to begin with `prefix`, and to hold the tokens of `pins`. The rest is denoised again.

    A prefix with a stop id, or one that fills the canvas, is committed as it stands. pins: position -> token.
    plan, by: see `Stand`.
    """

    prefix: list[int]
    plan: Any = None
    by: str = ""
    pins: Mapping[int, int] = field(default_factory=dict)


Verdict = Stand | Reroll | Redo


class Look(NamedTuple):
    """Canvases to denoise behind the same prefix and from the same noise, without committing one.

    pins: `[N, C]`, the token of each position, or `FREE`. steps: most denoising steps, with the temperatures
    of the last ones.
    """

    pins: list[list[int]]
    steps: int


class Constraint(Protocol):
    """A condition on the canvases of one row.

    needs_logits: `review` may ask for the likeliest of several tokens.

    Two optional methods: `scout(written)` runs before `begin`. It is a generator that yields `Look`s and gets
    a `DenoisedCanvas` with logits for each. `initial(...)` gives ids to begin with, see `control.draft`.
    """

    needs_logits: bool

    def begin(self, written: Sequence[int]) -> Mapping[int, int]:
        """Return pins of the next canvas: position -> token. written: ids of the canvases before."""
        ...

    def review(self, canvas: Canvas, best: Best) -> Verdict:
        """Judge a canvas. Has no side effects."""
        ...

    def commit(self, canvas: Canvas, ids: Sequence[int]) -> None:
        """Take note that `ids`, the first ones of `canvas`, were committed.

        The only place where state changes.
        """
        ...
