"""Guards against canvases that are no answer: those are denoised again, with other noise."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from ..channels import ChannelParser
from ..generation_config import GenerationConfig
from ..tokenizer import Tokenizer

Reason = Literal["empty", "unconverged"]

_MOST_REROLLS: dict[Reason, int] = {"empty": 3, "unconverged": 1}
_MOST_ENTROPY = 0.2  # nats, mean over a canvas that the step cap ended


def is_unconverged(capped_entropy: float | None) -> bool:
    """Whether a canvas that the step cap ended with this mean entropy (nats; None: it did not) is unfit to go
    on from."""
    return capped_entropy is not None and capped_entropy > _MOST_ENTROPY


class Guards:
    """Judges the canvases of one row."""

    def __init__(self, tokenizer: Tokenizer, settings: GenerationConfig):
        self.tokenizer, self.settings = tokenizer, settings
        self.begin()

    def begin(self) -> None:
        """Another canvas begins."""
        self._rerolls: dict[Reason, int] = {"empty": 0, "unconverged": 0}

    def objection(
        self, written: Sequence[int], ids: Sequence[int], stopped: bool, capped_entropy: float | None
    ) -> Reason | None:
        """Why this canvas is to be denoised again; None when it stands.

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
        """Whether this canvas was still empty when other noise had been tried as often as it may be."""
        return self._rerolls["empty"] > _MOST_REROLLS["empty"]

    def _again(self, reason: Reason) -> bool:
        self._rerolls[reason] += 1
        return self._rerolls[reason] <= _MOST_REROLLS[reason]

    def _is_empty(self, written: Sequence[int], ids: Sequence[int], stopped: bool) -> bool:
        """Whether the answer ends with nothing delivered, or a first canvas holds no text at all."""
        parser = ChannelParser(self.tokenizer)
        seen = parser.feed([*written, *ids]) + parser.finish()
        delivered = bool(seen.answer.strip() or seen.tool_calls)
        return not delivered and (stopped or not (written or seen.thought.strip()))
