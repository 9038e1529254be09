"""A compiled grammar, which says of each token whether it may come next."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from llguidance import LLMatcher

from .vocabulary import Vocabulary


@dataclass(frozen=True, eq=False)
class Grammar:
    """A compiled grammar, to be shared by all rows that are held to it.

    hints: literal stretches of its source, as ids, to try where nearly anything is allowed.
    values: JSON strings that match its patterns and formats, as ids, to try where one may begin.
    shortest: ids that satisfy it, ending with the stop id; few, though perhaps not the fewest.
    warnings: what of its source is not enforced, a line each.
    """

    vocabulary: Vocabulary
    begin: LLMatcher
    hints: tuple[tuple[int, ...], ...] = ()
    values: tuple[tuple[int, ...], ...] = ()
    shortest: tuple[int, ...] = ()
    warnings: tuple[str, ...] = ()

    def matcher(self) -> LLMatcher:
        """A matcher at the start."""
        return self.begin.deep_copy()

    def allowed(self, matcher: LLMatcher) -> np.ndarray:
        """bool `[V]`: what may come next; a stop id only where the grammar is complete."""
        vocabulary = self.vocabulary
        mask = np.frombuffer(matcher.compute_bitmask(), np.uint8)
        allowed = np.zeros(vocabulary.size, dtype=bool)
        bits = np.unpackbits(mask, bitorder="little", count=min(vocabulary.size, mask.size * 8)).view(bool)
        np.logical_and(bits, vocabulary.text[: bits.size], out=allowed[: bits.size])
        if matcher.is_accepting():
            allowed[list(vocabulary.stop_ids)] = True
        return allowed
