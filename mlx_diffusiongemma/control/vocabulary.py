"""The tokens of a tokenizer for grammars: their texts, and which of them are not text."""

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
    """The tokens of a tokenizer for grammars, with the model's vocabulary size and stop ids.

    size: size of the model's vocabulary, which may exceed the tokenizer's.
    text: bool `[size]`, True for ids that spell text.
    stop_ids: ids that are allowed where a grammar is complete.
    stop: the stop id that a completion ends with.
    """

    backend: LLTokenizer
    size: int
    text: np.ndarray
    stop_ids: frozenset[int]
    stop: int

    def spelling(self, ids: Sequence[int]) -> bytes:
        """Return the bytes that `ids` spell."""
        return bytes(self.backend.decode_bytes(list(ids)))

    def spell(self, text: bytes) -> list[int]:
        """Return the tokenizer's ids of `text`."""
        return [int(token) for token in self.backend.tokenize_bytes(text)]

    def spells(self, text: str) -> bool:
        """Return True if the tokenizer's ids of `text` are text tokens and spell it."""
        ids = self.spell(text.encode())
        return self.are_text(ids) and self.spelling(ids) == text.encode()

    @cached_property
    def letters(self) -> np.ndarray:
        """Tokens that each spell one lowercase letter, int `[n]`."""
        return self.singles(bytes([byte]) for byte in range(ord("a"), ord("z") + 1))

    @cached_property
    def few(self) -> np.ndarray:
        """Tokens that suffice to end most texts, int `[n]`: brackets, other marks, blanks, a few letters."""
        closing = [
            "".join(marks).encode() for count in (1, 2, 3, 4) for marks in product('"]})', repeat=count)
        ]
        spelled = [text for text in closing if text.count(b'"') < 2]
        spelled += [b" " * 2**count for count in range(4, -1, -1)]
        spelled += [bytes([byte]) for byte in range(32, 127) if not chr(byte).isalnum()]
        return self.singles([*spelled, b"\n", b"a", b"A", b"0", b"1"])

    @cached_property
    def single_bytes(self) -> np.ndarray:
        """Tokens that each spell a single byte, int `[n]`."""
        return self.singles(bytes([byte]) for byte in range(256))

    def singles(self, spelled: Iterable[bytes]) -> np.ndarray:
        """Return the tokens of those texts in `spelled` that are a single token, int `[n]`."""
        ids: dict[int, None] = {}
        for data in spelled:
            tokens = self.backend.greedy_tokenize(data.decode()) if data.isascii() else self.spell(data)
            if len(tokens) == 1 and self.are_text(tokens):
                ids[int(tokens[0])] = None
        return np.array(list(ids), dtype=np.int64)

    def are_text(self, ids: Sequence[int]) -> bool:
        """Return True if every one of `ids` spells text, see the attribute `text`."""
        return all(token < self.size and self.text[token] for token in ids)


# Vocabularies are kept, because building a large one is slow.
_vocabularies: WeakKeyDictionary[Tokenizer, dict[tuple[int, ...], Vocabulary]] = WeakKeyDictionary()


def vocabulary_of(tokenizer: Tokenizer, vocab_size: int, stop_ids: Sequence[int]) -> Vocabulary:
    """Return the vocabulary of a tokenizer, which is built once. vocab_size: vocabulary size of the model."""
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
        # Hidden tokens do not appear in the text of an answer.
        hidden = [token for token in (*tokenizer.hidden_ids, *stop_ids) if token < vocab_size]
        text[hidden] = False
        stop = tokenizer.turn_end(stop_ids, vocab_size)
        allowed = frozenset(token for token in stop_ids if token < vocab_size)
        known[key] = Vocabulary(backend, vocab_size, text, allowed, stop)
    return known[key]
