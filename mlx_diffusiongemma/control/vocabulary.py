"""A tokenizer's tokens as grammars see them: which text each spells, and which are text at all."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from weakref import WeakKeyDictionary

import numpy as np
from llguidance import LLTokenizer

from ..console.messages import one_line
from ..errors import TokenizerError
from ..text.tokenizer import Tokenizer


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """The tokens as grammars see them; one per tokenizer, size and stop ids.

    size: of the model's vocabulary, which may exceed the tokenizer's. text: bool `[size]`, the ids that spell
    text. stop_ids: allowed where a grammar is complete. stop: the one that is written there.
    """

    backend: LLTokenizer
    size: int
    text: np.ndarray
    stop_ids: frozenset[int]
    stop: int

    def spelling(self, ids: Sequence[int]) -> bytes:
        """The bytes that `ids` spell."""
        return bytes(self.backend.decode_bytes(list(ids)))

    def spell(self, text: bytes) -> list[int]:
        """The ids that the tokenizer gives `text`."""
        return [int(token) for token in self.backend.tokenize_bytes(text)]

    def spells(self, text: str) -> bool:
        """True if the ids that the tokenizer gives `text` are text, and spell it."""
        ids = self.spell(text.encode())
        return self.are_text(ids) and self.spelling(ids) == text.encode()

    @cached_property
    def letters(self) -> np.ndarray:
        """int `[n]`: the tokens of single small letters."""
        return self.singles(bytes([byte]) for byte in range(ord("a"), ord("z") + 1))

    @cached_property
    def few(self) -> np.ndarray:
        """int `[n]`: tokens that reach the end of most texts: closing marks, other marks, some letters."""
        closing = [
            "".join(marks).encode() for count in (1, 2, 3, 4) for marks in product('"]})', repeat=count)
        ]
        spelled = [text for text in closing if text.count(b'"') < 2]
        spelled += [b" " * 2**count for count in range(4, -1, -1)]
        spelled += [bytes([byte]) for byte in range(32, 127) if not chr(byte).isalnum()]
        return self.singles([*spelled, b"\n", b"a", b"A", b"0", b"1"])

    @cached_property
    def single_bytes(self) -> np.ndarray:
        """int `[n]`: the tokens of single bytes."""
        return self.singles(bytes([byte]) for byte in range(256))

    def singles(self, spelled: Iterable[bytes]) -> np.ndarray:
        """int `[n]`: those of the spellings that one token has."""
        ids: dict[int, None] = {}
        for data in spelled:
            found = self.backend.greedy_tokenize(data.decode()) if data.isascii() else self.spell(data)
            if len(found) == 1 and self.are_text(found):
                ids[int(found[0])] = None
        return np.array(list(ids), dtype=np.int64)

    def are_text(self, ids: Sequence[int]) -> bool:
        """True if all of `ids` spell text. llguidance does not know which tokens are hidden."""
        return all(token < self.size and self.text[token] for token in ids)


# Building one takes long where there are many tokens.
_vocabularies: WeakKeyDictionary[Tokenizer, dict[tuple[int, ...], Vocabulary]] = WeakKeyDictionary()


def vocabulary_of(tokenizer: Tokenizer, vocab_size: int, stop_ids: Sequence[int]) -> Vocabulary:
    """Return the vocabulary of a tokenizer, made once. vocab_size: of the model."""
    known = _vocabularies.setdefault(tokenizer, {})
    key = (vocab_size, *stop_ids)
    if key not in known:
        try:
            backend = LLTokenizer(
                tokenizer.to_json(), n_vocab=max(vocab_size, tokenizer.vocab_size), eos_token=list(stop_ids)
            )
        except ValueError as error:
            raise TokenizerError(f"tokenizer: llguidance cannot use it ({one_line(error)})") from error
        text = np.arange(vocab_size) < tokenizer.vocab_size
        # What the tokenizer hides would be missing in the text of the answer.
        hidden = [token for token in (*tokenizer.hidden_ids, *stop_ids) if token < vocab_size]
        text[hidden] = False
        stop = tokenizer.turn_end(stop_ids, vocab_size)
        allowed = frozenset(token for token in stop_ids if token < vocab_size)
        known[key] = Vocabulary(backend, vocab_size, text, allowed, stop)
    return known[key]
