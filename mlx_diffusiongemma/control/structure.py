"""Make an answer match a grammar, canvas by canvas, whatever the model writes.

Every converged canvas is checked against the grammar. A forbidden token is replaced and pinned, and the rest
is denoised again. That alone does not make an answer complete, because a model may never close a string. So a
canvas is also cut where the remaining ids still suffice to reach an end that the grammar accepts. Ids that
complete the answer, called a way, are always known. They are replaced if better ones are found.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

from llguidance import LLMatcher

from ..console.messages import one_line
from ..engine.constraint import Best, Canvas, Redo, Stand, Verdict
from ..errors import GenerationError
from ..prompt import common_length
from .budget import ThinkingBudget
from .completion import shortest_completion
from .grammar import Grammar

# Maximum length of a completion if nothing else limits it.
_FAR = 1 << 20


class Plan(NamedTuple):
    """A known way to complete the answer in a canvas and after it.

    way: ids from the first one of the answer in this canvas to the last one of the answer. The pinned prefix
        of the canvas agrees with them.
    cut: True if too few ids remain, so the answer ends earlier than the model's own answer would.
    """

    way: list[int]
    cut: bool = False


class Structure:
    """Constraint that makes the answer of one row match a grammar, from the row's first id.

    `AfterThought` is for answers after a thought.

    shortest: number of ids of a short complete answer, including the stop id.
    cut: see `Plan`.
    """

    needs_logits = True

    def __init__(self, grammar: Grammar) -> None:
        self.grammar = grammar
        self.shortest = len(grammar.shortest)
        self.finished = self.cut = False
        self._matcher = grammar.matcher()
        self._known = list(grammar.shortest)  # ids that complete the answer from the matcher's state

    def begin(self, written: Sequence[int]) -> Mapping[int, int]:
        return {}

    def review(self, canvas: Canvas, best: Best) -> Verdict:
        return self.review_from(canvas, 0, best)

    def commit(self, canvas: Canvas, ids: Sequence[int]) -> None:
        self.commit_from(canvas, ids, 0)

    def review_from(self, canvas: Canvas, start: int, best: Best) -> Stand | Redo:
        """Judge a canvas whose answer begins or continues at position `start`.

        Where the answer begins, `canvas.remaining` must be at least `start` + `shortest`.

        Each `Redo` for a canvas has a longer prefix than the `Redo` before it, or a prefix that contains a
        stop id or fills the canvas.
        """
        ids, remaining = canvas.ids, canvas.remaining
        plan = canvas.plan if canvas.plan is not None else Plan(self._known)
        limit = min(len(ids), remaining)
        if self.finished or start >= limit:
            return Stand(plan, "grammar")
        at, stopped = self._walk(ids, start, limit)
        if stopped:
            return Stand(plan._replace(way=ids[start : at + 1]), "grammar")
        if at == limit:
            way = self._reached(ids, start, at, remaining, plan.way)
            if way is not None:
                return Stand(plan._replace(way=way), "grammar")
        elif repaired := self._repaired(ids, start, at, limit, remaining, best):
            prefix, way = repaired
            return Redo(prefix, plan._replace(way=way), "grammar")
        cut = plan.cut or self._goes_on(ids, start, at, limit, best)
        way = self._end(ids, start, at, remaining, plan.way)
        return Redo((ids[:start] + way)[: len(ids)], Plan(way, cut), "grammar")

    def commit_from(self, canvas: Canvas, ids: Sequence[int], start: int) -> None:
        """Advance over committed `ids`, whose answer begins or continues at position `start`."""
        if self.finished:
            return
        plan = canvas.plan if canvas.plan is not None else Plan(self._known)
        self.cut |= plan.cut
        answer = list(ids[start:])
        stop = _first(answer, self.grammar.vocabulary.stop_ids)
        text = answer[:stop]
        if text and not self._matcher.consume_tokens(text):
            report = one_line(self._matcher.get_error().partition("\n")[0], 80)
            raise GenerationError(
                f"structured output: the grammar cannot follow the canvas ({report or 'forbidden'}); "
                "simplify it"
            )
        self.finished = stop < len(answer)
        if self.finished:
            self._known = []
        elif plan.way[: len(text)] == text:
            self._known = plan.way[len(text) :]
        else:
            self._known = shortest_completion(self._matcher, self.grammar, _FAR) or []

    def _walk(self, ids: list[int], start: int, limit: int) -> tuple[int, bool]:
        """Return the position of the first forbidden id or `limit`, and True if a stop id ends the answer."""
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
        """Return a matcher after `ids`."""
        matcher = self._matcher.deep_copy()
        if ids:
            matcher.consume_tokens(list(ids))
        return matcher

    def _reached(
        self, ids: list[int], start: int, at: int, remaining: int, way: list[int]
    ) -> list[int] | None:
        """Return a way that has the canvas's ids up to `at`, or None if `remaining` ids are too few."""
        along = ids[start:at]
        if way[: len(along)] == along and len(way) <= remaining - start:
            return way
        completion = shortest_completion(self._after(along), self.grammar, remaining - at)
        return None if completion is None else along + completion

    def _repaired(
        self, ids: list[int], start: int, at: int, limit: int, remaining: int, best: Best
    ) -> tuple[list[int], list[int]] | None:
        """Return a repaired prefix and a way that begins with it, or None if `remaining` ids are too few.

        The prefix is the canvas up to `at`, the best allowed token there, and the tokens that it forces.
        """
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
            return prefix, prefix[start:]
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
        return (prefix + forced)[:limit], prefix[start:] + forced + completion

    def _goes_on(self, ids: list[int], start: int, at: int, limit: int, best: Best) -> bool:
        """Return True if the answer could continue from `at` if more ids remained."""
        if at == limit:
            return shortest_completion(self._after(ids[start:at]), self.grammar, _FAR) is not None
        return self._repaired(ids, start, at, limit, _FAR, best) is not None

    def _end(self, ids: list[int], start: int, at: int, remaining: int, way: list[int]) -> list[int]:
        """Return a way of at most `remaining` ids that has as many of the canvas's ids as possible."""
        ways = [each for each in (way, self._known) if len(each) <= remaining - start] or [self._known]
        way = max(ways, key=lambda each: common_length(each, ids[start:at]))
        low, high = start + common_length(way, ids[start:at]), at + 1
        # An earlier cut makes an end easier to reach, so bisection finds the last position that works.
        while high - low > 1:
            middle = (low + high) // 2
            completion = shortest_completion(self._after(ids[start:middle]), self.grammar, remaining - middle)
            if completion is None:
                high = middle
            else:
                low, way = middle, ids[start:middle] + completion
        return way


class AfterThought:
    """Constraint for a thought within its budget, and after it an answer with a grammar."""

    needs_logits = True

    def __init__(self, budget: ThinkingBudget, structure: Structure):
        self.budget, self.structure = budget, structure
        self._answering = False  # the answer began in an earlier canvas

    def begin(self, written: Sequence[int]) -> Mapping[int, int]:
        return {} if self._answering else self.budget.begin(written)

    def review(self, canvas: Canvas, best: Best) -> Verdict:
        forced_at, plan = canvas.plan or (None, None)
        start = 0
        if not self._answering:
            thought = self.budget.thought(canvas)
            if thought.prefix is not None:
                if self.budget.closes(thought.prefix):
                    forced_at = len(canvas.written) + len(thought.prefix) - 1
                return Redo(thought.prefix, (forced_at, plan), "budget")
            if thought.end is None:
                return Stand((forced_at, plan), "budget")
            start = thought.end
        verdict = self.structure.review_from(replace(canvas, plan=plan), start, best)
        return replace(verdict, plan=(forced_at, verdict.plan))

    def commit(self, canvas: Canvas, ids: Sequence[int]) -> None:
        forced_at, plan = canvas.plan or (None, None)
        start = 0
        if not self._answering:
            thought = self.budget.thought(canvas)
            self.budget.commit(replace(canvas, plan=forced_at), ids)
            if thought.end is None:
                return
            start, self._answering = thought.end, True
        self.structure.commit_from(replace(canvas, plan=plan), ids, start)


def _first(ids: Sequence[int], wanted: frozenset[int]) -> int:
    """Return the index of the first id in `wanted`, or the length if there is none."""
    return next((index for index, token in enumerate(ids) if token in wanted), len(ids))
