"""Token ids as viewers show them, one by one."""

from __future__ import annotations

import codecs
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mlx_diffusiongemma.text.tokenizer import Tokenizer


class Pieces:
    """Maps ids to the text that each of them adds. Special tokens are spelled out.

    A character of several byte tokens stands with the first of them, and the others are empty. Bytes that
    spell no character are U+FFFD.
    """

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer = tokenizer
        self._known: dict[int, str] = {}

    def __call__(self, ids: Iterable[int]) -> list[str]:
        byte_values, texts, begun = self._tokenizer.byte_values, list[str](), 0
        utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        for position, token in enumerate(map(int, ids)):
            texts.append("")
            if token in byte_values:
                if not utf8.getstate()[0]:
                    begun = position
                text = utf8.decode(bytes([byte_values[token]]))
                if utf8.getstate()[0]:
                    self._spread(text, texts, begun)
                    begun = position if text else begun  # what was broken ended where another begins
                else:  # all bytes are used up: one character of several, or broken ones before the last
                    self._spread(text[:-1], texts, begun)
                    texts[position if len(text) > 1 else begun] += text[-1:]
            else:
                self._spread(utf8.decode(b"", final=True), texts, begun)
                texts[position] = self._piece(token)
        self._spread(utf8.decode(b"", final=True), texts, begun)
        return texts

    @staticmethod
    def _spread(characters: str, texts: list[str], begun: int) -> None:
        """Add one character to each token. (Python keeps ED A0 back, then gives two U+FFFD at once.)"""
        for place, character in enumerate(characters, begun):
            texts[place] += character

    def _piece(self, token: int) -> str:
        if token not in self._known:
            decode = self._tokenizer.decode  # of two, because some decoders strip the first one's space
            self._known[token] = decode([token, token])[len(decode([token])) :]
        return self._known[token]
