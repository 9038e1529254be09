"""The constraint behind `fill`: literals are pinned, holes are denoised together.

The length of a hole is open if the template gives only its maximum. The literal after such a hole shows how
long it should be, because the model finds the literal surprising after a hole of a wrong length. Each length
is tried for one step. The best ones are denoised further, and the shortest of those with the least surprising
literals wins.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence

import mlx.core as mx
import numpy as np

from ..engine.constraint import Best, Canvas, CanvasSpec, Look, Redo, Stand, Verdict
from ..engine.denoise import DenoisedCanvas
from ..ops import FREE, processed_logits
from .slots import Slot, Slots

ROWS = 4  # number of lengths that are denoised together, and number of best lengths
_SEARCH_STEPS = 16  # maximum for each of the best lengths; a length that needs more is usually wrong
_CLOSE = 0.2  # nats per token; smaller differences of the mean surprise are ignored
_LOOKAHEAD = 8  # tokens after an open hole that its canvas should have room for
_UNFIT = 1e6  # added to the surprise of a hole that needs a repair
_ROUNDS = 3  # maximum number of times that a canvas is denoised again for tokens that do not fit


class Holes:
    """Constraint that pins the literals of a template, and accepts only text tokens in its holes.

    Parts of the template become slots one by one, when the lengths of their holes are known. `window` holds
    the slots that are not committed yet. The next canvas begins with them.
    """

    needs_logits = True

    def __init__(self, slots: Slots, spec: CanvasSpec, softcap: float | None):
        self.slots, self.spec, self._softcap = slots, spec, softcap
        self.written: list[list[int]] = [[] for _ in slots.parts]  # committed ids of each part
        self.window: list[Slot] = []
        self.repairs = 0
        self.look_steps, self.look_seconds = 0, 0.0
        self._part = 0  # the first part whose slots are not in the window yet

    @property
    def only_stop_is_missing(self) -> bool:
        return self.window == [self.slots.stop]

    def write_stop(self) -> None:
        """Write the stop id, which needs no denoising."""
        self.written[self.slots.stop.part].append(self.slots.stop.pin)

    def scout(self, written: Sequence[int]) -> Generator[Look, DenoisedCanvas, None]:
        """Add slots of parts until the window fills a canvas. Holes of open length need trial canvases."""
        while len(self.window) <= self.spec.length and self._part < len(self.slots.options):
            options = self.slots.options[self._part]
            # An exact hole after a space also has two options. The first one is used.
            if len(options) > 1 and len(options[-1]) < self.spec.length:
                following = self.slots.after(self._part)
                room = self.spec.length - len(options[-1]) - min(len(following), _LOOKAHEAD)
                if self.window and len(self.window) > room:
                    return  # commit the window first
                options = [(yield from self._chosen(options, following))]
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
        """Return the pins `[C]` of a canvas that begins with `slots`. Padding follows a stop id."""
        slots = slots[: self.spec.length]
        rest = self.spec.pad_id if slots[-1] == self.slots.stop else FREE
        return [slot.pin for slot in slots] + [rest] * (self.spec.length - len(slots))

    def _chosen(
        self, options: list[list[Slot]], following: list[Slot]
    ) -> Generator[Look, DenoisedCanvas, list[Slot]]:
        """Return the option whose literals surprise least. Of options that are close, return the shortest."""
        # A hole that is too long may repeat the literal after it, which then surprises as little. So the
        # shortest of close options wins. The end of the text cannot repeat, and a model finds nearly any end
        # plausible. There the smallest value wins.
        ends = [slot for slot in following if slot.pin != FREE] == [self.slots.stop]
        close = 0.0 if ends else _CLOSE
        order = list(range(len(options)))
        if len(order) > ROWS:
            values: list[float] = []
            for start in order[::ROWS]:
                values += yield from self._surprises(options[start : start + ROWS], following, 1)
            order = sorted(_ranked(values, close)[:ROWS])
        values = yield from self._surprises([options[index] for index in order], following, _SEARCH_STEPS)
        return options[order[_ranked(values, close)[0]]]

    def _surprises(
        self, options: list[list[Slot]], following: list[Slot], steps: int
    ) -> Generator[Look, DenoisedCanvas, list[float]]:
        """Return the mean -log p (nats) of the literals after the hole, for each option.

        The trial canvases have at most `steps` steps. If that is more than one, an option whose hole needs a
        repair gets a value above those of all others.
        """
        rows = np.array([self._pins([*self.window, *option, *following]) for option in options])
        canvas = yield Look(rows.tolist(), steps)
        self.look_steps += sum(canvas.steps)
        self.look_seconds += canvas.seconds
        assert canvas.logits is not None
        logits = canvas.logits.reshape(*rows.shape, -1)
        values = []
        for row, (option, ids) in enumerate(zip(options, np.array(canvas.ids), strict=True)):
            start = len(self.window)
            end = start + len(option)
            literals = following[: self.spec.length - end]
            places = end + np.flatnonzero(rows[row, end : end + len(literals)] != FREE)
            if not places.size:  # no literal follows in this canvas: judge the hole itself
                places = np.arange(start, end)
            values.append(self._surprise(logits[row, mx.array(places)], ids[places]))
            if steps > 1 and self.slots.unfit(option, ids[start:end].tolist()):
                values[-1] += _UNFIT
        return values

    def _surprise(self, logits: mx.array, ids: np.ndarray) -> float:
        """Return the mean -log p of `ids [P]` under raw `logits [P, V]`."""
        scores = processed_logits(logits, 1.0, self._softcap)
        own = mx.take_along_axis(scores, mx.array(ids)[:, None], axis=1)[:, 0]
        return float(np.array(mx.logsumexp(scores, axis=1) - own).mean())


def _ranked(values: Sequence[float], close: float) -> list[int]:
    """Return indices of `values`, smallest first. Those within `close` of the smallest keep their order."""
    bound = min(values) + close
    return sorted(range(len(values)), key=lambda index: (max(values[index], bound), index))
