"""Tokens that a caller pins to positions."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from ..config.ranges import integer
from ..console.messages import shown
from ..engine.constraint import Best, Canvas, CanvasSpec, Stand, Verdict
from ..engine.settings import Settings
from ..errors import InputError

Pairs = Mapping[int, int] | Iterable[tuple[int, int]]
Pins = Pairs | Callable[[int], Pairs]


class PinnedTokens:
    """Constraint that pins the tokens that the caller chose.

    Args:
        pins: index among all ids of the answer -> token id. Or a function that gets the number of a block and
            returns its pins: canvas position -> token id. A list of pairs works like a dict.

    Raises:
        InputError: an index or token is out of range, an index has two tokens, or a setting pins tokens
            itself.
    """

    needs_logits = False

    def __init__(self, pins: Pins, settings: Settings, spec: CanvasSpec):
        if settings.thinking_budget is not None or settings.answer_reserve is not None:
            raise InputError("pins: thinking_budget and answer_reserve also pin tokens; use one or the other")
        self._spec = spec
        self._function = pins if callable(pins) else None
        self._places = {} if callable(pins) else self._checked(pins, settings.max_new_tokens)

    def begin(self, written: Sequence[int]) -> Mapping[int, int]:
        first, length = len(written), self._spec.length
        if self._function is not None:
            return self._checked(self._function(first // length), length)
        return {
            place - first: token for place, token in self._places.items() if first <= place < first + length
        }

    def review(self, canvas: Canvas, best: Best) -> Verdict:
        return Stand()

    def commit(self, canvas: Canvas, ids: Sequence[int]) -> None:
        """Do nothing. Pins do not depend on committed ids."""

    def _checked(self, pins: Any, places: int) -> dict[int, int]:
        try:
            pairs = [(place, token) for place, token in (pins.items() if isinstance(pins, Mapping) else pins)]
        except (TypeError, ValueError):
            raise InputError(
                f"pins: found {type(pins).__name__}; give a dict of place and token id"
            ) from None
        checked: dict[int, int] = {}
        for pair in pairs:
            for what, number, end in zip(
                ("place", "token"), pair, (places, self._spec.vocab_size), strict=True
            ):
                if integer(number, 0, end - 1) is None:
                    raise InputError(
                        f"pins: {what} {shown(number)} of {shown(pair)} is not an integer from 0 to {end - 1}"
                    )
            place, token = map(int, pair)
            if checked.setdefault(place, token) != token:
                raise InputError(
                    f"pins: place {place} is pinned to {checked[place]} and to {token}; keep one"
                )
        return checked
