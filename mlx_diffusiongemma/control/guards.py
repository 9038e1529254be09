"""Guards against canvases without an answer. Those are denoised again, with other noise."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from ..config.generation import GenerationConfig
from ..text.channels import ChannelParser

Reason = Literal["empty", "unconverged"]

_MOST_REROLLS: dict[Reason, int] = {"empty": 3, "unconverged": 1}
_MOST_ENTROPY = 0.2  # nats, mean over a canvas that the step cap ended


def is_unconverged(capped_entropy: float | None) -> bool:
    """True if a canvas is unfit to go on from: the step cap ended it with this mean entropy.

    capped_entropy: nats; None if something else ended it.
    """
    return capped_entropy is not None and capped_entropy > _MOST_ENTROPY


class Guards:
    """Judge the canvases of one row. start: the parser where the prompt ends."""

    def __init__(self, start: ChannelParser, settings: GenerationConfig):
        self.start, self.settings = start, settings
        self.begin()

    def begin(self) -> None:
        """Start another canvas."""
        self._rerolls: dict[Reason, int] = {"empty": 0, "unconverged": 0}

    def objection(
        self, written: Sequence[int], ids: Sequence[int], stopped: bool, capped_entropy: float | None
    ) -> Reason | None:
        """Return why this canvas has to be denoised again; None when it stands.

        written: ids of the canvases before. ids: up to a stop id, which `stopped` says. capped_entropy: the
        mean entropy (nats) of a canvas that the step cap ended, else None.
        """
        if self.settings.guard_unconverged and is_unconverged(capped_entropy) and self._again("unconverged"):
            return "unconverged"
        if self.settings.guard_empty and self._is_empty(written, ids, stopped) and self._again("empty"):
            return "empty"
        return None

    @property
    def found_nothing_else(self) -> bool:
        """True if this canvas was still empty after all tries with other noise."""
        return self._rerolls["empty"] > _MOST_REROLLS["empty"]

    def _again(self, reason: Reason) -> bool:
        self._rerolls[reason] += 1
        return self._rerolls[reason] <= _MOST_REROLLS[reason]

    def _is_empty(self, written: Sequence[int], ids: Sequence[int], stopped: bool) -> bool:
        """True if the answer ends with nothing delivered, or a first canvas holds no text at all."""
        parser = self.start.copy()
        seen = parser.feed([*written, *ids]) + parser.finish()
        delivered = bool(seen.answer.strip() or seen.tool_calls)
        return not delivered and (stopped or not (written or seen.thought.strip()))
