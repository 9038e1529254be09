"""The constraint behind `fill`: literals are pinned, holes are denoised together.

How long a hole is whose length is open shows in what the model makes of the literal behind it: shifted by a
token too many or too few, it surprises. So each length is looked at for one step; the best are denoised to
the end, and the shortest of those whose literals surprise least is taken.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence

import mlx.core as mx
import numpy as np

from ..engine.constraint import Best, Canvas, CanvasSpec, Look, Redo, Stand, Verdict
from ..engine.denoise import DenoisedCanvas
from ..ops import FREE, processed_logits
from .slots import Slot, Slots

ROWS = 4  # lengths that are denoised together, and how many of them are denoised to the end
_SEARCH_STEPS = 16  # at most, for each of those; most that need more have the wrong length
_CLOSE = 0.2  # nats a token: mean surprises that differ by less say nothing
_LOOKAHEAD = 8  # tokens behind an open hole that its canvas should have room for
_UNFIT = 1e6
_ROUNDS = 3  # how often a hole that took a structural token is denoised again


class Holes:
    """Constraint: the literals of a template are pinned, and its holes get tokens that are text.

    The text is resolved part by part into slots. Slots that have their length and are not committed yet are
    the `window`, which the next canvas begins with.
    """

    needs_logits = True

    def __init__(self, slots: Slots, spec: CanvasSpec, softcap: float | None):
        self.slots, self.spec, self._softcap = slots, spec, softcap
        self.written: list[list[int]] = [[] for _ in slots.parts]  # committed ids of each part
        self.window: list[Slot] = []
        self.repairs = 0
        self.look_steps, self.look_seconds = 0, 0.0
        self._part = 0  # the first one that is not in the window

    @property
    def only_stop_is_missing(self) -> bool:
        return self.window == [self.slots.stop]

    def write_stop(self) -> None:
        """Write the stop id, which needs no denoising."""
        self.written[self.slots.stop.part].append(self.slots.stop.pin)

    def scout(self, written: Sequence[int]) -> Generator[Look, DenoisedCanvas, None]:
        """Resolve parts until the window is a canvas. Looks at canvases for holes of open length."""
        while len(self.window) <= self.spec.length and self._part < len(self.slots.options):
            options = self.slots.options[self._part]
            # An exact hole, whose space goes into it, has two options, too: the first one is taken.
            if len(options) > 1 and len(options[-1]) < self.spec.length:
                behind = self.slots.behind(self._part)
                room = self.spec.length - len(options[-1]) - min(len(behind), _LOOKAHEAD)
                if self.window and len(self.window) > room:
                    return  # commits the window first
                options = [(yield from self._chosen(options, behind))]
            self.window += options[0]
            self._part += 1
            if self._part == len(self.slots.options):
                self.window.append(self.slots.stop)

    def begin(self, written: Sequence[int]) -> Mapping[int, int]:
        return {place: pin for place, pin in enumerate(self._pins(self.window)) if pin != FREE}

    def review(self, canvas: Canvas, best: Best) -> Verdict:
        slots = self.window[: self.spec.length]
        ids = canvas.ids[: len(slots)]
        rounds, repaired = canvas.plan or (0, frozenset())
        places = [place for place in self.slots.unfit(slots, ids) if place not in repaired]
        repairs = {place: self.slots.best(best.scores(place), slots[place]) for place in places}
        plan = rounds + 1, repaired | repairs.keys()
        if repairs and rounds < _ROUNDS:
            return Redo([], plan=plan, pins=repairs)
        for place, token in repairs.items():
            ids[place] = token
        return Stand(plan=plan, ids=ids)

    def commit(self, canvas: Canvas, ids: Sequence[int]) -> None:
        slots, self.window = self.window[: len(ids)], self.window[len(ids) :]
        self.repairs += len(canvas.plan[1])
        for slot, token in zip(slots, ids, strict=True):
            self.written[slot.part].append(token)

    def _pins(self, slots: Sequence[Slot]) -> list[int]:
        """Pins `[C]` of a canvas that begins with `slots`. Padding follows a stop id."""
        slots = slots[: self.spec.length]
        rest = self.spec.pad_id if slots[-1] == self.slots.stop else FREE
        return [slot.pin for slot in slots] + [rest] * (self.spec.length - len(slots))

    def _chosen(
        self, options: list[list[Slot]], behind: list[Slot]
    ) -> Generator[Look, DenoisedCanvas, list[Slot]]:
        """Return the option whose literals surprise least; the shortest of those that are close."""
        # What stands behind may come again in a longer hole, and surprise as little there. An end may not,
        # and a model finds nearly any end plausible once it is there.
        ends = [slot for slot in behind if slot.pin != FREE] == [self.slots.stop]
        close = 0.0 if ends else _CLOSE
        order = list(range(len(options)))
        if len(order) > ROWS:
            values: list[float] = []
            for start in order[::ROWS]:
                values += yield from self._surprises(options[start : start + ROWS], behind, 1)
            order = sorted(_ranked(values, close)[:ROWS])
        values = yield from self._surprises([options[index] for index in order], behind, _SEARCH_STEPS)
        return options[order[_ranked(values, close)[0]]]

    def _surprises(
        self, options: list[list[Slot]], behind: list[Slot], steps: int
    ) -> Generator[Look, DenoisedCanvas, list[float]]:
        """For each option, return the mean -log p (nats) of the literals behind the hole.

        After at most `steps`. After more than one, a hole that would have to be repaired is worse than all
        that need not.
        """
        rows = np.array([self._pins([*self.window, *option, *behind]) for option in options])
        canvas = yield Look(rows.tolist(), steps)
        self.look_steps += sum(canvas.steps)
        self.look_seconds += canvas.seconds
        assert canvas.logits is not None
        logits = canvas.logits.reshape(*rows.shape, -1)
        values = []
        for row, (option, ids) in enumerate(zip(options, np.array(canvas.ids), strict=True)):
            start = len(self.window)
            end = start + len(option)
            literals = behind[: self.spec.length - end]
            places = end + np.flatnonzero(rows[row, end : end + len(literals)] != FREE)
            if not places.size:  # nothing is known behind it: the hole must speak for itself
                places = np.arange(start, end)
            values.append(self._surprise(logits[row, mx.array(places)], ids[places]))
            if steps > 1 and self.slots.unfit(option, ids[start:end].tolist()):
                values[-1] += _UNFIT
        return values

    def _surprise(self, logits: mx.array, ids: np.ndarray) -> float:
        """Mean -log p of `ids [P]` under raw `logits [P, V]`."""
        scores = processed_logits(logits, 1.0, self._softcap)
        own = mx.take_along_axis(scores, mx.array(ids)[:, None], axis=1)[:, 0]
        return float(np.array(mx.logsumexp(scores, axis=1) - own).mean())


def _ranked(values: Sequence[float], close: float) -> list[int]:
    """Indices of `values`, least first. Those that are `close` to the least come in their own order."""
    bound = min(values) + close
    return sorted(range(len(values)), key=lambda index: (max(values[index], bound), index))
