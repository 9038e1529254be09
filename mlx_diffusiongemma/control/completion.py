"""Find a short completion: few tokens from anywhere in a text to an end that its grammar accepts.

A grammar only says which tokens may come next, so this is a best-first search over copies of its matcher.
The order is a rough guess. It prefers few open brackets, few tokens, and states that look new. Two states
look alike if they allow the same tokens. A string that lacks ten characters then looks like one that lacks
nine, so states that look alike are delayed, not dropped.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from functools import lru_cache
from heapq import heappop, heappush
from itertools import count
from operator import itemgetter
from typing import Any, NamedTuple

import numpy as np
from llguidance import LLMatcher

from .grammar import Grammar

_OPEN, _CLOSE, _MARKS = b"{[(", b"}])", (b",", b"{", b"[", b"}", b"]", b":")

# A matcher does not say if the text so far ended within quotes, but a closing quote in the next bytes does. A
# quote after a bracket, comma or colon may open a string, as in `["}"]`, so it says nothing.
_CLOSING_QUOTE, _AFTER_STRING = re.compile(rb'[^"\[{,:]*"[:,}\]]'), (b":", b",", b"}", b"]")


class _Effort(NamedTuple):
    """Limits and preferences of one search.

    states: maximum number of states.
    alike: maximum number of states that look alike after the same number of bytes.
    broad: also try tokens of all single bytes.
    quoted: assume that the text before the completion ended within quotes.
    passed: bonus for each key or item that is complete, so that a difficulty near the end of a long object
        does not make the search start the object again.
    """

    states: int
    alike: int
    broad: bool
    quoted: bool
    passed: float = 0.5


# The last effort goes ever deeper. It reaches the end of deeply nested keys, but not of a recursive grammar.
_EFFORTS = (
    _Effort(400, 1, False, False),
    _Effort(400, 1, False, True),
    _Effort(2000, 3, True, False),
    _Effort(2000, 1, False, False, passed=3.0),
)

# If more tokens than this are allowed, a few represent all of them.
_MANY = 256

# Costs of a step: for each rank below the first choice, for a state that looks like an earlier one, and for
# one that does so at a greater depth.
_DISCREPANCY, _STALE, _RECURSION = 0.5, 0.005, 1.0


class _State(NamedTuple):
    matcher: LLMatcher
    path: tuple[int, ...]
    size: int  # bytes of the path
    depth: float  # opened minus closed brackets of the path; a quote is half a bracket
    mask: bytes
    look: int  # hash of the mask
    free: bool  # True if nearly any text may follow
    quoted: bool  # True within quotes, where brackets do not count
    trail: frozenset[tuple[int, float]]  # looks and depths on the path since the last of `_MARKS`
    looks: frozenset[int]  # looks on the whole path
    deepest: float  # greatest depth on the whole path


class _Lead(NamedTuple):
    """Effect of a step from any state with a given look. Knowing it saves a copy of the matcher.

    look: look of the state after the step.
    size, depth: changes of size and depth.
    """

    look: int
    size: int
    depth: float


def shortest_completion(matcher: LLMatcher, grammar: Grammar, at_most: int) -> list[int] | None:
    """Return ids from the state of `matcher` to an end of its grammar, then a stop id.

    The ids are few, but perhaps not the fewest. Return None if no completion of at most `at_most` ids was
    found. `matcher` does not change.
    """
    if at_most < 1 or matcher.is_error():
        return None
    for effort in _EFFORTS:
        search = _Search(matcher, grammar, at_most, effort)
        path = search.run()
        if path is not None:
            return [*_respelled(matcher, grammar, path), grammar.vocabulary.stop]
        if search.cut and effort.quoted:
            break  # every path is too long
    return None


class _Search:
    def __init__(self, matcher: LLMatcher, grammar: Grammar, at_most: int, effort: _Effort):
        self.matcher, self.grammar, self.at_most, self.effort = matcher, grammar, at_most, effort
        self.alike: Counter[tuple[object, ...]] = Counter()  # number of states of each kind
        self.leads: dict[tuple[int, tuple[int, ...]], _Lead] = {}
        self.cut = False  # True if a path was dropped for its length

    def run(self) -> tuple[int, ...] | None:
        """Return the path to an end, or None."""
        first = self._reached(None, ())
        if first is None or first.matcher.is_accepting():
            return first and first.path
        best: tuple[int, ...] | None = None
        order = count()
        # Cost so far, two tie-breakers (the longer path first), origin, step.
        queue: list[tuple[float, int, int, _State, tuple[int, ...]]] = []
        self._push(queue, order, 0.0, first)
        looked, most = 1, self.effort.states
        while queue and looked < most:
            cost, _, _, origin, step = heappop(queue)
            if len(origin.path) + len(step) >= self.at_most:
                self.cut = True
                continue
            if (origin.look, step) in self.leads and self._is_crowded(origin, step):
                continue
            looked += 1
            state = self._reached(origin, step)
            if state is None:
                continue
            if state.matcher.is_accepting():
                # A shorter path may be near, because the first choices were guesses.
                most = min(most, looked + 32) if best is None else most
                best, self.at_most = state.path, len(state.path)
                continue
            change = (state.look, state.size - origin.size, state.depth - origin.depth)
            self.leads[origin.look, step] = _Lead(*change)
            if not self._is_crowded(origin, step):
                self.alike[self._kind(origin, step)] += 1
                again = state.look in origin.looks and state.depth > origin.deepest
                stale = self._stale(origin, self.leads[origin.look, step])
                passed = len(state.trail) == 1 and (state.look not in origin.looks or again)
                cost += _STALE * stale + _RECURSION * again - self.effort.passed * passed
                self._push(queue, order, cost, state)
        return best

    def _push(self, queue: list[Any], order: Iterator[int], cost: float, state: _State) -> None:
        steps = dict.fromkeys(self._steps(state))
        for rank, step in enumerate(sorted(steps, key=lambda step: self._promise(state, step))):
            price = cost + _DISCREPANCY * min(rank, 8)
            heappush(queue, (price, -len(state.path), next(order), state, step))

    def _promise(self, state: _State, step: tuple[int, ...]) -> tuple[int, float, int]:
        """Return a key that sorts steps, best first: by staleness, change of depth and length."""
        spelled = self.grammar.vocabulary.spelling(step)
        lead = self.leads.get((state.look, step))
        deeper = _deeper(spelled, state.quoted)[0] if lead is None else lead.depth
        if deeper < 0 or (spelled[0] == ord(",") and not state.quoted):
            return 0, deeper, -_MANY  # the step closes a bracket or goes on to the next item
        stale = self._stale(state, lead)
        # If steps do not change the look, the longest is the most useful.
        return stale, deeper + (spelled[0] >= 128), -len(spelled) if stale == 2 else 0

    def _stale(self, origin: _State, lead: _Lead | None) -> int:
        """Return 2 if a step changes neither look nor depth, 1 if the trail has both already, otherwise 0.

        lead: effect of the step. None if it is not known yet, which gives 0.
        """
        if lead is None:
            return 0
        if lead.look == origin.look and lead.depth == 0:
            return 2
        return int((lead.look, origin.depth + lead.depth) in origin.trail)

    def _kind(self, origin: _State, step: tuple[int, ...]) -> tuple[object, ...]:
        lead = self.leads[origin.look, step]
        return lead.look, origin.depth + lead.depth, origin.size + lead.size

    def _is_crowded(self, origin: _State, step: tuple[int, ...]) -> bool:
        return self.alike[self._kind(origin, step)] >= self.effort.alike

    def _reached(self, origin: _State | None, step: tuple[int, ...]) -> _State | None:
        """Return the state after a step and the tokens that it forces. None if too long or not text."""
        vocabulary = self.grammar.vocabulary
        here = (self.matcher if origin is None else origin.matcher).deep_copy()
        quoted = (self.effort.quoted or self._is_free(here)) if origin is None else origin.quoted
        path, depth, size = ((), 0.0, 0) if origin is None else (origin.path, origin.depth, origin.size)
        trail: frozenset[tuple[int, float]] = frozenset() if origin is None else origin.trail
        after_quote = bool(path) and vocabulary.spelling(path[-1:]).endswith(b'"')
        while step or not here.is_accepting():
            step = step or tuple(here.compute_ff_tokens())
            if not step:
                break
            path += step
            self.cut |= len(path) >= self.at_most
            if (
                len(path) >= self.at_most
                or not vocabulary.are_text(step)
                or not here.consume_tokens(list(step))
            ):
                return None
            spelled, step = vocabulary.spelling(step), ()
            if _CLOSING_QUOTE.match(spelled):
                quoted = True
            elif after_quote and spelled[:1] in _AFTER_STRING:
                quoted = False
            after_quote = spelled.endswith(b'"')
            if not quoted and any(mark in spelled for mark in _MARKS):
                trail = frozenset()  # a new item or key, where looks may repeat
            change, quoted = _deeper(spelled, quoted)
            depth, size = depth + change, size + len(spelled)
        if here.is_accepting():
            return _State(here, path, size, depth, b"", 0, False, quoted, frozenset(), frozenset(), depth)
        mask, free = here.compute_bitmask(), self._is_free(here)
        if origin is not None and free and origin.free:
            depth = origin.depth  # the closing quote was text after all, or another string has begun
        look = hash(mask)
        trail |= {(look, depth)}
        looks = (frozenset() if origin is None else origin.looks) | {look}
        deepest = depth if origin is None else max(depth, origin.deepest)
        return _State(here, path, size, depth, mask, look, free, quoted or free, trail, looks, deepest)

    def _is_free(self, matcher: LLMatcher) -> bool:
        return bool(_allows(matcher.compute_bitmask(), self.grammar.vocabulary.letters).sum() >= 20)

    def _steps(self, state: _State) -> Iterator[tuple[int, ...]]:
        """Yield steps to try from a state, the more promising ones first."""
        vocabulary = self.grammar.vocabulary
        for value in self.grammar.values:
            if state.matcher.validate_tokens(list(value)) == len(value):
                yield value
        if not state.free and int.from_bytes(state.mask, "little").bit_count() <= _MANY:
            yield from _extremes(self.grammar, state)
            return
        for hint in self.grammar.hints:
            if state.matcher.validate_tokens(list(hint)) == len(hint):
                yield hint
        for tokens in (vocabulary.few, vocabulary.single_bytes) if self.effort.broad else (vocabulary.few,):
            yield from ((token,) for token in tokens[_allows(state.mask, tokens)].tolist())


def _extremes(grammar: Grammar, state: _State) -> Iterator[tuple[int, ...]]:
    """Yield for each first byte the longest allowed token, which may end a literal, then the shortest."""
    tokens_by_byte: dict[int, list[tuple[int, int]]] = {}
    longest: dict[int, tuple[int, int]] = {}
    for token in np.flatnonzero(grammar.allowed(state.matcher)).tolist():
        spelled = grammar.vocabulary.spelling([token])
        tokens_by_byte.setdefault(spelled[0], []).append((len(spelled), token))
        # The longest is not `"a`, which begins an arbitrary string, nor `],`, which skips a possible end.
        if (spelled[0] != ord('"') or state.quoted) and b"," not in spelled[1:]:
            longest[spelled[0]] = max(
                longest.get(spelled[0], (0, 0)), (len(spelled), token), key=itemgetter(0)
            )
    order = sorted(tokens_by_byte, key=lambda first: (not chr(first).isalnum(), first))  # digits before signs
    yield from ((longest[first][1],) for first in order if first in longest)
    yield from ((min(tokens_by_byte[first])[1],) for first in order)


@lru_cache(maxsize=4096)
def _deeper(spelled: bytes, quoted: bool) -> tuple[float, bool]:
    """Return the change of depth by `spelled`, and True if the text after it is within quotes.

    quoted: True if the text before `spelled` is within quotes.
    """
    depth, escaped = 0.0, False
    for byte in spelled:
        if escaped:
            escaped = False
        elif quoted and byte == ord("\\"):
            escaped = True
        elif byte == ord('"'):
            depth += -0.5 if quoted else 0.5
            quoted = not quoted
        elif not quoted:
            depth += (byte in _OPEN) - (byte in _CLOSE)
    return depth, quoted


def _allows(mask: bytes, ids: np.ndarray) -> np.ndarray:
    """Return bool `[n]`: True for each of `ids [n]` that a matcher's bit mask allows."""
    bits = np.frombuffer(mask, np.uint8)
    return (bits[ids >> 3] >> (ids & 7)) & 1 == 1


def _respelled(matcher: LLMatcher, grammar: Grammar, path: tuple[int, ...]) -> list[int]:
    """Return the tokenizer's own ids for the text of `path` if they are fewer, otherwise `path`."""
    vocabulary = grammar.vocabulary
    ids = vocabulary.spell(vocabulary.spelling(path))
    shorter = len(ids) < len(path) and vocabulary.are_text(ids)
    return ids if shorter and matcher.validate_tokens(ids) == len(ids) else list(path)
