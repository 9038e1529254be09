"""Hold an answer to a grammar, canvas by canvas, whatever the model writes.

The grammar is walked over every converged canvas. What it forbids is replaced and pinned, and the rest is
denoised again. That alone does not make an answer complete: a model may never close a string. So every
canvas also ends where an end that the grammar accepts is still within reach of what may be written, and
an end that was once found is kept until a better one is known.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from llguidance import LLMatcher

from ..errors import GenerationError
from .completion import shortest_completion
from .grammar import Grammar

# As far as a completion is looked for where nothing limits it.
_FAR = 1 << 20


class Structure:
    """One row's answer to a grammar.

    shortest: ids that the answer takes at the least, with the stop id. Fewer give no complete answer.
    walks, repairs: canvases that were checked, and those that were changed. cut: True if the answer ends
    earlier than the model's own, because no more ids may be written.
    """

    def __init__(self, grammar: Grammar) -> None:
        self.grammar = grammar
        self.shortest = len(grammar.shortest)
        self.walks = self.repairs = 0
        self.finished = self.cut = False
        self._matcher = grammar.matcher()
        # What is known to complete the answer from where the matcher stands, and another such way, along
        # which the present canvas goes as far as it was pinned.
        self._known = self._way = list(grammar.shortest)

    def review(
        self, ids: Sequence[int], start: int, remaining: int, best: Callable[[int, np.ndarray], int]
    ) -> list[int] | None:
        """What must be pinned at the beginning of a canvas; None when it may stay as it is.

        ids: the canvas. start: where in it the answer goes on. remaining: ids that may still be written, from
        the canvas's first on; at least `start` + what the answer still takes. best(position, allowed): the
        most probable of the tokens that `allowed`, bool `[V]`, marks.
        A prefix that is returned is longer than any before for the same canvas, or holds a stop id, or
        fills the canvas.
        """
        self.walks += 1
        limit = min(len(ids), remaining)
        if self.finished or start >= limit:
            return None
        ids = list(ids)
        at, stopped = self._walk(ids, start, limit)
        if stopped:
            self._way = ids[start : at + 1]
            return None
        if at == limit and self._reaches(ids, start, at, remaining):
            return None
        self.repairs += 1
        if at < limit and (prefix := self._repaired(ids, start, at, limit, remaining, best)):
            return prefix
        self.cut |= self._goes_on(ids, start, at, limit, best)
        return self._ended(ids, start, at, remaining)

    def commit(self, ids: Sequence[int], start: int) -> None:
        """The canvas stands: go on after it. ids: as they were written, perhaps fewer than a canvas."""
        if self.finished:
            return
        answer = list(ids[start:])
        stop = _first(answer, self.grammar.vocabulary.stop_ids)
        text = answer[:stop]
        if text and not self._matcher.consume_tokens(text):
            raise GenerationError("structured output: a canvas was committed that its grammar forbids")
        self.finished = stop < len(answer)
        if self.finished:
            self._known = []
        elif self._way[: len(text)] == text:
            self._known = self._way[len(text) :]
        else:
            self._known = shortest_completion(self._matcher, self.grammar, _FAR) or []
        self._way = self._known

    def _walk(self, ids: list[int], start: int, limit: int) -> tuple[int, bool]:
        """Where the canvas first holds what it must not, or `limit`; whether a stop id ends it well."""
        vocabulary = self.grammar.vocabulary
        piece = ids[start:limit]
        stop = _first(piece, vocabulary.stop_ids)
        text = piece[:stop]
        hidden = next((index for index, token in enumerate(text) if not vocabulary.are_text([token])), stop)
        allowed = int(self._matcher.validate_tokens(text[:hidden])) if hidden else 0
        at = start + allowed
        stopped = allowed == stop < len(piece) and self._after(piece[:stop]).is_accepting()
        return at, stopped

    def _after(self, ids: Sequence[int]) -> LLMatcher:
        """A matcher after more ids."""
        matcher = self._matcher.deep_copy()
        if ids:
            matcher.consume_tokens(list(ids))
        return matcher

    def _reaches(self, ids: list[int], start: int, at: int, remaining: int) -> bool:
        """Whether an end is known that the answer reaches in time along the canvas up to `at`."""
        along = ids[start:at]
        if self._way[: len(along)] == along and len(self._way) <= remaining - start:
            return True
        completion = shortest_completion(self._after(along), self.grammar, remaining - at)
        if completion is None:
            return False
        self._way = along + completion
        return True

    def _repaired(
        self,
        ids: list[int],
        start: int,
        at: int,
        limit: int,
        remaining: int,
        best: Callable[[int, np.ndarray], int],
    ) -> list[int] | None:
        """The canvas up to `at`, the best token there, and what it forces; None where no end follows."""
        vocabulary = self.grammar.vocabulary
        matcher = self._after(ids[start:at])
        allowed = self.grammar.allowed(matcher)
        if not allowed.any():
            return None
        token = int(best(at, allowed))
        if not allowed[token]:
            raise GenerationError(f"structured output: token {token} was chosen, which is not allowed")
        prefix = [*ids[:at], token]
        if token in vocabulary.stop_ids:
            self._way = prefix[start:]
            return prefix
        matcher.consume_token(token)
        forced: list[int] = []
        while not matcher.is_accepting() and (more := matcher.compute_ff_tokens()):
            forced += more
            if not vocabulary.are_text(more) or not matcher.consume_tokens(more) or len(forced) > remaining:
                return None
        if matcher.is_accepting() and matcher.is_stopped():
            forced.append(vocabulary.stop)
        room = remaining - len(prefix)
        if forced[-1:] == [vocabulary.stop]:
            completion: list[int] | None = [] if len(forced) <= room else None
        else:
            completion = shortest_completion(matcher, self.grammar, room - len(forced))
        if completion is None:
            return None
        self._way = prefix[start:] + forced + completion
        return (prefix + forced)[:limit]

    def _goes_on(
        self, ids: list[int], start: int, at: int, limit: int, best: Callable[[int, np.ndarray], int]
    ) -> bool:
        """True if the canvas could go on from `at` if more ids might be written."""
        if at == limit:
            return shortest_completion(self._after(ids[start:at]), self.grammar, _FAR) is not None
        way = self._way
        prefix = self._repaired(ids, start, at, limit, _FAR, best)
        self._way = way
        return prefix is not None

    def _ended(self, ids: list[int], start: int, at: int, remaining: int) -> list[int]:
        """The canvas as far as an end can be reached in time from there, and that end."""
        ways = [way for way in (self._way, self._known) if len(way) <= remaining - start] or [self._known]
        way = max(ways, key=lambda way: _common(way, ids[start:at]))
        low, high = start + _common(way, ids[start:at]), at + 1
        # Each id that is left out makes an end easier to reach: halving finds the last place that will do.
        while high - low > 1:
            middle = (low + high) // 2
            found = shortest_completion(self._after(ids[start:middle]), self.grammar, remaining - middle)
            if found is None:
                high = middle
            else:
                low, way = middle, ids[start:middle] + found
        self._way = way
        return (ids[:start] + way)[: len(ids)]


def _first(ids: Sequence[int], wanted: frozenset[int]) -> int:
    """Where the first of `wanted` stands; the length where none does."""
    return next((index for index, token in enumerate(ids) if token in wanted), len(ids))


def _common(left: Sequence[int], right: Sequence[int]) -> int:
    """How many ids two sequences begin with in common."""
    pairs = zip(left, right, strict=False)
    return next((index for index, (a, b) in enumerate(pairs) if a != b), min(len(left), len(right)))
