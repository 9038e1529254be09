"""The text of each token of a canvas, for displays."""

from __future__ import annotations

import codecs
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mlx_diffusiongemma.text.tokenizer import Tokenizer


class Pieces:
    """Maps token ids to the text that each of them adds. Special tokens are spelled out.

    If several byte tokens make one character, the first gets the character and the others get an empty text.
    Invalid bytes become U+FFFD.
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
                    begun = position if text else begun  # an invalid sequence ended, and a new one begins
                else:  # no byte is pending: one character, perhaps after invalid bytes
                    self._spread(text[:-1], texts, begun)
                    texts[position if len(text) > 1 else begun] += text[-1:]
            else:
                self._spread(utf8.decode(b"", final=True), texts, begun)
                texts[position] = self._piece(token)
        self._spread(utf8.decode(b"", final=True), texts, begun)
        return texts

    @staticmethod
    def _spread(characters: str, texts: list[str], begun: int) -> None:
        """Add one character to each token from `begun` on. (Python turns ED A0 into two U+FFFD at once.)"""
        for place, character in enumerate(characters, begun):
            texts[place] += character

    def _piece(self, token: int) -> str:
        if token not in self._known:
            decode = self._tokenizer.decode  # decode two, because some decoders strip the first space
            self._known[token] = decode([token, token])[len(decode([token])) :]
        return self._known[token]
