"""Guards: canvases that are empty or not converged are denoised again, with other noise."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ..engine.constraint import Best, Canvas, Reroll, Stand, Verdict
from ..engine.settings import Settings
from ..text.channels import ChannelParser

EMPTY, UNCONVERGED = "empty", "unconverged"
_MOST_REROLLS = {EMPTY: 3, UNCONVERGED: 1}
_MOST_ENTROPY = 0.2  # nats; maximum mean entropy of a canvas that the step cap ended


class Guards:
    """Constraint that rejects empty and unconverged canvases. start: channel parser at the prompt's end."""

    needs_logits = False

    def __init__(self, start: ChannelParser, settings: Settings):
        self.settings = settings
        self._parser, self._delivered = start.copy(), False

    def begin(self, written: Sequence[int]) -> Mapping[int, int]:
        return {}

    def review(self, canvas: Canvas, best: Best) -> Verdict:
        remark = ""
        for reason, objects in ((UNCONVERGED, self._is_unconverged), (EMPTY, self._is_empty)):
            if objects(canvas):
                if canvas.rerolls[reason] < _MOST_REROLLS[reason]:
                    return Reroll(reason)
                remark = remark or reason
        return Stand(remark=remark)

    def commit(self, canvas: Canvas, ids: Sequence[int]) -> None:
        delta = self._parser.feed(ids)
        self._delivered |= bool(delta.answer.strip() or delta.tool_calls)

    def _is_unconverged(self, canvas: Canvas) -> bool:
        return self.settings.guard_unconverged and canvas.capped and canvas.mean_entropy > _MOST_ENTROPY

    def _is_empty(self, canvas: Canvas) -> bool:
        """Return True if the row ends without any answer, or its first canvas has no text at all."""
        if not self.settings.guard_empty or self._delivered:
            return False
        ids, stopped = canvas.until_stop()
        parser = self._parser.copy()
        delta = parser.feed(ids) + parser.finish()
        delivered = bool(delta.answer.strip() or delta.tool_calls)
        return not delivered and (stopped or not (canvas.written or delta.thought.strip()))
