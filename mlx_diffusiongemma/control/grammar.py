"""A compiled grammar, which knows the tokens that may come next."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from llguidance import LLMatcher

from .vocabulary import Vocabulary


@dataclass(frozen=True, eq=False)
class Grammar:
    """A compiled grammar, shared by all rows that use it.

    hints: literals in its source, as ids, to try where nearly anything is allowed.
    values: JSON strings that match its patterns and formats, as ids, to try where a string may begin.
    shortest: a short answer, as ids that end with the stop id. It may not be the shortest of all.
    warnings: parts of its source that are not enforced, one line each.
    """

    vocabulary: Vocabulary
    begin: LLMatcher
    hints: tuple[tuple[int, ...], ...] = ()
    values: tuple[tuple[int, ...], ...] = ()
    shortest: tuple[int, ...] = ()
    warnings: tuple[str, ...] = ()

    def matcher(self) -> LLMatcher:
        """Return a matcher at the start."""
        return self.begin.deep_copy()

    def allowed(self, matcher: LLMatcher) -> np.ndarray:
        """Return the tokens that may come next, bool `[V]`. Stop ids only if the text is complete."""
        vocabulary = self.vocabulary
        mask = np.frombuffer(matcher.compute_bitmask(), np.uint8)
        allowed = np.zeros(vocabulary.size, dtype=bool)
        bits = np.unpackbits(mask, bitorder="little", count=min(vocabulary.size, mask.size * 8)).view(bool)
        np.logical_and(bits, vocabulary.text[: bits.size], out=allowed[: bits.size])
        if matcher.is_accepting():
            allowed[list(vocabulary.stop_ids)] = True
        return allowed
