"""A compiled grammar and the tokens that it allows next."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from llguidance import LLMatcher

from .vocabulary import Vocabulary


@dataclass(frozen=True, eq=False)
class Grammar:
    """A compiled grammar, shared by all rows that use it.

    begin: a matcher at the start of the grammar. Use a copy of it.
    hints: ids of literals in the source. Completions try them where nearly anything is allowed.
    values: ids of JSON strings that match patterns and formats of the source. Completions try them where a
        string may begin.
    shortest: ids of a short answer with a stop id. There may be shorter answers.
    warnings: parts of the source that are not enforced, one line each.
    """

    vocabulary: Vocabulary
    begin: LLMatcher
    hints: tuple[tuple[int, ...], ...] = ()
    values: tuple[tuple[int, ...], ...] = ()
    shortest: tuple[int, ...] = ()
    warnings: tuple[str, ...] = ()

    def matcher(self) -> LLMatcher:
        """Return a new matcher at the start of the grammar."""
        return self.begin.deep_copy()

    def allowed(self, matcher: LLMatcher) -> np.ndarray:
        """Return the tokens that may come next, bool `[V]`. Stop ids may come if the text is complete."""
        vocabulary = self.vocabulary
        mask = np.frombuffer(matcher.compute_bitmask(), np.uint8)
        allowed = np.zeros(vocabulary.size, dtype=bool)
        bits = np.unpackbits(mask, bitorder="little", count=min(vocabulary.size, mask.size * 8)).view(bool)
        np.logical_and(bits, vocabulary.text[: bits.size], out=allowed[: bits.size])
        if matcher.is_accepting():
            allowed[list(vocabulary.stop_ids)] = True
        return allowed
