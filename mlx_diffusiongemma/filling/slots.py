"""The positions of a template's text: which tokens are fixed, and which may fill the holes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import groupby
from typing import Literal, NamedTuple

import numpy as np

from ..errors import InputError
from ..ops import FREE
from ..text.channels import TextStream
from ..text.tokenizer import Tokenizer
from .template import Hole


class Slot(NamedTuple):
    """One position of the text.

    pin: the token of the position, or `FREE` in a hole.
    part: index of the template's part that has this position.
    begins: restricts the token's text. "space": begins with the space before the hole. "word": begins with
        that space and has more. "": no restriction.
    """

    pin: int
    part: int
    begins: Literal["", "space", "word"] = ""


class Slots:
    """Possible token sequences for the parts of a template.

    options: the alternatives of each part, as lists of slots, shortest first. A literal has one alternative.
        A hole has one for each length. A hole of exact length after a space has two.

    Raises `InputError` if a literal contains structural tokens.
    """

    def __init__(
        self, tokenizer: Tokenizer, parts: Sequence[str | Hole], stop_ids: Sequence[int], vocab_size: int
    ):
        self.tokenizer, self.parts = tokenizer, parts
        self.no_text = tokenizer.hidden_ids | set(stop_ids)
        self.stop = Slot(tokenizer.turn_end(stop_ids, vocab_size), len(parts) - 1)
        # The text of a token, decoded after another one, because decoders may strip a space at the beginning.
        anchor = tokenizer.encode("a")
        known = len(tokenizer.decode(anchor))
        self._text_of = lru_cache(None)(lambda token: tokenizer.decode([*anchor, token])[known:])
        # A single space before a hole belongs to the hole, because tokens of words begin with a space.
        self._spaced = [
            isinstance(part, Hole) and isinstance(before, str) and before[-1] == " " and before[-2:-1] != " "
            for before, part in zip([None, *parts], parts, strict=False)
        ]
        self.options = [self._options(index) for index in range(len(parts))]

    def _options(self, index: int) -> list[list[Slot]]:
        part = self.parts[index]
        if isinstance(part, str):
            gives_space = index + 1 < len(self.parts) and self._spaced[index + 1]
            return [self._literal(part[:-1] if gives_space else part, index)]
        lengths = [part.length] if part.exact else range(1, part.length + 1)
        if not self._spaced[index]:
            return [[Slot(FREE, index)] * length for length in lengths]
        options = []
        for length in lengths:
            # If its first token were the space alone, an exact hole would be a token short.
            first = Slot(FREE, index, "word" if part.exact or length == 1 else "space")
            options.append([first, *[Slot(FREE, index)] * (length - 1)])
        if part.exact:  # for text that needs a separate token for the space, such as digits
            options.append(self._literal(" ", index - 1) + [Slot(FREE, index)] * part.length)
        return options

    def _literal(self, text: str, index: int) -> list[Slot]:
        ids = self.tokenizer.encode(text) if text else []
        structural = next((token for token in ids if token in self.no_text), None)
        if structural is not None:
            spelled = self.tokenizer.decode([structural])
            raise InputError(f"template: {spelled!r} in it is structure, not text; leave it out")
        return [Slot(token, index) for token in ids]

    def after(self, index: int) -> list[Slot]:
        """Return the slots after a part, up to the next part with several options or through the stop id."""
        slots: list[Slot] = []
        for options in self.options[index + 1 :]:
            if len(options) > 1:
                return slots
            slots += options[0]
        return [*slots, self.stop]

    def unfit(self, slots: Sequence[Slot], ids: Sequence[int]) -> list[int]:
        """Return the positions in holes whose token is not text, or does not begin as its slot requires."""
        places = {
            place
            for place, (slot, token) in enumerate(zip(slots, ids, strict=True))
            if slot.pin == FREE and not self._is_fit(token, slot)
        }
        for run in self._byte_runs(slots, ids):
            try:
                bytes(self.tokenizer.byte_values[ids[place]] for place in run).decode()
            except UnicodeDecodeError:  # the bytes are not complete characters
                places.update(run)
        return sorted(places)

    def _byte_runs(self, slots: Sequence[Slot], ids: Sequence[int]) -> Iterator[list[int]]:
        def kind(place: int) -> tuple[bool, int]:
            is_byte = slots[place].pin == FREE and ids[place] in self.tokenizer.byte_values
            return is_byte, slots[place].part

        for (is_byte, _), run in groupby(range(len(ids)), key=kind):
            if is_byte:
                yield list(run)

    def _is_fit(self, token: int, slot: Slot) -> bool:
        if token in self.no_text or token >= self.tokenizer.vocab_size:
            return False
        text = self._text_of(token) if slot.begins else ""
        return not slot.begins or (text[:1] == " " and (slot.begins == "space" or bool(text.strip())))

    def best(self, scores: np.ndarray, slot: Slot) -> int:
        """Return the fitting token with the best of `scores [V]`, never a single byte of a character."""
        for token in np.argsort(-scores, kind="stable").tolist():
            if self._is_fit(token, slot) and token not in self.tokenizer.byte_values:
                return int(token)
        return self.tokenizer.encode(" ")[0]  # if no token has a space and more, use the space alone

    def texts(self, written: Sequence[Sequence[int]]) -> list[str]:
        """Return the text of each part: a literal as in the template, a hole from its `written` ids."""
        stream = TextStream(self.tokenizer)
        texts = []
        for part, spaced, ids in zip(self.parts, self._spaced, written, strict=True):
            text = stream.feed([token for token in ids if token not in self.no_text]) + stream.finish()
            if isinstance(part, str):
                texts.append(part)
            else:
                texts.append(text[1:] if spaced and text[:1] == " " else text)
        return texts
